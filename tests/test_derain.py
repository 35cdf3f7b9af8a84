"""A user's own pictures and videos: they come out as what they went in, or one line says why."""

import os
import signal
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import command
from PIL import Image
from test_ranks import finish, torchrun

import machine
import report
from derain import plan
from metrics import to_uint8
from pictures import read_picture
from session import Session
from settings import Settings, UserError
from synthetic_rain import Rain, add_rain, photograph
from transcode import Source

DERAIN = ("-a", "derain", "-m", "latest", "--device", "cpu")


@pytest.fixture
def rainy() -> np.ndarray:
    clean = cv2.resize(photograph("coffee"), (48, 36), interpolation=cv2.INTER_AREA)
    return add_rain(clean, [Rain(20, 10, 8, 1, 90, 0.5)], np.random.default_rng(0))


def expected(image: np.ndarray, **settings) -> np.ndarray:
    session = Session(Settings("derain", device="cpu", **settings))
    session.load("latest", resume=False)
    return session.derain(image)[0]


def test_a_picture_to_a_file_and_to_a_folder(run, model, rainy):
    cv2.imwrite("a.png", rainy)
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "deep/er/b.png")
    assert (status, err) == (0, "")
    assert out == "deep/er/b.png: derained\n"
    assert os.listdir("deep/er") == ["b.png"]
    assert np.array_equal(cv2.imread("deep/er/b.png"), to_uint8(expected(rainy)))
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "folder")
    assert (status, err) == (0, "")
    assert sorted(os.listdir("folder")) == ["a.png", "index.html", "index_files"]
    assert np.array_equal(cv2.imread("folder/a.png"), cv2.imread("deep/er/b.png"))
    assert "1 of 1 derained; open folder/index.html" in out


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
    Path("in/notes.txt").write_text("passed over")
    status, out, err = run(*DERAIN, "-i", "in", "-o", "in/out")
    assert status == 2
    assert err == "main.py: in/x/y/cut.png: not an image, or damaged (200 bytes); " \
        "expected PNG, JPEG, WebP, TIFF or BMP\n"  # fmt: skip
    assert "3 of 4 derained" in out
    assert "1 file of another kind passed over" in out
    found = sorted(str(p.relative_to("in/out")) for p in Path("in/out").rglob("*") if p.is_file())
    pictures = [name for name in found if not name.startswith("index")]
    assert pictures == ["b.png", "x/c d.JPG", "x/y/a.png"]
    kinds = ("after", "before", "mask", "thumb")
    assert [name for name in found if name.startswith("index")] == [
        "index.html", *(f"index_files/{i:06d}-{kind}.jpg" for i in (0, 1, 2) for kind in kinds)
    ]  # fmt: skip
    # Again: the results, which lie within the input, are not derained once more.
    os.remove("in/x/y/cut.png")
    status, out, _ = run(*DERAIN, "-i", "in", "-o", "in/out")
    assert (status, "3 of 3 derained" in out) == (0, True)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "out", "-i: expected a picture, a video or a folder of them"),
        ("a.png", "", "-o: expected a file or a folder to write"),
        ("none.png", "out", "-i: none.png: no such file or folder"),
        ("notes.txt", "out", "-i: notes.txt: expected one of .3gp, .avi, .bmp"),
        ("a.png", "a.png", "-o: a.png is the input; expected another name"),
        ("a.png", ".", "-o: a.png is the input; expected another name"),
        ("in", "in", "-o: in is the input; expected another folder"),
        ("in", "a.png", "-o: a.png is a file; expected a folder, as in is one"),
        ("empty", "out", "empty: none of its 1 files is a picture or a video; expected"),
        ("a.png", "b.mp4", "-o: b.mp4: expected one of .png, .jpg"),
        ("v.mp4", "b.png", "-o: b.png: expected one of .mp4, .m4v"),
        ("v.mp4", "b.avi", "-o: b.avi: expected one of .mp4, .m4v"),
        ("v.mp4", "b.mp4", "v.mp4: not a video that can be read: no frame in it"),
        ("cut.png", "b.png", "cut.png: not an image, or damaged"),
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
    Image.fromarray(rainy).convert("RGBA").save("alpha.png")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    status, _, err = run(*DERAIN, "-i", source, "-o", target)
    assert status == 2
    assert err.startswith(f"main.py: {message}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_plan_names_videos_of_other_kinds_anew(tmp_path):
    for name in ("a.avi", "a.mp4", "sub/b.MTS"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    jobs, folder, passed_over = plan(str(tmp_path / "in"), str(tmp_path / "out"))
    assert [str(job.target.relative_to(folder)) for job in jobs] == [
        "a.avi.mkv", "a.mp4", "sub/b.MTS.mkv",
    ]  # fmt: skip
    assert passed_over == 0
    with pytest.raises(UserError, match="expected a file or a folder"):
        plan(str(tmp_path / "in"), "")


def test_a_picture_too_large_is_told_with_what_it_needs(run, model, rainy, monkeypatch):
    cv2.imwrite("a.png", cv2.resize(rainy, (200, 150)))
    whole = to_uint8(expected(cv2.imread("a.png")))
    monkeypatch.setattr(machine, "free_memory", lambda: 30 * 2**20)
    status, _, err = run(*DERAIN, "-i", "a.png", "-o", "b.png")
    assert status == 2
    assert err.startswith("main.py: a.png: 200x150 pixels need about 0.0535 GiB of memory on cpu, ")
    assert err.endswith("0.0293 GiB are free; expected a smaller image, or --tile 1024\n")
    assert not Path("b.png").exists()
    status, out, err = run(*DERAIN, "-i", "a.png", "-o", "b.png", "--tile", 80)
    assert (status, err) == (0, "")
    assert "a sample of 80x80 pixels in tiles of 40 is " in out
    assert " dB from the same whole\n" in out
    tiled = cv2.imread("b.png")
    assert np.abs(tiled.astype(int) - whole).mean() < 2


def test_self_ensemble_is_used(run, model, rainy):
    cv2.imwrite("a.png", rainy)
    assert run(*DERAIN, "-i", "a.png", "-o", "b.png", "--self-ensemble", 4)[0] == 0
    found = cv2.imread("b.png")
    assert np.array_equal(found, to_uint8(expected(rainy, self_ensemble=4)))
    assert not np.array_equal(found, to_uint8(expected(rainy)))
    status, _, err = run(*DERAIN, "-i", "a.png", "-o", "b.png", "--self-ensemble", 3)
    assert (status, err) == (2, "main.py: --self-ensemble: 3; expected 1, 2 or 4\n")


def write_video(path, size=(48, 36), frames=9, sound=True, times=None, codec="libx264") -> None:
    """A video whose frames move, with a tone; `times` are those of the frames, in 1/100 s."""
    rng = np.random.default_rng(0)
    base = cv2.resize(rng.integers(0, 200, (6, 6, 3), np.uint8), size)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = {"ffv1": "bgr0"}.get(codec, "yuv444p" if size[0] % 2 else "yuv420p")
        tone = file.add_stream("aac", rate=44100, layout="mono") if sound else None
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, index, 1), format="bgr24")
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, 100 if times else 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for index in range(16 if sound else 0):
            wave = np.sin(np.arange(1024) / 20, dtype=np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.rate, frame.pts = 44100, index * 1024
            file.mux(tone.encode(frame))
        if tone:
            file.mux(tone.encode(None))


def frames(path) -> tuple[list[np.ndarray], list[float]]:
    source = Source(Path(path))
    found = [item for item in source.packets() if isinstance(item, av.VideoFrame)]
    images = [source.pixels(frame) for frame in found]
    source.close()
    return images, [float(frame.time) for frame in found]


def sound(path) -> bytes:
    with av.open(str(path)) as file:
        streams = file.streams.audio
        return b"".join(bytes(packet) for packet in file.demux(streams)) if streams else b""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("odd.mkv", {"size": (35, 27)}),
        ("uneven.mp4", {"times": [0, 4, 8, 20, 24, 28, 33, 40, 41], "sound": False}),
        ("exact.mkv", {"codec": "ffv1"}),
    ],
)
def test_a_video_keeps_size_times_and_sound(run, model, name, options):
    write_video(name, **options)
    status, out, err = run(*DERAIN, "-i", name, "-o", f"out-{name}")
    assert (status, err) == (0, "")
    assert "9/9 frames" in out or out.startswith(f"out-{name}: derained")
    (before, times), (after, found) = frames(name), frames(f"out-{name}")
    assert len(after) == 9
    assert after[0].shape == before[0].shape
    # A Matroska file begins at 0, however early its sound does.
    assert np.diff(found) == pytest.approx(np.diff(times), abs=2e-3)
    assert sound(f"out-{name}") == sound(name)
    worst = max(
        np.abs(image.astype(int) - to_uint8(expected(rainy))).mean()
        for image, rainy in zip(after, before, strict=True)
    )
    assert worst == 0 if "codec" in options else worst < 2.5
    assert sorted(os.listdir()) == sorted(["model", name, f"out-{name}"])


def test_a_turned_video_is_upright(run, model):
    write_video("a.mp4", sound=False)
    with av.open("a.mp4") as source, av.open("turned.mp4", "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        target.streams.video[0].metadata["rotate"] = "90"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    matrix = b"".join(
        int(value).to_bytes(4, "big", signed=True)
        for value in (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )
    data = Path("turned.mp4").read_bytes()
    upright = b"".join(v.to_bytes(4, "big") for v in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    track = data.index(b"tkhd")
    where = data.index(upright, track)
    Path("turned.mp4").write_bytes(data[:where] + matrix + data[where + 36 :])
    before, _ = frames("turned.mp4")
    assert before[0].shape == (48, 36, 3)
    plain, _ = frames("a.mp4")
    clockwise = cv2.rotate(plain[0], cv2.ROTATE_90_CLOCKWISE)
    assert np.array_equal(before[0], clockwise)
    assert run(*DERAIN, "-i", "turned.mp4", "-o", "out.mp4")[0] == 0
    after, _ = frames("out.mp4")
    assert after[0].shape == (48, 36, 3)


def test_videos_and_pictures_of_a_folder(run, model, rainy):
    Path("in").mkdir()
    write_video("in/a.webm", codec="libvpx-vp9", sound=False)
    write_video("in/b.mp4")
    cv2.imwrite("in/c.png", rainy)
    Path("in/d.mp4").write_bytes(b"no video")
    status, out, err = run(*DERAIN, "-i", "in", "-o", "out")
    assert status == 2
    assert err == "main.py: in/d.mp4: not a video that can be read: no frame in it\n"
    assert "3 of 4 derained" in out
    names = sorted(os.listdir("out"))
    assert names == ["a.webm", "b.mp4", "c.png", "index.html", "index_files"]
    assert [len(frames(f"out/{name}")[0]) for name in names[:2]] == [9, 9]
    assert len(list(Path("out/index_files").iterdir())) == 12
    shown = cv2.imread("out/index_files/000001-before.jpg")
    assert np.abs(shown.astype(int) - frames("in/b.mp4")[0][4]).mean() < 6  # the middle one


def test_a_container_without_place_for_the_sound_says_so(run, model):
    write_video("a.mp4", frames=2)
    status, _, err = run(*DERAIN, "-i", "a.mp4", "-o", "b.webm")
    assert status == 0
    assert err == (
        "main.py: warning: b.webm: this kind of file cannot hold the input's sound, "
        "which is left out\n"
    )
    assert len(frames("b.webm")[0]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_video_can_be_played(model, number):
    write_video("long.mp4", size=(160, 120), frames=250)
    with subprocess.Popen(
        command(*DERAIN, "-i", "long.mp4", "-o", "out.mp4"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + 90
        while time.monotonic() < end and not Path(".writing-out.mp4").exists():
            time.sleep(0.05)
        time.sleep(3)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    held = int(out.split("interrupted, holds the first ")[1].split()[0])
    found, _ = frames("out.mp4")
    assert 0 < len(found) == held < 250
    assert not Path(".writing-out.mp4").exists()


def test_a_video_that_cannot_be_written_leaves_nothing(run, model, monkeypatch):
    write_video("a.mp4")
    monkeypatch.setattr("transcode.Sink.frame", lambda *_: (_ for _ in ()).throw(UserError("full")))
    status, _, err = run(*DERAIN, "-i", "a.mp4", "-o", "out.mp4")
    assert (status, err) == (2, "main.py: full\n")
    assert sorted(os.listdir()) == ["a.mp4", "model"]


def test_two_ranks_derain_as_one(run, model, rainy):
    Path("in").mkdir()
    for index in range(3):
        cv2.imwrite(f"in/{index}.png", rainy[:, index:])
    write_video("in/v.mkv", codec="ffv1")
    Path("in/bad.png").write_bytes(b"")
    words = (*DERAIN, "--num-threads", 1, "-i", "in")
    status, _, err = run(*words, "-o", "one")
    assert status == 2
    done = finish(torchrun(2, *words, "-o", "two"))
    assert done.returncode != 0  # torchrun's own, for the 2 of a bad picture
    assert done.stderr.count("in/bad.png: not an image") == 1
    assert err.count("in/bad.png: not an image") == 1
    assert "4 of 5 derained" in done.stdout
    names = [str(path.relative_to("one")) for path in Path("one").rglob("*") if path.is_file()]
    assert len(names) == 4 + 1 + 16
    for name in names:
        if name == "v.mkv":
            for one, two in zip(frames("one/v.mkv")[0], frames("two/v.mkv")[0], strict=True):
                assert np.array_equal(one, two)
        elif name != report.PAGE and "000004" not in name:  # a video shows a frame of rank 0
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    assert read_picture(Path("two/0.png")).colour.shape == (36, 48, 3)
