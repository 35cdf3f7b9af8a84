"""Looking at pairs before they are used: at headers alone, or at every pixel."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from media import image_file
from media.lists import Pair, read_pair
from settings import UserError
from system.overlap import map_threads
from system.progress import Progress

READERS = 8  # threads that read headers: they wait for disks more than they work
SOON = 2.0  # seconds after which progress is shown
# Rain makes pixels brighter. In 49 pairs of real and of synthetic rain no clean pixel was brighter
# than its rainy one; noise and JPEG make some so.
SWAPPED = 0.9
MASKED = 0.6  # share of mask pixels above which something else than rain is likely
SHRUNK = 1.2  # how often a crop may be as large as the patch before it is told


@dataclass(frozen=True)
class PixelInspection:
    """What the pixels of a pair show.

    Attributes:
        width, height: pixels.
        mask: share of the pixels that the mask label would mark as rain.
        difference: mean of rainy minus clean, in grey levels.
        backward: of all change of brightness, the share by which the clean image is the brighter.
        digest: of the rainy image's pixels.
    """

    width: int
    height: int
    mask: float
    difference: float
    backward: float
    digest: str

    def values(self) -> list[str]:
        """Its values as text, in the order of its attributes."""
        shares = (f"{value:.6g}" for value in (self.mask, self.difference, self.backward))
        return [str(self.width), str(self.height), *shares, self.digest]

    @property
    def swapped(self) -> bool:
        """Whether rainy and clean look swapped: clean is brighter nearly wherever they differ."""
        return self.backward >= SWAPPED

    @property
    def identical(self) -> bool:
        return self.difference == 0 and self.mask == 0 and self.backward == 0


def shrink(width: int, height: int, patch: int) -> float:
    """How many times the recipe's crop of an image shrinks what is in it; below 1 it grows."""
    return min(width, height) / patch


def shrink_advice(sizes: Sequence[tuple[int, int]], patch: int) -> str:
    """What to know of images of those (width, height) that the recipe's crop shrinks; or ""."""
    shrunk = [shrink(*size, patch) for size in sizes if shrink(*size, patch) > SHRUNK]
    if not shrunk:
        return ""
    return (
        f"{len(shrunk)} of {len(sizes)} images are larger than the patch of {patch}: the recipe's "
        f"crop shrinks their rain, up to {max(shrunk):.2f} times; --crop native cuts patches at "
        "the images' own scale"
    )


def mask_advice(threshold: int) -> str:
    return (
        "JPEG, or a veil over the whole picture, may be the cause; --mask-threshold N (now "
        f"{threshold}) leaves differences of up to N grey levels out"
    )


def inspect_pixels(rainy: np.ndarray, clean: np.ndarray, threshold: int) -> PixelInspection:
    """Look at a pair, (H,W,3) uint8 BGR.

    Args:
        threshold: grey levels above which a difference counts as rain, as in the mask label.
    """
    height, width = rainy.shape[:2]
    # By OpenCV: NumPy is slow over a last axis of three.
    blue, green, red = cv2.split(cv2.absdiff(rainy, clean))
    apart = cv2.max(cv2.max(blue, green), red)
    marked = cv2.countNonZero(cv2.compare(apart, threshold, cv2.CMP_GT))
    brighter = cv2.transform(cv2.subtract(rainy, clean, dtype=cv2.CV_16S), np.ones((1, 3)))
    total, changed = cv2.sumElems(brighter)[0], cv2.norm(brighter, cv2.NORM_L1)
    digest = hashlib.blake2b(rainy.tobytes(), digest_size=12, person=b"%dx%d" % (width, height))
    return PixelInspection(
        width,
        height,
        mask=marked / apart.size,
        difference=total / apart.size / 3,
        backward=(changed - total) / 2 / changed if changed else 0.0,
        digest=digest.hexdigest(),
    )


def inspect_header(pair: Pair) -> tuple[int, int] | UserError:
    """(width, height) of a pair, of which headers alone are read where they are in order.

    Where they are not, it is read whole, and what is wrong with it is returned.
    """
    sizes = {image_file.image_size(path) for path in (pair.rainy, pair.clean) if path is not None}
    if len(sizes) == 1 and None not in sizes:
        width, height = sizes.pop()
        if not pair.halves:
            return width, height
        if width % 2 == 0:
            return width // 2, height
    try:
        rainy, _ = read_pair(pair)
    except UserError as error:
        return error
    return rainy.shape[1], rainy.shape[0]


def inspect_headers(
    pairs: Sequence[Pair], indices: Sequence[int], silent: bool = False
) -> Iterator[tuple[int, tuple[int, int] | UserError]]:
    """Each of the indices with the first_look of its pair; with progress where it takes long."""
    looks = map_threads((pairs[index] for index in indices), inspect_header, READERS)
    with (
        closing(looks),
        Progress("header", 0, len(indices), [], silent=silent, after=SOON) as progress,
    ):
        for index, found in zip(indices, looks, strict=True):
            progress.advance(1)
            yield index, found


def drawn(count: int, most: int, seed: int) -> list[int]:
    """The numbers of a sample of pairs, in order: a function of its arguments, all if few."""
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng([seed, count]).choice(count, most, replace=False).tolist())


def some(wheres: Sequence[str], most: int = 3) -> str:
    """The first of several places in a list, for a message."""
    return ", ".join(wheres[:most]) + (f" and {len(wheres) - most} more" * (len(wheres) > most))
