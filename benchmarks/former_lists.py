"""Lists in the plain way, which list_size.py measures ours against: an object for each pair, and a
question to the file system for each name. What it makes of a list is what ours must make of it."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class FormerPair(NamedTuple):
    rainy: Path
    clean: Path
    where: str


def read_list(path: str) -> list[FormerPair]:
    """The pairs of a list file, every file checked to exist."""
    lines = Path(path).read_text("utf-8-sig").split("\n")
    entries = [
        (number, _names(line))
        for number, line in enumerate(lines, 1)
        if line.strip(" \t") and not line.lstrip(" \t").startswith("#")
    ]
    way = _way(path, entries[0][1][0])
    pairs = []
    for number, names in entries:
        files = [way(name) for name in names]
        if not all(file.is_file() for file in files):
            raise FileNotFoundError(f"{path}:{number}")
        pairs.append(FormerPair(*files, f"{path}:{number}"))
    return pairs


def _names(line: str) -> list[str]:
    names = [name.strip(" \t") for name in line.split("\t" if "\t" in line else " ")]
    return [name for name in names if name]


def _way(path: str, name: str):
    folder = Path(path).parent

    def bare(name: str) -> str:
        return name.removeprefix(".").lstrip("/") if name.startswith(("./", "/")) else name

    ways = [Path, lambda name: folder / name, lambda name: Path(bare(name))]
    ways.append(lambda name: folder / bare(name))
    return next(way for way in ways if way(name).is_file())


def fingerprint(pairs: list[FormerPair], folder: Path) -> str:
    names = (os.path.relpath(file, folder) for pair in pairs for file in (pair.rainy, pair.clean))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
