"""Pairs by the hundred thousand: the text of a list and where each name lies in it, not objects."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

AT_ONCE = 1 << 16  # names whose places are Python's numbers at a time


@dataclass(frozen=True)
class Pair:
    """One line of a list; clean is None where the list names rainy images alone.

    halves is "rainy-left" or "rainy-right" where one file, named twice, holds both side by side.
    """

    rainy: Path
    clean: Path | None
    where: str  # "list file:line number", for messages
    halves: str = ""


@dataclass(frozen=True)
class Way:
    """From a name to its file: against a folder where there is one, without `./` or `/` if bare."""

    folder: Path | None = None
    bare: bool = False

    def __call__(self, name: str) -> Path:
        if self.bare and name.startswith(("./", "/")):
            name = name.removeprefix(".").lstrip("/")
        return Path(name) if self.folder is None else self.folder / name


@dataclass
class PairList(Sequence[Pair]):
    """The pairs of a list, made when asked for; a slice is such a list too.

    A million objects would take a gigabyte, and a forked process that only looked at them would
    soon hold it again: counting references writes to them.

    Attributes:
        source: the list, or the folder, that the pairs are from.
        text: the names, in UTF-8.
        spans: (N, 1 or 2, 2) int64: where each pair's names begin and end in text.
        numbers: (N,) int64: their lines in the list, or their places in the folder.
        halves: as in Pair; the one name of each pair is then of both images.
    """

    source: str
    text: bytes
    spans: np.ndarray
    numbers: np.ndarray
    way: Way
    halves: str = ""
    is_file: bool = True  # a list, not a folder

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int | slice) -> "Pair | PairList":
        if isinstance(index, slice):
            return replace(self, spans=self.spans[index], numbers=self.numbers[index])
        files = [
            self.way(self.text[begin:end].decode()) for begin, end in self.spans[index].tolist()
        ]
        clean = files[-1] if self.halves or len(files) == 2 else None
        return Pair(files[0], clean, self.where(index), self.halves)

    @property
    def paired(self) -> bool:
        """Whether there are clean images."""
        return bool(self.halves) or self.spans.shape[1] == 2

    def where(self, index: int) -> str:
        """What begins a message about a pair."""
        return f"{self.source}{':' if self.is_file else ', pair '}{self.numbers[index]}"

    def names(self, chosen: np.ndarray | None = None) -> Iterator[bytes]:
        """Every name in turn, as it stands in the list, or those of the chosen indexes."""
        places = self.spans.reshape(-1, 2)
        places = places if chosen is None else places[chosen]
        for first in range(0, len(places), AT_ONCE):
            for begin, end in places[first : first + AT_ONCE].tolist():
                yield self.text[begin:end]


def fingerprint(pairs: PairList) -> str:
    """What a list of pairs names, wherever its folder is and whatever its comments say.

    It is the SHA-256 of the names, as os.path.relpath has them from that folder, a line each.
    """
    home = Path(pairs.source).parent if pairs.is_file else Path(pairs.source)
    repeated = 2 if pairs.halves else 1
    known: dict[bytes, bytes] = {}  # folders as named, and relative to that of the list
    digest, waiting, between = hashlib.sha256(), [], b""
    for name in pairs.names():
        folder, base = split(name)
        if base in (b"", b".", b".."):
            relative = _relative(pairs.way, name, home)
        else:
            if folder not in known:
                found = _relative(pairs.way, folder, home)
                known[folder] = b"" if found == b"." else found + os.sep.encode()
            relative = known[folder] + base
        waiting += [relative] * repeated
        if len(waiting) >= AT_ONCE:
            digest.update(between + b"\n".join(waiting))
            waiting, between = [], b"\n"
    if waiting:
        digest.update(between + b"\n".join(waiting))
    return digest.hexdigest()


def split(name: bytes) -> tuple[bytes, bytes]:
    """The folder of a name, up to its last slash, and what follows."""
    cut = name.rfind(b"/") + 1
    return name[:cut], name[cut:]


def _relative(way: Way, name: bytes, home: Path) -> bytes:
    return os.path.relpath(way(name.decode()), home).encode("utf-8", "surrogateescape")
