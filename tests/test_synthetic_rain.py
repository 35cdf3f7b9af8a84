"""Synthetic rain only brightens, is as varied as its look says, and makes the demo's sets."""

import os
import resource
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, finish

from media import lists
from rain import backgrounds, synthetic_rain
from rain.streaks import Rain, add_rain, streaks
from settings import UserError

GREY = np.full((80, 90, 3), 100, np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_rain_only_brightens_and_leaves_the_rest_alone(seed):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, (80, 90, 3), np.uint8)
    rain = [Rain.sample(rng) for _ in range(2)]
    state = rng.bit_generator.state
    rainy = add_rain(clean, rain, rng)
    assert rainy.shape == clean.shape
    assert (rainy >= clean).all()
    rng.bit_generator.state = state
    layer = sum(streaks(80, 90, look, rng) for look in rain)
    off = layer < 0.5
    assert np.array_equal(rainy[off], clean[off])
    assert off.any()
    on = (layer >= 2) & (clean < 128).all(-1)  # where even streaks that cover must show
    assert (rainy[on] > clean[on]).all()


def test_no_look_is_no_rain():
    assert np.array_equal(add_rain(GREY, [], np.random.default_rng(0)), GREY)


def covered(**change) -> float:
    look = {"density": 1, "angle": 0, "length": 20, "width": 1, "brightness": 90, "blur": 0.5}
    rng = np.random.default_rng(0)
    return float((streaks(300, 300, Rain(**(look | change)), rng) >= 0.5).mean())


def test_the_look_is_as_told():
    assert covered(density=3) > 2 * covered(density=1) > 0
    assert covered(length=40) > 1.5 * covered(length=20)
    assert covered(width=4) > 1.5 * covered(width=1)
    assert covered(blur=2) > covered(blur=0)
    rng = np.random.default_rng(0)
    bright = streaks(300, 300, Rain(1, 0, 20, 1, 90, 0), rng).max()
    assert 60 <= bright <= 90
    tilted = streaks(300, 300, Rain(0.3, 30, 40, 1, 90, 0), np.random.default_rng(0))
    upright = streaks(300, 300, Rain(0.3, 0, 40, 1, 90, 0), np.random.default_rng(0))

    def slope(layer):  # of a streak: horizontal over vertical gradient energy
        down, right = np.gradient(layer)
        return (down**2).sum() / (right**2).sum()

    assert slope(upright) < 0.3 < slope(tilted) * 2


def test_rain_that_covers_adds_less_to_what_is_bright():
    black, white = (np.full((60, 60, 3), level, np.uint8) for level in (0, 255))
    mixed = np.full((60, 60, 3), (0, 128, 200), np.uint8)

    def light(clean, cover):
        look = Rain(20, 0, 20, 2, 100, 0.5, cover=cover)
        added = add_rain(clean, [look], np.random.default_rng(0)).astype(int) - clean
        return added.sum((0, 1))

    assert (light(black, 1) == light(black, 0)).all()
    assert (light(white, 1) == 0).all()
    plain, covering = light(mixed, 0), light(mixed, 1)
    assert covering[0] == plain[0] > covering[1] > covering[2] > 0
    assert light(mixed, 0.5)[1] > covering[1]


def test_spindles_narrow_and_uneven_streaks_vary():
    def one(**change):
        look = Rain(0.15, 0, 40, 7, 200, 0, **change)
        return np.stack([streaks(90, 90, look, np.random.default_rng(i)) for i in range(9)])

    plain, spindle, uneven = one(), one(spindle=True), one(uneven=0.8)
    assert 0 < np.count_nonzero(spindle) < 0.9 * np.count_nonzero(plain)
    assert ((uneven > 0) == (plain > 0)).all()
    ratio = uneven[plain > 0] / plain[plain > 0]
    assert 0.19 < ratio.min() < 0.5 < ratio.max() <= 1
    speckled = one(uneven=0.8, grain=2)

    def step(layer):  # from pixel to pixel down a streak
        return np.abs(np.diff(layer, axis=1))[(plain > 0)[:, 1:] & (plain > 0)[:, :-1]].mean()

    assert step(speckled) > 2 * step(uneven)


def test_heavy_rain_covers_more_than_any_other():
    def covered(look):
        rngs = [np.random.default_rng(seed) for seed in range(40)]
        return np.mean([(streaks(100, 100, look(rng), rng) > 20).mean() for rng in rngs])

    assert covered(Rain.dense) > 1.5 * max(map(covered, (Rain.faint, Rain.near, Rain.sample)))


def test_same_seed_same_rain():
    look = Rain.sample(np.random.default_rng(5))
    first, second = (add_rain(GREY, [look], np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, add_rain(GREY, [look], np.random.default_rng(2)))


def test_training_and_test_backgrounds_are_disjoint():
    training = set(synthetic_rain.TRAINING_PHOTOGRAPHS)
    others = {*synthetic_rain.TEST_PHOTOGRAPHS, *synthetic_rain.DRY_PHOTOGRAPHS}
    assert not training & others
    assert all(backgrounds.photograph(name).ndim == 3 for name in training | others)


def test_dead_leaves_have_edges_at_many_scales():
    image = backgrounds.dead_leaves(64, 72, np.random.default_rng(0))
    assert image.shape == (64, 72, 3)
    assert image.dtype == np.uint8
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert image.std() > 5


@pytest.mark.parametrize("scene", dict.fromkeys(backgrounds.SCENES), ids=lambda s: s.__name__)
def test_a_scene_is_drawn_on_any_ground_by_its_seed(scene):
    for seed in range(10):
        for side in (20, 65):
            drawings = []
            for _ in range(2):
                canvas = np.full((side, side, 3), (90, 100, 110), np.uint8)
                scene(canvas, np.random.default_rng(seed))
                drawings.append(canvas)
            assert np.array_equal(*drawings)
            if side == 65 and scene is not backgrounds.slats:  # which may lie between two rows
                assert drawings[0].std((0, 1)).max() > 0.1


def test_what_is_drawn_is_drawn_over_the_ground():
    ground = backgrounds.photograph("camera")[:64, :64]
    before = ground.copy()
    drawing = backgrounds.draw_scenes(64, np.random.default_rng(3), ground)
    assert np.array_equal(ground, before)
    same = (np.abs(drawing.astype(int) - ground) < 20).all(2).mean()
    assert 0.1 < same < 1


def test_photographs_of_other_packages(tmp_path, monkeypatch):
    grace = backgrounds.photograph("matplotlib:mpl-data/sample_data/grace_hopper.jpg")
    assert grace.shape == (600, 512, 3)
    assert grace[300, 250, 2] > grace[300, 250, 0]  # skin, in BGR
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise SystemExit")  # is not imported
    np.savez(tmp_path / "a_package" / "grey.npz", data=np.arange(12).reshape(3, 4))
    monkeypatch.syspath_prepend(tmp_path)
    grey = backgrounds.photograph("a_package:grey.npz")
    assert np.array_equal(grey[..., 1], np.arange(12).reshape(3, 4))
    (tmp_path / "left_over").mkdir()
    with pytest.raises(UserError, match="left_over is not installed"):
        backgrounds.photograph("left_over:a.jpg")
    with pytest.raises(UserError, match="other versions of a_package"):
        backgrounds.photograph("a_package:gone.jpg")


def test_a_package_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setattr(synthetic_rain, "MORE_PHOTOGRAPHS", ("no_such:images/china.jpg",))
    Path("set").mkdir()
    Path("set/train.txt").write_text("of an earlier set")
    command = ["train", "-o", "set", "-n", "2", "--side", "40"]
    assert synthetic_rain.main([*command, "--more-photographs"]) == 2
    told = "synthetic_rain: no_such is not installed, which has images/china.jpg; "
    assert capsys.readouterr().err == told + "expected pip install no_such\n"
    assert Path("set/train.txt").read_text() == "of an earlier set"
    assert synthetic_rain.main(command) == 0


def test_training_pairs_are_of_all_kinds(monkeypatch):
    drawn = []

    def watched(name, original):
        return lambda *words: drawn.append(name) or original(*words)

    for look in ("faint", "near", "dense", "sample"):
        monkeypatch.setattr(Rain, look, staticmethod(watched(look, getattr(Rain, look))))
    compressed = watched("compressed", synthetic_rain._compressed)
    monkeypatch.setattr(synthetic_rain, "_compressed", compressed)
    photographs, kinds, count = [backgrounds.photograph("camera")], Counter(), 300
    for seed in range(count):
        drawn.clear()
        pair = synthetic_rain.training_pair(photographs, 40, np.random.default_rng(seed))
        rainy, clean = (image.astype(int) for image in pair)
        assert rainy.shape == clean.shape == (40, 40, 3)
        assert (rainy >= clean).all()
        looks = [name for name in drawn if name != "compressed"]
        assert looks or np.array_equal(rainy, clean)
        kinds["compressed"] += "compressed" in drawn
        kinds[looks[0] if looks else "dry"] += 1
    expected = {"dry": 1 / 6, "faint": 0.29, "near": 0.2, "dense": 0.2, "sample": 0.14}
    expected["compressed"] = 1 / 3
    assert kinds.keys() == expected.keys()
    assert {kind: kinds[kind] / count for kind in kinds} == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("side", [1, 47, 300])
def test_a_patch_of_a_photograph_fits_at_any_scale(side):
    photographs = [backgrounds.photograph(name) for name in ("coins", "camera")]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        patch = synthetic_rain._random_patch(photographs, side, rng)
        assert patch.shape == (side, side, 3)
        assert patch.flags.c_contiguous


def test_compression_leaves_the_label_where_the_rain_is():
    clean = backgrounds.photograph("camera")[200:264, 200:264]
    rainy = clean.copy()
    rainy[:, 30] = np.minimum(clean[:, 30].astype(int) + 80, 255)
    after, target = synthetic_rain._compressed(rainy, clean, np.random.default_rng(0))
    assert not np.array_equal(target, clean)
    changed = (after != target).any(2)
    assert not changed[:, :30].any()
    assert not changed[:, 31:].any()
    assert changed[:, 30].mean() > 0.9


def test_the_dry_sets_are_pairs_of_equal_images(capsys):
    assert synthetic_rain.main(["dry", "-o", "dry"]) == 0
    assert capsys.readouterr().out == "dry/photographs.txt\ndry/drawings.txt\n"
    for name in ("photographs", "drawings"):
        pairs = lists.read_list(f"dry/{name}.txt", need_clean=True)
        images = [lists.read_pair(pair) for pair in pairs]
        assert all(np.array_equal(rainy, clean) for rainy, clean in images)
        seen = {clean.tobytes() for _, clean in images}
        assert len(pairs) == len(seen) == 12


def test_the_sheet_shows_the_training_pairs():
    command = ["-o", "sheet", "--side", "40"]
    assert synthetic_rain.main(["sheet", *command]) == 0
    sheet = cv2.imread("sheet/sheet.png")
    assert sheet.shape == (6 * 80, 8 * 40, 3)
    assert synthetic_rain.main(["train", *command, "-n", "9"]) == 0
    for index, (top, left) in ((0, (0, 0)), (7, (0, 280)), (8, (80, 0))):
        pair = [cv2.imread(f"sheet/{side}/{index:05d}.png") for side in ("rain", "clean")]
        assert np.array_equal(sheet[top : top + 80, left : left + 40], np.vstack(pair))


def test_the_sets_are_lists_of_pairs(capsys):
    assert synthetic_rain.main(["test", "-o", "demo"]) == 0
    assert capsys.readouterr().out == "demo/test.txt\n"
    assert synthetic_rain.main(["train", "-o", "demo", "-n", "6", "--side", "40"]) == 0
    for name, count in (("test", 6), ("train", 6)):
        pairs = lists.read_list(f"demo/{name}.txt", need_clean=True)
        assert len(pairs) == count
        for pair in pairs:
            rainy, clean = lists.read_pair(pair)
            assert (rainy >= clean).all()
            assert name == "test" or rainy.shape == (40, 40, 3)
    first = Path("demo/test.txt").read_text().split()[0]
    before = cv2.imread(f"demo/{first}")
    synthetic_rain.main(["test", "-o", "demo"])
    assert np.array_equal(cv2.imread(f"demo/{first}"), before)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train -o demo --side 0", "--side: expected a whole number from 1 to 300, not '0'"),
        ("train -o demo -n 1.5", "-n/--count: expected a whole number from 1 to "
         "10000000, not '1.5'"),
        ("test -o demo --seed -1", "--seed: expected a whole number from 0 to 9223372036854775808, "
         "not '-1'"),
        ("test", "the following arguments are required: -o/--output"),
        ("train -o ", "-o/--output: expected a folder for pictures, not ''"),
        ("test -o taken", "taken/clean: cannot be written: File exists"),
        ("test -o demo -n 9", "unrecognized arguments: -n 9"),
        ("test -o file", "-o/--output: expected a folder for pictures, not 'file'"),
        ("dry -o .", "-o/--output: expected a folder for pictures, not '.'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(capsys, command, told):
    Path("file").write_text("in the way")
    Path("rain").mkdir()
    Path("rain/synthetic_rain.py").touch()
    Path("taken/rain").mkdir(parents=True)
    for name in ("clean", "test.txt"):
        Path("taken", name).touch()
    before = sorted(Path().rglob("*"))
    assert synthetic_rain.main(command.split(" ")) == 2
    assert capsys.readouterr().err == f"synthetic_rain: {told}\n"
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="such names are there on Linux alone")
def test_a_folder_may_have_any_name():
    folder = os.fsdecode(b"caf\xe9")
    command = [sys.executable, "-m", "rain.synthetic_rain", "sheet", "--side", "8", "-o", folder]
    path = {"PYTHONPATH": str(ROOT)}
    done = finish(command, text=False, fresh=True, env=os.environ | path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "caf\N{REPLACEMENT CHARACTER}/sheet.png\n".encode()
    assert os.listdir(folder) == ["sheet.png"]


def test_videos_leave_other_files_alone_and_are_whole_or_not_there(capsys, monkeypatch):
    Path("v").mkdir()
    Path("v/videos.txt").write_text("precious")
    monkeypatch.setattr(synthetic_rain, "VIDEO_PHOTOGRAPHS", ("camera",))
    assert synthetic_rain.main(["videos", "-o", "v"]) == 0
    assert Path("v/videos.txt").read_text() == "precious"
    assert sorted(path.name for path in Path("v").iterdir()) == [
        "camera.mkv",
        "truth",
        "videos.txt",
    ]
    Path("v/camera.mkv").unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))  # as on a full disk
    try:
        assert synthetic_rain.main(["videos", "-o", "v"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    told = "synthetic_rain: v/camera.mkv: cannot be written: File too large\n"
    assert capsys.readouterr().err == told
    assert sorted(path.name for path in Path("v").iterdir()) == ["truth", "videos.txt"]
