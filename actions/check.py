"""The action `check`: look at every pair of a training list before a night is spent on it.

Its table has a row for each pair, written as soon as the pair is read: the same command, started
again, continues where it ended. A row counts as long as neither file of its pair has changed.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

from media.inspection import (
    HIGH_MASK_SHARE,
    PixelInspection,
    inspect_pixels,
    mask_advice,
    shrink_advice,
)
from media.lists import Pair, format_pair, read_list, read_pair, write_list
from report.tables import escape_csv_formula
from settings import Settings, UserError, first_few
from system import machine
from system.files import (
    check_no_overlap,
    exclusive,
    format_path,
    open_regular,
    read_bytes,
    require_writable,
    write_atomically,
)
from system.overlap import map_processes
from system.progress import Progress, warn

TABLE = "check.csv"
MAX_WARNINGS = 10  # of pairs that cannot be used
# A row of the table. `line` is where the list names the pair; `threshold` is the --mask-threshold
# of `mask`; `files` are size and time of both files when they were read; `trouble` is why the pair
# cannot be used, and `finding` what else is odd about it. The others are those of PixelInspection,
# empty if the pair cannot be used.
COLUMNS = (
    "line", "rainy", "clean", *PixelInspection._fields, "threshold", "files", "trouble", "finding"
)  # fmt: skip
KEY = ("rainy", "clean", "threshold", "files")  # what must not have changed for a row to count
FINDINGS = {
    "swapped": "pairs that look swapped, as clean is the brighter",
    "identical": "identical pairs, without rain",
    "rainy as in": "pairs with the rainy image of an earlier line",
}
Row = dict[str, str]


def check(settings: Settings) -> int:
    """Look at the pairs of `--train-list`. Returns the exit status: 2 if one cannot be used.

    Raises:
        UserError: a bad list; a table of another kind, or one that cannot be written.
    """
    assert isinstance(settings.train_list, str)  # this action takes one
    pairs = read_list(settings.train_list, True, print, settings.layout, settings.side_by_side)
    table, fixed_list = Path(settings.output or TABLE), Path(settings.fix)
    outputs = [table, fixed_list] if settings.fix else [table]
    images = [path for pair in pairs for path in (pair.rainy, pair.clean) if path]
    check_no_overlap([Path(settings.train_list), *images], outputs, "-o or --fix")
    for path in outputs:
        require_writable(path.parent)
    with exclusive(table):
        rows = _inspect_list(table, pairs, settings.mask_threshold)
        _write_table(table, rows)
    usable = [row for row in rows if not row["trouble"]]
    _report(settings, table, rows, usable)
    if settings.fix:
        if not usable:
            raise UserError(f"{fixed_list}: not written, as no pair can be used")
        good = [pair for pair, row in zip(pairs, rows, strict=True) if not row["trouble"]]
        write_list(fixed_list, map(format_pair, good))
        option = f"; pass it with --side-by-side {pairs.halves}" if pairs.halves else ""
        print(f"{fixed_list}: {len(good)} of {len(pairs)} pairs, all that can be used{option}")
    return 0 if len(usable) == len(rows) else 2


def _inspect_list(table: Path, pairs: Sequence[Pair], threshold: int) -> list[Row]:
    """The row of each pair: from the table, or new and then added to the table at once."""
    saved = _read_table(table)
    _write_table(table, saved.values())
    # Before the pairs are read: the row of a file that changes meanwhile is stale.
    rows = [_create_row(pair, threshold) for pair in pairs]
    new = [(pair, row) for pair, row in zip(pairs, rows, strict=True) if _key(row) not in saved]
    if saved:
        print(f"{table}: {len(pairs) - len(new)} of {len(pairs)} pairs were looked at before")
    inspect = partial(_inspect_pair, threshold=threshold)
    inspected = map_processes(new, inspect, machine.count_cores())
    try:
        with (
            io.TextIOWrapper(open_regular(table, "ab"), "utf-8", "replace", "") as file,
            closing(inspected),
            Progress("pair", 0, max(len(new), 1), []) as progress,
        ):
            for row in inspected:
                csv.DictWriter(file, COLUMNS).writerow(row)
                file.flush()
                saved[_key(row)] = row
                progress.advance(1)
    except KeyboardInterrupt:
        print(f"{table}: the same command goes on from here", flush=True)
        raise
    keys = [_key(row) for row in rows]
    if stale := len(saved.keys() - set(keys)):
        print(f"{table}: {stale} rows are left out, of other pairs or of files that have changed")
    return _add_findings(pairs, [saved[key] for key in keys])


def _read_table(table: Path) -> dict[tuple[str, ...], Row]:
    """The whole rows of a table by their keys."""
    try:
        text = read_bytes(table).decode(errors="replace")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if tuple(reader.fieldnames or COLUMNS) != COLUMNS:
            raise csv.Error
        return {_key(row): row for row in reader if _is_whole(row)}
    except FileNotFoundError:
        return {}
    except csv.Error:
        raise UserError(f"{table}: is not a table of -a check; expected another -o") from None


def _is_whole(row: Row) -> bool:
    """Whether a row was not cut short, or written by somebody else."""
    if None in row or None in row.values():  # too many columns, or too few
        return False
    try:
        return bool(row["trouble"] or _parse_inspection(row))
    except ValueError:
        return False


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def _parse_inspection(row: Row) -> PixelInspection:
    kinds = PixelInspection.__annotations__
    return PixelInspection(*(kind(row[column]) for column, kind in kinds.items()))


def _create_row(pair: Pair, threshold: int) -> Row:
    """The row of a pair that has not been read, with the state of its files."""
    row = dict.fromkeys(COLUMNS, "") | {"line": pair.location, "threshold": str(threshold)}
    row["rainy"] = escape_csv_formula(format_path(pair.rainy))
    # If one file holds both, the half that is rainy stands in the place of the clean one.
    row["clean"] = escape_csv_formula(format_path(pair.halves or pair.clean or ""))
    row["files"] = " ".join(_read_file_state(path) for path in (pair.rainy, pair.clean) if path)
    return row


def _read_file_state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # reading it reports this
        return "gone"
    return f"{status.st_size}@{status.st_mtime_ns}"


def _inspect_pair(item: tuple[Pair, Row], threshold: int) -> Row:
    """The row of a pair, filled in."""
    pair, row = item
    try:
        rainy, clean = read_pair(pair)
        assert clean is not None  # read_list required it
        for column, value in inspect_pixels(rainy, clean, threshold)._asdict().items():
            row[column] = f"{value:.6g}" if isinstance(value, float) else str(value)
    except UserError as error:
        row["trouble"] = escape_csv_formula(str(error).removeprefix(f"{pair.location}: "))
    return row


def _add_findings(pairs: Sequence[Pair], rows: list[Row]) -> list[Row]:
    first_lines: dict[str, str] = {}  # by digest
    complete = []
    for pair, row in zip(pairs, rows, strict=True):
        findings = []
        if not row["trouble"]:
            inspection = _parse_inspection(row)
            findings += ["swapped"] * inspection.swapped + ["identical"] * inspection.identical
            first_line = first_lines.setdefault(inspection.digest, pair.location)
            findings += [f"rainy as in {first_line}"] * (first_line != pair.location)
        complete.append(row | {"line": pair.location, "finding": "; ".join(findings)})
    return complete


def _write_table(table: Path, rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(table, text.getvalue().encode(errors="replace"))


def _report(settings: Settings, table: Path, rows: list[Row], usable: list[Row]) -> None:
    """Print what was found, as advice."""
    bad = [row for row in rows if row["trouble"]]
    for row in bad[:MAX_WARNINGS]:
        warn(f"{row['line']}: {row['trouble']}")
    if bad[MAX_WARNINGS:]:
        warn(f"and {len(bad) - MAX_WARNINGS} more, see {table}")
    count = f"{len(usable)} of {len(rows)} pairs can be used"
    print(f"{settings.train_list}: {count}; {table} has a row for each")
    if not usable:
        return
    inspections = [_parse_inspection(row) for row in usable]
    masks = [inspection.mask for inspection in inspections]
    print(f"share of mask pixels: median {median(masks):.1%}, {min(masks):.1%} to {max(masks):.1%}")
    if median(masks) > HIGH_MASK_SHARE:
        print(f"  {mask_advice(settings.mask_threshold)}")
    difference = median(inspection.difference for inspection in inspections)
    comparison = "brighter" if difference >= 0 else "darker"
    print(f"rainy images are {abs(difference):.2f} grey levels {comparison} (median)")
    for finding, description in FINDINGS.items():
        if lines := [row["line"] for row in usable if finding in row["finding"]]:
            print(f"{description}: {len(lines)} ({first_few(lines, 3)})")
    sizes = [(inspection.width, inspection.height) for inspection in inspections]
    if advice := shrink_advice(sizes, settings.patch_size):
        print(advice)
