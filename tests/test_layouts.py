"""Folders in the layouts of public sets: what is paired, what is said, what is refused."""

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_lists import image_file

import dataset
from actions import train
from media import lists
from media.results import result_names
from settings import UserError
from system import progress

RAIN = 50  # how much brighter a rainy image is than its clean one
# A layout: what is said of it, and (rainy, clean) files.
LAYOUTS = {
    "Rain100 by its authors, in one folder": (
        "2 pairs, in one folder by number",
        [("rain-001.png", "norain-001.png"), ("rain-002.png", "norain-002.png")],
    ),
    "Rain100 in two folders": (
        "2 pairs, rain/ and norain/ by number",
        [(f"rain/rain-00{n}.png", f"norain/norain-00{n}.png") for n in (1, 2)],
    ),
    "Rain100 by its authors, clean beside": (
        "2 pairs, rain/ and the files beside by name before the scale",
        [(f"rain/X2/norain-00{n}x2.png", f"norain-00{n}.png") for n in (1, 2)],
    ),
    "Rain13K": (
        "2 pairs, input/ and target/ by name",
        [(f"train/Rain13K/input/{n}.jpg", f"train/Rain13K/target/{n}.png") for n in (1, 2)],
    ),
    "test sets of Rain13K": (
        "2 pairs, input/ and target/ by name, in 2 folders",
        [(f"{s}/input/1.png", f"{s}/target/1.png") for s in ("Rain100H", "Test100")],
    ),
    "other names": ("2 pairs, LQ/ and GT/ by name", [(f"LQ/{n}.png", f"GT/{n}.png") for n in "ab"]),
    "SPA-Data repacked": (
        "2 pairs, rainy/ and ground_truth/ by name",
        [(f"rainy/{s}/{s}_0.png", f"ground_truth/{s}/{s}_0.png") for s in ("001", "002")],
    ),
    "SPA-Data": (
        "3 pairs, real_world/ and real_world_gt/ by scene and place",
        [
            (f"real_world/00{s}/00{s}-{f}/00{s}-{f}_0_3.png", f"real_world_gt/00{s}/00{s}_0_3.png")
            for s, f in ((1, 14), (1, 15), (2, 14))
        ],
    ),
    "SPA-Data in folders with names of images": (
        "2 pairs, real_world/ and real_world_gt/ by scene and place",
        [
            (f"real_world/274/274-{f}/274-{f}_0_3.png/x-{f}.png", "real_world_gt/274/274_0_3.png")
            for f in (14, 15)
        ],
    ),
    "Rain200": (
        "2 pairs, rain/ and norain/ by name before the scale",
        [(f"rain/norain-{n}x2.png", f"norain/norain-{n}.png") for n in (1, 2)],
    ),
    "Rain200, plain numbers": (
        "2 pairs, rain/ and norain/ by name before the scale",
        [(f"rain/X2/{n}x2.png", f"norain/{n}.png") for n in (1, 2)],
    ),
    "DDN-Data": (
        "4 pairs, rainy_image/ and ground_truth/ by name before the number of the copy",
        [(f"rainy_image/{n}_{k}.jpg", f"ground_truth/{n}.jpg") for n in "12" for k in (1, 14)],
    ),
}  # fmt: skip


def flat(level: int) -> np.ndarray:
    return np.full((16, 20, 3), level, np.uint8)


def write(folder: Path, pairs: list[tuple[str, str]]) -> None:
    """Images of one level each; that of a clean one belongs to it alone."""
    truths = list(dict.fromkeys(clean for _, clean in pairs))
    for rainy, clean in pairs:
        level = 10 + 10 * truths.index(clean)
        image_file(folder / clean, flat(level))
        image_file(folder / rainy, flat(level + RAIN))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_training_and_testing_read_it(layout, said):
    line, expected = LAYOUTS[layout]
    write(Path("set"), expected)
    pairs = lists.read_list("set", True, said.append)
    found = [(str(p.rainy), str(p.clean)) for p in pairs]
    assert sorted(found) == sorted((f"set/{rainy}", f"set/{clean}") for rainy, clean in expected)
    assert said == [f"set: {line}"]
    for pair in pairs:
        rainy, clean = map(np.int64, lists.read_pair(pair))
        assert (rainy - clean == RAIN).all()
    assert pairs[1].location == "set, pair 2"


@pytest.mark.parametrize("layout", list(LAYOUTS)[:2])
def test_a_layout_trains_and_tests_by_naming_the_folder(layout, run, monkeypatch):
    line, expected = LAYOUTS[layout]
    write(Path("set"), expected)
    drawn = []

    def steps(run, pairs, val_pairs):
        drawn.extend(dataset.load_batches(pairs, run.settings, dataset.TRAINING, range(1)))
        drawn.extend(dataset.load_batches(val_pairs, run.settings, dataset.VALIDATION, range(1)))
        return 0

    monkeypatch.setattr(train, "run_steps", steps)
    options = ["--train-list", "set/", "--val-list", "set", "--patch-size", 8, "--crop", "native"]
    status, out, err = run("-a", "train", *options, "--mask-threshold", RAIN)
    assert (status, err) == (0, "")
    assert f"set: {line}\n" in out
    for batch in drawn:
        assert (batch.rainy.astype(int) - batch.clean == RAIN).all()
    words = ["--test-list", "set", "--num-workers", 0]
    status, out, err = run("-a", "test", "-m", ROOT / "model" / "demo", *words)
    assert (status, err) == (0, "")
    assert f"set: {line}\n" in out
    with open("results/metrics.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert sorted((row["rainy"], row["clean"]) for row in rows) == sorted(
        (f"set/{rainy}", f"set/{clean}") for rainy, clean in expected
    )


def test_rain100_as_two_folders_trains_and_tests(run):
    write(Path("Rain100L"), LAYOUTS["Rain100 in two folders"][1])
    small = ["--patch-size", 16, "--batch-size", 1, "--num-steps", 1, "--num-workers", 0]
    small += ["--mask-threshold", RAIN]
    status, out, err = run("-a", "train", "--train-list", "Rain100L", *small)
    assert (status, err) == (0, "")
    assert "Rain100L: 2 pairs, rain/ and norain/ by number\n" in out
    assert run("-a", "train", "--train-list", "Rain100L", *small)[0] == 0  # the list is the same
    status, out, err = run("-a", "test", "--test-list", "Rain100L", "--num-workers", 0)
    assert status == 0
    assert "Rain100L: 2 pairs, rain/ and norain/ by number\n" in out
    assert Path("results/metrics.csv").read_text().count("Rain100L/norain/norain-00") == 2


# Side by side


def write_halves() -> Path:
    for number in (1, 2):
        image = np.hstack([flat(10 * number + RAIN), flat(10 * number)])
        image_file(Path(f"did/{number}.png"), image)
    return Path("did")


@pytest.fixture
def halves() -> Path:
    return write_halves()


@pytest.mark.parametrize(("side", "rain"), [("rainy-left", RAIN), ("rainy-right", -RAIN)])
def test_halves_are_cut_when_read(halves, said, side, rain):
    pairs = lists.read_list("did", True, said.append, side_by_side=side)
    assert said == [f"did: 2 pairs, side by side, {side}"]
    for pair in pairs:
        rainy, clean = lists.read_pair(pair)
        assert rainy.shape == clean.shape == (16, 20, 3)
        assert (rainy.astype(int) - clean == rain).all()
    names = sorted(Path("did").rglob("*"))
    assert names == [Path("did/1.png"), Path("did/2.png")]


def test_halves_train_and_test(run, halves):
    with pytest.raises(UserError, match=r"^did: 2 images, no pairs .*--side-by-side if each file"):
        lists.read_list("did")
    words = ["--side-by-side", "rainy-left", "--num-workers", 0]
    status, out, err = run("-a", "test", "-m", ROOT / "model/demo", "--test-list", "did", *words)
    assert status == 0
    assert "did: 2 pairs, side by side, rainy-left\n" in out
    small = ["--train-list", "did", "--patch-size", 8, "--batch-size", 1, "--num-steps", 1]
    assert run("-a", "train", *small, *words)[0] == 0
    other = ["--side-by-side", "rainy-right", "--num-workers", 0]
    status, _, err = run("-a", "train", *small, *other)
    assert status == 2
    assert "--side-by-side is rainy-right, was rainy-left" in err


def test_an_odd_width_cannot_be_halved(halves):
    image_file(halves / "2.png", flat(0)[:, :19])
    pairs = lists.read_list("did", side_by_side="rainy-left")
    with pytest.raises(UserError) as caught:
        lists.read_pair(pairs[1])
    assert str(caught.value) == (
        "did, pair 2: did/2.png is 19 pixels wide; expected an even number, as it holds two images "
        "side by side"
    )


def test_what_side_by_side_is_not_for_is_said(said):
    write(Path("set"), [("rain/1.png", "norain/1.png")])
    Path("list.txt").write_text("set/rain/1.png set/norain/1.png\n")
    for path in ("set", "list.txt"):
        (pair,) = lists.read_list(path, True, said.append, side_by_side="rainy-left")
        assert pair.halves == ""
    assert said == [
        "set: --side-by-side is not for it: each image has a file of its own",
        "set: 1 pair, rain/ and norain/ by name",
        "list.txt: --side-by-side is not for it: it names both images of a pair",
    ]


def test_layout_is_not_for_lists(said):
    write(Path("set"), [("rain/1.png", "norain/1.png")])
    Path("list.txt").write_text("set/rain/1.png set/norain/1.png\n")
    assert len(lists.read_list("list.txt", True, said.append, layout="name")) == 1
    assert said == ["list.txt: --layout is not for it: it is a list, not a folder"]


# Names in two Unicode forms


def test_names_that_differ_in_their_unicode_form_are_one_name(said, run):
    """As in sets of which one side was packed on macOS: its accents are letters of their own."""
    apart, whole = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    write(
        Path("set"), [(f"{apart}/input/{apart}{n}.png", f"{apart}/gt/{whole}{n}.png") for n in "12"]
    )
    image_file(Path(f"set/{apart}/input/3.png"), flat(0))
    image_file(Path(f"set/{apart}/gt/3.png"), flat(0))
    assert len(lists.read_list("set", True, said.append)) == 3
    assert said == ["set: 3 pairs, input/ and gt/ by name"]
    for folder, name in ((whole, whole), (apart, whole), (whole, apart)):
        lines = [f"set/{folder}/input/{name}{n}.png set/{folder}/gt/{name}{n}.png" for n in "12"]
        Path("list.txt").write_text("\n".join(["", f"set/{apart}/gt/3.png " * 2, *lines]))
        pairs = lists.read_list("list.txt", True, said.append)
        assert all(file.is_file() for pair in pairs for file in (pair.rainy, pair.clean))
    assert len(said) == 1
    names = result_names([Path(f"a/{whole}.png"), Path(f"b/{apart}.png")])
    assert names == [whole, f"{apart}-2"]
    both = [(f"input/{whole}.png", f"gt/{name}.png") for name in (apart, whole)]
    write(Path("two"), both)
    with pytest.raises(UserError, match=r"has two clean images"):
        lists.read_list("two")


# Two readings, none, and what is left over


def test_two_readings_are_refused_with_both_and_layout_decides(run):
    write(Path("set"), [("rain/1.png", "norain/1.png"), ("input/1.png", "norain/1.png")])
    with pytest.raises(UserError) as caught:
        lists.read_list("set")
    assert str(caught.value) == (
        "set: can be read in 2 ways; expected one of: 1 pair, input/ and norain/ by name: "
        "--layout input:norain:name; 1 pair, rain/ and norain/ by name: --layout rain:norain:name"
    )
    for layout in ("input", "input:norain", "input:norain:name"):
        status, out, _ = run("-a", "lists", "-i", "set", "-o", "l.txt", "--layout", layout)
        assert (status, out.splitlines()[0]) == (0, "set: 1 pair, input/ and norain/ by name")
    for layout in ("inp", "name"):
        status, _, err = run("-a", "lists", "-i", "set", "-o", "l.txt", "--layout", layout)
        assert status == 2
        assert "--layout input:norain:name; " in err


def test_two_rules_are_two_readings_unless_one_leaves_nothing_over(said):
    files = [("rain/1.png", "gt/1.png"), ("rain/1x2.png", "gt/1.png")]
    write(Path("set"), files)
    message = r"in 2 ways.*--layout rain:gt:name.*--layout rain:gt:scale"
    with pytest.raises(UserError, match=message):
        lists.read_list("set")
    image_file(Path("set/gt/1x2.png"), flat(0))
    assert len(lists.read_list("set", say=said.append)) == 2
    assert said == ["set: 2 pairs, rain/ and gt/ by name"]


def test_what_is_left_over_is_counted_and_the_first_five_named(said):
    write(Path("set"), [("input/1.png", "gt/1.png")])
    for n in range(10, 17):
        image_file(Path(f"set/input/{n}.png"), flat(0))
    image_file(Path("set/gt/lonely.png"), flat(0))
    image_file(Path("set/mask/1.png"), flat(0))
    Path("set/readme.txt").touch()
    Path("set/.hidden.png").touch()
    lists.read_list("set", say=said.append)
    names = ", ".join(f"input/{n}.png" for n in range(10, 15))
    assert said == [
        "set: 1 pair, input/ and gt/ by name",
        f"set: left over: 7 rainy without a clean image: {names}, and 2 more",
        "set: left over: 1 clean without a rainy image: gt/lonely.png",
        "set: left over: 1 on neither side: mask/1.png",
        "set: skipped 1 unsupported file (.txt)",
    ]


def test_links_are_followed_and_never_in_circles(said):
    write(Path("elsewhere"), [("rain/1.png", "clean/1.png")])
    for part in ("a", "b"):
        Path(f"set/{part}").mkdir(parents=True)
        for side in ("rain", "clean"):
            Path(f"set/{part}/{side}").symlink_to(Path(f"elsewhere/{side}").resolve())
    Path("set/a/back").symlink_to(Path("set").resolve())
    assert len(lists.read_list("set", say=said.append)) == 2
    assert said == ["set: 2 pairs, rain/ and clean/ by name, in 2 folders"]


def test_how_far_it_is_is_told_where_that_takes_long(said, monkeypatch):
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    write(Path("set"), [("rain/1.png", "norain/1.png")])
    lists.read_list("set", say=said.append)
    lines = [f"set: looked into {n} folders" for n in (1, 2, 3)]
    assert said == [*lines, "set: pairing 2 images", "set: 1 pair, rain/ and norain/ by name"]


def test_parts_for_training_and_testing_are_not_mixed():
    write(Path("set"), [(f"{p}/rain/1.png", f"{p}/norain/1.png") for p in ("train", "test")])
    with pytest.raises(UserError) as caught:
        lists.read_list("set")
    assert str(caught.value) == (
        "set: holds several parts: test, train; expected the folder of one, such as set/test"
    )
    assert len(lists.read_list("set/train")) == 1


def test_two_clean_images_of_one_name_are_refused():
    write(Path("set"), [("rain/1.png", "norain/1.png")])
    image_file(Path("set/norain/1.bmp"), flat(0))
    with pytest.raises(UserError, match=r"rain/1\.png has two clean images: norain/1\.bmp and "):
        lists.read_list("set")


def test_folders_without_pairs_are_refused(run):
    Path("set").mkdir()
    Path("set/readme.txt").touch()
    status, _, err = run("-a", "train", "--train-list", "set")
    assert status == 2
    assert err.startswith("main.py: set: holds no images; expected .avif, .bmp, ")
    image_file(Path("set/1.png"), flat(0))
    status, _, err = run("-a", "test", "-m", ROOT / "model/demo", "--test-list", "set")
    assert status == 2
    assert err == (
        "main.py: set: 1 image, no pairs among them; expected a layout of "
        "Train_Dataset_README.md, or --side-by-side if each file holds both images, or for rainy "
        "images alone -a derain -i\n"
    )


# Small sets that are not part of the repository


@pytest.mark.parametrize(
    ("name", "count"), [("ddn", 6), ("did", 2), ("rain100", 2), ("rain200", 2), ("spa", 1)]
)
def test_sets_without_a_list_are_read(shared, name, count):
    folder = str(shared / "cases" / "07_sets_without_list" / name)
    side = "rainy-left" if name == "did" else "no"
    pairs = lists.read_list(folder, True, lambda _: None, side_by_side=side)
    assert len(pairs) == count
    for pair in pairs:
        rainy, clean = lists.read_pair(pair)
        assert rainy.shape == clean.shape == (32, 40, 3)


@pytest.mark.parametrize("name", ["backslash", "utf16"])
def test_lists_of_windows_are_read(shared, name):
    (pair,) = lists.read_list(str(shared / "cases" / "12_lists" / f"{name}.txt"), need_clean=True)
    assert pair.rainy == pair.clean == shared / "cases" / "12_lists" / "a.png"
