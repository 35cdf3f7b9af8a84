"""Scores of whole images: the pairs of a list, shared out among the ranks."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import numpy as np

import dataset
from engine.derainer import Derainer
from engine.ranks import Ranks
from media.lists import Pair
from report.metrics import MEASURES, measure
from system.progress import QUIET_SECONDS

T = TypeVar("T")


def score(
    derainer: Derainer,
    ranks: Ranks,
    pairs: list[Pair],
    workers: int,
    say: Callable[[str], None] = print,
) -> tuple[float, float]:
    """Mean PSNR and SSIM of whole derained images, in the released protocol, on every rank.

    Args:
        workers: processes that load images.
        say: what tells a user, on the first rank, how far it is, every ten seconds.

    Raises:
        UserError: a bad image.
    """

    def work(_: int, rainy: np.ndarray, clean: np.ndarray) -> dict[str, float]:
        return measure(derainer(rainy)[0], clean.astype(np.float32) / 255)

    sums, told = [0.0, 0.0], time.monotonic()
    for index, values in enumerate(shared_out(ranks, pairs, workers, work)):
        if ranks.first and time.monotonic() - told >= QUIET_SECONDS:
            told = time.monotonic()
            say(f"scoring: {index + 1} of {len(pairs)} images")
        sums = [total + values[f"released_{m}"] for total, m in zip(sums, MEASURES, strict=True)]
    psnr, ssim = (total / len(pairs) for total in sums)
    return psnr, ssim


def shared_out(
    ranks: Ranks,
    pairs: list[Pair],
    workers: int,
    work: Callable[[int, np.ndarray, np.ndarray | None], T],
) -> Iterator[T]:
    """work(index, rainy, clean) of each pair in turn, each done by one of the ranks."""
    own = range(ranks.rank, len(pairs), ranks.world_size)
    images = dataset.whole_images([pairs[index] for index in own], workers)
    with closing(images):
        yield from ranks.share(len(pairs), lambda index: work(index, *next(images)))
