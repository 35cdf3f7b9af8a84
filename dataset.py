"""From pairs of images to batches: the deterministic stream of training crops.

The stream makes the batch of step s from (seed, s) alone, so neither the number of workers nor an
interruption changes what is trained on.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from media.lists import Mixture, Pair, Pairs, read_pair
from settings import Settings
from system.overlap import map_processes, prefetch

# rainy and clean (N,3,H,W) float32 in 0..1, and the mask label (N,H,W) of 0 and 1
BatchTensors = tuple[Tensor, Tensor, Tensor]
# Branches of the random stream: training and validation never share a draw.
TRAINING, VALIDATION = 0, 1
CROP_TRIES = 10


class DeviceBatch(NamedTuple):
    """A batch of crops on the device that computes, and the rainy files that they were cut from."""

    tensors: BatchTensors
    files: list[str]


@dataclass
class Batch:
    """A batch of crops: (N,H,W,3) uint8 BGR, and the rainy files that they were cut from."""

    rainy: np.ndarray
    clean: np.ndarray
    files: list[str]

    def to_device(self, device: torch.device, mask_threshold: int = 0) -> DeviceBatch:
        """The batch as tensors on the device."""
        rainy, clean = (torch.from_numpy(image).to(device) for image in (self.rainy, self.clean))
        return DeviceBatch(convert_images(rainy, clean, mask_threshold), self.files)


def load_batches(
    pairs: Pairs,
    settings: Settings,
    branch: int,
    steps: range,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Batch, None, None]:
    """This rank's share of the Batches of the given steps, in order, by --num-workers processes.

    It raises UserError for a bad image. Validation, of fewer steps, has one worker at most.
    """
    share = settings.batch_size // world_size
    slots = range(rank * share, (rank + 1) * share)
    workers = min(settings.num_workers, 1) if branch == VALIDATION else settings.num_workers
    return map_processes(steps, partial(read_batch, pairs, settings, branch, slots), workers)


def read_batch(pairs: Pairs, settings: Settings, branch: int, slots: range, step: int) -> Batch:
    """The crops of these slots of a step's batch. Raises UserError."""
    crops = [read_crop(pairs, settings, branch, step, slot) for slot in slots]
    rainy, clean, files = zip(*crops, strict=True)
    return Batch(np.stack(rainy), np.stack(clean), list(files))


def read_crop(
    pairs: Pairs, settings: Settings, branch: int, step: int, slot: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """A crop of a step's batch, a function of (seed, branch, step, slot) alone. Raises UserError.

    Returns:
        Rainy and clean crop, and the rainy file.
    """
    pair = draw_pair(pairs, step * settings.batch_size + slot, settings.seed, branch)
    rng = np.random.default_rng([settings.seed, branch, step, slot])
    rainy, clean = read_pair(pair)
    assert clean is not None, "lists for training have clean images"
    box = random_crop(rng, rainy.shape[0], rainy.shape[1], settings)
    # Drawn last: without --flip the crops are the same.
    flip = settings.flip and rng.random() < 0.5
    rainy, clean = (resized_crop(image, box, settings.patch_size) for image in (rainy, clean))
    if flip:
        rainy, clean = rainy[:, ::-1], clean[:, ::-1]
    return rainy, clean, str(pair.rainy)


def draw_pair(pairs: Pairs, number: int, *key: int) -> Pair:
    """The pair of a number in the stream: shuffled passes over the list, one after another.

    Of several lists each has passes of its own. With weights 2 and 1 each round of three numbers is
    a shuffled A, A, B. The k-th A of the stream takes the k-th pair of list A's passes. The key
    decides on all orders.
    """
    if isinstance(pairs, Mixture):
        lists = np.repeat(np.arange(len(pairs.lists)), pairs.weights)  # 0, 0, 1
        rounds, turn = divmod(number, len(lists))
        # The 0 says nothing, but seeds of 2**32 and more would draw other orders without it.
        lists = lists[shuffle_indices(len(lists), *key, rounds, 0)]
        drawn = int(lists[turn])
        is_drawn = lists == drawn
        number = int(rounds * is_drawn.sum() + is_drawn[:turn].sum())
        return draw_pair(pairs.lists[drawn], number, *key, drawn)
    epoch, index = divmod(number, len(pairs))
    return pairs[shuffle_indices(len(pairs), *key, epoch)[index]]


@lru_cache(maxsize=16)
def shuffle_indices(count: int, *key: int) -> np.ndarray:
    """An order of that many images, a function of the key."""
    return np.random.default_rng(key).permutation(count)


def random_crop(
    rng: np.random.Generator, height: int, width: int, settings: Settings
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop of an image of height x width.

    With --crop native it is a patch at the image's own scale, all positions being equally likely;
    otherwise, and of an image smaller than that, the recipe's.
    """
    side = settings.patch_size
    if settings.crop == "native" and min(height, width) >= side:
        return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side
    aspect_max = settings.crop_aspect_max
    for _ in range(CROP_TRIES):
        area = rng.uniform(settings.crop_area_min, 1) * height * width
        aspect = rng.uniform(1 / aspect_max, aspect_max)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            w, h = h, w
        if 1 <= w <= width and 1 <= h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def resized_crop(image: np.ndarray, box: tuple[int, int, int, int], side: int) -> np.ndarray:
    """A crop of an image (H,W,3) uint8, resized to side x side as the released code does it.

    Cut first, then resized by Pillow's bicubic filter, which widens where the crop shrinks.
    OpenCV's is another filter, and gives another mask label on one to six pixels in a hundred.

    Args:
        box: (top, left, height, width) of random_crop.
    """
    top, left, height, width = box
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    return np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC))


def upload_batches(
    batches: Iterator[Batch], device: torch.device, mask_threshold: int
) -> Generator[DeviceBatch, None, None]:
    """The batches on the device. A GPU gets the next one, in a thread, while one is used."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to_device(device, mask_threshold)
        return
    with closing(prefetch(_copy_batches(batches, device))) as copies:
        current = torch.cuda.current_stream(device)
        for images, files, copied in copies:
            current.wait_event(copied)
            images.record_stream(current)  # its memory is reused after the work below
            yield DeviceBatch(convert_images(images[0], images[1], mask_threshold), files)


def _copy_batches(
    batches: Iterator[Batch], device: torch.device
) -> Iterator[tuple[Tensor, list[str], torch.cuda.Event]]:
    """The images of each batch, (2,N,H,W,3) uint8 on a GPU, its files, and the end of the copy.

    Only from pinned memory does a copy run beside the GPU's work, and pinning takes longer than the
    copy: two buffers are used by turns. A copy waits for earlier work on its stream, so copies have
    a stream of their own.
    """
    stream = torch.cuda.Stream(device)
    buffers: list[tuple[Tensor, torch.cuda.Event]] = []
    for number, batch in enumerate(batches):
        with torch.cuda.stream(stream):
            if number < 2:
                pinned = torch.empty((2, *batch.rainy.shape), dtype=torch.uint8, pin_memory=True)
                buffers.append((pinned, torch.cuda.Event()))
            buffer, copied = buffers[number % 2]
            copied.synchronize()
            np.stack((batch.rainy, batch.clean), out=buffer.numpy())
            images = buffer.to(device, non_blocking=True)
            copied.record()
        yield images, batch.files, copied


def convert_images(rainy: Tensor, clean: Tensor, mask_threshold: int) -> BatchTensors:
    """The tensors of a batch from its images, (N,H,W,3) uint8."""
    return to_float(rainy), to_float(clean), mask_label(rainy, clean, mask_threshold)


def to_float(image: Tensor) -> Tensor:
    """(N,H,W,3) uint8 or uint16 to (N,3,H,W) float32 in 0..1, channels_last as the bytes are."""
    return image.permute(0, 3, 1, 2).float().div_(torch.iinfo(image.dtype).max)


def mask_label(rainy: Tensor, clean: Tensor, threshold: int = 0) -> Tensor:
    """(N,H,W) float32: 1 where rainy and clean, (N,H,W,3) uint8, differ in any channel, else 0.

    A channel differs where its values are more than threshold apart, in grey levels 0..255.
    """
    # The larger minus the smaller: uint8 has no negative numbers.
    difference = torch.maximum(rainy, clean) - torch.minimum(rainy, clean)
    return (difference > threshold).any(-1).float()
