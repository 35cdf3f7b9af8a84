"""Lists, images, augmentation, and the stream of batches that depends on (seed, step) alone."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import golden, write_pairs

import dataset
import lists
from settings import Settings, UserError

SMALL = Settings("train", patch_size=16, batch_size=3)


def image_file(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def colours(height: int = 9, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


# Lists


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_list_is_parsed_whatever_its_line_ends(tmp_path, ending, mark):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        image_file(tmp_path / name, colours())
    newline = ending or "\n"
    text = newline.join(["# pairs", "", "a.png b.png", "   ", "c.png\t d.png"]) + ending
    (tmp_path / "list.txt").write_bytes(mark + text.encode())
    pairs = lists.read_list(str(tmp_path / "list.txt"))
    assert [(p.rainy.name, p.clean.name) for p in pairs] == [("a.png", "b.png"), ("c.png", "d.png")]
    assert [p.where.rsplit(":", 1)[1] for p in pairs] == ["3", "5"]


def test_tab_separates_names_that_hold_spaces(tmp_path):
    image_file(tmp_path / "heavy rain.png", colours())
    image_file(tmp_path / "no rain.png", colours())
    path = tmp_path / "list.txt"
    path.write_text("heavy rain.png\tno rain.png\n")
    (pair,) = lists.read_list(str(path))
    assert (pair.rainy.name, pair.clean.name) == ("heavy rain.png", "no rain.png")
    path.write_text("heavy rain.png\t\n")
    assert lists.read_list(str(path))[0].clean is None


@pytest.mark.parametrize("name", ["x/a.png", "./x/a.png", "/x/a.png"])
@pytest.mark.parametrize("beside_list", [True, False])
def test_published_prefixes_are_found_beside_the_list_and_in_the_working_folder(
    tmp_path, monkeypatch, name, beside_list
):
    (tmp_path / "lists").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    home = tmp_path / ("lists" if beside_list else "work")
    expected = image_file(home / "x" / "a.png", colours())
    (tmp_path / "lists" / "list.txt").write_text(name)
    (pair,) = lists.read_list("../lists/list.txt")
    assert pair.rainy.resolve() == expected


def test_absolute_names_are_taken_as_given(tmp_path):
    expected = image_file(tmp_path / "a.png", colours())
    (tmp_path / "list.txt").write_text(f"{expected}\n")
    assert lists.read_list("list.txt")[0].rainy == expected


def test_what_finds_the_first_image_decides_for_the_list(tmp_path, monkeypatch):
    for folder in ("lists/x", "work/x"):
        image_file(tmp_path / folder / "b.png", colours())
    image_file(tmp_path / "lists/x/a.png", colours())
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "lists" / "list.txt").write_text("x/a.png\nx/b.png\n")
    files = [pair.rainy.resolve() for pair in lists.read_list("../lists/list.txt")]
    assert files == [tmp_path / "lists/x/a.png", tmp_path / "lists/x/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list is empty"),
        ("# nothing\n\n", "list is empty"),
        ("a.png b.png\nmissing.png b.png\n", r":2: no such image: missing.png"),
        ("missing.png\n", r":1: no such image: missing.png \(looked for missing.png, "),
        ("a.png b.png c.png\n", r":1: 3 names; expected `rainy clean`.*TAB"),
        ("a.png b.png\na.png\n", r":2: 1 name, where the first line has 2"),
        ("a.png\x00\n", r":1: "),
        ("x" * 5000, r":1: no such image: xxx"),
        (b"caf\xe9.png\n", "not UTF-8"),
    ],
)
def test_bad_lists_are_refused_by_line(tmp_path, text, message):
    for name in ("a.png", "b.png", "c.png"):
        image_file(tmp_path / name, colours())
    (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"list\.txt.*" + message):
        lists.read_list(str(tmp_path / "list.txt"))


def test_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot read the list: No such file"):
        lists.read_list("nowhere.txt")
    with pytest.raises(UserError, match="Is a directory"):
        lists.read_list(str(tmp_path))


def test_training_needs_clean_images(tmp_path):
    image_file(tmp_path / "a.png", colours())
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(UserError, match=r"list\.txt:1: expected `rainy clean`"):
        lists.read_list("list.txt", need_clean=True)


# Images


def test_colours_are_bgr(tmp_path):
    image = colours()
    path = image_file(tmp_path / "a.png", image)
    assert np.array_equal(lists.read_image(path, "x"), image)


def test_greyscale_is_spread_and_opaque_alpha_dropped(tmp_path):
    grey = colours(channels=1)[..., 0]
    found = lists.read_image(image_file(tmp_path / "grey.png", grey), "x")
    assert np.array_equal(found, np.dstack([grey] * 3))
    opaque = np.dstack([colours(), np.full((9, 8), 255, np.uint8)])
    found = lists.read_image(image_file(tmp_path / "opaque.png", opaque), "x")
    assert np.array_equal(found, colours())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (colours(channels=4), "transparent"),
        (colours().astype(np.uint16) * 257, "uint16 values; expected 8 bits"),
        (colours(channels=1)[..., 0].astype(np.uint16), "uint16 values; expected 8 bits"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused(tmp_path, image, message):
    path = image_file(tmp_path / "odd.png", image)
    with pytest.raises(UserError, match=rf"list:3: .*odd\.png: .*{message}"):
        lists.read_image(path, "list:3")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_images_are_refused(tmp_path, capfd, suffix, share):
    path = image_file(tmp_path / f"whole.{suffix}", cv2.resize(colours(), (64, 64)))
    data = path.read_bytes()
    assert lists.read_image(path, "x").shape == (64, 64, 3)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"x: .*whole\..*: not an image, or cut short"):
        lists.read_image(path, "x")
    assert capfd.readouterr().err == ""


def test_a_damaged_png_is_one_line_and_a_longer_one_is_read(tmp_path, capfd):
    path = image_file(tmp_path / "a.png", cv2.resize(colours(), (64, 64)))
    data = path.read_bytes()
    path.write_bytes(data + bytes(100))
    assert lists.read_image(path, "x").shape == (64, 64, 3)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(UserError, match="not an image, or cut short"):
        lists.read_image(path, "x")
    assert capfd.readouterr().err == ""


def test_text_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        lists.read_image(tmp_path / "a.png", "x")


def test_pair_of_different_sizes_is_refused(tmp_path):
    rainy, clean = (image_file(tmp_path / f"{n}.png", colours(width=n)) for n in (8, 7))
    with pytest.raises(UserError, match=r"list:1: .*differ in size: .*8x9.*7x9"):
        lists.read_pair(lists.Pair(rainy, clean, "list:1"))


# Augmentation and mask label


def test_golden_mask_label():
    arrays = golden("mask_label")
    rainy, clean = (torch.from_numpy(arrays[f"{kind}_bgr"])[None] for kind in ("rainy", "clean"))
    assert np.array_equal(dataset.mask_label(rainy, clean)[0].numpy(), arrays["mask_label"])


@pytest.mark.parametrize("size", [(100, 100), (37, 90), (1, 1), (2, 500)])
def test_crops_are_of_the_recipe(size):
    height, width = size
    rng = np.random.default_rng(0)
    central = (
        (height - min(size)) // 2,
        (width - min(size)) // 2,
        min(size),
        min(size),
    )
    crops = [dataset.random_crop(rng, height, width, SMALL) for _ in range(300)]
    for crop in crops:
        top, left, h, w = crop
        assert top >= 0
        assert left >= 0
        assert top + h <= height
        assert left + w <= width
        if crop != central:
            slack = 1 / min(h, w)  # sides are whole pixels
            assert 0.8 - 2 * slack <= h * w / (height * width) <= 1
            assert 3 / 4 - 2 * slack <= w / h <= 4 / 3 + 2 * slack
    if size == (100, 100):
        assert len(set(crops)) > 250
        assert crops.count(central) < 5
    if size == (2, 500):
        assert set(crops) == {central}


def test_rainy_and_clean_are_cropped_alike(tmp_path):
    image = colours(40, 40)
    image_file(tmp_path / "a.png", image)
    (tmp_path / "list.txt").write_text("a.png a.png\n")
    pairs = lists.read_list("list.txt")
    (batch,) = dataset.batches(pairs, SMALL, dataset.TRAINING, range(1), 0)
    assert batch.rainy.shape == (3, 16, 16, 3)
    assert np.array_equal(batch.rainy, batch.clean)
    assert not np.array_equal(batch.rainy[0], batch.rainy[1])


def test_tensors_are_floats_in_0_to_1_and_channels_last(pairs):
    (batch,) = dataset.batches(lists.read_list(str(pairs)), SMALL, dataset.TRAINING, range(1), 0)
    rainy, clean, label = batch.tensors(torch.device("cpu"))
    assert rainy.is_contiguous(memory_format=torch.channels_last)
    red = batch.rainy[0, :, :, 2].astype(np.float32) / 255
    assert np.array_equal(rainy[0, 2].numpy(), red)
    assert torch.equal(label.bool(), (rainy != clean).any(1))
    assert 0 < label.mean() < 1


# The stream


def drawn(pairs, settings=SMALL, steps=range(7), workers=0, branch=dataset.TRAINING):
    return list(dataset.batches(pairs, settings, branch, steps, workers))


def assert_equal(first: list[dataset.Batch], second: list[dataset.Batch]) -> None:
    assert [b.files for b in first] == [b.files for b in second]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.rainy, b.rainy)
        assert np.array_equal(a.clean, b.clean)


def test_batches_do_not_depend_on_the_number_of_workers(pairs):
    pairs = lists.read_list(str(pairs))
    alone = drawn(pairs)
    for workers in (1, 3):
        assert_equal(alone, drawn(pairs, workers=workers))


def test_batches_do_not_depend_on_where_the_stream_begins(pairs):
    pairs = lists.read_list(str(pairs))
    whole = drawn(pairs)
    assert_equal(whole[4:], drawn(pairs, steps=range(4, 7)))
    assert_equal(whole[::3], drawn(pairs, steps=range(0, 7, 3), workers=1))


def test_another_seed_or_branch_gives_other_batches(pairs):
    pairs = lists.read_list(str(pairs))
    first = drawn(pairs)
    for other in (
        drawn(pairs, dataclasses.replace(SMALL, seed=1)),
        drawn(pairs, branch=dataset.VALIDATION),
    ):
        assert not all(np.array_equal(a.rainy, b.rainy) for a, b in zip(first, other, strict=True))


def test_the_stream_is_shuffled_passes_over_the_list(tmp_path):
    pairs = lists.read_list(str(write_pairs(tmp_path, [(16, 16)] * 7)))
    files = [file for batch in drawn(pairs, steps=range(14)) for file in batch.files]
    passes = [files[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(one) == sorted(str(pair.rainy) for pair in pairs) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_a_bad_image_in_a_worker_is_one_line(pairs):
    pairs = lists.read_list(str(pairs))
    pairs[2].rainy.write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S*list\.txt:3: \S*pair2\.png: not an image") as caught:
        drawn(pairs, workers=2)
    assert "\n" not in str(caught.value)
