"""Whether the images that a list names are there: asked of folders, not name by name."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from media.pair_list import PairList, Way, split
from media.pictures import FORMATS
from settings import UserError
from system.progress import warn

TOLD = 5  # of many names, as many are told
DRIVE = re.compile(r"[A-Za-z]:[\\/]")

Tell = Callable[[str], object]  # what tells a user how far it is, where that takes long


def require_images(pairs: PairList, tell: Tell = lambda _: None) -> str:
    """Check that every name is that of a file, and mend those that can be.

    A name with backslashes that is no file stands for the one with slashes, and a folder with the
    name of an image for the one image in it; the list then holds what was found.

    Returns:
        What was mended that a user should know, or "".

    Raises:
        UserError: files are missing; the first five are named.
    """
    listed = pairs.text
    places = pairs.spans.reshape(-1, 2)  # a view: what is written to it is written to the list
    missing = _unlisted(pairs, np.arange(len(places)), tell)
    if missing and b"\\" in listed:
        text = bytearray(listed)
        for begin, end in places[missing].tolist():
            text[begin:end] = listed[begin:end].replace(b"\\", b"/")
        pairs.text = bytes(text)
        missing = _unlisted(pairs, np.array(missing), tell)
    # Those of a folder that cannot be listed, or of a file system that takes other spellings.
    missing = [i for i in missing if not is_file(pairs.way(_name(pairs.text, places[i])))]
    count = len(missing)
    missing = _put_what_folders_hold(pairs, places, missing)
    if missing:
        _refuse(pairs, [(i, _name(listed, places[i])) for i in missing[:TOLD]], len(missing))
    mended = count - len(missing)
    return f"names of folders, for which the one image in each is taken: {mended}" if mended else ""


def is_file(path: Path) -> bool:
    """Whether path is a file, and not one whose name is too long or whose folder is closed."""
    try:
        return path.is_file()
    except OSError:
        return False


def sole_image(folder: Path) -> str | None:
    """The name of the image in a folder with the name of an image, if it holds nothing else."""
    if folder.suffix.lower() not in FORMATS:
        return None
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    alone = len(names) == 1 and Path(names[0]).suffix.lower() in FORMATS
    return names[0] if alone and is_file(folder / names[0]) else None


def require_no_drive(where: str, name: str) -> None:
    """Raise UserError where the name of a missing file begins with a drive of Windows."""
    if os.name != "nt" and DRIVE.match(name):
        raise UserError(
            f"{where}: {name} is on drive {name[:2]} of a Windows computer; expected names "
            "relative to the folder of the list"
        )


def _name(text: bytes, place: np.ndarray) -> str:
    return text[place[0] : place[1]].decode()


def _unlisted(pairs: PairList, indexes: np.ndarray, tell: Tell) -> list[int]:
    """Those of the names that the listings of their folders lack, in order."""
    numbers: dict[bytes, int] = {}  # of folders
    owners = np.empty(len(indexes), np.int64)
    cuts = pairs.spans.reshape(-1, 2)[indexes].copy()
    for i, name in enumerate(pairs.names(indexes)):
        folder, _ = split(name)
        owners[i] = numbers.setdefault(folder, len(numbers))
        cuts[i, 0] += len(folder)
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(numbers) + 1))
    missing: list[int] = []
    for folder, number in numbers.items():
        own = order[bounds[number] : bounds[number + 1]]
        there = _files(pairs.way, folder)
        bases = (pairs.text[begin:end].decode() for begin, end in cuts[own].tolist())
        absent = [i for i, base in zip(own.tolist(), bases, strict=True) if base not in there]
        missing += indexes[absent].tolist()
        tell(f"{pairs.source}: looked into {number + 1} of {len(numbers)} folders")
    return sorted(missing)


def _files(way: Way, folder: bytes) -> set[str]:
    """The names of the files in a folder; none where it cannot be listed."""
    try:
        with os.scandir(way(folder.decode())) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _put_what_folders_hold(pairs: PairList, places: np.ndarray, missing: list[int]) -> list[int]:
    """Put the one image of a folder in the place of its name. Returns what is still missing."""
    still, added = [], []
    end = len(pairs.text)
    for i in missing:
        name = _name(pairs.text, places[i])
        found = sole_image(pairs.way(name))
        if found is None:
            still.append(i)
            continue
        added.append(f"{name}/{found}".encode())
        places[i] = end, end + len(added[-1])
        end += len(added[-1])
    pairs.text += b"".join(added)
    return still


def _refuse(pairs: PairList, missing: Iterable[tuple[int, str]], count: int) -> None:
    """Raise UserError for missing files, (index of the name, name); several are told by line."""
    width = pairs.spans.shape[1]
    told = []
    for i, name in missing:
        where = pairs.where(i // width)
        require_no_drive(where, name)
        looked = pairs.way(name)
        told.append(f"{where}: no such image: {name} (looked for {looked})")
    if count == 1:
        raise UserError(told[0])
    for line in told:
        warn(line)
    raise UserError(
        f"{pairs.source}: {count} images are missing"
        + (f", of which the first {TOLD} are named above" if count > TOLD else "")
    )
