"""The action `test`: derain the images of a list, and score them if it names the clean ones.

In the result folder: derained/STEM.png, mask/STEM.png (the first attention map as a heat map),
compare/STEM.png (rainy, derained, clean if known, mask, side by side), metrics.csv (a row a
picture), summary.json (the means, and what was run) and index.html (a page of all of it).

A picture goes from the list (media/lists.py) to `derain_pairs` (engine/scoring.py), which derains
it and, in a thread, calls `_write_result` here: that writes its files, scores it and returns its
`Result`. `_derain_list` writes the row of each result to metrics.csv; summary and page are written
from all results in the end (report/tables.py, report/page.py).
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.device import count_workers, describe_device
from engine.events import EventFile
from engine.ranks import Ranks
from engine.scoring import DerainedPair, check_headers, derain_pairs, warn_of_dead_masks
from media.lists import Pair, name_sets, read_list
from media.pictures import read_image
from media.results import result_names
from report import page, tables
from report.metrics import MEASURES, PROTOCOLS, measure
from report.result_folder import open_result_folder
from report.tables import CLEAN, DERAINED, RAINY, Mean, Result
from report.visualize import encode_png, heat_map, shrink, strip
from settings import Settings, UserError, as_tuple
from system.files import check_still_there, require_writable, write_atomically
from system.progress import Progress, warn

EVENTS = "test_derain"
METRICS_CSV, SUMMARY = "metrics.csv", "summary.json"
LOGGED_PICTURES, LOGGED_PIXELS = 3, 2048  # in the events: of either end, and of the longer side


def test(settings: Settings) -> int:
    """Derain every image of `--test-list` with checkpoint `-m`. Returns the exit status.

    That is 2 if images were bad: they are reported, and the others are derained. Ranks share the
    images; the first one writes the tables, in the order of the list.

    Raises:
        UserError: bad input, no good image at all, or results that cannot be written. Results of
            the images before it stay, each whole.
    """
    with Ranks() as ranks:
        layout, checkpoint = (settings.layout, settings.side_by_side), checkpoint_path(settings)
        sets = name_sets(as_tuple(settings.test_list))
        lists = {name: read_list(path, False, ranks.say, *layout) for name, path in sets.items()}
        if len({pairs.paired for pairs in lists.values()}) > 1:
            raise UserError("--test-list: some lists have clean images; expected all, or none")
        listed = [pair for pairs in lists.values() for pair in pairs]
        derainer = Derainer.from_settings(checkpoint, settings, ranks)
        names = [
            f"{test_set}/" * bool(test_set) + name
            for test_set, pairs in lists.items()
            for name in result_names([pair.rainy for pair in pairs])
        ]
        folder = Path(settings.result_dir)
        inputs = [path for pair in listed for path in (pair.rainy, pair.clean) if path]
        inputs += [*map(Path, sets.values()), checkpoint]
        outputs = [path for name in names for path in _picture_paths(folder, name)]
        readable = check_headers(listed, range(len(listed)), ranks)
        if not readable:
            raise UserError(f"none of the {len(listed)} images of the list can be used")
        pairs, names = [listed[i] for i in readable], [names[i] for i in readable]
        with open_result_folder(
            folder, "--result-dir", inputs=inputs, outputs=outputs, stale=(METRICS_CSV, SUMMARY),
            first=ranks.first, barrier=ranks.barrier,
        ):  # fmt: skip
            device = describe_device(derainer.device, ranks)
            ranks.say(f"{checkpoint}, step {derainer.step}, on {device}")
            if pairs[0].clean:
                require_writable(Path(settings.log_dir) / EVENTS)
            start = time.monotonic()
            results = _derain_list(settings, ranks, derainer, pairs, names)
            if not results:
                shown = ", ".join(sets.values())
                raise UserError(f"{shown}: none of its images could be derained")
            if ranks.first:
                seconds = time.monotonic() - start
                counts = {name: len(pairs) for name, pairs in lists.items()}
                _report_results(settings, derainer, results, counts, device, seconds)
                pictures = [p for result in results for p in _picture_paths(folder, result.name)]
                check_still_there(pictures, "results")
    return 0 if len(results) == len(listed) else 2


def _picture_paths(folder: Path, name: str) -> list[Path]:
    """The files of a picture's results, except those of the page."""
    return [folder / kind / f"{name}.png" for kind in (DERAINED, "mask", "compare")]


def _derain_list(
    settings: Settings, ranks: Ranks, derainer: Derainer, pairs: Sequence[Pair], names: list[str]
) -> list[Result]:
    """Derain, score and write each image. Returns the results; warns of the bad ones."""
    folder, scored = Path(settings.result_dir), pairs[0].clean is not None

    def finish(derained: DerainedPair) -> Result:
        return _write_result(folder, names[derained.index], pairs[derained.index], derained)

    if not scored:
        shown = ", ".join(as_tuple(settings.test_list))
        ranks.say(f"{shown} has no clean images: pictures only, no metrics")
    results: list[Result] = []
    workers = count_workers(settings, derainer.device, ranks)
    finished = derain_pairs(derainer, ranks, pairs, workers, finish)
    with (
        closing(finished),
        Progress("image", 0, len(pairs), list(MEASURES) if scored else [], settings.log_every,
                 silent=not ranks.first) as progress,
    ):  # fmt: skip
        for index, result in enumerate(finished):
            if isinstance(result, str):
                if ranks.first:
                    warn(result)
                continue
            if result.note and ranks.first and not any(earlier.note for earlier in results):
                progress.say(result.note)
            if scored and ranks.first:
                tables.append_row(folder / METRICS_CSV, tables.wide_row(result))
            results.append(result)
            derained = result.scores.get(DERAINED, {})
            progress.update(index, {m: derained[f"released_{m}"] for m in MEASURES if scored})
    return results


def _write_result(folder: Path, name: str, pair: Pair, derained: DerainedPair) -> Result:
    """Write the pictures of a derained pair, and score it if there is a clean image."""
    output, mask = derained.output, derained.output.mask
    images = {RAINY: derained.rainy, DERAINED: output.uint8_image}
    files = {RAINY: pair.rainy, DERAINED: _picture_paths(folder, name)[0]}
    if derained.clean is not None and pair.clean is not None:
        images[CLEAN], files[CLEAN] = derained.clean, pair.clean
    heat = heat_map(mask)
    pictures = images[DERAINED], heat, strip([*images.values(), heat])
    for path, picture in zip(_picture_paths(folder, name), pictures, strict=True):
        write_atomically(path, encode_png(picture, str(path)))
    page.write_copies(folder, derained.index, images, mask)
    result = Result.from_images(derained.index, name, files, images[RAINY], images[DERAINED], mask)
    result.seconds, result.note = derained.seconds, derained.note
    if CLEAN in images:
        for image, pixels in ((RAINY, derained.rainy), (DERAINED, output.float_image)):
            result.scores[image] = measure(pixels, images[CLEAN], order="BGR")
    return result


def _log_results(
    log: EventFile, folder: Path, results: list[Result], means: list[Mean], step: int
) -> None:
    """Add to the events: means and gains in each protocol, and the pictures of least and most gain.

    A gain is that of PSNR over the rainy image; a picture is the strip of `compare`.
    """
    for protocol in PROTOCOLS:
        for mean in means:
            scores = {measure: mean.scores[f"{protocol}_{measure}"] for measure in MEASURES}
            log.scalars({f"{protocol}/{mean.method}_{m}": v for m, v in scores.items()}, step)
        log.histogram(f"gain/{protocol}", [result.gain(protocol) for result in results], step)
    known = (result for result in results if math.isfinite(result.gain("released")))
    ranked = sorted(known, key=lambda result: result.gain("released"))
    for kind, order in (("worst", ranked), ("best", ranked[::-1])):
        for rank, result in enumerate(order[:LOGGED_PICTURES], 1):
            picture = read_image(_picture_paths(folder, result.name)[-1], "results")
            log.image(f"{kind}/{rank}_{result.name}", shrink(picture, LOGGED_PIXELS), step)


def _report_results(
    settings: Settings, derainer: Derainer, results: list[Result], counts: dict[str, int],
    device: str, seconds: float,
) -> None:  # fmt: skip
    """Write summary and page, and print where the results are and what their means are.

    Args:
        counts: how many images are in each set.
    """
    listed = sum(counts.values())
    folder, scored = Path(settings.result_dir), bool(results[0].scores)
    means = tables.compute_means(results, [RAINY, DERAINED])
    by_set = tables.compute_set_means(results, counts, [RAINY, DERAINED])
    summary: dict[str, object] = {
        "model": str(derainer.path),
        "step": derainer.step,
        "sha256": derainer.digest,
        "direction_attention": derainer.direction_attention,
        "moving_average": derainer.averaged,
        **{name: getattr(settings, name) for name in ("self_ensemble", "tile", "precision")},
        "list": settings.test_list,
        "images": len(results),
        "images_listed": listed,
        "device": str(derainer.device),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        "means": tables.flatten_means(means),
    }
    if len(counts) > 1:
        summary["sets"] = {name: tables.flatten_means(own) for name, own in by_set.items()}
    tables.write_json(folder / SUMMARY, summary)
    names = ", ".join(Path(path).name for path in as_tuple(settings.test_list))
    title = f"SPANet: {names}, derained by {checkpoint_path(settings).name}"
    title += f": {len(results)} of {listed} images" * (len(results) < listed)
    run = page.describe_run(("model", derainer.describe_weights()), device, seconds)
    sides = page.TEST_SIDES if scored else page.PLAIN_SIDES
    links = [METRICS_CSV] * scored + [SUMMARY]
    page.write_page(folder, title, results, run, settings, sides, means, links)
    print(f"results in {folder}: {', '.join([DERAINED, 'mask', 'compare', *links])}")
    print(f"open {folder / page.PAGE} to look at them")
    warn_of_dead_masks(derainer, results)
    if scored:
        step = derainer.step if isinstance(derainer.step, int) else 0  # unknown
        with closing(EventFile(Path(settings.log_dir) / EVENTS)) as log:
            _log_results(log, folder, results, means, step)
        tables.print_worst(results)
        tables.print_means(means, tables.count_pictures(means, listed))
        if len(counts) > 1:
            rows = [replace(own[-1], method=name) for name, own in by_set.items() if own]
            tables.print_means(rows, "the images of each set", "set")
        psnr, ssim = (means[1].scores[f"released_{m}"] for m in MEASURES)
        count = tables.count_pictures(means, listed)
        print(f"PSNR {psnr:.4f}  SSIM {ssim:.4f}  (released protocol, {count})")
    elif len(results) < listed:
        print(f"{len(results)} of {listed} images")
