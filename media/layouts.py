"""Folders of pairs as public sets lay them out: which file is the clean image of which.

A reading of a folder is a pair of subfolders and a rule from the name of a rainy file to that of
its clean one. Where more than one reading fits, a user decides.
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from media.pair_list import PairList, Way
from media.pictures import FORMATS
from media.presence import TOLD, sole_image
from settings import UserError, one_line
from system.files import format_path
from system.progress import SlowNotice

RAINY = {"rain", "rainy", "rainy_image", "input", "inputs", "lq"}
CLEAN = {"norain", "clean", "target", "targets", "gt", "ground_truth", "groundtruth", "hq"}
TRUTH = "_gt"  # how the clean folder beside a rainy one may end: real_world and real_world_gt
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
ALONE = "no pairs among them"
HERE = "."  # files of a folder itself, in the place of a subfolder's name
NO_IMAGES = "__MACOSX"  # what macOS puts into archives: names of images, and none in them


class Rule(NamedTuple):
    """From the stem of a rainy file to that of its clean one."""

    told: str
    rainy: re.Pattern[str]
    clean: str  # what the match of rainy becomes
    alone: re.Pattern[str] | None = None  # the clean files, where both lie in one folder


RULES = {
    "name": Rule("by name", re.compile(r"(.+)"), r"\1"),
    "number": Rule("by number", re.compile(r"rain([-_]?\d+)"), r"norain\1", re.compile("norain")),
    "scale": Rule(
        "by name before the scale", re.compile(r"(.+)x\d+"), r"\1", re.compile(r"(?!.*x\d+$)")
    ),
    "copy": Rule("by name before the number of the copy", re.compile(r"(.+)_\d+"), r"\1"),
    "scene": Rule("by scene and place", re.compile(r"(.+?)-\d+(_\d+_\d+)"), r"\1\2"),
}


@dataclass
class Folder:
    """What lies in a folder: the names of its subfolders and of its images."""

    folders: list[str]
    images: list[str]


class File(NamedTuple):
    """An image by its folder and its name: many share a folder, whose text is then there once."""

    folder: str
    name: str

    def __str__(self) -> str:
        return _join(*self)


@dataclass
class Reading:
    """Pairs of rainy and clean files, and those that no pair was found for.

    A pair in one file, and an image alone, is that file.
    """

    name: str
    told: str
    pairs: list[tuple[File, ...]] = field(default_factory=list)
    rainy: list[File] = field(default_factory=list)  # left over
    clean: list[File] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.pairs) and not self.rainy and not self.clean


def read_folder(
    path: str, layout: str, side_by_side: str, say: Callable[[str], object], alone: bool = False
) -> PairList:
    """The pairs of a folder in one of the layouts of Train_Dataset_README.md.

    Args:
        layout: which reading to take, by its name or a part of it; "" where only one fits.
        side_by_side: "rainy-left" or "rainy-right" where each file may hold both images; or "".
        say: tells a user what was recognised, what is left over, and how far the reading is if it
            takes more than two seconds.
        alone: where there are no pairs, take the images themselves.

    Raises:
        UserError: no reading fits, or several do; the folder cannot be read.
    """
    path, passed_over, tell = str(Path(path)), Counter(), SlowNotice(say).update
    tree = _tree(path, passed_over, tell)
    tell(f"{path}: pairing {sum(len(folder.images) for folder in tree.values())} images")
    found = _chosen(path, [reading for reading in _readings(path, tree) if reading.pairs], layout)
    if found is None:
        found = _unpaired(path, tree, side_by_side, alone)
    elif side_by_side:
        say(f"{path}: --side-by-side is not for it: each image has a file of its own")
        side_by_side = ""
    for line in [_told(found), *_left_over(tree, found, passed_over)]:
        say(one_line(f"{path}: {line}", 1000))
    return _as_list(path, found.pairs, side_by_side)


def _tree(path: str, passed_over: Counter[str], tell: Callable[[str], object]) -> dict[str, Folder]:
    """All folders under path by their relative names, "" for itself. Raises UserError."""
    tree: dict[str, Folder] = {}
    waiting: list[tuple[str, tuple]] = [("", ())]
    while waiting:
        inner, above = waiting.pop()
        place = Path(path, inner)
        try:
            about = place.stat()
            own = (about.st_dev, about.st_ino)
            if own in above:  # a link leads back
                continue
            with os.scandir(place) as entries:
                tree[inner] = _sorted_out(entries, passed_over)
        except OSError as error:
            raise UserError(f"{place}: cannot be read: {error.strerror}") from None
        below = reversed(tree[inner].folders)
        waiting += [(_join(inner, name), (*above, own)) for name in below]
        tell(f"{path}: looked into {len(tree)} folders")
    return tree


def _sorted_out(entries: Iterable[os.DirEntry[str]], passed_over: Counter[str]) -> Folder:
    folders, images = [], []
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or entry.name == NO_IMAGES:
            passed_over["hidden"] += 1
        elif entry.is_dir():
            image = sole_image(Path(entry.path))
            if image:
                images.append(f"{entry.name}/{image}")
            else:
                folders.append(entry.name)
        elif suffix in FORMATS and entry.is_file():
            images.append(entry.name)
        else:
            passed_over[suffix or "no suffix"] += 1
    return Folder(sorted(folders), sorted(images))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _readings(path: str, tree: dict[str, Folder]) -> Iterator[Reading]:
    """Every reading of a folder, whether or not it finds any pair."""
    places: dict[tuple[str, str], list[str]] = {}
    for inner, folder in tree.items():
        for sides in _sides(inner.rpartition("/")[2].lower(), folder):
            places.setdefault(sides, []).append(inner)
    for (rainy, clean), homes in places.items():
        for name, rule in RULES.items():
            told = f"{_named(rainy)} and {_named(clean)} {rule.told}"
            if rainy == clean == HERE:
                if rule.alone is None:
                    continue
                told = f"in one folder {rule.told}"
            reading = Reading(f"{rainy}:{clean}:{name}", told)
            used = [home for home in homes if _pair_up(path, tree, home, reading, rule)]
            if len(used) > 1:
                reading.told += f", in {len(used)} folders"
                _require_one_part(path, used)
            yield reading
            if reading.complete:
                break


def _named(side: str) -> str:
    return "the files beside" if side == HERE else f"{side}/"


def _sides(own: str, folder: Folder) -> Iterator[tuple[str, str]]:
    """The pairs of names that may be the rainy and the clean side of a folder of that own name."""
    rainy = [name for name in folder.folders if name.lower() in RAINY]
    clean = [name for name in folder.folders if name.lower() in CLEAN]
    yield from product(rainy, clean)
    known = set(folder.folders)
    yield from ((name, name + TRUTH) for name in folder.folders if name + TRUTH in known)
    if folder.images:
        yield from product(rainy, [HERE])
        yield from product([HERE], clean)
        if own not in RAINY | CLEAN:
            yield HERE, HERE


def _side(tree: dict[str, Folder], home: str, side: str) -> Iterator[tuple[str, str, File]]:
    """(folder within the side, stem, file) of each image of a side."""
    top = home if side == HERE else _join(home, side)
    inner = [top] if side == HERE else [f for f in tree if f == top or f.startswith(f"{top}/")]
    for folder in inner:
        within = folder[len(top) + 1 :]
        for name in tree[folder].images:
            yield within, name.partition("/")[0].rpartition(".")[0], File(folder, name)


def _pair_up(path: str, tree: dict[str, Folder], home: str, reading: Reading, rule: Rule) -> bool:
    """Add what a rule finds below a folder to a reading. Returns whether it is anything."""
    rainy_side, clean_side, _ = reading.name.split(":")
    alone = rule.alone if rainy_side == clean_side else None
    truths: dict[str, dict[str, File]] = {}  # by folder and stem
    others: dict[File, File] = {}  # of the same stem as another
    for folder, stem, file in _side(tree, home, clean_side):
        if alone is None or alone.match(stem):
            first = truths.setdefault(folder, {}).setdefault(stem, file)
            if first is not file:
                others[first] = file
    used, pairs, left = set(), [], []
    for folder, stem, file in _side(tree, home, rainy_side):
        match = rule.rainy.fullmatch(stem)
        if alone is not None and (match is None or alone.match(stem)):
            continue
        truth = _found(truths, folder, match.expand(rule.clean)) if match else None
        if truth is None:
            left.append(file)
            continue
        if truth in others:
            raise UserError(
                f"{path}: {file} has two clean images: {truth} and {others[truth]}; expected one "
                "of them"
            )
        used.add(truth)
        pairs.append((file, truth))
    if pairs:
        reading.pairs += pairs
        reading.rainy += left
        reading.clean += [f for files in truths.values() for f in files.values() if f not in used]
    return bool(pairs)


def _found(truths: dict[str, dict[str, File]], folder: str, stem: str) -> File | None:
    """The clean image of that stem in the folder of that name, or in the nearest above it."""
    while stem not in truths.get(folder, ()):
        if not folder:
            return None
        folder = folder.rpartition("/")[0]
    return truths[folder][stem]


def _require_one_part(path: str, homes: list[str]) -> None:
    """Raise UserError where pairs for training lie beside others for testing."""
    parts: dict[str, str] = {}
    for home in homes:
        words = re.split(r"[^a-z0-9]+", home.lower())
        parts.setdefault(next((word for word in words if word in PARTS), ""), home or HERE)
    if len(parts) > 1:
        raise UserError(
            f"{path}: holds several parts: {', '.join(sorted(parts.values()))}; expected the "
            f"folder of one, such as {Path(path, min(parts.values()))}"
        )


def _chosen(path: str, fitting: list[Reading], layout: str) -> Reading | None:
    """The one reading that fits; None if there is none. Raises UserError."""
    ways = [f"{_told(r)}: --layout {r.name}" for r in fitting]
    if layout:
        fitting = [r for r in fitting if f":{layout}:" in f":{r.name}:"]
        if not fitting:
            raise UserError(f"--layout: {layout} does not fit {path}; {_expected(ways)}")
    complete = [reading for reading in fitting if reading.complete]
    fitting = complete if len(complete) == 1 else fitting
    if len(fitting) > 1:
        raise UserError(f"{path}: can be read in {len(fitting)} ways; {_expected(ways)}")
    return fitting[0] if fitting else None


def _expected(ways: list[str]) -> str:
    return f"expected one of: {'; '.join(ways)}" if ways else "no layout does"


def _unpaired(path: str, tree: dict[str, Folder], side_by_side: str, alone: bool) -> Reading:
    """Every image of a folder, as both of a pair, or alone. Raises UserError."""
    images = list(_files(tree))
    if not images:
        raise UserError(f"{path}: holds no images; expected {', '.join(sorted(FORMATS))}")
    if alone and not side_by_side:
        return Reading("", ALONE, [(name,) for name in images])
    if not side_by_side:
        raise UserError(
            f"{path}: {len(images)} images, no pairs among them; expected a layout of "
            "Train_Dataset_README.md, or --side-by-side if each file holds both images, or for "
            "rainy images alone -a derain -i"
        )
    return Reading("", f"side by side, {side_by_side}", [(name,) for name in images])


def _told(reading: Reading) -> str:
    count, noun = len(reading.pairs), "image" if reading.told == ALONE else "pair"
    return f"{count} {noun}{'s' if count > 1 else ''}, {reading.told}"


def _left_over(tree: dict[str, Folder], found: Reading, passed_over: Counter[str]) -> Iterator[str]:
    """Lines that say what of a folder is not in its pairs."""
    known = {*found.rainy, *found.clean, *(file for pair in found.pairs for file in pair)}
    others = [file for file in _files(tree) if file not in known]
    for names, what in (
        (found.rainy, "rainy without a clean image"),
        (found.clean, "clean without a rainy image"),
        (others, "on neither side"),
    ):
        if names:
            first = ", ".join(map(str, sorted(names)[:TOLD])) + (
                ", ..." if len(names) > TOLD else ""
            )
            yield f"left over: {len(names)} {what}: {first}"
    if passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
        yield f"passed over, as no images: {kinds}"


def _files(tree: dict[str, Folder]) -> Iterator[File]:
    return (File(inner, name) for inner, folder in tree.items() for name in folder.images)


def _as_list(path: str, pairs: list[tuple[File, ...]], halves: str) -> PairList:
    """The pairs in the order of their rainy files, those of a folder together. Raises UserError."""
    text, spans = bytearray(), array("q")
    for files in sorted(pairs):
        for file in files:
            spans.append(len(text))
            try:
                text += str(file).encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{path}: {format_path(str(file))}: expected a name in UTF-8"
                ) from None
            spans.append(len(text))
    places = np.frombuffer(spans, np.int64).reshape(len(pairs), -1, 2)
    numbers = np.arange(1, len(pairs) + 1)
    return PairList(path, bytes(text), places, numbers, Way(Path(path)), halves, is_file=False)
