"""What a training run shows in TensorBoard: groups of curves, their layout, and its pictures."""

import json
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import expected
from soak import steps_of_events
from test_resume import until
from test_train import SMALL, events

import dataset
from engine.events import LAYOUT, EventFile
from media.lists import read_list
from report.visualize import contact_sheet
from settings import Settings

SIDE = 16  # of the crops of SMALL
TOP, LEFT, WIDTH = 34, 4, 66  # of a part's pixels in its cell, and of a cell
QUIET = ["--log-every", 100]


def start(pairs: Path, *words: object) -> list[object]:
    return ["-a", "train", "--train-list", pairs, *SMALL, *QUIET, *words]


def picture(number: int, step: int) -> np.ndarray:
    data = events("logdir/val_derain")[f"pictures/{number}"][step]
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def parts(sheet: np.ndarray) -> list[np.ndarray]:
    lefts = [LEFT + index * WIDTH for index in range(5)]
    return [sheet[TOP : TOP + SIDE, left : left + SIDE] for left in lefts]


def test_the_same_four_crops_are_followed_over_a_run_and_its_resume(run, pairs):
    for steps in (3, 5):
        assert run(*start(pairs, "--num-steps", steps, "--picture-every", 2))[0] == 0
    settings = Settings("train", patch_size=SIDE, batch_size=2)
    crops = dataset.read_batch(
        read_list(str(pairs), True), settings, dataset.VALIDATION, range(4), 0
    )
    assert len(set(crops.files)) == 4
    for number in range(4):
        early, *_, late = ([part.copy() for part in parts(picture(number + 1, s))] for s in (0, 4))
        for seen in (early, late):
            assert np.array_equal(seen[0], crops.rainy[number])
            assert np.array_equal(seen[2], crops.clean[number])
        assert np.array_equal(early[4], late[4])
        assert not np.array_equal(early[1], late[1])
        output = expected(crops.rainy[number])  # model/latest is of step 4
        assert np.abs(np.rint(output * 255) - late[1]).max() <= 1
        differ = (crops.rainy[number] != crops.clean[number]).any(-1)
        assert np.array_equal(late[4][..., 2] > late[4][..., 0], differ)  # red where labelled


def test_each_part_of_a_picture_has_its_caption(run, pairs):
    assert run(*start(pairs, "--num-steps", 1))[0] == 0
    sheet = picture(1, 0)
    assert sheet.shape == (SIDE + 38, 5 * WIDTH, 3)
    captions = [sheet[: TOP - 2, i * WIDTH : (i + 1) * WIDTH] for i in range(5)]
    assert all((caption < 100).any() for caption in captions)
    assert len({caption.tobytes() for caption in captions}) == 5


def test_a_contact_sheet_shows_every_pixel():
    image = np.random.default_rng(0).integers(0, 255, (40, 300, 3), np.uint8)
    sheet = contact_sheet([image, image], ["a", "b"], columns=2)
    half = sheet.shape[1] // 2
    assert all(np.array_equal(sheet[34:74, x : x + 300], image) for x in (4, half + 4))


def test_a_short_list_has_fewer_pictures_and_true_colours(run):
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite("red.png", red)
    Path("list.txt").write_text("red.png red.png\n")
    assert run(*start(Path("list.txt"), "--num-steps", 1))[0] == 0
    rainy, output, clean, mask, label = parts(picture(1, 0))
    assert (rainy == (0, 0, 255)).all()
    assert (clean == (0, 0, 255)).all()
    assert (label == label[0, 0]).all()
    assert output.shape == mask.shape == (SIDE, SIDE, 3)
    assert "pictures/2" not in events("logdir/val_derain")


def test_a_bad_image_among_those_followed_is_one_line(run, pairs):
    for path in (pairs.parent / "rain").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    status, _, err = run(*start(pairs, "--num-steps", 1))
    assert status == 2
    assert "list.txt:" in err
    assert not Path("model/latest").exists()


def test_a_run_from_before_the_groups_goes_on_with_whole_curves(run, pairs):
    assert run(*start(pairs, "--num-steps", 3))[0] == 0
    folder = Path("logdir/train_derain")
    for path in folder.iterdir():
        path.unlink()
    older = EventFile(folder)
    for step in range(5):  # two steps that the checkpoint does not hold
        older.scalars({"loss": step, "lr": 1.0, "mask/mean": 0.5}, step)
    older.close()
    for steps in (5, 6):
        assert run(*start(pairs, "--num-steps", steps))[0] == 0
    found = steps_of_events(folder)
    assert found["loss"] == found["lr"] == [0, 1, 2]
    assert found["loss/total"] == found["optim/lr"] == [3, 4, 5]
    assert found["mask/mean"] == [0, 1, 2, 3, 4, 5]
    assert found[LAYOUT] == [3, 5]
    assert events(str(folder))["loss"] == {0: 0.0, 1: 1.0, 2: 2.0}


def test_tensorboard_lays_train_and_val_over_one_another(run, pairs):
    program = pytest.importorskip("tensorboard.program")
    words = ["--num-steps", 4, "--val-list", pairs, "--val-every", 2, "--val-batch-every", 2]
    assert run(*start(pairs, *words))[0] == 0
    board = program.TensorBoard()
    once = ["--reload_interval", "0", "--load_fast", "false"]
    board.configure((None, "--logdir", "logdir", "--port", "0", *once))
    address = board.launch()

    def asked(path: str) -> dict:
        with urllib.request.urlopen(f"{address}data/plugin/{path}") as answer:
            return json.load(answer)

    until(lambda: len(asked("scalars/tags")) == 2 and asked("custom_scalars/layout"))
    layout = asked("custom_scalars/layout")["category"]
    charts = {group["title"]: [c["title"] for c in group["chart"]] for group in layout}
    assert charts["loss"] == [
        f"loss/{name}" for name in ("total", "l1", "ssim", "mask", "off_mask")
    ]
    assert list(charts) == ["loss", "score", "mask", "optim", "speed"]
    written = {run: set(tags) for run, tags in asked("scalars/tags").items()}
    assert written["train_derain"] | written["val_derain"] == set().union(*charts.values())
    (curve,) = layout[0]["chart"][0]["multiline"]["tag"]
    for name, steps in (("train_derain", [0, 1, 2, 3]), ("val_derain", [0, 2])):
        found = asked(f"custom_scalars/scalars?run={name}&tag={curve}")["tag_to_events"]
        assert list(found) == ["loss/total"]
        assert [step for _, step, _ in found["loss/total"]] == steps
