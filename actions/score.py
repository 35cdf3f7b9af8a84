"""The action `score`: results of other programs, held against the clean images. No network runs.

In the folder -o: metrics.csv (a row a result), summary.json (the means), table.md and table.tex
(a row a method, to be put into a paper) and index.html (all of it, to look at).
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from actions.score_pairs import Done, Task, score_pair
from media.folders import describe_skipped
from media.inspection import inspect_headers
from media.lists import PairList, read_list
from media.results import Match, Method, find_methods, match_results, result_names
from report import comparison, page
from report.comparison import INPUT
from report.metrics import BYTES_A_PIXEL
from report.result_folder import open_result_folder
from report.table import Table, in_json, write_json
from settings import Settings, UserError
from system import machine
from system.files import format_path
from system.overlap import map_processes
from system.progress import Progress, warn

TAKEN = {INPUT: "rainy", page.CLEAN.name: "clean"}  # names
WRITTEN = ("metrics.csv", "summary.json", "table.md", "table.tex")
TOLD = 5  # of many names, as many are told


def score(settings: Settings) -> int:
    """Score the results in `-i` by the clean images of `--test-list`. Returns the exit status.

    That is 2 where a picture has no result, a result no picture, or one of either is bad: they are
    told, and the others are scored.

    Raises:
        UserError: bad input, no result that can be scored, or a file that cannot be written.
    """
    if not settings.input or not settings.output:
        raise UserError("-i and -o: expected a folder of results, and a folder to write into")
    start, folder = time.monotonic(), Path(settings.output)
    methods, empty = find_methods(Path(settings.input), folder)
    for name, what in TAKEN.items():
        if name in [method.name for method in methods]:
            raise UserError(
                f"-i: {settings.input}: a method is called {name}, as the {what} images are; "
                "expected another name"
            )
    how = settings.layout, settings.side_by_side
    pairs = read_list(settings.test_list, False, print, *how, allow_unpaired=True)
    if not pairs.paired:
        print(f"{settings.test_list}: taken as the clean images; there is no row of the {INPUT}")
    names = result_names([pair.rainy for pair in pairs])
    results = [path for method in methods for path in method.files]
    if folder.resolve() in {Path(settings.input).resolve(), *(p.parent.resolve() for p in results)}:
        raise UserError(f"-o: {folder}: the results are there; expected another folder")
    inputs = [Path(settings.test_list), *results]
    inputs += [path for pair in pairs for path in (pair.rainy, pair.clean) if path]
    if empty:
        warn(f"left out, as without pictures: {_some(format_path(path) for path in empty)}")
    matches = [match_results(method, pairs, names) for method in methods]
    for method, found in zip(methods, matches, strict=True):
        _tell_match(method, found, pairs)
    if not any(found.files for found in matches):
        raise UserError(f"-i: {settings.input}: none of its pictures is of {settings.test_list}")
    _require_own_tables(folder)
    with open_result_folder(folder, "-o", inputs=inputs, outputs=[], stale=reversed(WRITTEN)):
        tasks = []
        for place, (name, pair) in enumerate(zip(names, pairs, strict=True)):
            own = {n: found.files.get(place) for n, found in enumerate(matches, 1)}
            tasks.append(Task(place, name, pair, {n: path for n, path in own.items() if path}))
        done = _scored(settings, folder, methods, tasks)
        _write(settings, folder, methods, pairs, done, time.monotonic() - start)
    complete = not empty and all(found.complete for found in matches)
    return 0 if complete and not any(one.complaints for one in done) else 2


def _some(names: Iterable[object]) -> str:
    names = list(map(str, names))
    return ", ".join(names[:TOLD]) + (f", and {len(names) - TOLD} more" if names[TOLD:] else "")


def _require_own_tables(folder: Path) -> None:
    """Raise UserError if another action wrote the tables in the folder."""
    table, *others = (folder / name for name in WRITTEN)
    comparison.require_own_table(table)
    existing = [path for path in others if path.exists()]
    if existing and not table.exists():
        raise UserError(f"{existing[0]}: is not of -a score; expected another -o")


def _tell_match(method: Method, found: Match, pairs: PairList) -> None:
    """Say what of a method's results is scored, and what is not."""
    name, count = method.name, len(found.files)
    how = f"; {found.how}" if found.how else ""
    print(f"{name}: {count} of {len(pairs)} pictures have a result{how}")
    if method.others:
        print(f"{name}: {describe_skipped(method.others)}")
    for text in found.doubts[:TOLD]:
        warn(f"{name}: {text}; not scored")
    if found.doubts[TOLD:]:
        warn(f"{name}: and {len(found.doubts) - TOLD} more of this kind")
    if found.strangers:
        names = _some(format_path(path.name) for path in found.strangers)
        warn(f"{name}: of no picture of the list: {len(found.strangers)}: {names}")
    if found.missing:
        names = _some(
            format_path((pairs[place].clean or pairs[place].rainy).name) for place in found.missing
        )
        warn(f"{name}: no result for {len(found.missing)} of {len(pairs)}: {names}")


def _scored(
    settings: Settings, folder: Path, methods: list[Method], tasks: list[Task]
) -> list[Done]:
    names = [INPUT, *(method.name for method in methods)]
    work = partial(score_pair, names=names, folder=folder, crop=settings.crop_to_common)
    found: list[Done] = []
    results = map_processes(tasks, work, _processes(settings, tasks))
    try:
        with (
            closing(results),
            Table(folder / WRITTEN[0], comparison.COLUMNS) as table,
            Progress("picture", 0, len(tasks), []) as progress,
        ):
            for done in results:
                for line in done.complaints:
                    warn(line)
                for one in done.scores:
                    texts = one.method, one.name, one.result, one.truth
                    table.add(texts, [one.width, one.height, *one.scores.values()])
                found.append(done)
                progress.advance(1)
    except BaseException:
        if found:
            print(f"{len(found)} of {len(tasks)} pictures were scored; {table.path} holds them")
        raise
    return found


def _processes(settings: Settings, tasks: list[Task]) -> int:
    """One for each core, but no more than there is memory for."""
    pairs = [task.pair for task in tasks]
    looks = (found for _, found in inspect_headers(pairs, range(len(pairs))))
    pixels = max((w * h for w, h in (one for one in looks if isinstance(one, tuple))), default=0)
    images = 3 + max(len(task.results) for task in tasks)  # and one that is being made
    needed = pixels * (BYTES_A_PIXEL + 3 * images)
    most = settings.num_threads or machine.count_cores()
    return max(1, min(most, machine.free_memory() // (2 * needed) if needed else most))


def _write(
    settings: Settings,
    folder: Path,
    methods: list[Method],
    pairs: PairList,
    done: list[Done],
    seconds: float,
) -> None:
    """Write means, tables and page, and print the means. Raises UserError."""
    names = [method.name for method in methods]
    scores = [score for one in done for score in one.scores]
    means = comparison.means_of(scores, [INPUT, *names])
    if all(mean.method == INPUT for mean in means):
        raise UserError(f"-i: {settings.input}: none of its pictures could be scored")
    for number, name in enumerate(names, 1):
        for text in _notes(number, done):
            print(f"{name}: {text}")
    if not comparison.are_alike(means):
        print("the means are over different pictures: they cannot be compared")
    comparison.write_tables(folder, means, len(pairs))
    _write_summary(settings, folder / WRITTEN[1], means, len(pairs), seconds)
    run = page.about("none: results of other programs", f"{machine.count_cores()} cores", seconds)
    title = f"{', '.join(names)} on {Path(settings.test_list).name}"
    content = _content(names, means, done, len(pairs))
    page.write_page(folder, title, content, run, settings)
    print(f"results in {folder}: {', '.join(WRITTEN)}")
    print(f"open {folder / page.PAGE} to look at them")
    comparison.show(means, len(pairs))


def _notes(number: int, done: list[Done]) -> Iterator[str]:
    jpeg = sum(number in one.jpeg for one in done)
    cropped = sum(number in one.cropped for one in done)
    if jpeg:
        yield f"{jpeg} of its results are JPEG files, whose losses count against it"
    if cropped:
        yield f"{cropped} of its results have another size: scored by what they share, top left"


def _content(names: list[str], means: list[comparison.Mean], done: list[Done], listed: int) -> dict:
    methods = [page.Side(name, str(number), True) for number, name in enumerate(names, 1)]
    rows = [one.shown for one in done if one.shown]
    rainy = [page.Side(INPUT, "before", True)] if means[0].method == INPUT else []
    told = [(mean.method, mean.images, mean.scores) for mean in means]
    count = f"{len(rows)} of {listed}" if len(rows) < listed else f"{listed}"
    lead = f"{count} pictures, {len(names)} method{'s' * (len(names) > 1)}."
    sides = [*rainy, *methods, page.CLEAN]
    return page.content(lead, sides, rows, told, WRITTEN, bool(rainy))


def _write_summary(
    settings: Settings, path: Path, means: list[comparison.Mean], listed: int, seconds: float
) -> None:
    methods = {m.method: {"images": m.images, "means": in_json(m.scores)} for m in means}
    told = {
        "results": settings.input,
        "list": settings.test_list,
        "images_listed": listed,
        "crop_to_common": settings.crop_to_common,
        "seconds": round(seconds, 3),
        "methods": methods,
    }
    write_json(path, told)
