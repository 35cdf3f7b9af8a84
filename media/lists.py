"""From a list file to images: what a line names, read and checked."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from media import image_file
from settings import UserError
from system.reading import open_regular

BLANKS = " \t"  # what separates names; other white space, such as U+3000, belongs to a name


@dataclass(frozen=True)
class Pair:
    """One line of a list; clean is None where the list names rainy images alone."""

    rainy: Path
    clean: Path | None
    where: str  # "list file:line number", for messages


def read_list(path: str, need_clean: bool = False) -> list[Pair]:
    """The pairs of a list file, every file checked to exist.

    A line holds `rainy clean`, or `rainy` alone; TABs separate where a name holds spaces.
    Names are tried as given, against the list's folder, and without a leading `./` or `/`
    against both; what finds the first image is used for the whole list.

    Raises:
        UserError: the list or an image is missing, the list is empty, not UTF-8, or a line has
            more names or fewer than the first; or need_clean is set and there are no clean images.
    """
    try:
        # Opened as text, LF, CRLF and CR have become LF; nothing else ends a line.
        with open_regular(path, "r", "utf-8-sig") as file:
            lines = file.read().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}; "
            "Train_Dataset_README.md describes lists"
        ) from None
    entries = [
        (number, _names(line, f"{path}:{number}"))
        for number, line in enumerate(lines, 1)
        if line.strip(BLANKS) and not line.lstrip(BLANKS).startswith("#")
    ]
    if not entries:
        raise UserError(f"{path}: the list is empty; expected a line `rainy clean` for each pair")
    width = len(entries[0][1])
    if need_clean and width == 1:
        raise UserError(
            f"{path}:{entries[0][0]}: expected `rainy clean`, got one name: {entries[0][1][0]}"
        )
    resolve = _resolver(path, entries[0])
    pairs = []
    for number, names in entries:
        where = f"{path}:{number}"
        if len(names) != width:
            raise UserError(
                f"{where}: {_count(names)}, where the first line has {width}; "
                "a list holds pairs or rainy images, not both"
            )
        files = [resolve(name) for name in names]
        for name, file in zip(names, files, strict=True):
            if not _is_file(file):
                raise UserError(f"{where}: no such image: {name} (looked for {file})")
        pairs.append(Pair(files[0], files[1] if width == 2 else None, where))
    return pairs


def _count(names: list[str]) -> str:
    return f"{len(names)} name{'s' if len(names) > 1 else ''}"


def _names(line: str, where: str) -> list[str]:
    names = [name.strip(BLANKS) for name in line.split("\t" if "\t" in line else " ")]
    names = [name for name in names if name]
    if len(names) > 2 or "\0" in line:
        raise UserError(
            f"{where}: {_count(names)}; expected `rainy clean` "
            "(separate the two by a TAB where a name holds spaces)"
        )
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _resolver(path: str, first_entry: tuple[int, list[str]]) -> Any:
    """The function from name to file that finds the first image of a list."""
    folder = Path(path).parent

    def bare(name: str) -> str:
        return name.removeprefix(".").lstrip("/") if name.startswith(("./", "/")) else name

    ways = [
        lambda name: Path(name),
        lambda name: folder / name,
        lambda name: Path(bare(name)),
        lambda name: folder / bare(name),
    ]
    number, names = first_entry
    for way in ways:
        if _is_file(way(names[0])):
            return way
    tried = ", ".join(dict.fromkeys(str(way(names[0])) for way in ways))
    raise UserError(f"{path}:{number}: no such image: {names[0]} (looked for {tried})")


def fingerprint(pairs: list[Pair], folder: Path) -> str:
    """What a list of pairs names, wherever its folder is and whatever its comments say."""
    names = (os.path.relpath(file, folder) for pair in pairs for file in (pair.rainy, pair.clean))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def read_image(path: Path, where: str) -> np.ndarray:
    """An image file as (H,W,3) uint8, BGR; greyscale is spread over the channels.

    Raises:
        UserError: the file is missing, not a whole image, has more than 8 bits a channel, or has
            transparent pixels. `where` begins the message.
    """
    name = f"{where}: {path}"
    return image_file.load(path, name, lambda data: _decode(data, name))


def _decode(data: bytes, name: str) -> np.ndarray:
    seen = image_file.opened(io.BytesIO(data), name)
    if seen is not None and seen.format in image_file.PHOTOS:
        image, alpha = image_file.colours(seen, image_file.upright(seen, data))
        return image if alpha is None else _opaque(np.dstack([image, alpha]), name)
    jpeg = data.startswith(image_file.JPEG)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if jpeg else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("not decoded")
    if seen is not None:  # OpenCV itself turns a TIFF alone
        image = np.ascontiguousarray(image_file.upright(seen, data)(image))
    if image.dtype != np.uint8:
        raise UserError(
            f"{name}: {image.dtype} values; expected 8 bits a channel: convert it first"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if image.shape[2] == 4:
        return _opaque(image, name)
    image_file.require_filled(data, image)
    return image


def _opaque(image: np.ndarray, name: str) -> np.ndarray:
    """The colours of an image (H,W,4). Raises UserError where one of its pixels is transparent."""
    if (image[..., 3] != 255).any():
        raise UserError(f"{name}: has transparent pixels; expected an opaque image")
    return np.ascontiguousarray(image[..., :3])


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
    """Both images of a pair, (H,W,3) uint8 BGR. Raises UserError, also where their sizes differ."""
    rainy = read_image(pair.rainy, pair.where)
    if pair.clean is None:
        return rainy, None
    clean = read_image(pair.clean, pair.where)
    if rainy.shape != clean.shape:
        raise UserError(
            f"{pair.where}: the images of a pair differ in size: {pair.rainy} is "
            f"{rainy.shape[1]}x{rainy.shape[0]}, {pair.clean} is {clean.shape[1]}x{clean.shape[0]}"
        )
    return rainy, clean
