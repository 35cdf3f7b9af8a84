"""The action `test`: derain a list of images, and score them where it has the clean ones.

In the result folder: derained/STEM.png, mask/STEM.png (the first attention map as a heat map),
compare/STEM.png (rainy, derained, clean where known, mask, side by side), metrics.csv (a row an
image), summary.json (the means, and what was run) and index.html (all of it, to look at).
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.device import describe_device
from engine.events import EventFile
from engine.ranks import Ranks
from engine.scoring import map_images_over_ranks
from media.inspection import inspect_headers
from media.lists import Pair, read_list
from media.results import DERAINED, result_names
from model import CONSTANT_MASK
from report import page
from report.copies import write_pictures
from report.metrics import MEASURES, measure
from report.result_folder import open_result_folder
from report.table import (
    COLUMNS,
    SCORES,
    SIDES,
    Row,
    Table,
    means_of,
    print_means,
    print_worst,
    write_summary,
)
from report.visualize import encode_png, heat_map, strip
from settings import Settings, UserError
from system.files import check_still_there, write_atomically
from system.progress import Progress, warn

EVENTS = "test_derain"
TOLD = ("metrics.csv", "summary.json")  # in the result folder, besides pictures and page


def test(settings: Settings) -> int:
    """Derain every image of `--test-list` with checkpoint `-m`. Returns the exit status.

    That is 2 where images were bad: they are told, and the others are derained. Ranks share the
    images; the first one writes the table, in the order of the list.

    Raises:
        UserError: bad input, no good image at all, or results that cannot be written. Results of
            the images before it stay, each whole.
    """
    with Ranks() as ranks:
        how = ranks.say, settings.layout, settings.side_by_side
        pairs = read_list(settings.test_list, False, *how)
        derainer = Derainer.from_settings(checkpoint_path(settings), settings, ranks)
        names = result_names([pair.rainy for pair in pairs])
        folder = Path(settings.result_dir)
        inputs = [Path(settings.test_list), derainer.path]
        inputs += [path for pair in pairs for path in (pair.rainy, pair.clean) if path]
        outputs = [path for name in names for path in _pictures(folder, name)]
        listed, good = len(pairs), _good(pairs, ranks)
        pairs, names = ([of[index] for index in good] for of in (pairs, names))
        with open_result_folder(
            folder,
            "--result-dir",
            inputs=inputs,
            outputs=outputs,
            stale=TOLD,
            first=ranks.first,
            barrier=lambda: ranks.all_gather(None),
        ):
            if ranks.first:
                name = describe_device(derainer.device, ranks)
                print(f"{derainer.path}, step {derainer.step}, on {name}", flush=True)
            start = time.monotonic()
            rows = _derain_list(settings, ranks, derainer, pairs, names)
            if not rows:
                raise UserError(f"{settings.test_list}: none of its images could be derained")
            if ranks.first:
                _tell(settings, derainer, rows, listed, name, time.monotonic() - start)
                check_still_there(
                    [p for row in rows for p in _pictures(folder, row.name)], "results"
                )
        ranks.all_gather(None)  # one that leaves with status 2 has the others ended
    return 0 if len(rows) == listed else 2


def _good(pairs: Sequence[Pair], ranks: Ranks) -> list[int]:
    """The numbers of the pairs whose headers are in order; the others are told. Raises UserError
    where there is none."""
    own = range(ranks.rank, len(pairs), ranks.world_size)
    looks = inspect_headers(pairs, own, silent=not ranks.first)
    found = {index: str(bad) for index, bad in looks if isinstance(bad, UserError)}
    bad = {index: message for part in ranks.all_gather(found) for index, message in part.items()}
    if len(bad) == len(pairs) == 1:
        raise UserError(bad[0])
    for index in sorted(bad) if ranks.first else ():
        warn(bad[index])
    if len(bad) == len(pairs):
        raise UserError(f"none of the {len(pairs)} images of the list can be used")
    return [index for index in range(len(pairs)) if index not in bad]


def _pictures(folder: Path, name: str) -> list[Path]:
    """The files of an image's results, but for those of the page."""
    return [folder / kind / f"{name}.png" for kind in (DERAINED, "mask", "compare")]


@dataclass
class _Worked:
    """An image of the list that was derained, and what its results are made from.

    Attributes:
        rainy, clean, derained: (H,W,3) uint8 BGR.
        output: derained as the network gave it, (H,W,3) float32, where it is to be scored.
        mask: (H,W) float32.
    """

    index: int
    rainy: np.ndarray
    clean: np.ndarray | None
    derained: np.ndarray
    output: np.ndarray | None
    mask: np.ndarray
    seconds: float
    note: str


def _derain_list(
    settings: Settings, ranks: Ranks, derainer: Derainer, pairs: Sequence[Pair], names: list[str]
) -> list[Row]:
    """Derain, score and write each image, under its name; the rows of the results.

    What is wrong with one that has no row is told.
    """
    folder, scored = Path(settings.result_dir), pairs[0].clean is not None

    def work(index: int, rainy: np.ndarray, clean: np.ndarray | None) -> _Worked:
        start = time.monotonic()
        found = derainer.derain(rainy, f"{pairs[index].location}: {pairs[index].rainy}")
        output = found.float_image if scored else None
        derained, mask = found.uint8_image, found.mask
        seconds = time.monotonic() - start
        note = derainer.compare_tiles(rainy)
        return _Worked(index, rainy, clean, derained, output, mask, seconds, note)

    def finish(done: _Worked) -> Row:
        pair, name = pairs[done.index], names[done.index]
        _write_pictures(folder, name, done)
        shown = {"before": done.rainy, "after": done.derained}
        if done.clean is not None:
            shown["clean"] = done.clean
        write_pictures(folder, done.index, shown, done.mask)
        sources = {} if pair.halves else {"before": pair.rainy, "clean": pair.clean}
        files = page.files_of(folder, **sources, after=_pictures(folder, name)[0])
        row = Row.of(done.index, name, files, done.rainy, done.derained, done.mask)
        row.seconds, row.note = done.seconds, done.note
        row.rainy, row.clean = str(pair.rainy), str(pair.clean or "")
        if done.clean is not None:
            row.scores = _scores(done.output, done.rainy, done.clean)
        return row

    if not scored and ranks.first:
        print(f"{settings.test_list} has no clean images: pictures only, no metrics")
    told, rows = scored and ranks.first, []
    done = map_images_over_ranks(
        ranks, pairs, settings.num_workers, work, finish, lambda done: done.rainy.size // 3
    )
    log = EventFile(Path(settings.log_dir) / EVENTS) if told else None
    with (
        _told_what_is_done(rows, len(pairs), ranks),
        closing(done),
        closing(log) if log else nullcontext(),
        Table(folder / TOLD[0] if told else None, COLUMNS) as table,
        Progress("image", 0, len(pairs), list(MEASURES) if scored else [], settings.log_every,
                 silent=not ranks.first) as progress,
    ):  # fmt: skip
        for index, row in enumerate(done):
            if isinstance(row, str):
                if ranks.first:
                    warn(row)
                continue
            if log:
                log.scalars({f"image/{key}": value for key, value in row.scores.items()}, index)
            if row.note and ranks.first and not any(earlier.note for earlier in rows):
                progress.say(row.note)
            texts = row.name, row.rainy, row.clean
            table.add(
                texts, [row.width, row.height, *(row.scores.get(name, math.nan) for name in SCORES)]
            )
            rows.append(row)
            shown = {m: row.scores[f"output_released_{m}"] for m in MEASURES} if scored else {}
            progress.update(index, shown)
        if log:
            means = {f"score/{name}": value for name, value in means_of(rows).items()}
            log.scalars(means, derainer.step)
    return rows


@contextmanager
def _told_what_is_done(rows: list[Row], count: int, ranks: Ranks) -> Iterator[None]:
    """Say how far it came, where something ends it early."""
    try:
        yield
    except BaseException:
        if ranks.first and rows:
            print(f"{len(rows)} of {count} images were done; what there is of them stays")
        raise


def _scores(output: np.ndarray, rainy: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """The scores of a row: of the derained image, (H,W,3) float, and of the rainy one."""
    return {
        f"{side}_{name}": value
        for side, image in zip(SIDES, (output, rainy), strict=True)
        for name, value in measure(image, clean, order="BGR").items()
    }


def _write_pictures(folder: Path, name: str, done: _Worked) -> None:
    heat = heat_map(done.mask)
    compared = [done.rainy, done.derained, done.clean, heat]
    side_by_side = strip([image for image in compared if image is not None])
    pictures = done.derained, heat, side_by_side
    for path, picture in zip(_pictures(folder, name), pictures, strict=True):
        write_atomically(path, encode_png(picture, str(path)))


def _tell(
    settings: Settings,
    derainer: Derainer,
    rows: list[Row],
    listed: int,
    device: str,
    seconds: float,
) -> None:
    """Write summary and page, and print where results lie and what their means are."""
    folder, scored = Path(settings.result_dir), bool(rows[0].scores)
    means = means_of(rows) if scored else {}
    facts = {
        "model": str(derainer.path),
        "step": derainer.step,
        "direction_attention": derainer.direction_attention,
        "self_ensemble": settings.self_ensemble,
        "tile": settings.tile,
        "precision": settings.precision,
        "list": settings.test_list,
        "images": len(rows),
        "images_listed": listed,
        "device": str(derainer.device),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
    }
    write_summary(folder / "summary.json", facts, means)
    content = page.scored_page(rows, means, TOLD) if scored else page.plain_page(rows, TOLD[1:])
    title = f"SPANet: {Path(settings.test_list).name}, derained by {derainer.path.name}"
    title += f": {len(rows)} of {listed} images" * (len(rows) < listed)
    page.write_page(
        folder, title, content, page.about(derainer.describe_weights(), device, seconds), settings
    )
    print(f"results in {folder}: derained, mask, compare, summary.json" + ", metrics.csv" * scored)
    print(f"open {folder / page.PAGE} to look at them")
    _warn_of_constant_masks(derainer, rows)
    if scored:
        print_worst(rows)
        print_means(means, len(rows), listed)
    elif len(rows) < listed:
        print(f"{len(rows)} of {listed} images")


def _warn_of_constant_masks(derainer: Derainer, rows: list[Row]) -> None:
    deviations = [row.deviation for row in rows if row.width * row.height > 1]
    if deviations and max(deviations) < CONSTANT_MASK:
        print(
            f"main.py: warning: the attention map of {derainer.path} is constant on "
            "every image, so the network does not look for rain; train it again with a lower --lr "
            "or another --seed",
            file=sys.stderr,
        )
