"""Results of a network on a list of images: what they are called, and whose image each one is of.

Methods call their results after the rainy image or the clean one, and many add or change something.
One rule serves all results of a method: the first of WAYS that fits at least half of them.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from media.lists import PairList
from media.pictures import FORMATS
from settings import UserError, one_line
from system.files import format_path

DERAINED = "derained"  # the folder of the results of a test, within its result folder
OF_PAGES = {"index_files"}  # what pages keep in a folder of results
OF_TESTS = {"mask", "compare"}  # what tests keep beside DERAINED
TOLD = 5  # of many names, as many are told


def result_names(files: list[Path]) -> list[str]:
    """A name for each file's results: its stem, numbered where an earlier file has the same.

    No two are equal even on a file system that ignores case, and a file keeps its stem unless
    one before it in the list took it.
    """
    stems = [file.stem for file in files]
    reserved = {stem.casefold() for stem in stems}
    taken: set[str] = set()
    counts: dict[str, int] = {}  # the last number given to a stem
    names = []
    for stem in stems:
        name, number = stem, counts.get(stem.casefold(), 1)
        while name.casefold() in taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        counts[stem.casefold()] = number
        taken.add(name.casefold())
        names.append(name)
    return names


@dataclass
class Method:
    """A folder of one method's results.

    Attributes:
        files: the pictures in it, in order.
        others: how many files of which suffix are no pictures.
    """

    name: str
    files: list[Path]
    others: Counter[str]


@dataclass
class Match:
    """Which result is of which pair.

    Attributes:
        files: the result of each pair that has one, by the pair's place in the list.
        how: what was added or changed in the names, for a message; "" where nothing was.
        doubts: results that were not taken, as several fit; one text each.
        strangers: results that fit no pair.
        missing: the pairs without a result, by their places in the list.
    """

    files: dict[int, Path]
    how: str
    doubts: list[str] = field(default_factory=list)
    strangers: list[Path] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.doubts or self.strangers or self.missing)


def find_methods(path: Path, besides: Path) -> tuple[list[Method], list[Path]]:
    """The methods of a folder: itself if it holds pictures, else each folder in it.

    The pictures of a method may lie in the only folder within its own that holds any; mask/ and
    compare/, which `test` writes beside its results, do not count.

    Args:
        besides: a folder that is not looked into.

    Returns:
        The methods, and the folders in it that hold no pictures.

    Raises:
        UserError: no folder, none with pictures, or several readings of it fit.
    """
    if not path.is_dir():
        raise UserError(f"-i: {path}: expected a folder of results, or of a folder a method")
    folders, files = _listed(path, besides)
    holding = [folder for folder in folders if _holds_pictures(folder)]
    if _pictures(files) or [folder.name for folder in holding] == [DERAINED]:
        home = _home(path, besides)
        return [_method(path.resolve(), home, besides)], []
    if not holding:
        raise UserError(f"-i: {path}: holds no pictures; expected {', '.join(sorted(FORMATS))}")
    methods = [_method(folder, _home(folder, besides), besides) for folder in holding]
    return methods, [folder for folder in folders if folder not in holding]


def _listed(path: Path, besides: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder that may be results, in order. Raises UserError."""
    try:
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        own = {path.resolve(), *path.resolve().parents, besides.resolve()}  # a link may lead back
        folders = [entry for entry in inside if entry.is_dir() and entry.resolve() not in own]
        files = [entry for entry in inside if entry.is_file()]
    except OSError as error:
        raise UserError(f"{format_path(path)}: cannot be read: {error.strerror}") from None
    tested = any(folder.name == DERAINED for folder in folders)
    own_names = OF_PAGES | (OF_TESTS if tested else set())
    return [folder for folder in folders if folder.name not in own_names], files


def _pictures(files: list[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in FORMATS]


def _holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder, at any depth. Links within it are not followed."""
    walk = os.walk(folder)
    return any(Path(name).suffix.lower() in FORMATS for _, _, names in walk for name in names)


def _home(folder: Path, besides: Path) -> Path:
    """Where the pictures of a folder that holds some lie. Raises UserError where several fit."""
    folders, files = _listed(folder, besides)
    holding = [inner for inner in folders if _holds_pictures(inner)]
    places = [*(["pictures"] if _pictures(files) else []), *(f"{one.name}/" for one in holding)]
    if len(places) > 1:
        raise UserError(
            f"-i: {format_path(folder)}: holds pictures in several places ({_some(places)}); "
            "expected one, or a folder for each method"
        )
    return _home(holding[0], besides) if holding else folder


def _method(folder: Path, home: Path, besides: Path) -> Method:
    _, files = _listed(home, besides)
    pictures = _pictures(files)
    others = Counter(f.suffix.lower() for f in files if f not in set(pictures))
    return Method(one_line(folder.name), pictures, others)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (", ..." if len(names) > TOLD else "")


class MatchRule(NamedTuple):
    """From the stem of a picture of the list to what must be in the stem of its result."""

    told: str
    key: Callable[[str], str]
    whole: bool = False  # nothing may stand around it


def _name(stem: str) -> str:
    """A stem as it is compared: macOS spells letters with their accents apart."""
    return unicodedata.normalize("NFC", stem).casefold()


def _digits(stem: str) -> str:
    """What lies from the first digit of a stem to its last, without leading zeros."""
    core = re.search(r"\d(?:.*\d)?", stem)
    return re.sub(r"0*(\d+)", r"\1", core[0]) if core else ""


MATCH_RULES = (
    MatchRule("", _name, whole=True),
    MatchRule("what is around the name", _name),
    MatchRule("the number in the name", _digits),
)


def match_results(method: Method, pairs: PairList, names: list[str]) -> Match:
    """Find the pair of each result of a method.

    Args:
        names: result_names of the pairs.
    """
    stems = [unicodedata.normalize("NFC", file.stem) for file in method.files]
    found: list[set[int]] = []
    how, most = "", -1
    for way in MATCH_RULES:
        sets, around = _by(way, stems, pairs, names)
        if _sure(sets) > most:
            most, found, how = _sure(sets), sets, _how(way, around, method.files, sets, pairs)
        if 2 * most >= len(stems):
            break
    return _sorted_out(method, pairs, found, how)


def _sure(sets: list[set[int]]) -> int:
    """How many results are of one pair alone."""
    return sum(len(places) == 1 for places in sets)


Around = tuple[str, str]  # what stands before and after the key in the results of a method


def _by(
    way: MatchRule, stems: list[str], pairs: PairList, names: list[str]
) -> tuple[list[set[int]], Around]:
    """The places that each stem may mean, and what is around the key.

    The results of a method are called after the rainy images, or after the clean ones. Where both
    fit as many, but not the same, either may be meant.
    """
    rainy, around = _keyed(way, stems, _rainy_keys(way, pairs, names, stems))
    if not pairs.paired:
        return rainy, around
    keys = defaultdict(set)
    for place, pair in enumerate(pairs):
        keys[way.key(pair.clean.stem)].add(place)
    clean, around_clean = _keyed(way, stems, keys)
    if _sure(clean) > _sure(rainy):
        return clean, around_clean
    if _sure(clean) < _sure(rainy):
        return rainy, around
    return [one | other for one, other in zip(rainy, clean, strict=True)], around


def _rainy_keys(
    way: MatchRule, pairs: PairList, names: list[str], stems: list[str]
) -> dict[str, set[int]]:
    """The places of the pairs by the keys of their rainy images."""
    known, shared = defaultdict(set), defaultdict(list)
    there = {_name(stem) for stem in stems}
    for place, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        known[way.key(name)].add(place)
        shared[way.key(pair.rainy.stem)].append(place)
    for key, places in shared.items():
        # Of several with the same stem, none is meant by it alone, unless all are there, numbered.
        if not all(_name(names[place]) in there for place in places):
            known[key] |= set(places)
    return known


def _keyed(
    way: MatchRule, stems: list[str], known: dict[str, set[int]]
) -> tuple[list[set[int]], Around]:
    """The places that each stem may mean, with one thing around the key in all of them."""
    known.pop("", None)
    if way.whole:
        return [known.get(way.key(stem), set()) for stem in stems], ("", "")
    fits: dict[Around, dict[int, set[int]]] = defaultdict(dict)
    for number, stem in enumerate(stems):
        for around, inner in _parts(stem):
            if places := known.get(way.key(inner)):
                fits[around][number] = places
    if not fits:
        return [set() for _ in stems], ("", "")

    def rank(around: Around) -> tuple[int, int]:
        return _sure(list(fits[around].values())), -len("".join(around))

    best = max(fits, key=rank)
    return [fits[best].get(number, set()) for number in range(len(stems))], best


def _parts(stem: str) -> Iterator[tuple[Around, str]]:
    """Each run of a stem's words, numbers and signs, and what is around it."""
    ends = [0, *(found.end() for found in re.finditer(r"\d+|[^\W\d_]+|[\W_]", stem))]
    for first, start in enumerate(ends):
        for end in ends[first + 1 :]:
            yield (stem[:start].casefold(), stem[end:].casefold()), stem[start:end]


def _how(
    way: MatchRule, around: Around, files: list[Path], sets: list[set[int]], pairs: PairList
) -> str:
    if way.whole:
        return ""
    example = next(((f, p) for f, p in zip(files, sets, strict=True) if len(p) == 1), None)
    if example is None:
        return ""
    file, places = example
    pair = pairs[next(iter(places))]
    truth = pair.clean or pair.rainy
    return f"matched by {way.told}, such as {file.name} to {format_path(truth.name)}"


def _sorted_out(method: Method, pairs: PairList, found: list[set[int]], how: str) -> Match:
    result = Match({}, how)
    takers: dict[int, list[Path]] = defaultdict(list)
    for file, places in zip(method.files, found, strict=True):
        if len(places) == 1:
            takers[next(iter(places))].append(file)
        elif places:
            of = _some([pairs[place].location for place in sorted(places)])
            result.doubts.append(f"{file.name} may be of {of}")
        else:
            result.strangers.append(file)
    for place in range(len(pairs)):
        files = takers.get(place, [])
        if len(files) == 1:
            result.files[place] = files[0]
        elif files:
            rivals = _some([file.name for file in files])
            result.doubts.append(f"{pairs[place].location} has several: {rivals}")
        else:
            result.missing.append(place)
    return result
