"""Lists of pairs: read from a text file or a folder, checked, written, and identified.

A list may name a million files. It is held as text and the places of the names in it, not as
objects, and files are looked up folder by folder, not name by name.
"""

import codecs
import hashlib
import io
import os
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload
from unicodedata import normalize

import numpy as np

from media.layouts import read_folder, sole_image
from media.pictures import read_image
from settings import UserError, first_few, format_count
from system.files import format_path, read_bytes, write_atomically
from system.overlap import attempt, map_processes
from system.progress import SlowNotice

BLANKS = b" \t"  # between names; other white space, such as U+3000, belongs to a name
UNLISTABLE = re.compile(r"[\t\n\r\ud800-\udfff]|[ ]$")  # in names that no list can hold
NOTICE_LINES = 10_000  # read between two notices

Listings = dict[Path, dict[str, str]]  # of folders: names by their Unicode form NFC
Notify = Callable[[str], object]  # shows the user a line of progress, if reading takes long


@dataclass(frozen=True)
class Pair:
    """One line of a list; clean is None if the list names rainy images alone.

    halves is "rainy-left" or "rainy-right" if one file, named twice, holds both side by side.
    """

    rainy: Path
    clean: Path | None
    location: str  # "list file:line number", for messages
    halves: str = ""


@dataclass(frozen=True)
class NameResolver:
    """From a name to its file in the folder; of a name without its `./` or `/` if asked for."""

    folder: Path = Path()
    strip_prefix: bool = False

    def __call__(self, name: str) -> Path:
        if self.strip_prefix and name.startswith(("./", "/")):
            name = name.removeprefix(".").lstrip("/")
        return self.folder / name


@dataclass
class PairList(Sequence[Pair]):
    """The pairs of a list, created when accessed; a slice is such a list too.

    A million objects would take a gigabyte, and a forked process that only looked at them would
    soon hold it again: counting references writes to them.

    Attributes:
        source: the list, or the folder, that the pairs are from.
        text: the names, in UTF-8.
        spans: (N, 1 or 2, 2) int64: where each pair's names begin and end in text.
        numbers: (N,) int64: their lines in the list, or their places in the folder.
        halves: as in Pair; the one name of each pair is then of both images.
        is_file: whether the source is a list, not a folder.
    """

    source: str
    text: bytes
    spans: np.ndarray
    numbers: np.ndarray
    resolver: NameResolver
    halves: str = ""
    is_file: bool = True

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> "PairList": ...
    def __getitem__(self, index: int | slice) -> "Pair | PairList":
        if isinstance(index, slice):
            return replace(self, spans=self.spans[index], numbers=self.numbers[index])
        files = [
            self.resolver(self.text[start:end].decode())
            for start, end in self.spans[index].tolist()
        ]
        clean = files[-1] if self.halves or len(files) == 2 else None
        return Pair(files[0], clean, self.location(index), self.halves)

    @property
    def paired(self) -> bool:
        """Whether there are clean images."""
        return bool(self.halves) or self.spans.shape[1] == 2

    def location(self, index: int) -> str:
        """What begins a message about a pair."""
        return f"{self.source}{':' if self.is_file else ', pair '}{self.numbers[index]}"

    def iterate_names(self, indices: np.ndarray | None = None) -> Iterator[bytes]:
        """Every name in turn, as it stands in the list, or those of the indices."""
        spans = self.spans.reshape(-1, 2)
        ends = (spans if indices is None else spans[indices]).reshape(-1)
        places = iter(ends.data)  # which are Python's numbers one at a time
        for start, end in zip(places, places, strict=True):
            yield self.text[start:end]


@dataclass(frozen=True)
class Mixture:
    """Several lists, of which a stream takes pairs in turn, as many of each as the weights say.

    One weight alone is that of each.
    """

    lists: list[PairList]
    weights: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.lists))


Pairs = Sequence[Pair] | Mixture  # of which a stream is made


def name_sets(paths: tuple[str, ...]) -> dict[str, str]:
    """Several lists and folders by the names of their sets; a sole one by an empty name.

    Such a name is that of the file, without `.txt`, or of the folder, and where that does not tell
    all apart, the name of the folder above is before it. Raises UserError if that does not either.
    """
    if len(paths) == 1:
        return {"": paths[0]}
    places = [Path(os.path.abspath(path)) for path in paths]
    names = [place.stem if place.suffix == ".txt" else place.name for place in places]
    if len(set(names)) < len(names):
        names = [f"{place.parent.name}-{name}" for place, name in zip(places, names, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(paths)}: the sets have equal names; expected different ones")
    return dict(zip(names, paths, strict=True))


def read_list(
    path: str,
    need_clean: bool = False,
    say: Callable[[str], object] = print,
    layout: str = "",
    side_by_side: str = "no",
    allow_unpaired: bool = False,
) -> PairList:
    """The pairs of a list file, every file checked to exist, or of a folder: see read_folder.

    A line holds `rainy clean`, or `rainy` alone; TABs separate names that hold spaces. Names are
    tried as given, against the list's folder, and without a leading `./` or `/` against both; what
    finds the first image is used for the whole list. See _check_images for the names that are
    corrected.

    Args:
        say: receives lines for the user: what was recognised, and progress if reading takes more
            than two seconds.
        layout: for folders.
        side_by_side: "rainy-left" or "rainy-right" if files may hold both images; or "no".
        allow_unpaired: of a folder without pairs, take the images themselves.

    Raises:
        UserError: the list or an image is missing, the list is empty, not UTF-8 or UTF-16, or a
            line has more names or fewer than the first; or need_clean is set and there are no
            clean images.
    """
    halves = side_by_side.removeprefix("no")
    if Path(path).is_dir():
        rows, halves = read_folder(path, layout, halves, say, allow_unpaired)
        path = str(Path(path))
        encoded = ((n, [file.encode() for file in files]) for n, files in enumerate(rows, 1))
        try:
            packed = _pack_names(encoded)
        except UnicodeEncodeError as error:
            name = format_path(Path(error.object))
            raise UserError(f"{path}: {name}: expected a name in UTF-8") from None
        return PairList(path, *packed, NameResolver(Path(path)), halves, is_file=False)
    notify = SlowNotice(say).update
    pairs = PairList(path, *_pack_names(_iterate_lines(path, notify)), NameResolver())
    if not len(pairs):
        raise UserError(f"{path}: the list is empty; expected a line `rainy clean` for each pair")
    if layout:
        say(f"{path}: --layout is not for it: it is a list, not a folder")
    if halves and pairs.paired:
        say(f"{path}: --side-by-side is not for it: it names both images of a pair")
    elif halves:
        pairs.halves = halves
    if need_clean and not pairs.paired:
        raise UserError(f"{pairs.location(0)}: expected `rainy clean`, got one name")
    pairs.resolver = _find_resolver(pairs)
    if replaced := _check_images(pairs, notify):
        say(f"{path}: names of folders, for which the one image in each is taken: {replaced}")
    return pairs


def _read_text(path: str) -> bytes:
    """A list as UTF-8 with LF at the end of lines. Raises UserError."""
    try:
        data = read_bytes(path, allow_pipe=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}; "
            "Train_Dataset_README.md and Test_Dataset_README.md describe lists"
        ) from None
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    try:
        data = data.removeprefix(codecs.BOM_UTF8).decode(encoding).encode()
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise UserError(f"{path}: not {encoding} text ({reason})") from None
    # No byte of a longer character is one of these. Nothing else ends a line.
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _iterate_lines(path: str, notify: Notify) -> Iterator[tuple[int, list[bytes]]]:
    """Number and names of each line that is not blank or a comment. Raises UserError."""
    width = 0
    for number, line in enumerate(io.BytesIO(_read_text(path)), 1):
        if number % NOTICE_LINES == 0:
            notify(f"{path}: read {number} lines")
        separator = b"\t" if b"\t" in line else b" "
        line = line.removesuffix(b"\n").strip(BLANKS)
        if not line or line.startswith(b"#"):
            continue
        names = [name for part in line.split(separator) if (name := part.strip(BLANKS))]
        width = width or min(len(names), 2)
        if len(names) != width or b"\0" in line:
            raise UserError(
                f"{path}:{number}: {format_count(len(names), 'name')}; expected "
                f"{'`rainy clean`' if width == 2 else 'one name'} in every line (a TAB separates "
                "names that hold spaces)"
            )
        yield number, names


def _pack_names(
    lines: Iterable[tuple[int, list[bytes]]],
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """text, spans and numbers of a PairList, from the number and the names of each line."""
    text, spans, numbers, width = bytearray(), array("q"), array("q"), 1
    for number, names in lines:
        for name in names:
            spans.append(len(text))
            text += name
            spans.append(len(text))
        numbers.append(number)
        width = len(names)
    places = np.frombuffer(spans, np.int64).reshape(-1, width, 2)
    return bytes(text), places, np.frombuffer(numbers, np.int64)


def _find_resolver(pairs: PairList) -> NameResolver:
    """The resolver that finds the first image of a list. Raises UserError."""
    folder = Path(pairs.source).parent
    resolvers = [NameResolver(base, bare) for bare in (False, True) for base in (Path(), folder)]
    name = next(pairs.iterate_names()).decode()
    for resolver in resolvers:
        if spelling := _find_spelling(resolver, name, {}):
            if "\\" in name and "\\" not in spelling:  # a list of Windows
                pairs.text = pairs.text.replace(b"\\", b"/")
            return resolver
    tried = ", ".join(dict.fromkeys(str(resolver(name)) for resolver in resolvers))
    raise UserError(f"{pairs.location(0)}: no such image: {name} (looked for {tried})")


def _find_spelling(resolver: NameResolver, name: str, listings: Listings) -> str | None:
    """A name as its file has it, or None if there is no such file.

    A name with backslashes that is no file stands for the one with slashes, one whose accents are
    letters of their own, as on macOS, for the other, and a folder with the name of an image for the
    one image in it.
    """
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        if not spelling.isascii():
            spelling = _spell_as_on_disk(resolver, spelling, listings)
        path = resolver(spelling)
        if os.path.isfile(path):
            return spelling
        if image := sole_image(path):
            return f"{spelling}/{image}"
    return None


def _spell_as_on_disk(resolver: NameResolver, name: str, listings: Listings) -> str:
    """A name with each of its parts in the Unicode form in which it exists, if any does."""
    spelling = ""
    for part in name.split("/"):
        folder = resolver(spelling)
        if not part.isascii() and not (folder / part).exists():
            if folder not in listings:
                names = os.listdir(folder) if folder.is_dir() else []
                listings[folder] = {normalize("NFC", found): found for found in names}
            part = listings[folder].get(normalize("NFC", part), part)
        spelling += f"{part}/"
    return spelling.removesuffix("/")


def _check_images(pairs: PairList, notify: Notify) -> int:
    """Check that every name is that of a file, and put its spelling in the place of others.

    Returns:
        How many names of folders were replaced.

    Raises:
        UserError: files are missing; the lines of the first five are named.
    """
    spans = pairs.spans.reshape(-1, 2)  # a view: what is written to it is written to the list
    text, missing, replaced = bytearray(pairs.text), [], 0
    listings: Listings = {}
    for i in _find_unlisted(pairs, notify):
        name = pairs.text[slice(*spans[i])].decode()
        spelling = _find_spelling(pairs.resolver, name, listings)
        if spelling is None:
            missing.append((i // pairs.spans.shape[1], name))
        elif spelling != name:
            spans[i] = len(text), len(text) + len(spelling.encode())
            text += spelling.encode()
            replaced += spelling.count("/") > name.count("/")
    if missing:
        index, name = missing[0]
        lines = first_few(pairs.numbers[[index for index, _ in missing]])
        others = f"; {len(missing)} are missing, in the lines {lines}" if len(missing) > 1 else ""
        raise UserError(
            f"{pairs.location(index)}: no such image: {name} (looked for {pairs.resolver(name)})"
            + others
        )
    pairs.text = bytes(text)
    return replaced


def _find_unlisted(pairs: PairList, notify: Notify) -> list[int]:
    """The places of the names that the listings of their folders lack, in order."""
    by_folder: dict[bytes, array] = defaultdict(lambda: array("q"))
    for i, name in enumerate(pairs.iterate_names()):
        by_folder[name[: name.rfind(b"/") + 1]].append(i)
    missing: list[int] = []
    for number, (folder, inside) in enumerate(by_folder.items(), 1):
        try:
            with os.scandir(pairs.resolver(folder.decode())) as entries:
                files = {os.fsencode(entry.name) for entry in entries if entry.is_file()}
        except OSError:  # such as a folder that cannot be listed
            files = set()
        names = pairs.iterate_names(np.frombuffer(inside, np.int64))
        cut = len(folder)
        missing += [i for i, name in zip(inside, names, strict=True) if name[cut:] not in files]
        notify(f"{pairs.source}: looked into {number} of {len(by_folder)} folders")
    return sorted(missing)


def fingerprint(pairs: PairList) -> str:
    """What a list of pairs names, wherever its folder is and whatever its comments say.

    It is the SHA-256 of the names, as os.path.relpath has them from that folder, a line each.
    """
    home = Path(pairs.source).parent if pairs.is_file else Path(pairs.source)

    relative_folders: dict[bytes, bytes] = {}
    digest, separator = hashlib.sha256(), b""
    for name in pairs.iterate_names():
        folder, slash, base = name.rstrip(b"/").rpartition(b"/")
        folder += slash
        if folder not in relative_folders:
            path = os.path.relpath(pairs.resolver(folder.decode()), home)
            relative_folders[folder] = b"" if path == "." else os.fsencode(path + os.sep)
        for _ in range(2 if pairs.halves else 1):
            digest.update(separator + relative_folders[folder] + base)
            separator = b"\n"
    return digest.hexdigest()


def format_pair(pair: Pair, folder: Path | None = None) -> str:
    """The line of a list that names a pair: from that folder, or by absolute paths.

    Raises:
        UserError: no list can hold a name.
    """
    names = []
    for file in [pair.rainy] if pair.halves or pair.clean is None else [pair.rainy, pair.clean]:
        name = os.path.abspath(file) if folder is None else os.path.relpath(file, folder)
        if UNLISTABLE.search(name):
            expected = "expected a name in UTF-8, without TAB, end of line or space at its end"
            raise UserError(f"{name!r}: no list can hold it; {expected}")
        # ./ so that none begins as a comment does.
        names.append(name if folder is None else f"./{Path(name).as_posix()}")
    # A TAB, so that names may hold spaces.
    return "\t".join(names) + "\t" * (len(names) == 1) + "\n"


def write_list(path: Path, lines: Iterable[str]) -> Path:
    """Write a list, of lines that end in a newline. Returns its path. Raises UserError."""
    write_atomically(path, "".join(lines).encode())
    return path


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
    """Both images of a pair, (H,W,3) uint8 BGR. Raises UserError, also if their sizes differ."""
    rainy = read_image(pair.rainy, pair.location)
    if pair.halves:
        width = rainy.shape[1]
        if width % 2:
            raise UserError(
                f"{pair.location}: {pair.rainy} is {width} pixels wide; expected an even number, "
                "as it holds two images side by side"
            )
        left, right = (np.ascontiguousarray(half) for half in np.split(rainy, 2, axis=1))
        return (left, right) if pair.halves == "rainy-left" else (right, left)
    if pair.clean is None:
        return rainy, None
    clean = read_image(pair.clean, pair.location)
    if rainy.shape != clean.shape:
        raise UserError(
            f"{pair.location}: the images of a pair differ in size: {pair.rainy} is "
            f"{rainy.shape[1]}x{rainy.shape[0]}, {pair.clean} is {clean.shape[1]}x{clean.shape[0]}"
        )
    return rainy, clean


def load_images(pairs: Sequence[Pair], num_workers: int) -> Generator[Any, None, None]:
    """read_pair of each pair in turn, or a UserError in the place of a bad one, by processes."""
    return map_processes(pairs, partial(attempt, read_pair), min(num_workers, len(pairs)))
