"""Folders: one walk for all that look for files in them, and a note on the files they skip."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from settings import one_line
from system.text import first_few, format_count

MAX_SUFFIXES = 8  # named in a note

Entries = list[os.DirEntry[str]]


def walk_folder(
    root: Path, on_error: Callable[[OSError], object]
) -> Iterator[tuple[str, Entries, Entries]]:
    """Walk a folder as os.walk does, in order of names; links are followed unless they lead back.

    Args:
        on_error: gets the error of each folder that cannot be listed; it may raise another.

    Yields:
        The name of a folder within root ("" for root itself), its folders and its other entries.
        Those removed from the list of folders are not entered.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        inner, parents = pending.pop()
        folder = root / inner
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in parents:
                continue
            with os.scandir(folder) as entries:
                in_order = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            continue
        folders = [entry for entry in in_order if entry.is_dir()]
        yield inner, folders, [entry for entry in in_order if not entry.is_dir()]
        names = [f"{inner}/{entry.name}" if inner else entry.name for entry in folders]
        pending += [(name, (*parents, identity)) for name in reversed(names)]


def describe_skipped(suffixes: Counter[str]) -> str:
    """Say how many files were skipped, and of which suffixes, the most frequent first."""
    count = format_count(suffixes.total(), "unsupported file")
    suffixes = Counter({suffix or "without a suffix": n for suffix, n in suffixes.items()})
    kinds = [
        f"{n} {suffix}" if len(suffixes) > 1 else suffix for suffix, n in suffixes.most_common()
    ]
    return one_line(f"skipped {count} ({first_few(kinds, MAX_SUFFIXES)})")
