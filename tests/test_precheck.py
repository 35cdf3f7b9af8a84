"""What training and testing find out of their pairs before the first step or image."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_pairs
from PIL import Image
from test_train import SMALL

from actions import train as train_action
from engine.training_run import find_changes
from media import image_file, inspection, lists
from media.pictures import read_image
from settings import Settings, UserError


def train(pairs: Path, *words: object) -> list[object]:
    return ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1, *words]


def test_every_bad_line_is_named_before_the_first_step(run, pairs):
    lines = pairs.read_text().splitlines()
    names = [line.split() for line in lines]
    lines += [f"{names[0][0]} {names[1][1]}", f"{names[3][0]} {names[2][1]}"]
    pairs.write_text("\n".join(lines))
    status, out, err = run(*train(pairs))
    assert (status, out) == (2, "")
    first, second, last = err.splitlines()
    assert "list.txt:6: the images of a pair differ in size" in first
    assert "list.txt:7: the images of a pair differ in size" in second
    assert f"{pairs}: 2 of the 7 pairs looked at cannot be used" in last
    assert not Path("model/latest").exists()
    good = write_pairs(pairs.parent / "good", [(19, 19)], density=10)
    status, out, err = run(*train(good, "--val-list", pairs))
    assert (status, out, err.count("\n")) == (2, "", 3)


def test_sizes_that_come_late_are_named_too(run, shared):
    status, _, err = run(*train(shared / "cases" / "06_pair_sizes_late" / "list.txt"))
    assert status == 2
    assert "list.txt:3: " in err
    assert "list.txt:4: " in err
    assert "2 of the 4 pairs looked at cannot be used" in err


def test_of_a_long_list_a_sample_is_looked_at():
    assert inspection.sample_indices(1000, 1000, 7) == list(range(1000))
    sample = inspection.sample_indices(5000, 1000, 7)
    assert len(set(sample)) == 1000
    assert sample == inspection.sample_indices(5000, 1000, 7) == sorted(sample)
    assert sample != inspection.sample_indices(5000, 1000, 8)
    assert max(sample) > 4000


def test_headers_in_order_are_not_decoded(pairs, monkeypatch):
    monkeypatch.setattr(inspection, "read_pair", lambda pair: 1 / 0)
    found = list(inspection.inspect_headers(lists.read_list(str(pairs))))
    assert found == [(19, 19), (31, 19), (24, 17), (18, 40), (19, 19)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_header_tells_the_size_that_is_seen(suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = Path(f"a{suffix}")
    Image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(path, exif=exif)
    assert image_file.image_size(path) == (5, 8)
    assert read_image(path, "x").shape == (8, 5, 3)


def test_a_header_that_promises_no_picture_of_8_bits_tells_nothing():
    cv2.imwrite("deep.png", np.zeros((4, 4, 3), np.uint16))
    cv2.imwrite("deep.tif", np.zeros((4, 4), np.uint16))
    Path("text.png").write_text("words")
    names = ("deep.png", "deep.tif", "text.png", "none.png")
    assert [image_file.image_size(Path(name)) for name in names] == [None] * 4
    pair = lists.Pair(Path("deep.png"), Path("deep.png"), "list:1")
    with pytest.raises(UserError, match="expected 8 bits a channel"):
        inspection.inspect_header(pair)


def test_training_says_how_much_is_mask(run, pairs):
    whole = [lists.read_pair(pair) for pair in lists.read_list(str(pairs))]
    share = np.mean([(rainy != clean).any(-1).mean() for rainy, clean in whole])
    status, out, err = run(*train(pairs))
    assert (status, err) == (0, "")
    assert f"share of mask pixels: {share:.1%} over 5 pairs\n" in out


def test_a_veil_and_swapped_pairs_and_shrunk_rain_are_warned_of(run, pairs):
    first = lists.read_list(str(pairs))[0]
    veil = np.full((40, 50, 3), 90, np.uint8)
    cv2.imwrite("veil.png", veil)
    cv2.imwrite("clean.png", veil - 10)
    Path("veil.txt").write_text("veil.png clean.png\n")
    status, _, err = run(*train("veil.txt", "--model-dir", "a"))
    assert status == 0
    mask, shrunk = err.splitlines()
    assert mask.startswith("main.py: warning: 100% mask pixels: JPEG, or a veil")
    assert "--mask-threshold N (now 0)" in mask
    assert shrunk.startswith("main.py: warning: 1 of 1 images are larger than the patch of 16")
    assert "up to 2.50 times" in shrunk
    words = ("--run", "b", "--mask-threshold", 10, "--crop", "native")
    assert run(*train("veil.txt", *words))[::2] == (0, "")
    line = f"{first.clean} {first.rainy}\n"
    Path("swapped.txt").write_text(line * 4 + f"{first.rainy} {first.clean}\n")
    status, _, err = run(*train("swapped.txt", "--run", "c"))
    assert status == 0
    names = ", ".join(f"swapped.txt:{n}" for n in (1, 2, 3))
    assert (
        f"warning: 4 of 5 pairs look swapped, as clean is the brighter: {names}, and 1 more" in err
    )


def test_64_pairs_are_looked_at_whole(run, tmp_path, capsys):
    path = write_pairs(tmp_path, [(8, 8)] * 80)
    settings = Settings("train", num_workers=2, patch_size=8)
    train_action.report_data(settings, lists.read_list(str(path)), [(8, 8)])
    assert "over 64 pairs" in capsys.readouterr().out


def test_crops_and_mirroring_are_of_the_recipe_and_older_checkpoints_had_the_defaults():
    old = dataclasses.asdict(Settings("train"))
    del old["crop"], old["flip"]
    assert find_changes(old, Settings("train")) == []
    found = find_changes(old, Settings("train", crop="native", flip=True))
    assert found == ["--crop is native, was recipe", "--flip is True, was False"]
