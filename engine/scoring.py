"""Scores of whole images: the pairs of a list, shared out among the ranks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

import numpy as np

import dataset
from engine.derainer import Derainer
from engine.ranks import Ranks
from media.lists import Pair
from report.metrics import BYTES_A_PIXEL, MEASURES, measure
from settings import UserError
from system.overlap import count_threads, map_threads
from system.progress import LINE_SECONDS

T, U = TypeVar("T"), TypeVar("U")
BYTES_OF_IMAGES = 54  # a pixel: rainy, derained and clean, as floats and as they were read


def score(
    derainer: Derainer,
    ranks: Ranks,
    pairs: Sequence[Pair],
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

    def work(_: int, rainy: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return derainer.derain(rainy).float_image, clean

    def finish(images: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        output, clean = images
        return measure(output, clean, order="BGR", protocols=["released"])

    sums, told = [0.0, 0.0], time.monotonic()

    def pixels(images: tuple[np.ndarray, np.ndarray]) -> int:
        return images[1].size // 3

    with closing(map_images_over_ranks(ranks, pairs, workers, work, finish, pixels)) as scores:
        for index, values in enumerate(scores):
            if isinstance(values, str):
                raise UserError(values)
            if ranks.first and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                say(f"scoring: {index + 1} of {len(pairs)} images")
            own = (values[f"released_{m}"] for m in MEASURES)
            sums = [total + value for total, value in zip(sums, own, strict=True)]
    psnr, ssim = (total / len(pairs) for total in sums)
    return psnr, ssim


def map_images_over_ranks(
    ranks: Ranks,
    pairs: Sequence[Pair],
    workers: int,
    work: Callable[[int, np.ndarray, np.ndarray | None], T],
    finish: Callable[[T], U],
    pixels: Callable[[T], int],
) -> Iterator[U | str]:
    """finish(work(index, rainy, clean)) of each pair in turn, each done by one of the ranks.

    The work is done here, one pair after the other; what finishes it runs beside it, in threads.
    In the place of a bad pair there is what is wrong with it.

    Args:
        pixels: how many pixels of an image are being finished, for the memory that it takes.
    """
    own = range(ranks.rank, len(pairs), ranks.world_size)
    images = dataset.whole_images(pairs[ranks.rank :: ranks.world_size], workers)

    def worked() -> Iterator[T | UserError]:
        for index, pair in zip(own, images, strict=True):
            yield pair if isinstance(pair, UserError) else work(index, *pair)

    def finished(done: T | UserError) -> U | str:
        return str(done) if isinstance(done, UserError) else finish(done)

    def needed(done: T | UserError) -> int:
        return (
            0 if isinstance(done, UserError) else pixels(done) * (BYTES_A_PIXEL + BYTES_OF_IMAGES)
        )

    results = map_threads(worked(), finished, count_threads(ranks.local_size), needed)
    with closing(images), closing(results):
        yield from ranks.map_over_ranks(len(pairs), lambda _: next(results))
