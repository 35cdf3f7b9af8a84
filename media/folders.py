"""Folders: one walk for all that look for files in them, and a note on the files they skip."""

import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from settings import first_few, format_count, one_line
from system.progress import warn

PAGE_FILES = "index_files"  # the folder of the pictures of a page, beside results
# Folders that are not entered; __MACOSX, in archives, has the names of images, and none in it.
SKIPPED = {PAGE_FILES, "__MACOSX"}
MAX_SUFFIXES = 8  # named in a note


def walk_folder(
    root: Path,
    excluded: Path | None = None,
    on_error: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder as os.walk does, in order of names, and through links to folders.

    Hidden names and those of SKIPPED are left out. A link to a folder that holds it is not
    followed; it and what is neither a folder nor a regular file are named in a warning at the end.

    Args:
        excluded: a folder that is left out.
        on_error: gets the error of each folder that cannot be listed; by default, it is raised.

    Yields:
        The name of a folder within root ("" for root itself), the names of its folders and those of
        its files. What is removed from the list of folders is not entered.
    """
    left_out = excluded.stat() if excluded and excluded.exists() else None
    pending, odd = [("", [root.stat()])], []
    while pending:
        inner, above = pending.pop()
        inside: dict[str, os.stat_result] = {}  # the folders
        files = []
        try:
            with os.scandir(root / inner) as entries:
                in_order = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        for entry in in_order:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            # The second asks for each file, and knows a link to itself.
            if entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                files.append(entry.name)
                continue
            status = entry.stat() if os.path.isdir(entry.path) else None
            if status is None or any(os.path.samestat(status, folder) for folder in above):
                odd.append(os.path.join(inner, entry.name))
            elif not (left_out and os.path.samestat(status, left_out)):
                inside[entry.name] = status
        folders = list(inside)
        yield inner, folders, files
        for name in reversed(folders):
            pending.append((f"{inner}/{name}" if inner else name, [*above, inside[name]]))
    if odd:
        warn(
            f"{root}: skipped links that lead nowhere or back, pipes and devices: {first_few(odd)}"
        )


def natural_order(name: str) -> list[str | int]:
    """A key for sorting by which 2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def split_by_suffix(
    names: Iterable[str], suffixes: Container[str]
) -> tuple[list[str], Counter[str]]:
    """The names with one of the suffixes, in lower case, and how many others have which suffix."""
    by_name = {name: os.path.splitext(name)[1].lower() for name in names}
    others = Counter(suffix for suffix in by_name.values() if suffix not in suffixes)
    return [name for name, suffix in by_name.items() if suffix in suffixes], others


def describe_skipped(suffixes: Counter[str]) -> str:
    """Say how many files were skipped, and of which suffixes, the most frequent first."""
    count = format_count(suffixes.total(), "unsupported file")
    suffixes = Counter({suffix or "without a suffix": n for suffix, n in suffixes.items()})
    kinds = [
        f"{n} {suffix}" if len(suffixes) > 1 else suffix for suffix, n in suffixes.most_common()
    ]
    return one_line(f"skipped {count} ({first_few(kinds, MAX_SUFFIXES)})")
