"""What training asks of its pairs before the first step: a sample of them, in seconds."""

from collections.abc import Sequence
from contextlib import closing

import numpy as np

import dataset
from engine.ranks import Ranks
from media.inspection import (
    HIGH_MASK_SHARE,
    PixelInspection,
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

HEADERS, PIXELS = 1000, 64  # pairs whose headers are looked at, and whose pixels are


def require_usable(
    name: str, pairs: Sequence[Pair], seed: int, ranks: Ranks
) -> list[tuple[int, int]]:
    """Look at the headers of a sample of a list, on the first rank.

    Returns:
        (width, height) of each pair of the sample, on every rank.

    Raises:
        UserError: a pair cannot be used. Where several cannot, each was told.
    """
    found = (
        list(inspect_headers(pairs, sample_indices(len(pairs), HEADERS, seed)))
        if ranks.first
        else []
    )
    found = ranks.all_gather([result for _, result in found])[0]
    bad = [result for result in found if isinstance(result, UserError)]
    if len(bad) == 1:
        raise bad[0]
    for error in bad if ranks.first else ():
        warn(str(error))
    if bad:
        raise UserError(
            f"{name}: {len(bad)} of the {len(found)} pairs looked at cannot be used; expected "
            "none: -a check looks at all, and --fix writes a list of the others"
        )
    return found


def report_data(settings: Settings, pairs: Sequence[Pair], sizes: list[tuple[int, int]]) -> None:
    """Print the share of mask pixels in a sample of the pairs, and warn of what looks wrong.

    Args:
        sizes: what require_usable returned.

    Raises:
        UserError: a pair of the sample cannot be read.
    """
    sample = [pairs[index] for index in sample_indices(len(pairs), PIXELS, settings.seed)]
    looks = _looks(settings, sample)
    share = float(np.mean([seen.mask for seen in looks]))
    print(f"share of mask pixels: {share:.1%} over {len(sample)} pairs", flush=True)
    if share > HIGH_MASK_SHARE:
        warn(f"warning: {share:.0%} mask pixels: {mask_advice(settings.mask_threshold)}")
    swapped = [pair.location for pair, seen in zip(sample, looks, strict=True) if seen.swapped]
    if swapped:
        warn(
            f"warning: {len(swapped)} of {len(sample)} pairs look swapped, as clean is the "
            f"brighter: {first_few(swapped, 3)}; expected the rainy image first"
        )
    shrunk = shrink_advice(sizes, settings.patch_size)
    if shrunk and settings.crop == "recipe":
        warn(f"warning: {shrunk}")


def _looks(settings: Settings, sample: Sequence[Pair]) -> list[PixelInspection]:
    images = dataset.load_images(sample, settings.num_workers)
    looks = []
    with closing(images), Progress("pair", 0, len(sample), [], after=SLOW_SECONDS) as progress:
        for pair in images:
            if isinstance(pair, UserError):
                raise pair
            looks.append(inspect_pixels(pair[0], pair[1], settings.mask_threshold))
            progress.advance(1)
    return looks
