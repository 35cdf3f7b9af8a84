"""Results of a network on a list of images: what they are called, and whose image each one is of.

Methods call their results after the rainy image or the clean one, and many add or change something.
One rule serves all results of a method: the first of MATCH_RULES that fits at least half of them.
"""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from media.folders import natural_order, split_by_suffix, walk_folder
from media.lists import PairList
from media.pictures import FORMATS
from settings import UserError, first_few, one_line
from system.files import format_path

DERAINED = "derained"  # the folder of the results of a test, within its result folder
Keys = dict[str, set[int]]  # the places of pairs by what is in the names of their results
TEST_FOLDERS = {"mask", "compare"}  # of a test, beside DERAINED


def result_names(files: list[Path]) -> list[str]:
    """A name for each file's results: its stem, numbered where an earlier file has the same.

    No two are equal even on a file system that ignores case, and a file keeps its stem unless
    one before it in the list took it.
    """
    reserved = {_normalize(file.stem).casefold() for file in files}
    counters: dict[str, Iterator[int]] = {}
    names = []
    for file in files:
        name = file.stem
        key = _normalize(name).casefold()
        if key in counters:
            while _normalize(name).casefold() in reserved:
                name = f"{file.stem}-{next(counters[key])}"
        counters.setdefault(key, itertools.count(2))
        reserved.add(_normalize(name).casefold())
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
        rule: how names were matched, for a message; "" if they were equal.
        doubts: messages about results that were not taken, as several pairs or results fit.
        unmatched: results that fit no pair.
        missing: the pairs without a result, by their places in the list.
    """

    files: dict[int, Path]
    rule: str = ""
    doubts: list[str] = field(default_factory=list)
    unmatched: list[Path] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.doubts or self.unmatched or self.missing)


def find_methods(path: Path, excluded: Path, test_set: str = "") -> tuple[list[Method], list[Path]]:
    """The methods of a folder: itself if it holds pictures, else each folder in it.

    The pictures of a method may lie in the only folder within its own that holds any; mask/ and
    compare/, which `test` writes beside its results, do not count.

    Args:
        excluded: a folder that is not searched.
        test_set: if given, only folders of this name hold pictures.

    Returns:
        The methods, in natural order, and the folders in it that hold no pictures.

    Raises:
        UserError: no folder, none with pictures, or several readings of it fit.
    """
    if not path.is_dir():
        raise UserError(f"-i: {path}: expected a folder of results, or of a folder a method")
    top_folders: list[str] = []
    found: dict[Path, tuple[list[Path], Counter[str]]] = {}  # by the folders that hold pictures
    for inner, folders, names in walk_folder(path, excluded):
        if DERAINED in folders:
            folders[:] = [name for name in folders if name not in TEST_FOLDERS]
        top_folders = top_folders if inner else list(folders)
        pictures, others = split_by_suffix(names, FORMATS)
        if pictures and test_set in ("", Path(inner).name):
            found[Path(inner)] = [path / inner / name for name in pictures], others
    if not found:
        where = f" in a folder {test_set}" * bool(test_set)
        expected = ", ".join(sorted(FORMATS))
        raise UserError(f"-i: {path}: holds no pictures{where}; expected {expected}")

    def read_method(name: str, place: Path) -> Method:
        holders = [folder for folder in found if folder.is_relative_to(place)]
        if len(holders) > 1:
            places = first_few(f"{format_path(folder.relative_to(place))}/" for folder in holders)
            raise UserError(
                f"-i: {format_path(path / place)}: holds pictures in several places "
                f"({places}); expected one, or a folder for each method"
            )
        return Method(one_line(name), *found[holders[0]])

    methods = dict.fromkeys(folder.parts[0] for folder in found if folder.parts)
    if Path() in found or list(methods) in ([DERAINED], [test_set]):
        return [read_method(path.resolve().name, Path())], []
    empty = [path / name for name in top_folders if name not in methods]
    names = sorted(methods, key=natural_order)
    return [read_method(name, Path(name)) for name in names], empty


class Reading(NamedTuple):
    """One way to read the names of a method's results: the same text is around all their keys.

    Attributes:
        around: the text before and behind.
        places: the pairs that a result may be of, by its number, for those of at least one pair.
    """

    around: tuple[str, str]
    places: dict[int, set[int]]

    @property
    def certain(self) -> int:
        """How many results are of one pair alone."""
        return sum(len(indices) == 1 for indices in self.places.values())


def _normalize(stem: str) -> str:
    """A stem for comparison: macOS stores letters and their accents separately."""
    return unicodedata.normalize("NFC", stem)


def _extract_number(stem: str) -> str:
    """What lies from the first digit of a stem to its last, without leading zeros."""
    core = re.search(r"\d(?:.*\d)?", stem)
    return re.sub(r"0*(\d+)", r"\1", core[0]) if core else ""


# From the stem of a picture of the list to the key in the stem of its result.
MATCH_RULES = {_normalize: "what is around the name", _extract_number: "the number in the name"}


def match_results(method: Method, pairs: PairList, names: list[str]) -> Match:
    """Find the pair of each result of a method.

    Args:
        names: result_names of the pairs.
    """
    stems = [_normalize(file.stem) for file in method.files]
    for extract in MATCH_RULES:
        best, *rivals = _find_readings(extract, stems, pairs, names)
        if 2 * len(best.places) >= len(stems):
            break
    else:
        rest = list(range(len(pairs)))
        return Match({}, "no rule fits half of their names", unmatched=method.files, missing=rest)
    if rivals:
        texts = first_few(dict.fromkeys("*".join(r.around) for r in (best, *rivals)))
        return Match({}, doubts=[f"their names can be read in several ways: {texts}"])
    match = _assign_results(method, pairs, best.places)
    if _is_shifted(method, pairs, match):
        stray = f"{match.unmatched[0].name} is of none, {pairs[match.missing[0]].location} has none"
        return Match({}, doubts=[f"they are numbered otherwise than the pictures: {stray}"])
    if match.files and (extract is _extract_number or best.around != ("", "")):
        index, file = next(iter(match.files.items()))
        truth = format_path((pairs[index].clean or pairs[index].rainy).name)
        match.rule = f"matched by {MATCH_RULES[extract]}, such as {file.name} to {truth}"
    return match


def _find_readings(
    extract: Callable[[str], str], stems: list[str], pairs: PairList, names: list[str]
) -> list[Reading]:
    """The best reading of the results' names, and others that fit as well.

    The results of a method are called after the rainy images, or after the clean ones. If both
    fit as many, but not the same, either may be meant.
    """
    rainy_keys: Keys = defaultdict(set)
    clean_keys: Keys = defaultdict(set)
    by_stem: Keys = defaultdict(set)
    for index, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        rainy_keys[extract(name)].add(index)
        by_stem[extract(pair.rainy.stem)].add(index)
        if pair.clean:
            clean_keys[extract(pair.clean.stem)].add(index)
    results = {stem.casefold() for stem in stems}
    for key, indices in by_stem.items():
        # A stem that several pairs share means none of them if all have a numbered result.
        if not all(_normalize(names[index]).casefold() in results for index in indices):
            rainy_keys[key] |= indices
    rainy, *others = _read_stems(extract, stems, rainy_keys)
    clean, *more = _read_stems(extract, stems, clean_keys)
    if rainy.certain != clean.certain:
        return [rainy, *others] if rainy.certain > clean.certain else [clean, *more]
    places: dict[int, set[int]] = defaultdict(set)
    for number, indices in (*rainy.places.items(), *clean.places.items()):
        places[number] |= indices
    return [Reading(rainy.around, places), *others, *more]


def _read_stems(extract: Callable[[str], str], stems: list[str], keys: Keys) -> list[Reading]:
    """The reading that fits most results, the whole name first among equals, and its rivals.

    Those are the others that fit as many, or more than half as many of the remaining results.
    """
    keys.pop("", None)
    folded: Keys = defaultdict(set)
    for key, indices in keys.items():
        folded[key.casefold()] |= indices
    stem_keys: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for number, stem in enumerate(stems):
        for around, inner in _split_stem(stem):
            if extract(inner).casefold() in folded:
                stem_keys[around][number] = extract(inner)
    readings = [Reading(around, _look_up(own, keys, folded)) for around, own in stem_keys.items()]
    best = max(
        readings, key=lambda r: (r.certain, r.around == ("", "")), default=Reading(("", ""), {})
    )
    rivals = []
    for reading in readings:
        rest = len(reading.places.keys() - best.places.keys())
        is_tie = reading.certain == best.certain and best.around != ("", "")
        if 2 * rest > best.certain or (is_tie and reading.places != best.places):
            rivals.append(reading)
    return [best, *rivals]


def _look_up(stem_keys: dict[int, str], keys: Keys, folded: Keys) -> dict[int, set[int]]:
    """The places of the keys of stems; a key that differs in case alone gets what is left."""
    exact = {number: keys[key] for number, key in stem_keys.items() if key in keys}
    taken: set[int] = set().union(*exact.values())
    rest = {n: folded[key.casefold()] - taken for n, key in stem_keys.items() if n not in exact}
    return exact | {number: indices for number, indices in rest.items() if indices}


def _split_stem(stem: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Each run of a stem's words, numbers and signs, after the text before and behind it."""
    ends = [0, *(match.end() for match in re.finditer(r"\d+|[^\W\d_]+|[\W_]", stem))]
    for first, start in enumerate(ends):
        for end in ends[first + 1 :]:
            yield (stem[:start].casefold(), stem[end:].casefold()), stem[start:end]


def _assign_results(method: Method, pairs: PairList, places: dict[int, set[int]]) -> Match:
    """Give each pair its result, if there is one alone that can be of that pair alone."""
    match = Match({})
    claims: dict[int, list[Path]] = defaultdict(list)
    for number, file in enumerate(method.files):
        indices = places.get(number, set())
        if len(indices) == 1:
            claims[min(indices)].append(file)
        elif indices:
            locations = first_few(pairs[index].location for index in sorted(indices))
            match.doubts.append(f"{file.name} may be of {locations}")
        else:
            match.unmatched.append(file)
    for index in range(len(pairs)):
        files = claims.get(index, [])
        if len(files) == 1:
            match.files[index] = files[0]
        elif files:
            rivals = first_few(file.name for file in files)
            match.doubts.append(f"{pairs[index].location} has several: {rivals}")
        else:
            match.missing.append(index)
    return match


def _is_shifted(method: Method, pairs: PairList, match: Match) -> bool:
    """Whether the results seem to be counted from another number than the pictures.

    Names that differ by their numbers alone then match, except at opposite ends.
    """

    def split(stem: str) -> tuple[str, list[int]]:
        return re.sub(r"\d+", "#", stem), [int(number) for number in re.findall(r"\d+", stem)]

    results = sorted((*split(file.stem), file) for file in method.files)
    pictures = sorted((*split(pairs[index].rainy.stem), index) for index in range(len(pairs)))
    count, unmatched, missing = len(match.unmatched), set(match.unmatched), set(match.missing)
    if not count or any(items[0][0] != items[-1][0] for items in (results, pictures)):
        return False
    files, indices = [file for *_, file in results], [index for *_, index in pictures]
    ends = (files[:count], indices[-count:]), (files[-count:], indices[:count])
    return any(set(f) == unmatched and set(i) == missing for f, i in ends)
