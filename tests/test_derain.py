"""A user's own pictures and videos: they come out as what they went in, or one line says why."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, expected
from PIL import Image
from test_ranks import run_ranks
from test_videos import frames, write_video

from actions import derain
from actions.derain import plan_jobs
from engine.derainer import Derainer
from media.pictures import read_picture, to_uint8
from report import page
from settings import UserError
from system import machine, progress

DERAIN = ("-a", "derain", "-m", "latest", "--device", "cpu")


def test_a_picture_to_a_file_and_to_a_folder(run, model, rainy):
    cv2.imwrite("a.png", rainy)
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "deep/er/b.png")
    assert (status, err) == (0, "")
    weights, summary = out.splitlines()
    assert weights.startswith("model/latest, step 4, on ")
    assert summary == "1 of 1 derained: deep/er/b.png"
    assert os.listdir("deep/er") == ["b.png"]
    assert np.array_equal(cv2.imread("deep/er/b.png"), to_uint8(expected(rainy)))
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "folder")
    assert (status, err) == (0, "")
    assert sorted(os.listdir("folder")) == ["a.png", "index.html", "index_files"]
    assert np.array_equal(cv2.imread("folder/a.png"), cv2.imread("deep/er/b.png"))
    assert "1 of 1 derained; open folder/index.html" in out


def test_the_demo_weights_warn_that_they_know_synthetic_rain_alone(run, rainy):
    cv2.imwrite("a.png", rainy)
    demo = ("-a", "derain", "-m", "demo", "--model-dir", ROOT / "model", "--device", "cpu")
    status, _, err = run(*demo, "-i", "a.png", "-o", "b.png")
    assert status == 0
    assert err.startswith("main.py: warning: model/demo was trained on synthetic rain only")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("options", "parts"), [((), 4), (("--self-ensemble", 2), 8)])
def test_a_single_picture_shows_progress_where_it_takes_long(
    run, model, rainy, monkeypatch, options, parts
):
    monkeypatch.setattr(derain, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    cv2.imwrite("a.png", rainy)
    _, out, _ = run(*DERAIN, "-i", "a.png", "-o", "b.png", *options)
    counts = [f"{n}/{parts} parts" for n in range(1, parts + 1)]
    assert [line.split("  ")[0] for line in out.splitlines() if " parts" in line] == counts
    monkeypatch.setattr(derain, "PROGRESS_SECONDS", 1000.0)
    _, out, _ = run(*DERAIN, "-i", "a.png", "-o", "b.png", *options)
    assert "parts" not in out


def test_parts_of_tiles_are_counted(model, rainy):
    derainer = Derainer.load(Path("model/latest"), torch.device("cpu"), views=2, tile=30)
    counts = []
    derainer.derain(rainy, on_progress=lambda *count: counts.append(count))
    total = derainer.count_parts(*rainy.shape[:2])
    assert total == 4 * 2 * 2 * 3
    assert counts == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("name", ["photo.dat", "photo", "photo.mp4", "photo.gif"])
def test_a_picture_that_is_named_is_read_whatever_its_suffix(run, model, rainy, name):
    Image.fromarray(rainy).save(name, "JPEG", quality=95)
    status, _, err = run(*DERAIN, "-i", name, "-o", "out/")
    assert (status, err) == (0, "")
    assert Image.open(f"out/{name}.png").size == rainy.shape[1::-1]
    assert run(*DERAIN, "-i", name, "-o", "b.jpg")[0] == 0


@pytest.mark.parametrize("target", ["results-1.5", "rain.d", "my.results", "new.gif/", "old.gif"])
@pytest.mark.parametrize("source", ["a.png", "in"])
def test_folders_may_have_a_dot_in_their_names(tmp_path, source, target):
    for name in ("a.png", "in/a.png", "old.gif/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    jobs, folder, _, _ = plan_jobs(source, target)
    assert folder == Path(target)
    assert [job.target for job in jobs] == [Path(target) / "a.png"]


def test_kinds_are_kept(run, model, rainy):
    alpha = np.random.default_rng(0).integers(0, 256, rainy.shape[:2], np.uint8)
    grey = cv2.cvtColor(rainy, cv2.COLOR_BGR2GRAY)
    Path("in").mkdir()
    cv2.imwrite("in/alpha.png", np.dstack([rainy, alpha]))
    cv2.imwrite("in/grey.tif", grey)
    cv2.imwrite("in/deep.png", rainy.astype(np.uint16) * 257)
    cv2.imwrite("in/photo.webp", rainy, [cv2.IMWRITE_WEBP_QUALITY, 101])
    status, _, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert (status, err) == (0, "")
    found = cv2.imread("out/alpha.png", cv2.IMREAD_UNCHANGED)
    assert np.array_equal(found[..., :3], to_uint8(expected(rainy)))
    assert np.array_equal(found[..., 3], alpha)
    found = cv2.imread("out/grey.tif", cv2.IMREAD_UNCHANGED)
    three = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    assert np.array_equal(found, to_uint8(cv2.cvtColor(expected(three), cv2.COLOR_BGR2GRAY)))
    found = cv2.imread("out/deep.png", cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint16
    assert np.array_equal(found, np.rint(expected(rainy) * 65535).astype(np.uint16))
    assert len(np.unique(found % 257)) > 100  # of its own depth, not 8 bits stretched
    assert np.array_equal(cv2.imread("out/photo.webp"), to_uint8(expected(rainy)))


def test_a_folder_keeps_its_structure_and_a_bad_file_stops_no_other(run, model, rainy):
    for name in ("in/b.png", "in/x/y/a.png", "in/x/c d.JPG", "in/x/y/cut.png", "in/.hidden.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rainy).save(name)
    data = Path("in/x/y/cut.png").read_bytes()
    Path("in/x/y/cut.png").write_bytes(data[:200])
    Path("in/notes.txt").write_text("skipped")
    status, out, err = run(*DERAIN, "-i", "in", "-o", "in/out")
    assert status == 2
    assert err.startswith("main.py: in/x/y/cut.png: not an image that can be read, or damaged (200")
    assert err.count("\n") == 1
    assert "3 of 4 derained" in out
    assert "skipped 1 unsupported file (.txt)\n" in out
    found = sorted(str(p.relative_to("in/out")) for p in Path("in/out").rglob("*") if p.is_file())
    pictures = [name for name in found if not name.startswith("index")]
    assert pictures == ["b.png", "x/c d.JPG", "x/y/a.png"]
    kinds = ("derained.js", "mask.js", "rainy.js", "thumb.jpg")
    assert [name for name in found if name.startswith("index")] == [
        "index.html", *(f"index_files/{i:06d}-{kind}" for i in (0, 1, 2) for kind in kinds)
    ]  # fmt: skip
    # Again: the results, which lie within the input, are not derained once more.
    os.remove("in/x/y/cut.png")
    status, out, _ = run(*DERAIN, "-i", "in", "-o", "in/out")
    assert (status, "3 of 3 derained" in out) == (0, True)


def test_several_inputs_go_to_one_folder_in_natural_order(run, model, rainy):
    for name in ("a.png", "b.jpg", "set/img10.png", "set/img2.png", "set/10/x.png", "set/9/x.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, rainy)
    status, out, err = run(*DERAIN, "-i", "b.jpg", "a.png", "set", "-o", "out")
    assert (status, err) == (0, "")
    names = ["b.jpg", "a.png", "set/img2.png", "set/img10.png", "set/9/x.png", "set/10/x.png"]
    assert [job.name for job in plan_jobs(("b.jpg", "a.png", "set"), "out")[0]] == names
    assert "6 of 6 derained" in out
    assert all(Path("out", name).exists() for name in names)
    page = Path("out/index.html").read_text()
    assert [page.index(f'"name": "{name}"') for name in names] == sorted(
        page.index(f'"name": "{name}"') for name in names
    )
    assert "<h1>SPANet: b.jpg, a.png, set, derained by latest</h1>" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "-a derain -i a.png set -o new.png",
            "-o: new.png is the name of a file; expected a folder",
        ),
        ("-a derain -i a.png set/a.png -o out", "-o: out/a.png is written twice; expected another"),
        ("-a derain -i a.png none.png -o out", "-i: none.png: no such file or folder"),
        ("-a derain -i a.png . -o .", "-o: . is the input; expected another folder"),
        (
            "-a clean -i a.mp4 b.mp4 -o c.png",
            "--input: several; expected one for -a clean",
        ),
    ],
)
def test_several_inputs_that_do_not_fit_are_one_line(run, model, rainy, words, message):
    Path("set").mkdir()
    cv2.imwrite("a.png", rainy)
    cv2.imwrite("set/a.png", rainy)
    status, _, err = run(*words.split())
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"main.py: {message}")
    assert not Path("out").exists()


def age(path: str, seconds: float) -> None:
    """Date a file back by so many seconds."""
    moment = Path(path).stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def test_existing_results_are_skipped_if_they_are_newer_than_source_and_weights(
    run, model, rainy, monkeypatch
):
    derained, derain_image = [], Derainer.derain
    monkeypatch.setattr(
        Derainer, "derain", lambda *a, **k: derained.append(a[2]) or derain_image(*a, **k)
    )
    Path("in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(f"in/{name}", rainy)
        age(f"in/{name}", 100)
    age("model/latest", 100)
    words = (*DERAIN, "-i", "in", "-o", "out", "--skip-existing")
    assert "3 of 3 derained" in run(*words)[1]
    derained.clear()
    os.remove("out/a.png")
    age("out/b.png", 1000)  # older than its source
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert "1 of 3 results are newer than source and weights\n" in out
    assert "2 of 3 derained; open out/index.html" in out
    assert sorted(derained) == ["in/a.png", "in/b.png"]
    data = Path("out/index.html").read_text()
    assert all(f'"name": "{name}.png"' in data for name in "abc")
    assert Path("out/index_files/000002-derained.js").exists()
    derained.clear()
    age("model/latest", -1000)  # trained on
    assert "3 of 3 derained" in run(*words)[1]
    assert len(derained) == 3
    age("model/latest", 2000)
    Path("out/c.png").write_bytes(b"")
    status, _, err = run(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("main.py: out/c.png: not an image that can be read")
    cv2.imwrite("out/c.png", rainy[1:])
    assert "out/c.png: is no result of in/c.png; expected none, or its own" in run(*words)[2]


def test_a_page_that_cannot_show_earlier_results_ends_the_run_with_one_line(run, model, rainy):
    Path("in").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(f"in/{name}", rainy)
        age(f"in/{name}", 100)
    age("model/latest", 100)
    words = (*DERAIN, "-i", "in", "-o", "out", "--skip-existing")
    assert run(*words, "--no-page")[0] == 0
    Path("out/index_files").touch()  # where a folder should be
    status, out, err = run(*words)
    assert (status, err.count("\n"), "derained" in out) == (2, 1, False)
    assert err.startswith("main.py: out/index_files/000000-rainy.js: cannot be written: ")


def test_seconds_are_those_of_the_network_in_a_test_and_of_a_picture_that_is_derained(
    run, model, rainy, monkeypatch
):
    derain_image = Derainer.derain

    def derain(*words, **options):
        output = derain_image(*words, **options)
        assert 0 < output.seconds < 1000
        output.seconds = 7.5
        return output

    monkeypatch.setattr(Derainer, "derain", derain)
    Path("in").mkdir()
    cv2.imwrite("in/a.png", rainy)
    Path("list.txt").write_text("in/a.png\n")
    assert run(*DERAIN, "-i", "in", "-o", "out")[0] == 0
    assert run("-a", "test", "--test-list", "list.txt", "--device", "cpu")[0] == 0
    for folder in ("out", "results"):  # attention, change, seconds, frames
        (values,) = re.findall(r'"values": \[([^]]+)\]', Path(folder, page.PAGE).read_text())
        assert values.split(", ")[2] == "7.5"


def test_a_part_of_a_video_never_counts_as_the_whole(run, unchanged):
    Path("in").mkdir()
    write_video("in/v.mkv", codec="ffv1")
    age("in/v.mkv", 100)
    age("model/latest", 100)
    words = (*DERAIN, "-i", "in", "-o", "out", "--skip-existing")
    assert run(*words, "--frames", 4)[0] == 0
    assert "1 of 1 derained" in run(*words)[1]
    assert len(frames("out/v.mkv")[0]) == 9
    status, out, _ = run(*words)
    assert (status, "0 of 1 derained; open out/index.html" in out) == (0, True)
    assert '"frames"' in Path("out/index.html").read_text()
    assert Path("out/index_files/000000-derained.js").exists()


def test_without_a_page_only_results_are_written(run, model, rainy):
    Path("in").mkdir()
    cv2.imwrite("in/a.png", rainy)
    Path("out").mkdir()
    Path("out/index.html").write_text("my own")
    status, out, err = run(*DERAIN, "-i", "in", "-o", "out", "--no-page")
    assert (status, err) == (0, "")
    assert "1 of 1 derained: out\n" in out
    assert sorted(os.listdir("out")) == ["a.png", "index.html"]
    assert Path("out/index.html").read_text() == "my own"
    out = run(*DERAIN, "-i", "in", "-o", "out", "--no-page", "--skip-existing")[1]
    assert "0 of 1 derained\n" in out


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "out", "-i: expected a picture, a video or a folder of them"),
        ("a.png", "", "-o: expected a file or a folder to write"),
        ("none.png", "out", "-i: none.png: no such file or folder"),
        ("notes.txt", "out", "-i: notes.txt: neither picture nor video; expected one of .264, "),
        ("a.png", "a.png", "-o: a.png is an input; expected another folder or name"),
        ("a.png", ".", "-o: a.png is an input; expected another folder or name"),
        ("in", "in", "-o: in is the input; expected another folder"),
        ("in", "a.png", "-o: a.png is the name of a file; expected a folder, as in is one"),
        ("empty", "out", "empty: none of its 1 files is a picture or a video; expected"),
        ("a.png", "b.mp4", "-o: b.mp4: cannot write a.png as .mp4; expected one of .png, .jpg"),
        (
            "a.png",
            "b.gif",
            "-o: b.gif: cannot write a.png as .gif; expected one of .png, .jpg, .jpeg, .jfif, "
            ".webp, .tif, .tiff, .bmp, .avif, .heic, .heif, or a folder (b.gif/ makes one of that "
            "name)\n",
        ),
        (
            "a.png",
            "new/b.JP2",
            "-o: new/b.JP2: cannot write a.png as .JP2; expected one of .png, .jpg",
        ),
        (
            "v.mp4",
            "b.gif",
            "-o: b.gif: cannot write v.mp4 as .gif; expected one of .mp4, .m4v, .mov",
        ),
        ("in", "b.gif", "-o: b.gif is the name of a file; expected a folder, as in is one"),
        ("in", "b.png", "-o: b.png is the name of a file; expected a folder, as in is one"),
        ("v.mp4", "b.png", "-o: b.png: cannot write v.mp4 as .png; expected one of .mp4"),
        ("v.mp4", "b.avi", "-o: b.avi: cannot write v.mp4 as .avi; expected one of .mp4"),
        ("v.mp4", "b.mp4", "v.mp4: not a video that can be read: no frame in it"),
        ("cut.png", "b.png", "cut.png: not an image that can be read, or damaged"),
        ("alpha.png", "b.jpg", "b.jpg: JPEG cannot hold the input's transparency"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, model, rainy, source, target, message):
    for name in ("in/c.png", "a.png", "empty/notes.txt", "notes.txt", "v.mp4", "cut.png"):
        Path(name).parent.mkdir(exist_ok=True)
        if name in ("in/c.png", "a.png"):
            cv2.imwrite(name, rainy)
        else:
            Path(name).write_bytes(b"\x89PNG")
    Image.fromarray(np.dstack([rainy, rainy[..., 0]])).save("alpha.png")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, _, err = run(*DERAIN, "-i", source, "-o", target)
    assert status == 2
    assert err.startswith(f"main.py: {message}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_nothing_that_is_there_is_lost(run, model, rainy):
    for name in (
        "site/index.html",
        "out/in/x.png",
        "out/in/in/x.png",
        "twice/a.avi.mkv",
        "twice/a.avi",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("my own")
    cv2.imwrite("a.png", rainy)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for source, target, message in (
        (
            "a.png",
            "site",
            "site/index.html: is not a page of results; expected a folder without one",
        ),
        ("out/in", "out", "-o: out/in/x.png is an input; expected another folder or name"),
        ("twice", "new", "-o: new/a.avi.mkv is written twice; expected another folder or name"),
    ):
        status, _, err = run(*DERAIN, "-i", source, "-o", target)
        assert status == 2
        assert err.startswith(f"main.py: {message}")
        assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    # A page of ours goes, but not for input that is bad; its pictures are not derained again.
    assert run(*DERAIN, "-i", "a.png", "-o", "mine")[0] == 0
    page = Path("mine/index.html").read_bytes()
    assert run(*DERAIN, "-i", "site/index.html", "-o", "mine")[0] == 2
    assert run(*DERAIN, "-i", "out/in/x.png", "-o", "mine")[0] == 2
    assert Path("mine/index.html").read_bytes() == page
    status, out, _ = run(*DERAIN, "-i", "mine", "-o", "again")
    assert (status, "1 of 1 derained" in out) == (0, True)


def test_names_of_any_bytes(run, model, rainy):
    Path("in").mkdir()
    cv2.imwrite("plain.png", rainy)
    names = [b"\xff #%'\"<b>.png", "é".encode() * 120 + b".png"]
    for name in names:
        os.link("plain.png", os.path.join(b"in", name))
    status, out, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert (status, err) == (0, "")
    assert "2 of 2 derained" in out
    assert set(names) < set(os.listdir(b"out"))
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert "%FF%20%23%25%27%22%3Cb%3E.png" in page
    assert "\ufffd #%'" in page


def test_a_note_on_tiles_appears_once_if_there_are_some(run, model, rainy):
    Path("in").mkdir()
    for name, size in (("a", (30, 20)), ("b", (90, 70)), ("c", (90, 70))):
        cv2.imwrite(f"in/{name}.png", cv2.resize(rainy, size))
    Path("list.txt").write_text("in/a.png\nin/b.png\nin/c.png\n")
    note = "on a sample of 64x64 pixels, tiles of 32 come within "
    _, out, _ = run(*DERAIN, "-i", "in", "-o", "out", "--tile", 64)
    assert out.count(note) == 1
    words = ("-a", "test", "-m", "latest", "--test-list", "list.txt", "--device", "cpu")
    assert run(*words, "--tile", 64)[1].count(note) == 1
    assert note not in run(*words)[1]


def test_plan_names_videos_of_other_kinds_anew(tmp_path):
    for name in ("a.avi", "a.mp4", "sub/b.MTS"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    jobs, folder, note, complaints = plan_jobs(str(tmp_path / "in"), str(tmp_path / "out"))
    assert [str(job.target.relative_to(folder)) for job in jobs] == [
        "a.avi.mkv", "a.mp4", "sub/b.MTS.mkv",
    ]  # fmt: skip
    assert (note, complaints) == ("", [])
    with pytest.raises(UserError, match="expected a file or a folder"):
        plan_jobs(str(tmp_path / "in"), "")


def test_a_picture_too_large_is_refused_with_what_it_needs(run, model, rainy, monkeypatch):
    cv2.imwrite("a.png", cv2.resize(rainy, (200, 150)))
    whole = to_uint8(expected(cv2.imread("a.png")))
    monkeypatch.setattr(machine, "free_memory", lambda: 30 * 2**20)
    status, _, err = run(*DERAIN, "-i", "a.png", "-o", "b.png", "--tile", 0)
    assert status == 2
    assert err.startswith("main.py: a.png: 200x150 pixels need about 0.0396 GiB of memory on cpu, ")
    assert err.endswith("0.0293 GiB are free; expected a smaller image, or --tile 128\n")
    assert not Path("b.png").exists()
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "auto.png")
    assert (status, err) == (0, "")
    assert (
        out.count("too large for the memory, so in tiles of 128; tiles are an approximation") == 1
    )
    assert run(*DERAIN, "-i", "a.png", "-o", "b.png", "--tile", 128)[0] == 0
    assert Path("auto.png").read_bytes() == Path("b.png").read_bytes()
    monkeypatch.setattr(machine, "free_memory", lambda: 2**20)
    status, _, err = run(*DERAIN, "-i", "a.png", "-o", "auto.png")
    assert status == 2
    assert err.startswith("main.py: a.png: 200x150 pixels need about 0.00")
    assert err.endswith("0.000977 GiB are free; expected a smaller image\n")
    monkeypatch.setattr(machine, "free_memory", lambda: 30 * 2**20)
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "b.png", "--tile", 80)
    assert (status, err) == (0, "")
    assert "on a sample of 80x80 pixels, tiles of 40 come within " in out
    assert " dB PSNR of the whole (more is closer)\n" in out
    tiled = cv2.imread("b.png")
    assert np.abs(tiled.astype(int) - whole).mean() < 2


def test_self_ensemble_is_used(run, model, rainy):
    cv2.imwrite("a.png", rainy)
    assert run(*DERAIN, "-i", "a.png", "-o", "b.png", "--self-ensemble", 4)[0] == 0
    found = cv2.imread("b.png")
    assert np.array_equal(found, to_uint8(expected(rainy, views=4)))
    assert not np.array_equal(found, to_uint8(expected(rainy)))
    status, _, err = run(*DERAIN, "-i", "a.png", "-o", "b.png", "--self-ensemble", 3)
    assert (status, err) == (2, "main.py: --self-ensemble: 3; expected 1, 2 or 4\n")


def test_two_ranks_derain_as_one(run, model, rainy):
    Path("in").mkdir()
    for index in range(3):
        cv2.imwrite(f"in/{index}.png", rainy[:, index:])
    write_video("in/v.mkv", codec="ffv1")
    Path("in/bad.png").write_bytes(b"")
    words = (*DERAIN, "--num-threads", 1, "-i", "in")
    status, _, err = run(*words, "-o", "one")
    assert status == 2
    done = run_ranks(2, *words, "-o", "two")
    assert done.returncode == 2
    assert done.stderr.count("in/bad.png: not an image") == 1
    assert err.count("in/bad.png: not an image") == 1
    assert "4 of 5 derained" in done.stdout
    names = [str(path.relative_to("one")) for path in Path("one").rglob("*") if path.is_file()]
    assert len(names) == 4 + 1 + 16
    for name in names:
        if name == "v.mkv":
            for one, two in zip(frames("one/v.mkv")[0], frames("two/v.mkv")[0], strict=True):
                assert np.array_equal(one, two)
        elif name != page.PAGE and "000004" not in name:  # a video shows a frame of rank 0
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    assert read_picture(Path("two/0.png")).colour.shape == (36, 48, 3)
