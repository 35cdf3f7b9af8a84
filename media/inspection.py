"""Looking at pairs before they are used: at headers alone, or at every pixel."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from media.image_file import image_size
from media.lists import Pair, read_pair
from settings import UserError
from system.overlap import attempt, map_threads
from system.progress import SLOW_SECONDS, Progress

HEADER_THREADS = 8  # they wait for disks more than they work
# Rain makes pixels brighter. In 49 pairs of real and of synthetic rain no clean pixel was brighter
# than its rainy one; noise and JPEG make some so.
SWAPPED_SHARE = 0.9
HIGH_MASK_SHARE = 0.6  # above which something else than rain is likely
MAX_SHRINK = 1.2  # of the recipe's crop, without a warning


class PixelInspection(NamedTuple):
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

    @property
    def swapped(self) -> bool:
        """Whether rainy and clean look swapped: clean is brighter nearly wherever they differ."""
        return self.backward >= SWAPPED_SHARE

    @property
    def identical(self) -> bool:
        return self.difference == 0 and self.mask == 0 and self.backward == 0


def shrink_advice(sizes: Sequence[tuple[int, int]], patch: int) -> str:
    """What to know of images of those (width, height) that the recipe's crop shrinks; or ""."""
    factors = [min(size) / patch for size in sizes if min(size) / patch > MAX_SHRINK]
    if not factors:
        return ""
    return (
        f"{len(factors)} of {len(sizes)} images are larger than the patch of {patch}: the recipe's "
        f"crop shrinks their rain, up to {max(factors):.2f} times; --crop native cuts patches at "
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
    difference = cv2.max(cv2.max(blue, green), red)
    rain_pixels = int(np.count_nonzero(difference > threshold))
    brighter = cv2.transform(cv2.subtract(rainy, clean, dtype=cv2.CV_16S), np.ones((1, 3)))
    total, changed = cv2.sumElems(brighter)[0], cv2.norm(brighter, cv2.NORM_L1)
    digest = hashlib.blake2b(rainy.tobytes(), digest_size=12, person=b"%dx%d" % (width, height))
    return PixelInspection(
        width,
        height,
        mask=rain_pixels / difference.size,
        difference=total / difference.size / 3,
        backward=(changed - total) / 2 / changed if changed else 0.0,
        digest=digest.hexdigest(),
    )


def inspect_header(pair: Pair) -> tuple[int, int]:
    """(width, height) of a pair, by its headers alone if they are in order.

    If they are not, the pair is read whole. Raises UserError if something is wrong with it.
    """
    sizes = {image_size(path) for path in (pair.rainy, pair.clean) if path is not None}
    size = sizes.pop() if len(sizes) == 1 else None
    if size and not pair.halves:
        return size
    if size and size[0] % 2 == 0:
        return size[0] // 2, size[1]
    rainy, _ = read_pair(pair)
    return rainy.shape[1], rainy.shape[0]


def inspect_headers(
    pairs: Sequence[Pair], silent: bool = False
) -> Iterator[tuple[int, int] | UserError]:
    """inspect_header of each pair, or the UserError that it raises; with progress if it is slow."""
    results = map_threads(pairs, partial(attempt, inspect_header), HEADER_THREADS)
    progress = Progress("header", 0, len(pairs), [], silent=silent, after=SLOW_SECONDS)
    with closing(results), progress:
        for result in results:
            progress.advance(1)
            yield result


def sample_indices(count: int, limit: int, seed: int) -> list[int]:
    """The indices of a random sample of pairs, in order: a function of its arguments."""
    if count <= limit:
        return list(range(count))
    return sorted(np.random.default_rng([seed, count]).choice(count, limit, replace=False).tolist())
