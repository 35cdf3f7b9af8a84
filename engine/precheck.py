"""Checks of a sample of the pairs before the first step of training, in seconds."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np

import dataset
from engine.ranks import Ranks
from media.inspection import (
    HIGH_MASK_SHARE,
    inspect_headers,
    inspect_pixels,
    mask_advice,
    sample_indices,
    shrink_advice,
)
from media.lists import Pair
from settings import Settings, UserError
from system.progress import SLOW_SECONDS, Progress, warn
from system.text import first_few

HEADERS, PIXELS = 1000, 64  # pairs whose headers are read, and whose pixels are


def require_usable(
    name: str, pairs: Sequence[Pair], seed: int, ranks: Ranks
) -> list[tuple[int, int]]:
    """Read the headers of a sample of a list, on the first rank.

    Returns:
        (width, height) of each pair of the sample, on every rank.

    Raises:
        UserError: a pair cannot be used. Of several, each has been printed.
    """
    results: list[tuple[int, int] | UserError] = []
    if ranks.first:
        indices = sample_indices(len(pairs), HEADERS, seed)
        results = [result for _, result in inspect_headers(pairs, indices)]
    results = ranks.all_gather(results)[0]
    errors = [result for result in results if isinstance(result, UserError)]
    if len(errors) == 1:
        raise errors[0]
    for error in errors if ranks.first else ():
        warn(str(error))
    if errors:
        raise UserError(
            f"{name}: {len(errors)} of the {len(results)} pairs looked at cannot be used; expected "
            "none: -a check looks at all, and --fix writes a list of the others"
        )
    return [result for result in results if not isinstance(result, UserError)]


def report_data(settings: Settings, pairs: Sequence[Pair], sizes: list[tuple[int, int]]) -> None:
    """Print the share of mask pixels in a sample of the pairs, and warn of what looks wrong.

    Args:
        sizes: what require_usable returned.

    Raises:
        UserError: a pair of the sample cannot be read.
    """
    sample = [pairs[index] for index in sample_indices(len(pairs), PIXELS, settings.seed)]
    shares, swapped = [], []
    images = dataset.load_images(sample, settings.num_workers)
    with closing(images), Progress("pair", 0, len(sample), [], after=SLOW_SECONDS) as progress:
        for pair, image in zip(sample, images, strict=True):
            if isinstance(image, UserError):
                raise image
            rainy, clean = image
            inspection = inspect_pixels(rainy, clean, settings.mask_threshold)
            shares.append(inspection.mask)
            if inspection.swapped:
                swapped.append(pair.location)
            progress.advance(1)
    share = float(np.mean(shares))
    print(f"share of mask pixels: {share:.1%} over {len(sample)} pairs", flush=True)
    if share > HIGH_MASK_SHARE:
        warn(f"warning: {share:.0%} mask pixels: {mask_advice(settings.mask_threshold)}")
    if swapped:
        warn(
            f"warning: {len(swapped)} of {len(sample)} pairs look swapped, as clean is the "
            f"brighter: {first_few(swapped, 3)}; expected the rainy image first"
        )
    advice = shrink_advice(sizes, settings.patch_size)
    if advice and settings.crop == "recipe":
        warn(f"warning: {advice}")
