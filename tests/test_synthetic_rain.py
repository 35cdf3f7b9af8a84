"""Synthetic rain only brightens, is as varied as its look says, and makes the demo's sets."""

import resource
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

from media import lists
from rain import backgrounds, synthetic_rain
from rain import streaks as synthetic_streaks
from rain.streaks import LOOKS, Rain, add_rain, streaks
from system.commandline import parse

GREY = np.full((80, 90, 3), 100, np.uint8)


@pytest.mark.parametrize("look", LOOKS)
def test_rain_only_brightens_and_leaves_the_rest_alone(look):
    rng = np.random.default_rng(7)
    clean = rng.integers(0, 256, (80, 90, 3), np.uint8)
    rain = [LOOKS[look].sample(rng) for _ in range(2)]
    state = rng.bit_generator.state
    rainy = add_rain(clean, rain, rng)
    assert rainy.shape == clean.shape
    assert (rainy >= clean).all()
    rng.bit_generator.state = state
    layer = sum(streaks(80, 90, look, rng) for look in rain)
    off = layer < 0.5
    assert np.array_equal(rainy[off], clean[off])
    assert off.any() or look == "veil"
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

    plain, spindle, uneven = one(), one(shape="spindle"), one(uneven=0.8)
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
        return np.mean(
            [(streaks(100, 100, LOOKS[look].sample(rng), rng) > 20).mean() for rng in rngs]
        )

    assert covered("dense") > 1.3 * max(map(covered, LOOKS.keys() - {"dense"}))


def test_ropes_are_strands_with_soft_ends():
    curve = np.stack([np.full(12, 30.0), np.linspace(20, 100, 12)], 1)
    for seed in range(9):
        thin, wide = np.zeros((2, 120, 60), np.uint8)
        synthetic_streaks._draw_rope(thin, curve, 1, 200, np.random.default_rng(seed))
        synthetic_streaks._draw_rope(wide, curve, 9, 200, np.random.default_rng(seed))
        along = thin.max(1).astype(int)
        assert along[60] > 1.5 * max(along[22], along[98])
        assert along[22] > 0 < along[98]
        assert along[:15].max() == along[105:].max() == 0
        assert len(np.unique(wide[60])) > 4
        assert 4 < np.count_nonzero(wide[60]) < 14


def test_arcs_go_ever_more_to_the_side_that_the_angle_says():
    def middles(angle):  # columns of the water, in the upper and in the lower half
        rain = Rain(3, angle, 120, 2, 200, 0, shape="arc")
        layers = sum(streaks(240, 900, rain, np.random.default_rng(seed)) for seed in range(20))
        return [np.average(np.arange(900), weights=half.sum(0)) for half in np.split(layers, 2)]

    upper, lower = np.subtract(middles(40), middles(-40))
    assert lower > upper + 15 > 45


def test_near_rain_is_larger_and_rarer_and_far_rain_fainter():
    def mean(name, scale):
        looks = [LOOKS["thin"].sample(np.random.default_rng(seed), scale) for seed in range(99)]
        return np.mean([getattr(look, name) for look in looks])

    assert mean("width", 2) > 1.5 * mean("width", 1)
    assert mean("length", 2) > 1.5 * mean("length", 1) > 2 * mean("length", 0.5)
    assert mean("density", 2) < 0.5 * mean("density", 1)
    assert mean("brightness", 0.5) < 0.8 * mean("brightness", 1) == 0.8 * mean("brightness", 2)


@pytest.mark.parametrize("look", LOOKS)
def test_same_seed_same_rain(look):
    rain = LOOKS[look].sample(np.random.default_rng(5))
    first, second = (add_rain(GREY, [rain], np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, second)
    others = [add_rain(GREY, [rain], np.random.default_rng(seed)) for seed in range(2, 6)]
    assert not all(np.array_equal(first, other) for other in others)


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


def write_photographs(folder, *names):
    for name in names:
        (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{folder}/{name}.png", backgrounds.photograph(name.split("/")[-1])[:200, :180])


def test_the_pictures_of_a_folder_are_photographs():
    write_photographs("own", "coins", "more/astronaut")
    images = backgrounds.read_photographs(Path("own"))
    expected = [backgrounds.photograph(name)[:200, :180] for name in ("coins", "astronaut")]
    assert all(map(np.array_equal, images, expected))
    assert len(images) == 2


def test_a_set_without_its_photographs_is_refused(capsys):
    write_photographs("own", "coins")
    for name in ("train", "val"):
        Path("set").mkdir(exist_ok=True)
        Path(f"set/{name}.txt").write_text("of an earlier set")
    Path("own/note.txt").write_text("no picture")
    Path("empty").mkdir()
    command = ["-o", "set", "-n", "2", "--side", "40", "--num-workers", "0"]
    for name, more, message in (
        ("val", [], "--photographs: expected a folder of pictures that are not trained on"),
        ("val", ["empty"], "--photographs: empty is empty; expected a folder of pictures"),
        ("train", ["gone"], "gone: No such file or directory"),
        ("train", ["own"], "--photographs: own/note.txt: not an image that can be read, or damaged "
         "(10 bytes); expected "),
    ):  # fmt: skip
        words = ["--photographs", *more] if more else []
        assert synthetic_rain.main([name, *command, *words]) == 2
        assert capsys.readouterr().err.startswith(f"synthetic_rain: {message}")
        assert Path(f"set/{name}.txt").read_text() == "of an earlier set"


def test_validation_has_other_patches_than_training(monkeypatch, capsys):
    write_photographs("held_out", "coins")
    seen = []
    background = synthetic_rain._background
    monkeypatch.setattr(
        synthetic_rain,
        "_background",
        lambda photographs, *more: seen.append(photographs) or background(photographs, *more),
    )
    command = ["-n", "20", "--side", "40", "--photographs", "held_out", "--num-workers", "0"]
    for name in ("val", "train"):
        assert synthetic_rain.main([name, "-o", name, *command]) == 0
        assert len(seen[-1]) == 1 + len(synthetic_rain.TRAINING_PHOTOGRAPHS) * (name == "train")
    assert capsys.readouterr().out == "val/val.txt\ntrain/train.txt\n"
    counts = {}
    for name in ("val", "train"):
        images = map(lists.read_pair, lists.read_list(f"{name}/{name}.txt", need_clean=True))
        counts[name] = Counter((rainy != clean).any() for rainy, clean in images)
    assert counts["train"][True] + counts["train"][False] == 20
    assert 10 < counts["val"][True] < 20  # the others score inf if they are left as they are
    assert counts["val"][False] == 0 < counts["train"][False]


def test_the_training_of_the_demo_takes_the_sets_that_the_documentation_draws():
    commands = (ROOT / "docs/train.md").read_text()
    shutil.copy(ROOT / "docs/demo_weights.toml", "demo.toml")
    settings = parse(["-a", "train", "--config", "demo.toml"])
    for path in (settings.train_list, settings.val_list):
        folder = Path(path).parent
        assert f"synthetic_rain {folder.name} -o {folder} " in commands
        assert path == f"{folder}/{folder.name}.txt"
    assert f"engine.checkpoint {settings.model_dir}/best " in commands
    assert settings.schedule == "cosine"
    assert settings.ema == 0.999


def test_a_set_is_the_same_in_any_number_of_processes():
    for workers in ("0", "2"):
        command = ["train", "-o", workers, "-n", "5", "--side", "40", "--num-workers", workers]
        assert synthetic_rain.main(command) == 0
    for path in sorted(Path("0").rglob("*.*")):
        assert path.read_bytes() == Path("2", *path.parts[1:]).read_bytes()
    assert len(list(Path("2").rglob("*.png"))) == 10


def test_looks_are_of_all_kinds():
    assert sum(share for share, _ in synthetic_rain.KINDS) == pytest.approx(1)
    assert {name for _, looks in synthetic_rain.KINDS for name in looks} == LOOKS.keys()
    drawn = [synthetic_rain.draw_looks(np.random.default_rng(seed)) for seed in range(600)]
    shares = {
        "dry": np.mean([not looks for looks in drawn]),
        "arc": np.mean([any(look.shape == "arc" for look in looks) for looks in drawn]),
        "rope": np.mean([any(look.shape == "rope" for look in looks) for looks in drawn]),
        "two": np.mean([len(looks) > 1 for looks in drawn]),
    }
    assert shares == pytest.approx({"dry": 0.15, "arc": 0.12, "rope": 0.2, "two": 0.32}, abs=0.05)


def test_a_patch_without_rain_is_its_own_target(monkeypatch):
    photographs = [backgrounds.photograph("camera")]
    count = 60
    for kind in (0, 1):
        kinds = [(float(index == kind), looks) for index, (_, looks) in
                 enumerate(synthetic_rain.KINDS)]  # fmt: skip
        monkeypatch.setattr(synthetic_rain, "KINDS", tuple(kinds))
        changed = 0
        for number in range(count):
            _, pair = synthetic_rain.draw_patch(photographs, 40, (1, 3), number)
            rainy, clean = (image.astype(int) for image in pair)
            assert rainy.shape == clean.shape == (40, 40, 3)
            assert (rainy >= clean).all()
            changed += (rainy != clean).any()
        assert (changed == 0) if kind == 0 else (changed > count / 3)


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
    ("command", "message"),
    [
        ("train -o demo --side 0", "--side: 0 is out of range; expected a number from 1 to 300"),
        ("train -o demo -n 1.5", "-n/--count: invalid int value: '1.5'"),
        ("test -o demo --seed -1", "--seed: -1 is out of range; expected a number from 0 to "
         "9223372036854775807"),
        ("test", "-o/--output: expected a folder for pictures, not ''"),
        ("train -o ", "-o/--output: expected a folder for pictures, not ''"),
        ("test -o taken", "taken/clean: cannot be written: File exists"),
        ("test -o caf\udce9", "--output: 'caf\\udce9' is not UTF-8 text"),
        ("test -o demo -n 9", "unrecognized arguments: -n 9"),
        ("test -o file", "-o/--output: expected a folder for pictures, not 'file'"),
        ("dry -o .", "-o/--output: expected a folder for pictures, not '.'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(capsys, command, message):
    Path("file").write_text("in the way")
    Path("rain").mkdir()
    Path("rain/synthetic_rain.py").touch()
    Path("taken/rain").mkdir(parents=True)
    for name in ("clean", "test.txt"):
        Path("taken", name).touch()
    before = sorted(Path().rglob("*"))
    assert synthetic_rain.main(command.split(" ")) == 2
    assert capsys.readouterr().err == f"synthetic_rain: {message}\n"
    assert sorted(Path().rglob("*")) == before


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
    message = "synthetic_rain: v/camera.mkv: cannot be written: File too large\n"
    assert capsys.readouterr().err == message
    assert sorted(path.name for path in Path("v").iterdir()) == ["truth", "videos.txt"]
