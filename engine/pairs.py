"""The pairs of a list: their headers, their derained images, and scores for validation."""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from engine.derainer import DerainedImage, Derainer
from engine.ranks import Ranks
from media.inspection import inspect_headers
from media.lists import Pair, load_images
from model import is_dead_mask
from report.metrics import MEASURE_BYTES_PER_PIXEL, measure
from report.tables import RAINY, Result
from settings import UserError
from system.overlap import count_threads, map_threads
from system.progress import SlowNotice, warn

T = TypeVar("T")
IMAGE_BYTES_PER_PIXEL = 54  # rainy, derained and clean image, as floats and as they were read


def check_headers(
    pairs: Sequence[Pair], indices: Sequence[int], ranks: Ranks, need_all: bool = False
) -> dict[int, tuple[int, int]]:
    """Read the headers of pairs, which the ranks share.

    Returns:
        (width, height) by the indices, on every rank, of the pairs that can be used. The first rank
        warns of the others.

    Raises:
        UserError: what is wrong with the only pair, or with the only bad one if all are needed.
    """
    own = indices[ranks.rank :: ranks.world_size]
    results = inspect_headers([pairs[index] for index in own], silent=not ranks.is_first)
    parts = ranks.all_gather(list(zip(own, results, strict=True)))
    headers = dict(sorted(chain.from_iterable(parts)))
    errors = [header for header in headers.values() if isinstance(header, UserError)]
    if len(errors) == 1 and (need_all or len(indices) == 1):
        raise errors[0]
    for error in errors if ranks.is_first else ():
        warn(str(error))
    return {i: header for i, header in headers.items() if not isinstance(header, UserError)}


@dataclass
class DerainedPair:
    """A pair of a list, and the network's output for it.

    Attributes:
        index: the place of the pair among those that were given, bad ones included.
        rainy, clean: (H,W,3) uint8 BGR; clean is None if the list has no clean images.
        note: see Derainer.compare_tiles.
    """

    index: int
    rainy: np.ndarray
    clean: np.ndarray | None
    output: DerainedImage
    note: str


def derain_pairs(
    derainer: Derainer, ranks: Ranks, pairs: Sequence[Pair], workers: int,
    finish: Callable[[DerainedPair], T],
) -> Generator[T | UserError, None, None]:  # fmt: skip
    """Yield finish(derained pair) for each pair, in order, or what is wrong with the pair.

    Ranks share the pairs, and every rank gets all results. Workers read the next images and threads
    finish the last ones while the network runs.

    Args:
        workers: processes that read images.
    """
    images = load_images(pairs[ranks.rank :: ranks.world_size], workers)

    def derain_images(index: int, item: Any) -> DerainedPair | UserError:
        if isinstance(item, UserError):
            return item
        rainy, clean = item
        output = derainer.derain(rainy, f"{pairs[index].location}: {pairs[index].rainy}")
        return DerainedPair(index, rainy, clean, output, derainer.compare_tiles(rainy))

    def finish_item(item: DerainedPair | UserError) -> T | UserError:
        return item if isinstance(item, UserError) else finish(item)

    def estimate_bytes(item: DerainedPair | UserError) -> int:
        pixels = 0 if isinstance(item, UserError) else item.rainy.size // 3
        return pixels * (MEASURE_BYTES_PER_PIXEL + IMAGE_BYTES_PER_PIXEL)

    derained_pairs = map(derain_images, range(ranks.rank, len(pairs), ranks.world_size), images)
    threads = count_threads(ranks.local_size)
    results = map_threads(derained_pairs, finish_item, threads, estimate_bytes)
    with closing(images), closing(results):
        yield from ranks.interleave(results, len(pairs))


def validate(
    derainer: Derainer, ranks: Ranks, pairs: Sequence[Pair], workers: int,
    protocol: str, say: Callable[[str], None],
) -> tuple[float, float]:  # fmt: skip
    """Mean PSNR and SSIM of the whole derained images of a list, in a protocol, on every rank.

    Args:
        workers: processes that read images.
        say: prints how many images are done, now and then, on the first rank.

    Raises:
        UserError: a bad image.
    """

    def measure_pair(derained_pair: DerainedPair) -> list[float]:
        output, clean = derained_pair.output.float_image, derained_pair.clean
        assert clean is not None  # lists for validation have clean images
        return list(measure(output, clean, order="BGR", protocols=[protocol]).values())

    notice = SlowNotice(say if ranks.is_first else lambda _: None)
    scores: list[list[float]] = []
    with closing(derain_pairs(derainer, ranks, pairs, workers, measure_pair)) as results:
        for result in results:
            if isinstance(result, UserError):
                raise result
            scores.append(result)
            notice.update(f"scoring: {len(scores)} of {len(pairs)} images")
    psnr, ssim = (sum(column) / len(pairs) for column in zip(*scores, strict=True))
    return psnr, ssim


def warn_of_dead_masks(derainer: Derainer, results: Iterable[Result]) -> None:
    """Warn if the map was dead in every image that has one, those known to be clean aside."""
    masks = [
        (result.attention, result.deviation)
        for result in results
        if result.width * result.height > 1
        and not math.isnan(result.attention)
        and result.scores.get(RAINY, {}).get("released_psnr", 0.0) < math.inf
    ]
    if masks and all(is_dead_mask(*mask) for mask in masks):
        warn(
            f"warning: the attention map of {derainer.path} has one value everywhere, in every "
            "image: if they have rain, the network does not look for it; train it again with a "
            "lower --lr or another --seed"
        )
