"""The action `test`: derain the images of a list, and score them if it names the clean ones.

In the result folder: derained/STEM.png, mask/STEM.png (the first attention map as a heat map),
compare/STEM.png (rainy, derained, clean if known, mask, side by side), metrics.csv (a row a
picture), summary.json (the means, and what was run) and index.html (a page of all of it). For
TensorBoard, if there are scores: means, gains, and the pictures of least and most gain, in the
folder `test_derain` of --log-dir.

A picture goes from the list (media/lists.py) to `derain_pairs` (engine/pairs.py), which derains
it and, in a thread, calls `_finish_pair` here: that scores it, writes its files and returns its
`Result`. `_derain_list` writes the row of each result to metrics.csv. All else is written from all
results in the end, by `_report_results`, with report/tables.py and report/page.py.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.device import count_workers, describe_device
from engine.events import EventFile
from engine.pairs import DerainedPair, check_headers, derain_pairs, warn_of_dead_masks
from engine.ranks import Ranks
from media.lists import Pair, PairList, name_sets, read_list
from media.pictures import read_image
from media.results import result_names
from report import page, tables
from report.metrics import MEASURES, PROTOCOLS, measure
from report.result_folder import open_result_folder
from report.tables import CLEAN, DERAINED, RAINY, Mean, Result, Sets
from report.visualize import encode_png, heat_map, shrink, strip
from settings import Settings, UserError, as_tuple
from system.files import check_still_there, require_writable, write_atomically
from system.progress import Progress, warn

EVENTS = "test_derain"
METRICS_CSV, SUMMARY = "metrics.csv", "summary.json"
MASK, COMPARE = "mask", "compare"
KINDS = (DERAINED, MASK, COMPARE)  # of pictures, each in a folder of its name
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
        checkpoint, folder = checkpoint_path(settings), Path(settings.result_dir)
        sets = name_sets(as_tuple(settings.test_list))
        options: dict[str, Any] = {"layout": settings.layout, "side_by_side": settings.side_by_side}
        lists = {name: read_list(path, say=ranks.say, **options) for name, path in sets.items()}
        scored, *others = {pair_list.paired for pair_list in lists.values()}
        if others:
            raise UserError("--test-list: some lists have clean images; expected all, or none")
        listed_pairs = [pair for pair_list in lists.values() for pair in pair_list]
        derainer = Derainer.from_settings(checkpoint, settings, ranks)
        listed_names = [
            f"{test_set}/{name}" if test_set else name
            for test_set, pair_list in lists.items()
            for name in result_names([pair.rainy for pair in pair_list])
        ]
        inputs = [path for pair in listed_pairs for path in (pair.rainy, pair.clean) if path]
        inputs += [*map(Path, sets.values()), checkpoint]
        targets = [_picture_path(folder, kind, name) for name in listed_names for kind in KINDS]
        readable = check_headers(listed_pairs, range(len(listed_pairs)), ranks)
        if not readable:
            raise UserError(f"none of the {len(listed_pairs)} images of the list can be used")
        pairs, names = [listed_pairs[i] for i in readable], [listed_names[i] for i in readable]
        with open_result_folder(
            folder, "--result-dir", inputs=inputs, outputs=targets, stale=(METRICS_CSV, SUMMARY),
            first=ranks.is_first, barrier=ranks.barrier,
        ):  # fmt: skip
            device, paths = describe_device(derainer.device, ranks), ", ".join(sets.values())
            ranks.say(f"{checkpoint}, step {derainer.step}, on {device}")
            if scored:
                require_writable(Path(settings.log_dir) / EVENTS)
            else:
                ranks.say(f"{paths} has no clean images: pictures only, no metrics")
            start = time.monotonic()
            results = _derain_list(settings, ranks, derainer, pairs, names, scored)
            if not results:
                raise UserError(f"{paths}: none of its images could be derained")
            if ranks.is_first:
                seconds = time.monotonic() - start
                _report_results(settings, derainer, lists, results, scored, device, seconds)
                written = [_picture_path(folder, kind, r.name) for r in results for kind in KINDS]
                check_still_there(written, "results")
    return 0 if len(results) == len(listed_pairs) else 2


def _picture_path(folder: Path, kind: str, name: str) -> Path:
    return folder / kind / f"{name}.png"


def _derain_list(
    settings: Settings, ranks: Ranks, derainer: Derainer, pairs: Sequence[Pair], names: list[str],
    scored: bool,
) -> list[Result]:  # fmt: skip
    """Derain, score and write each image. Returns the results; warns of the bad ones."""
    folder, measures = Path(settings.result_dir), list(MEASURES) if scored else []

    def finish(derained_pair: DerainedPair) -> Result:
        index = derained_pair.index
        return _finish_pair(folder, names[index], pairs[index], derained_pair)

    results: list[Result] = []
    workers = count_workers(settings, derainer.device, ranks)
    finished = derain_pairs(derainer, ranks, pairs, workers, finish)
    log_every, silent = settings.log_every, not ranks.is_first
    progress = Progress("image", 0, len(pairs), measures, log_every, silent=silent)
    with closing(finished), progress:
        for index, result in enumerate(finished):
            if isinstance(result, UserError):
                if ranks.is_first:
                    warn(str(result))
                continue
            if result.note and ranks.is_first and not any(earlier.note for earlier in results):
                progress.say(result.note)
            if scored and ranks.is_first:
                tables.append_row(folder / METRICS_CSV, tables.wide_row(result))
            results.append(result)
            progress.update(index, {m: result.scores[DERAINED][f"released_{m}"] for m in measures})
    return results


def _finish_pair(folder: Path, name: str, pair: Pair, derained_pair: DerainedPair) -> Result:
    """Score a derained pair, if there is a clean image, and write its pictures."""
    index, output, mask = derained_pair.index, derained_pair.output, derained_pair.output.mask
    rainy, clean, derained = derained_pair.rainy, derained_pair.clean, output.uint8_image
    images, files = {RAINY: rainy, DERAINED: derained}, {RAINY: pair.rainy}
    files[DERAINED] = _picture_path(folder, DERAINED, name)
    result = Result.from_images(index, name, files, rainy, derained, mask)
    result.seconds, result.note = output.seconds, derained_pair.note
    if pair.clean:
        assert clean is not None  # was read from there
        images[CLEAN], result.files[CLEAN] = clean, pair.clean
        result.scores[RAINY] = measure(rainy, clean, order="BGR")
        # Before it is rounded to 8 bits, as for the published figures: see docs/results.md.
        result.scores[DERAINED] = measure(output.float_image, clean, order="BGR")
    heat = heat_map(mask)
    pictures = {DERAINED: derained, MASK: heat, COMPARE: strip([*images.values(), heat])}
    for kind, picture in pictures.items():
        path = _picture_path(folder, kind, name)
        write_atomically(path, encode_png(picture, str(path)))
    page.write_copies(folder, index, images, mask)
    return result


def _report_results(
    settings: Settings, derainer: Derainer, lists: dict[str, PairList], results: list[Result],
    scored: bool, device: str, seconds: float,
) -> None:  # fmt: skip
    """Write summary, page and events, and print where the results are and what their means are."""
    folder, listed = Path(settings.result_dir), sum(map(len, lists.values()))
    means = tables.compute_means(results, [RAINY, DERAINED])
    by_set = tables.compute_set_means(results, lists, [RAINY, DERAINED])
    _write_summary(settings, derainer, len(results), listed, seconds, means, by_set)
    list_names = ", ".join(Path(path).name for path in as_tuple(settings.test_list))
    title = f"SPANet: {list_names}, derained by {checkpoint_path(settings).name}"
    if len(results) < listed:
        title += f": {len(results)} of {listed} images"
    run = page.describe_run(("model", derainer.describe_weights()), device, seconds)
    sides = page.TEST_SIDES if scored else page.PLAIN_SIDES
    links = [METRICS_CSV, SUMMARY] if scored else [SUMMARY]
    page.write_page(folder, title, results, run, settings, sides, means, links)
    print(f"results in {folder}: {', '.join([*KINDS, *links])}")
    print(f"open {folder / page.PAGE} to look at them")
    warn_of_dead_masks(derainer, results)
    if scored:
        step = derainer.step if isinstance(derainer.step, int) else 0  # unknown
        _log_results(settings, results, means, step)
        _print_scores(results, means, by_set, listed)
    elif len(results) < listed:
        print(f"{len(results)} of {listed} images")


def _write_summary(
    settings: Settings, derainer: Derainer, count: int, listed: int, seconds: float,
    means: list[Mean], by_set: Sets,
) -> None:  # fmt: skip
    summary: dict[str, object] = {
        "model": str(derainer.path),
        "step": derainer.step,
        "sha256": derainer.digest,
        "direction_attention": derainer.direction_attention,
        "moving_average": derainer.averaged,
        **{name: getattr(settings, name) for name in ("self_ensemble", "tile", "precision")},
        "list": settings.test_list,
        "images": count,
        "images_listed": listed,
        "device": str(derainer.device),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        "means": tables.flatten_means(means),
    }
    if len(by_set) > 1:
        summary["sets"] = {name: tables.flatten_means(of_set) for name, of_set in by_set.items()}
    tables.write_json(Path(settings.result_dir) / SUMMARY, summary)


def _log_results(settings: Settings, results: list[Result], means: list[Mean], step: int) -> None:
    """Add to the events: means and gains in each protocol, and the pictures of least and most gain.

    A gain is that of PSNR over the rainy image; a picture is the strip of `compare`.
    """
    known = (result for result in results if math.isfinite(result.gain("released")))
    ranked = sorted(known, key=lambda result: result.gain("released"))
    with closing(EventFile(Path(settings.log_dir) / EVENTS)) as log:
        for protocol in PROTOCOLS:
            for mean in means:
                scores = {m: mean.scores[f"{protocol}_{m}"] for m in MEASURES}
                log.scalars({f"{protocol}/{mean.method}_{m}": scores[m] for m in MEASURES}, step)
            log.histogram(f"gain/{protocol}", [result.gain(protocol) for result in results], step)
        for kind, order in (("worst", ranked), ("best", ranked[::-1])):
            for place, result in enumerate(order[:LOGGED_PICTURES], 1):
                path = _picture_path(Path(settings.result_dir), COMPARE, result.name)
                picture = shrink(read_image(path, "results"), LOGGED_PIXELS)
                log.image(f"{kind}/{place}_{result.name}", picture, step)


def _print_scores(results: list[Result], means: list[Mean], by_set: Sets, listed: int) -> None:
    count = tables.count_pictures(means, listed)
    tables.print_worst(results)
    tables.print_means(means, count)
    if len(by_set) > 1:
        set_means = [(name, mean) for name, of_set in by_set.items() for mean in of_set]
        rows = [replace(mean, method=name) for name, mean in set_means if mean.method == DERAINED]
        tables.print_means(rows, "the images of each set", "set")
    scores = tables.flatten_means(means)
    psnr, ssim = (scores[f"output_released_{m}"] for m in MEASURES)
    print(f"PSNR {psnr:.4f}  SSIM {ssim:.4f}  (released protocol, {count})")
