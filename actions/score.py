"""The action `score`: score results of other programs by the clean images. No network runs.

In the folder -o: metrics.csv (a row a result), summary.json (the means), table.md and table.tex
(a row a method, for a paper) and index.html (a page of all of it).
"""

import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from media.folders import describe_skipped, natural_order
from media.inspection import inspect_headers
from media.lists import Pair, PairList, name_sets, read_list, read_pair
from media.pictures import read_image
from media.results import Match, Method, find_methods, match_results, result_names
from report import page, tables
from report.metrics import MEASURE_BYTES_PER_PIXEL, PROTOCOLS, measure
from report.result_folder import open_result_folder, read_head
from report.tables import CLEAN, RAINY, Mean, Result
from settings import Settings, UserError, as_tuple, first_few, format_count
from system import machine
from system.files import format_path
from system.overlap import map_processes
from system.progress import Progress, warn

OUTPUTS = ("metrics.csv", "summary.json", "table.md", "table.tex")


@dataclass(frozen=True)
class Task:
    """A pair of the list, and the methods' results for it, by the methods' names."""

    index: int
    name: str
    pair: Pair
    results: dict[str, Path]


@dataclass
class Plan:
    """What is to be scored.

    Attributes:
        inputs: the files that are read.
        complete: whether every picture has its results, and every result its picture.
    """

    tasks: list[Task] = field(default_factory=list)
    methods: set[str] = field(default_factory=set)
    inputs: list[Path] = field(default_factory=list)
    complete: bool = True


def score(settings: Settings) -> int:
    """Score the results in `-i` by the clean images of `--test-list`. Returns the exit status.

    That is 2 if a picture has no result, a result no picture, or one of either is bad: they are
    reported, and the others are scored.

    Raises:
        UserError: bad input, no result that can be scored, or a file that cannot be written.
    """
    if not settings.input or not settings.output:
        raise UserError("-i and -o: expected a folder of results, and a folder to write into")
    start, folder = time.monotonic(), Path(settings.output)
    plan, sets = Plan(), name_sets(as_tuple(settings.test_list))
    counts = {name: _add_set(plan, settings, name, path) for name, path in sets.items()}
    names = sorted(plan.methods, key=natural_order)
    kinds = {method: str(number) for number, method in enumerate(names, 1)}
    head = read_head(folder / OUTPUTS[0])
    if head is None or not b"method,".startswith(head[:7]):  # that of a killed run may be empty
        for path in (folder / name for name in OUTPUTS):
            if path.exists():
                raise UserError(f"{path}: is not of -a score; expected another -o")
    with open_result_folder(folder, "-o", inputs=plan.inputs, outputs=[], stale=reversed(OUTPUTS)):
        scored, is_whole = _score_tasks(settings, folder, kinds, plan.tasks)
        _report_results(settings, folder, kinds, counts, scored, start)
    return 0 if is_whole and plan.complete else 2


def _add_set(plan: Plan, settings: Settings, test_set: str, path: str) -> int:
    """Add the pairs of a list and their results to what is scored. Raises UserError.

    Args:
        test_set: its name if it is one of several.

    Returns:
        The number of pairs.
    """
    methods, empty = find_methods(Path(settings.only_input), Path(settings.output), test_set)
    for method in methods:
        if method.name in (RAINY, CLEAN):
            raise UserError(f"-i: {settings.input}: no method can be called {method.name}")
    layout = settings.layout, settings.side_by_side
    pairs = read_list(path, False, print, *layout, allow_unpaired=True)
    if not pairs.paired:
        print(f"{path}: taken as the clean images; the tables have no row {RAINY}")
    if empty:
        warn(f"skipped folders without pictures: {first_few(map(format_path, empty))}")
    names = result_names([pair.rainy for pair in pairs])
    matches = {method.name: match_results(method, pairs, names) for method in methods}
    for method in methods:
        _report_match(method, matches[method.name], pairs)
    if not any(match.files for match in matches.values()):
        raise UserError(f"-i: {settings.input}: none of its pictures is of {path}")
    plan.methods |= set(matches)
    plan.inputs += [path for pair in pairs for path in (pair.rainy, pair.clean) if path]
    plan.inputs += [Path(path), *(file for method in methods for file in method.files)]
    plan.complete &= not empty and all(match.complete for match in matches.values())
    for index, (name, pair) in enumerate(zip(names, pairs, strict=True)):
        files = {method: m.files[index] for method, m in matches.items() if index in m.files}
        prefix = f"{test_set}/" * bool(test_set)
        plan.tasks.append(Task(len(plan.tasks), prefix + name, pair, files))
    return len(pairs)


def _report_match(method: Method, match: Match, pairs: PairList) -> None:
    """Report which of a method's results are scored, and which are not."""
    name, rule = method.name, f"; {match.rule}" if match.rule else ""
    print(f"{name}: {len(match.files)} of {len(pairs)} pictures have a result{rule}")
    if method.others:
        print(f"{name}: {describe_skipped(method.others)}")
    if match.doubts:
        warn(f"{name}: not scored: {first_few(match.doubts)}")
    if match.unmatched:
        files = first_few(format_path(path.name) for path in match.unmatched)
        count = format_count(len(match.unmatched), "file")
        warn(f"{name}: skipped {count} of no picture in the list: {files}")
    if match.missing:
        truths = (pairs[index].clean or pairs[index].rainy for index in match.missing)
        files = first_few(format_path(path.name) for path in truths)
        warn(f"{name}: no result for {len(match.missing)} of {len(pairs)}: {files}")


def _score_tasks(
    settings: Settings, folder: Path, kinds: dict[str, str], tasks: list[Task]
) -> tuple[list[Result], bool]:
    """The results of the tasks that could be scored, and whether all of them could be."""
    work = partial(score_pair, folder=folder, kinds=kinds, crop=settings.crop_to_common)
    results, is_whole = [], True
    finished = map_processes(tasks, work, _count_processes(settings, tasks))
    with closing(finished), Progress("picture", 0, len(tasks), []) as progress:
        for result, errors in finished:
            for line in errors:
                warn(line)
            is_whole = is_whole and not errors
            if result:
                for row in tables.long_rows(result):
                    tables.append_row(folder / OUTPUTS[0], row)
                results.append(result)
            progress.advance(1)
    return results, is_whole


def _count_processes(settings: Settings, tasks: list[Task]) -> int:
    """One process a core, but no more than there is memory for."""
    pairs = [task.pair for task in tasks]
    sizes = (size for size in inspect_headers(pairs) if isinstance(size, tuple))
    pixels = max((width * height for width, height in sizes), default=0)
    images = 3 + max(len(task.results) for task in tasks)  # and one that is being decoded
    needed = pixels * (MEASURE_BYTES_PER_PIXEL + 3 * images)
    most = settings.num_threads or machine.count_cores()
    return max(1, min(most, machine.free_memory() // (2 * needed) if needed else most))


def score_pair(
    task: Task, folder: Path, kinds: dict[str, str], crop: bool
) -> tuple[Result | None, list[str]]:
    """Score every result of a pair, and write the copies that the page shows.

    Args:
        kinds: of the methods' copies, by the methods' names.
        crop: whether to score what images of two sizes share at the top left.

    Returns:
        The result, or None if nothing was scored, and an error message for each bad image.
    """
    pair, errors = task.pair, []
    try:
        rainy, clean = read_pair(pair)
    except UserError as error:
        return None, [str(error)]
    if clean is None or pair.clean is None:  # the list names clean images alone
        images, files = {CLEAN: rainy}, {CLEAN: pair.rainy}
    else:
        images, files = {RAINY: rainy, CLEAN: clean}, {RAINY: pair.rainy, CLEAN: pair.clean}
    truth = images[CLEAN]
    result = Result(task.index, task.name, files | task.results, truth.shape[1], truth.shape[0])
    for method, path in task.results.items():
        try:
            image = read_image(path, f"{method}, for {pair.location}")
        except UserError as error:
            errors.append(str(error))
            continue
        if image.shape != truth.shape:
            width, height = image.shape[1::-1]
            if not crop:
                errors.append(
                    f"{method}: {format_path(path)} is {width}x{height}, its truth {result.width}x"
                    f"{result.height}: not scored; --crop-to-common compares what they share"
                )
                continue
            result.compared[method] = min(width, result.width), min(height, result.height)
        images[method] = image
    for name, image in images.items():
        if name != CLEAN:
            width, height = result.compared.get(name, (result.width, result.height))
            both = image[:height, :width], truth[:height, :width]
            result.scores[name] = measure(*both, order="BGR")
    if not result.scores:
        return None, errors
    copies = {}
    for name, image in images.items():  # cut to the size of the truth, or padded with black
        copy = copies[kinds.get(name, name)] = np.zeros_like(truth)
        part = image[: result.height, : result.width]
        copy[: part.shape[0], : part.shape[1]] = part
    page.write_copies(folder, task.index, copies)
    return result, errors


def _report_results(
    settings: Settings, folder: Path, kinds: dict[str, str], counts: dict[str, int],
    results: list[Result], start: float,
) -> None:  # fmt: skip
    """Write means, tables and page, and print the means. Raises UserError.

    Args:
        counts: how many pictures are in each set.
    """
    listed = sum(counts.values())
    means = tables.compute_means(results, [RAINY, *kinds])
    if all(mean.method == RAINY for mean in means):
        raise UserError(f"-i: {settings.input}: none of its pictures could be scored")
    for method in kinds:
        files = [result.files[method] for result in results if method in result.scores]
        jpegs = sum(file.suffix.lower() in (".jpg", ".jpeg") for file in files)
        cropped = sum(method in result.compared for result in results)
        if jpegs:
            print(f"{method}: {jpegs} of its results are JPEG files, whose losses count against it")
        if cropped:
            print(f"{method}: {cropped} of its results are compared in part: their sizes differ")
    if not tables.share_pictures(means):
        print("the means are over different pictures: they cannot be compared")
    by_set = tables.compute_set_means(results, counts, [RAINY, *kinds])
    protocols = list(PROTOCOLS) if settings.protocol == "all" else [settings.protocol]
    tables.write_tables(folder, means, listed, by_set, protocols)
    seconds = time.monotonic() - start
    summary: dict[str, object] = {
        "results": settings.input,
        "list": settings.test_list,
        "images_listed": listed,
        "crop_to_common": settings.crop_to_common,
        "seconds": round(seconds, 3),
        "methods": _summarize(means),
    }
    if len(counts) > 1:
        summary["sets"] = {name: _summarize(own) for name, own in by_set.items()}
    tables.write_json(folder / OUTPUTS[1], summary)
    sides = ({RAINY: RAINY} if means[0].method == RAINY else {}) | kinds | {CLEAN: CLEAN}
    names = ", ".join(Path(path).name for path in as_tuple(settings.test_list))
    title = f"{', '.join(kinds)} on {names}"
    title += f": {len(results)} of {listed} images" * (len(results) < listed)
    source = ("source", "scored results; no network was run")
    run = page.describe_run(source, f"{machine.count_cores()} cores", seconds)
    page.write_page(folder, title, results, run, settings, sides, means, OUTPUTS)
    print(f"results in {folder}: {', '.join(OUTPUTS)}")
    print(f"open {folder / page.PAGE} to look at them")
    for name, own in by_set.items():
        if name:
            print(f"{name}:")
        tables.print_means(own, tables.count_pictures(own, counts[name]))


def _summarize(means: list[Mean]) -> dict[str, object]:
    """The means of methods as the summary has them."""
    return {mean.method: {"images": len(mean.indices), "means": mean.scores} for mean in means}
