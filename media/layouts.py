"""Folders of pairs as public sets lay them out: which file is the clean image of which.

A pairing of a folder is a pair of subfolders and a rule from the name of a rainy file to that of
its clean one. If more than one pairing fits, the user decides.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from media.folders import describe_skipped, split_by_suffix, walk_folder
from media.pictures import FORMATS
from settings import UserError, first_few, format_count, one_line
from system.progress import SlowNotice

RAINY = {"rain", "rainy", "rainy_image", "input", "inputs", "lq"}
CLEAN = {"norain", "clean", "target", "targets", "gt", "ground_truth", "groundtruth", "hq"}
CLEAN_SUFFIX = "_gt"  # of the clean folder beside a rainy one: real_world and real_world_gt
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
UNPAIRED = "no pairs among them"
SAME_FOLDER = "."  # in the place of a subfolder's name: the files of the folder itself


class Rule(NamedTuple):
    """From the stem of a rainy file to that of its clean one.

    Attributes:
        description: how the rule is called in messages.
        rainy: what the stem of a rainy file matches.
        clean: what that match becomes.
        clean_stem: what the stem of a clean file matches, if both lie in one folder.
    """

    description: str
    rainy: re.Pattern[str]
    clean: str
    clean_stem: re.Pattern[str] | None = None


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
    """Names of the subfolders of a folder and of its images."""

    subfolders: list[str]
    images: list[str]


@dataclass
class Pairing:
    """Pairs of rainy and clean files by their relative names, and the files without a partner.

    A pair in one file, and an unpaired image, is a tuple of that file alone.
    """

    name: str
    description: str
    pairs: list[tuple[str, ...]] = field(default_factory=list)
    rainy_left: list[str] = field(default_factory=list)
    clean_left: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.pairs) and not self.rainy_left and not self.clean_left

    def __str__(self) -> str:
        noun = "image" if self.description == UNPAIRED else "pair"
        return f"{format_count(len(self.pairs), noun)}, {self.description}"


def read_folder(
    path: str, layout: str, side_by_side: str, say: Callable[[str], object], allow_unpaired: bool
) -> tuple[list[tuple[str, ...]], str]:
    """The pairs of a folder in one of the layouts of Train_Dataset_README.md.

    Args:
        layout: which pairing to take, by its name or a part of it; "" if only one fits.
        side_by_side: "rainy-left" or "rainy-right" if each file may hold both images; or "".
        say: receives lines for the user: what was recognised, what is left over, and progress if
            reading takes more than two seconds.
        allow_unpaired: if there are no pairs, take the images themselves.

    Returns:
        The files of each pair, sorted, and side_by_side if they hold both images, or "".

    Raises:
        UserError: no pairing fits, or several do; the folder cannot be read.
    """
    path, notify = str(Path(path)), SlowNotice(say).update
    tree, skipped = _list_images(path, notify)
    images = [_join(inner, name) for inner, folder in tree.items() for name in folder.images]
    notify(f"{path}: pairing {len(images)} images")
    pairing = _choose_pairing(path, [p for p in _find_pairings(path, tree) if p.pairs], layout)
    if pairing is None:
        pairing = _take_unpaired(path, images, side_by_side, allow_unpaired)
    elif side_by_side:
        say(f"{path}: --side-by-side is not for it: each image has a file of its own")
        side_by_side = ""
    for line in [str(pairing), *_describe_leftovers(images, pairing)]:
        say(one_line(f"{path}: {line}", 1000))
    if skipped:
        say(f"{path}: {describe_skipped(skipped)}")
    # By folders, each with all its files before those of the folders in it.
    pairs = sorted(pairing.pairs, key=lambda files: [file.rpartition("/") for file in files])
    return pairs, side_by_side


def sole_image(folder: Path) -> str | None:
    """The name of the image in a folder with the name of an image, if it holds nothing else."""
    if folder.suffix.lower() in FORMATS and folder.is_dir():
        image, *others = os.listdir(folder) or [""]
        if not others and Path(image).suffix.lower() in FORMATS and (folder / image).is_file():
            return image
    return None


def _list_images(
    path: str, notify: Callable[[str], object]
) -> tuple[dict[str, Folder], Counter[str]]:
    """All folders under path by their relative names, "" for itself, and what was skipped."""
    tree: dict[str, Folder] = {}
    skipped: Counter[str] = Counter()
    for inner, folders, files in walk_folder(Path(path)):
        images, others = split_by_suffix(files, FORMATS)
        skipped += others
        sole = {name: sole_image(Path(path, inner, name)) for name in folders}
        folders[:] = [name for name in folders if sole[name] is None]
        images += [f"{name}/{image}" for name, image in sole.items() if image]
        tree[inner] = Folder(folders, sorted(images))
        notify(f"{path}: looked into {len(tree)} folders")
    return tree, skipped


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _find_pairings(path: str, tree: dict[str, Folder]) -> Iterator[Pairing]:
    """Every pairing of a folder, whether or not it finds any pair."""
    parents: dict[tuple[str, str], list[str]] = {}  # of each pair of sides
    for inner, folder in tree.items():
        for sides in _find_sides(inner.rpartition("/")[2].lower(), folder):
            parents.setdefault(sides, []).append(inner)
    for (rainy, clean), candidates in parents.items():
        names = [
            "the files beside" if side == SAME_FOLDER else f"{side}/" for side in (rainy, clean)
        ]
        for name, rule in RULES.items():
            description = f"{names[0]} and {names[1]} {rule.description}"
            if rainy == clean == SAME_FOLDER:
                if rule.clean_stem is None:
                    continue
                description = f"in one folder {rule.description}"
            pairing = Pairing(f"{rainy}:{clean}:{name}", description)
            used = [
                parent for parent in candidates if _add_pairs(path, tree, parent, pairing, rule)
            ]
            if len(used) > 1:
                pairing.description += f", in {len(used)} folders"
                _require_one_split(path, used)
            yield pairing
            if pairing.complete:
                break


def _find_sides(name: str, folder: Folder) -> Iterator[tuple[str, str]]:
    """The names that may be the rainy and the clean side of a folder of that name."""
    rainy = [subfolder for subfolder in folder.subfolders if subfolder.lower() in RAINY]
    clean = [subfolder for subfolder in folder.subfolders if subfolder.lower() in CLEAN]
    yield from product(rainy, clean)
    existing = set(folder.subfolders)
    yield from ((n, n + CLEAN_SUFFIX) for n in folder.subfolders if n + CLEAN_SUFFIX in existing)
    if folder.images:
        yield from product(rainy, [SAME_FOLDER])
        yield from product([SAME_FOLDER], clean)
        if name not in RAINY | CLEAN:
            yield SAME_FOLDER, SAME_FOLDER


def _iterate_side(
    tree: dict[str, Folder], parent: str, side: str
) -> Iterator[tuple[str, str, str]]:
    """(folder within the side, stem, file) of each image of a side."""
    top = parent if side == SAME_FOLDER else _join(parent, side)
    folders = [top]
    if side != SAME_FOLDER:
        folders = [inner for inner in tree if inner == top or inner.startswith(f"{top}/")]
    for folder in folders:
        within = normalize("NFC", folder[len(top) + 1 :])  # macOS stores accents separately
        for name in tree[folder].images:
            stem = normalize("NFC", name.partition("/")[0].rpartition(".")[0])
            yield within, stem, _join(folder, name)


def _add_pairs(
    path: str, tree: dict[str, Folder], parent: str, pairing: Pairing, rule: Rule
) -> bool:
    """Add what a rule finds below a folder to a pairing. Returns whether it found a pair."""
    rainy_side, clean_side, _ = pairing.name.split(":")
    clean_stem = rule.clean_stem if rainy_side == clean_side else None
    clean_files: dict[tuple[str, str], str] = {}  # by folder and stem
    duplicates: dict[str, str] = {}  # of the same stem
    for folder, stem, file in _iterate_side(tree, parent, clean_side):
        if clean_stem is None or clean_stem.match(stem):
            first = clean_files.setdefault((folder, stem), file)
            if first is not file:
                duplicates[first] = file
    used, pairs, unmatched = set(), [], []
    for folder, stem, file in _iterate_side(tree, parent, rainy_side):
        match = rule.rainy.fullmatch(stem)
        if clean_stem is not None and (match is None or clean_stem.match(stem)):
            continue
        clean = _find_clean(clean_files, folder, match.expand(rule.clean)) if match else None
        if clean is None:
            unmatched.append(file)
            continue
        if clean in duplicates:
            raise UserError(
                f"{path}: {file} has two clean images: {clean} and {duplicates[clean]}; expected "
                "one of them"
            )
        used.add(clean)
        pairs.append((file, clean))
    if pairs:
        pairing.pairs += pairs
        pairing.rainy_left += unmatched
        pairing.clean_left += [file for file in clean_files.values() if file not in used]
    return bool(pairs)


def _find_clean(clean_files: dict[tuple[str, str], str], folder: str, stem: str) -> str | None:
    """The clean image of that stem in the folder of that name, or in the nearest above it."""
    while folder and (folder, stem) not in clean_files:
        folder = folder.rpartition("/")[0]
    return clean_files.get((folder, stem))


def _require_one_split(path: str, folders: list[str]) -> None:
    """Raise UserError if pairs for training lie beside others for testing."""
    splits: dict[str, str] = {}
    for folder in folders:
        words = re.split(r"[^a-z0-9]+", folder.lower())
        splits.setdefault(next((word for word in words if word in SPLITS), ""), folder or ".")
    if len(splits) > 1:
        raise UserError(
            f"{path}: holds several parts: {', '.join(sorted(splits.values()))}; expected the "
            f"folder of one, such as {Path(path, min(splits.values()))}"
        )


def _choose_pairing(path: str, pairings: list[Pairing], layout: str) -> Pairing | None:
    """The one pairing that fits; None if there is none. Raises UserError."""
    options = "; ".join(f"{pairing}: --layout {pairing.name}" for pairing in pairings)
    expected = f"expected one of: {options}" if options else "no layout does"
    if layout:
        pairings = [pairing for pairing in pairings if f":{layout}:" in f":{pairing.name}:"]
        if not pairings:
            raise UserError(f"--layout: {layout} does not fit {path}; {expected}")
    complete = [pairing for pairing in pairings if pairing.complete]
    pairings = complete if len(complete) == 1 else pairings
    if len(pairings) > 1:
        raise UserError(f"{path}: can be read in {len(pairings)} ways; {expected}")
    return pairings[0] if pairings else None


def _take_unpaired(
    path: str, images: list[str], side_by_side: str, allow_unpaired: bool
) -> Pairing:
    """Every image of a folder, as both of a pair, or alone. Raises UserError."""
    if not images:
        raise UserError(f"{path}: holds no images; expected {', '.join(sorted(FORMATS))}")
    if not side_by_side and not allow_unpaired:
        raise UserError(
            f"{path}: {format_count(len(images), 'image')}, {UNPAIRED}; expected a layout of "
            "Train_Dataset_README.md, or --side-by-side if each file holds both images, or for "
            "rainy images alone -a derain -i"
        )
    description = f"side by side, {side_by_side}" if side_by_side else UNPAIRED
    return Pairing("", description, [(image,) for image in images])


def _describe_leftovers(images: list[str], pairing: Pairing) -> Iterator[str]:
    """Lines on the images that are not in pairs."""
    paired = {file for pair in pairing.pairs for file in pair}
    others = set(images) - paired - {*pairing.rainy_left, *pairing.clean_left}
    for files, kind in (
        (pairing.rainy_left, "rainy without a clean image"),
        (pairing.clean_left, "clean without a rainy image"),
        (others, "on neither side"),
    ):
        if files:
            yield f"left over: {len(files)} {kind}: {first_few(sorted(files))}"
