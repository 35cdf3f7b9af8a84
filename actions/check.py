"""The action `check`: look at every pair of a training list before a night is spent on it.

Its table has a row for each pair and is written row by row: the same command, started again, goes
on where it ended. A row counts as long as neither file of its pair has changed.
"""

import csv
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2

from media.inspection import (
    MASKED,
    PixelInspection,
    inspect_pixels,
    mask_advice,
    shrink_advice,
    some,
)
from media.lists import BLANKS, Pair, read_list, read_pair
from report.table import escape_csv_formula
from settings import Settings, UserError
from system import machine
from system.files import check_no_overlap, exclusive, require_writable, write_atomically
from system.overlap import map_processes
from system.progress import Progress, warn
from system.reading import open_regular

TABLE = "check.csv"
AT_ONCE = 8  # pairs that a process is given at a time
TOLD = 10  # pairs that cannot be used are told one by one up to here
TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # names hold any bytes


class Row(NamedTuple):
    """A row of the table, as text.

    Attributes:
        line: where the list names the pair.
        width to digest: see Look; empty where the pair cannot be used.
        threshold: the --mask-threshold of `mask`.
        files: size and time of both files when they were looked at.
        trouble: why the pair cannot be used.
        finding: what else is odd about it.
    """

    line: str
    rainy: str
    clean: str
    width: str
    height: str
    mask: str
    difference: str
    backward: str
    digest: str
    threshold: str
    files: str
    trouble: str
    finding: str

    @property
    def key(self) -> tuple[str, ...]:
        """What must not have changed for the row to count."""
        return self.rainy, self.clean, self.threshold, self.files

    def is_sound(self) -> bool:
        """Whether nobody else has written it."""
        try:
            return bool(self.trouble or self.look)
        except ValueError:
            return False

    @property
    def look(self) -> PixelInspection:
        """Of a pair that can be used."""
        numbers = map(float, (self.mask, self.difference, self.backward))
        return PixelInspection(int(self.width), int(self.height), *numbers, self.digest)


def check(settings: Settings) -> int:
    """Look at the pairs of `--train-list`. Returns the exit status: 2 where one cannot be used.

    Raises:
        UserError: a bad list; a table of another kind, or one that cannot be written.
    """
    how = settings.layout, settings.side_by_side
    pairs = read_list(settings.train_list, True, print, *how)
    table, fixed = Path(settings.output or TABLE), Path(settings.fix)
    written = [table, fixed] if settings.fix else [table]
    read = [
        Path(settings.train_list),
        *(path for pair in pairs for path in (pair.rainy, pair.clean)),
    ]
    check_no_overlap(read, written, "-o or --fix")
    for path in written:
        require_writable(path.parent)
    with exclusive(table):
        rows = _looked_at(table, pairs, settings.mask_threshold)
        _write(table, rows)
    usable = [row for row in rows if not row.trouble]
    _tell(settings, table, rows, usable)
    if settings.fix:
        good = [pair for pair, row in zip(pairs, rows, strict=True) if not row.trouble]
        _write_list(fixed, good)
        ending = f"; pass it with --side-by-side {pairs.halves}" if pairs.halves else ""
        print(f"{fixed}: {len(good)} of {len(pairs)} pairs, all that can be used{ending}")
    return 0 if len(usable) == len(rows) else 2


def _looked_at(table: Path, pairs: Sequence[Pair], threshold: int) -> list[Row]:
    """The row of each pair: those that the table lacks are made, and added to it at once."""
    known, whole = _known(table)
    if not whole:
        _write(table, list(known.values()))
    keys = [_row(pair, threshold).key for pair in pairs]
    left = [pair for pair, key in zip(pairs, keys, strict=True) if key not in known]
    if known:
        print(f"{table}: {len(pairs) - len(left)} of {len(pairs)} pairs were looked at before")
    parts = (left[start : start + AT_ONCE] for start in range(0, len(left), AT_ONCE))
    found = map_processes(parts, partial(_rows, threshold=threshold), machine.count_cores())
    start = time.monotonic()
    try:
        with (
            io.TextIOWrapper(open_regular(table, "ab"), **TEXT) as file,
            closing(found),
            Progress("pair", 0, max(len(left), 1), []) as progress,
        ):
            for rows in found:
                csv.writer(file, lineterminator="\n").writerows(rows)
                file.flush()
                known |= {row.key: row for row in rows}
                progress.advance(len(rows))
    except KeyboardInterrupt:
        print(f"{table}: the same command goes on from here", flush=True)
        raise
    except OSError as error:
        raise UserError(f"{table}: cannot be written: {error.strerror}") from None
    if left:
        print(f"{len(left)} pairs were looked at in {time.monotonic() - start:.1f} s")
    if others := len(known.keys() - set(keys)):
        print(f"{table}: {others} rows are left out, of other pairs or of files that have changed")
    # A file that has changed in the meantime has a row of another key.
    rows = (
        known.get(key) or _rows([pair], threshold)[0] for pair, key in zip(pairs, keys, strict=True)
    )
    return _with_findings(
        [row._replace(line=pair.location) for pair, row in zip(pairs, rows, strict=True)]
    )


def _known(table: Path) -> tuple[dict[tuple[str, ...], Row], bool]:
    """The rows of a table by their keys, and whether it is there and ends with a whole one."""
    try:
        with open_regular(table) as file:
            text = io.TextIOWrapper(file, **TEXT).read()
    except FileNotFoundError:
        return {}, False
    except OSError as error:
        raise UserError(f"{table}: cannot be read: {error.strerror}") from None
    try:
        head, *rows = csv.reader(io.StringIO(text, newline="")) if text else ([],)
    except csv.Error:
        head, rows = ["of another kind"], []
    if head and tuple(head) != Row._fields:
        raise UserError(f"{table}: is not a table of -a check; expected another -o")
    whole = [Row(*row) for row in rows if len(row) == len(Row._fields) and Row(*row).is_sound()]
    return {row.key: row for row in whole}, len(whole) == len(rows) and text.endswith("\n")


def _row(pair: Pair, threshold: int, seen: PixelInspection | None = None, trouble: str = "") -> Row:
    values = seen.values() if seen else [""] * 6
    # Where one file holds both, the half that is rainy stands in the clean one's place.
    names = (escape_csv_formula(str(name)) for name in (pair.rainy, pair.halves or pair.clean))
    return Row(
        pair.location,
        *names,
        *values,
        str(threshold),
        _state(pair),
        escape_csv_formula(trouble),
        "",
    )


def _state(pair: Pair) -> str:
    """Size and time of both files of a pair."""
    found = []
    for path in (pair.rainy, pair.clean):
        try:
            status = os.stat(path)
            found.append(f"{status.st_size}@{status.st_mtime_ns}")
        except OSError:  # which its reader tells
            found.append("gone")
    return " ".join(found)


def _rows(pairs: Sequence[Pair], threshold: int) -> list[Row]:
    cv2.setNumThreads(0)  # the cores have a process each
    rows = []
    for pair in pairs:
        try:
            rows.append(_row(pair, threshold, inspect_pixels(*read_pair(pair), threshold)))
        except UserError as error:
            rows.append(
                _row(pair, threshold, trouble=str(error).removeprefix(f"{pair.location}: "))
            )
    return rows


def _with_findings(rows: list[Row]) -> list[Row]:
    first: dict[str, str] = {}  # line of the first pair of each digest
    found = []
    for row in rows:
        finding = []
        if not row.trouble:
            seen = row.look
            finding += ["swapped"] * seen.swapped + ["identical"] * seen.identical
            earlier = first.setdefault(seen.digest, row.line)
            finding += [f"rainy as in {earlier}"] * (earlier != row.line)
        found.append(row._replace(finding="; ".join(finding)))
    return found


def _write(table: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
    write_atomically(table, text.getvalue().encode("utf-8", "surrogateescape"))


def _tell(settings: Settings, table: Path, rows: list[Row], usable: list[Row]) -> None:
    """Print what was found, as advice."""
    bad = [row for row in rows if row.trouble]
    for row in bad[:TOLD]:
        warn(f"{row.line}: {row.trouble}")
    if len(bad) > TOLD:
        warn(f"and {len(bad) - TOLD} more, see {table}")
    count = f"{len(usable)} of {len(rows)} pairs can be used"
    print(f"{settings.train_list}: {count}; {table} has a row for each")
    if not usable:
        return
    looks = [row.look for row in usable]
    shares = [seen.mask for seen in looks]
    middle, brighter = median(shares), median(seen.difference for seen in looks)
    print(f"share of mask pixels: median {middle:.1%}, {min(shares):.1%} to {max(shares):.1%}")
    if middle > MASKED:
        print(f"  {mask_advice(settings.mask_threshold)}")
    print(f"rainy less clean: {brighter:+.2f} grey levels in the median pair")
    _tell_findings(usable)
    shrunk = shrink_advice([(seen.width, seen.height) for seen in looks], settings.patch_size)
    if shrunk:
        print(shrunk)


def _tell_findings(usable: list[Row]) -> None:
    kinds: list[tuple[Callable[[str], bool], str]] = [
        (lambda text: "swapped" in text, "pairs look swapped, as clean is the brighter: {}"),
        (lambda text: "identical" in text, "pairs are identical, and show no rain: {}"),
        (lambda text: "rainy as in" in text, "pairs have the rainy picture of an earlier line: {}"),
    ]
    for is_one, told in kinds:
        if lines := [row.line for row in usable if is_one(row.finding)]:
            print(f"{len(lines)} {told.format(some(lines))}")


def _write_list(path: Path, pairs: list[Pair]) -> None:
    """Write a list of pairs under names that hold wherever it is. Raises UserError."""
    if not pairs:
        raise UserError(f"{path}: not written, as no pair can be used")
    write_atomically(path, "".join(_lines(path, pairs)).encode())


def _lines(path: Path, pairs: list[Pair]) -> Iterator[str]:
    for pair in pairs:
        files = [pair.rainy] if pair.halves else [pair.rainy, pair.clean]
        names = [os.path.abspath(name) for name in files]
        for name in names:
            if set(name) & set("\t\n\r") or name[-1].encode() in BLANKS or not _is_text(name):
                raise UserError(f"{path}: not written, as no list can hold the name {name!r}")
        yield "\t".join(names) + "\t" * (len(names) == 1) + "\n"


def _is_text(name: str) -> bool:
    return name == name.encode(errors="replace").decode()
