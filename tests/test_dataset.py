"""Augmentation, mask label, and the stream of batches that depends on (seed, step) alone."""

import contextlib
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import golden, write_pairs
from PIL import Image
from test_lists import colours, image_file

import dataset
from media import lists
from settings import Settings, UserError

SMALL = Settings("train", patch_size=16, batch_size=3, num_workers=0)


# Augmentation and mask label


def test_golden_mask_label():
    arrays = golden("mask_label")
    rainy, clean = (torch.from_numpy(arrays[f"{kind}_bgr"])[None] for kind in ("rainy", "clean"))
    assert np.array_equal(dataset.mask_label(rainy, clean)[0].numpy(), arrays["mask_label"])


def test_mask_label_by_threshold():
    rainy = torch.tensor([[[[9, 9, 9], [10, 9, 9], [9, 9, 12], [0, 9, 9], [255, 0, 9]]]])
    clean = torch.full_like(rainy, 9)
    rainy, clean = rainy.to(torch.uint8), clean.to(torch.uint8)
    shares = {0: "01111", 1: "00111", 3: "00011", 9: "00001", 246: "00000"}
    for threshold, expected in shares.items():
        for pair in ((rainy, clean), (clean, rainy)):
            label = dataset.mask_label(*pair, threshold)
            assert label.dtype == torch.float32
            assert label[0, 0].tolist() == [float(digit) for digit in expected]


def test_mask_threshold_reaches_the_training_batch(pairs):
    (batch,) = dataset.load_batches(
        lists.read_list(str(pairs)), SMALL, dataset.TRAINING, range(1), 0
    )
    batches = [batch.to_device(torch.device("cpu"), n) for n in (0, 20, 254)]
    shares = [tensors[2].mean().item() for tensors, _ in batches]
    assert shares[0] > shares[1] > shares[2] == 0


def test_crops_are_those_of_the_released_code_to_the_last_bit(tmp_path):
    """Cut by Pillow and resized by its bicubic filter, growing, shrinking or one of each."""
    sizes = [(64, 64), (40, 40), (120, 96), (50, 75), (200, 61)]
    pairs = lists.read_list(str(write_pairs(tmp_path, sizes)))
    settings = Settings("train", patch_size=64, batch_size=20, num_workers=0)
    grown = shrunk = 0
    for step, batch in enumerate(dataset.load_batches(pairs, settings, 0, range(10))):
        for slot, name in enumerate(batch.files):
            (pair,) = (pair for pair in pairs if str(pair.rainy) == name)
            rng = np.random.default_rng([settings.seed, 0, step, slot])
            height, width = cv2.imread(name).shape[:2]
            top, left, h, w = dataset.random_crop(rng, height, width, settings)
            grown += h < 64 or w < 64
            shrunk += h > 64 or w > 64
            for path, found in ((pair.rainy, batch.rainy), (pair.clean, batch.clean)):
                image = Image.fromarray(cv2.imread(str(path)))
                crop = image.crop((left, top, left + w, top + h)).resize((64, 64), Image.BICUBIC)
                assert np.array_equal(found[slot], np.array(crop))
    assert grown > 40
    assert shrunk > 40


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
    (batch,) = dataset.load_batches(pairs, SMALL, dataset.TRAINING, range(1))
    assert batch.rainy.shape == (3, 16, 16, 3)
    assert np.array_equal(batch.rainy, batch.clean)
    assert not np.array_equal(batch.rainy[0], batch.rainy[1])


def test_tensors_are_floats_in_0_to_1_and_channels_last(pairs):
    (batch,) = dataset.load_batches(
        lists.read_list(str(pairs)), SMALL, dataset.TRAINING, range(1), 0
    )
    rainy, clean, label = batch.to_device(torch.device("cpu")).tensors
    assert rainy.is_contiguous(memory_format=torch.channels_last)
    red = batch.rainy[0, :, :, 2].astype(np.float32) / 255
    assert np.array_equal(rainy[0, 2].numpy(), red)
    assert torch.equal(label.bool(), (rainy != clean).any(1))
    assert 0 < label.mean() < 1


# The stream


def drawn(pairs, settings=SMALL, steps=range(7), workers=0, branch=dataset.TRAINING):
    settings = dataclasses.replace(settings, num_workers=workers)
    return list(dataset.load_batches(pairs, settings, branch, steps))


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


def test_lists_take_turns_by_their_weights_and_each_has_its_passes(tmp_path):
    sizes = {"a": 7, "b": 2, "c": 2}
    three = [
        lists.read_list(str(write_pairs(tmp_path / name, [(16, 16)] * count)))
        for name, count in sizes.items()
    ]
    mixture = lists.Mixture(three, (3, 1, 1))
    assert len(mixture) == 11
    files = [dataset.draw_pair(mixture, n, 2019, dataset.TRAINING).rainy for n in range(5 * 14)]
    names = [file.parent.parent.name for file in files]
    rounds = [names[i : i + 5] for i in range(0, 70, 5)]
    assert all(sorted(one) == list("aaabc") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    for name, count in sizes.items():
        own = [file.name for file in files if file.parent.parent.name == name]
        passes = [own[i : i + count] for i in range(0, len(own), count)]
        assert all(len(set(one)) == count for one in passes)
        assert len({tuple(one) for one in passes}) > 1
    orders = ([f.name for f in files if f.parent.parent.name == name] for name in "bc")
    assert next(orders) != next(orders)  # sets often share their scenes
    # A function of seed, step and slot: workers and the first step change nothing.
    whole = drawn(mixture, steps=range(6))
    assert_equal(whole[3:], drawn(mixture, steps=range(3, 6), workers=2))
    assert {Path(file).parts[-3] for file in drawn(lists.Mixture(three, (1,)))[0].files} == {*"abc"}


def test_a_bad_image_in_a_worker_is_one_line(pairs):
    pairs = lists.read_list(str(pairs))
    pairs[2].rainy.write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S*list\.txt:3: \S*pair2\.png: not an image") as caught:
        drawn(pairs, workers=2)
    assert "\n" not in str(caught.value)


# Crops at the images' own scale, and mirrored ones


def test_a_native_crop_is_a_part_of_the_image(tmp_path):
    pairs = lists.read_list(str(write_pairs(tmp_path, [(40, 30), (16, 50), (16, 16), (9, 40)])))
    native = dataclasses.replace(SMALL, crop="native", batch_size=8)
    recipe = dataclasses.replace(native, crop="recipe")
    places = set()
    for batch, other in zip(drawn(pairs, native), drawn(pairs, recipe), strict=True):
        for slot, name in enumerate(batch.files):
            for pixels, path in ((batch.rainy, name), (batch.clean, name.replace("rain", "clean"))):
                image, found = cv2.imread(path), pixels[slot]
                if image.shape[0] < 16:  # too small to be cut: as the recipe
                    assert np.array_equal(found, other.rainy[slot]) or path != name
                    continue
                spots = [
                    (y, x)
                    for y in range(image.shape[0] - 15)
                    for x in range(image.shape[1] - 15)
                    if np.array_equal(image[y : y + 16, x : x + 16], found)
                ]
                assert spots
                places.add((path, spots[0]))
    assert len(places) > 25
    assert_equal(drawn(pairs, native)[3:], drawn(pairs, native, steps=range(3, 7), workers=2))


@pytest.mark.parametrize("crop", ["recipe", "native"])
def test_half_of_the_crops_are_mirrored_and_otherwise_the_same(pairs, crop):
    pairs = lists.read_list(str(pairs))
    plain = dataclasses.replace(SMALL, crop=crop, batch_size=20)
    flipped = dataclasses.replace(plain, flip=True)
    mirrored = same = 0
    for a, b in zip(drawn(pairs, plain), drawn(pairs, flipped, workers=2), strict=True):
        assert a.files == b.files
        for slot in range(20):
            is_same = np.array_equal(a.rainy[slot], b.rainy[slot])
            step = 1 if is_same else -1
            same, mirrored = same + is_same, mirrored + (not is_same)
            assert np.array_equal(a.rainy[slot][:, ::step], b.rainy[slot])
            assert np.array_equal(a.clean[slot][:, ::step], b.clean[slot])
    assert 45 < mirrored < 95
    assert same + mirrored == 140
    assert_equal(drawn(pairs, flipped)[3:], drawn(pairs, flipped, steps=range(3, 7)))


def test_batches_go_to_a_gpu_through_two_buffers(monkeypatch):
    """With stand-ins: the buffers are used by turns, each when the copy out of it has ended."""
    happened, create = [], torch.empty

    class Event:
        def __init__(self):
            self.name = sum(line.startswith("buffer") for line in happened)

        def synchronize(self):
            happened.append(f"wait {self.name}")

        def record(self):
            happened.append(f"copied {self.name}")

    def create_pinned(shape, dtype, pin_memory):
        assert pin_memory
        happened.append("buffer")
        return create(shape, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", create_pinned)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 2, 3, 4, 6, 3), np.uint8)
    batches = [dataset.Batch(*pair, [str(number)]) for number, pair in enumerate(images)]
    copies = dataset._copy_batches(iter(batches), torch.device("cpu"))
    for number, (found, files, event) in enumerate(copies):
        assert np.array_equal(found, images[number])
        assert (files, event.name) == ([str(number)], number % 2 + 1)
    first = ["buffer", "wait 1", "copied 1", "buffer", "wait 2", "copied 2"]
    assert happened == [*first, "wait 1", "copied 1", "wait 2", "copied 2", "wait 1", "copied 1"]
