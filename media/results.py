"""Results of a network on a list of images: what they are called, and whose image each one is of.

Methods call their results after the rainy image or the clean one, and many add or change something.
One rule serves all results of a method: the first of MATCH_RULES that fits at least half of them.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from media.folders import walk_folder
from media.lists import PairList
from media.pictures import FORMATS
from settings import UserError, one_line
from system.files import format_path
from system.text import first_few

DERAINED = "derained"  # the folder of the results of a test, within its result folder
TEST_FOLDERS = {"mask", "compare"}  # of a test, beside DERAINED


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


def find_methods(path: Path, excluded: Path) -> tuple[list[Method], list[Path]]:
    """The methods of a folder: itself if it holds pictures, else each folder in it.

    The pictures of a method may lie in the only folder within its own that holds any; mask/ and
    compare/, which `test` writes beside its results, do not count.

    Args:
        excluded: a folder that is not searched.

    Returns:
        The methods, and the folders in it that hold no pictures.

    Raises:
        UserError: no folder, none with pictures, or several readings of it fit.
    """
    if not path.is_dir():
        raise UserError(f"-i: {path}: expected a folder of results, or of a folder a method")
    tree: dict[Path, tuple[list[str], list[str]]] = {}
    full: set[Path] = set()  # the folders that hold pictures, at any depth
    for inner, folders, files in walk_folder(path, excluded):
        if DERAINED in folders:
            folders[:] = [name for name in folders if name not in TEST_FOLDERS]
        tree[Path(inner)] = folders, files
        if any(map(_is_picture, files)):
            full |= {Path(inner), *Path(inner).parents}
    if not full:
        raise UserError(f"-i: {path}: holds no pictures; expected {', '.join(sorted(FORMATS))}")

    def read_method(name: str, place: Path) -> Method:
        folders, files = tree[place]
        pictures = [path / place / file for file in files if _is_picture(file)]
        inside = [folder for folder in folders if place / folder in full]
        places = ["pictures"] * bool(pictures) + [f"{folder}/" for folder in inside]
        if len(places) > 1:
            raise UserError(
                f"-i: {format_path(path / place)}: holds pictures in several places "
                f"({first_few(places)}); expected one, or a folder for each method"
            )
        if inside:
            return read_method(name, place / inside[0])
        others = Counter(Path(file).suffix.lower() for file in files if not _is_picture(file))
        return Method(one_line(name), pictures, others)

    folders, files = tree[Path()]
    names = [name for name in folders if Path(name) in full]
    if any(map(_is_picture, files)) or names == [DERAINED]:
        return [read_method(path.resolve().name, Path())], []
    empty = [path / name for name in folders if Path(name) not in full]
    return [read_method(name, Path(name)) for name in names], empty


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in FORMATS


class MatchRule(NamedTuple):
    """From the stem of a picture of the list to what must be in the stem of its result."""

    description: str
    key: Callable[[str], str]
    whole: bool = False  # nothing may stand around the key


def _normalize(stem: str) -> str:
    """A stem for comparison: macOS stores letters and their accents separately."""
    return unicodedata.normalize("NFC", stem).casefold()


def _extract_number(stem: str) -> str:
    """What lies from the first digit of a stem to its last, without leading zeros."""
    core = re.search(r"\d(?:.*\d)?", stem)
    return re.sub(r"0*(\d+)", r"\1", core[0]) if core else ""


MATCH_RULES = (
    MatchRule("", _normalize, whole=True),
    MatchRule("what is around the name", _normalize),
    MatchRule("the number in the name", _extract_number),
)


def match_results(method: Method, pairs: PairList, names: list[str]) -> Match:
    """Find the pair of each result of a method.

    Args:
        names: result_names of the pairs.
    """
    stems = [unicodedata.normalize("NFC", file.stem) for file in method.files]
    candidates: list[set[int]] = []
    description, most = "", -1
    for rule in MATCH_RULES:
        sets = _find_candidates(rule, stems, pairs, names)
        if _count_certain(sets) > most:
            most, candidates, description = _count_certain(sets), sets, rule.description
        if 2 * most >= len(stems):
            break
    match = _assign_results(method, pairs, candidates)
    if description and most:
        file, index = next(
            (f, min(own)) for f, own in zip(method.files, candidates, strict=True) if len(own) == 1
        )
        truth = pairs[index].clean or pairs[index].rainy
        match.rule = (
            f"matched by {description}, such as {file.name} to {format_path(Path(truth.name))}"
        )
    return match


def _count_certain(candidates: Iterable[set[int]]) -> int:
    """How many results are of one pair alone."""
    return sum(len(indices) == 1 for indices in candidates)


def _find_candidates(
    rule: MatchRule, stems: list[str], pairs: PairList, names: list[str]
) -> list[set[int]]:
    """The pairs that each result may be of, by their places in the list.

    The results of a method are called after the rainy images, or after the clean ones. If both
    fit as many, but not the same, either may be meant.
    """
    rainy = _match_keys(rule, stems, _rainy_keys(rule, pairs, names, stems))
    if not pairs.paired:
        return rainy
    keys: dict[str, set[int]] = defaultdict(set)
    for index, pair in enumerate(pairs):
        if pair.clean:
            keys[rule.key(pair.clean.stem)].add(index)
    clean = _match_keys(rule, stems, keys)
    lead = _count_certain(rainy) - _count_certain(clean)
    if lead:
        return rainy if lead > 0 else clean
    return [one | other for one, other in zip(rainy, clean, strict=True)]


def _rainy_keys(
    rule: MatchRule, pairs: PairList, names: list[str], stems: list[str]
) -> dict[str, set[int]]:
    """The places of the pairs by the keys of their rainy images."""
    keys, by_stem = defaultdict(set), defaultdict(list)
    results = {_normalize(stem) for stem in stems}
    for index, (pair, name) in enumerate(zip(pairs, names, strict=True)):
        keys[rule.key(name)].add(index)
        by_stem[rule.key(pair.rainy.stem)].append(index)
    for key, indices in by_stem.items():
        # A stem that several pairs share means none of them if all have a numbered result.
        if not all(_normalize(names[index]) in results for index in indices):
            keys[key] |= set(indices)
    return keys


def _match_keys(rule: MatchRule, stems: list[str], keys: dict[str, set[int]]) -> list[set[int]]:
    """The places that each stem may mean, with the same text around the key in all of them."""
    keys.pop("", None)
    if rule.whole:
        return [keys.get(rule.key(stem), set()) for stem in stems]
    matches: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(dict)  # by text around
    for number, stem in enumerate(stems):
        for around, inner in _split_stem(stem):
            if indices := keys.get(rule.key(inner)):
                matches[around][number] = indices

    def rank(around: tuple[str, str]) -> tuple[int, int]:
        return _count_certain(matches[around].values()), -len("".join(around))

    best = matches[max(matches, key=rank, default=("", ""))]
    return [best.get(number, set()) for number in range(len(stems))]


def _split_stem(stem: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Each run of a stem's words, numbers and signs, after the text before and behind it."""
    ends = [0, *(match.end() for match in re.finditer(r"\d+|[^\W\d_]+|[\W_]", stem))]
    for first, start in enumerate(ends):
        for end in ends[first + 1 :]:
            yield (stem[:start].casefold(), stem[end:].casefold()), stem[start:end]


def _assign_results(method: Method, pairs: PairList, candidates: list[set[int]]) -> Match:
    """Give each pair its result, if there is one alone that can be of that pair alone."""
    match = Match({})
    claims: dict[int, list[Path]] = defaultdict(list)
    for file, indices in zip(method.files, candidates, strict=True):
        if len(indices) == 1:
            claims[min(indices)].append(file)
        elif indices:
            places = first_few(pairs[index].location for index in sorted(indices))
            match.doubts.append(f"{file.name} may be of {places}")
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
