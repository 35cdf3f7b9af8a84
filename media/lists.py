"""From a list file to images: what a line names, read and checked."""

import codecs
import io
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from media.layouts import read_folder
from media.pair_list import Pair, PairList, Way
from media.pictures import read_image
from media.presence import Tell, is_file, require_images, require_no_drive, sole_image
from settings import UserError
from system.progress import SlowNotice
from system.reading import read_bytes

BLANKS = b" \t"  # what separates names; other white space, such as U+3000, belongs to a name


def read_list(
    path: str,
    need_clean: bool = False,
    say: Callable[[str], object] = print,
    layout: str = "",
    side_by_side: str = "no",
    alone: bool = False,
) -> PairList:
    """The pairs of a list file, every file checked to exist, or of a folder: see read_folder.

    A line holds `rainy clean`, or `rainy` alone; TABs separate where a name holds spaces.
    Names are tried as given, against the list's folder, and without a leading `./` or `/`
    against both; what finds the first image is used for the whole list. See require_images for
    the names that are mended.

    Args:
        say: tells a user what was recognised, and how far the reading is if it takes more than two
            seconds.
        layout: for folders.
        side_by_side: "rainy-left" or "rainy-right" where files may hold both images; or "no".
        alone: of a folder without pairs, take the images themselves.

    Raises:
        UserError: the list or an image is missing, the list is empty, not UTF-8 or UTF-16, or a
            line has more names or fewer than the first; or need_clean is set and there are no
            clean images.
    """
    halves = side_by_side.removeprefix("no")
    if Path(path).is_dir():
        return read_folder(path, layout, halves, say, alone)
    tell = SlowNotice(say).update
    pairs = _parsed(path, _text(path), tell)
    if layout:
        say(f"{path}: --layout is not for it: it is a list, not a folder")
    if halves and pairs.paired:
        say(f"{path}: --side-by-side is not for it: it names both images of a pair")
    elif halves:
        pairs.halves = halves
    if need_clean and not pairs.paired:
        name = next(pairs.names()).decode()
        raise UserError(f"{pairs.where(0)}: expected `rainy clean`, got one name: {name}")
    pairs.way = _way(pairs)
    if note := require_images(pairs, tell):
        say(f"{path}: {note}")
    return pairs


def _text(path: str) -> bytes:
    """A list as UTF-8 with LF at the end of lines. Raises UserError."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}; "
            "Train_Dataset_README.md describes lists"
        ) from None
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not {encoding} text ({error.reason} at byte {error.start})"
        ) from None
    if encoding != "UTF-8":
        data = text.encode("utf-8", "surrogatepass")
    # No byte of a longer character is one of these. Nothing else ends a line.
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _parsed(path: str, data: bytes, tell: Tell) -> PairList:
    """The names of a list, whose way to their files is not yet known. Raises UserError."""
    text, spans, numbers = bytearray(), array("q"), array("q")
    width = 0
    for number, line in enumerate(io.BytesIO(data), 1):
        names = _names(line, path, number)
        if not names:
            continue
        width = width or len(names)
        if len(names) != width:
            raise UserError(
                f"{path}:{number}: {_count(names)}, where the first line has {width}; "
                "a list holds pairs or rainy images, not both"
            )
        for name in names:
            spans.append(len(text))
            text += name
            spans.append(len(text))
        numbers.append(number)
        if number % 10_000 == 0:
            tell(f"{path}: read {number} lines")
    if not numbers:
        raise UserError(f"{path}: the list is empty; expected a line `rainy clean` for each pair")
    places = np.frombuffer(spans, np.int64).reshape(-1, width, 2)
    return PairList(path, bytes(text), places, np.frombuffer(numbers, np.int64), Way())


def _count(names: list[bytes]) -> str:
    return f"{len(names)} name{'s' if len(names) > 1 else ''}"


def _names(line: bytes, path: str, number: int) -> list[bytes]:
    """The names of a line; none where it is blank or a comment."""
    separator = b"\t" if b"\t" in line else b" "
    line = line.removesuffix(b"\n").strip(BLANKS)
    if not line or line.startswith(b"#"):
        return []
    names = [name for part in line.split(separator) if (name := part.strip(BLANKS))]
    if len(names) > 2 or b"\0" in line:
        raise UserError(
            f"{path}:{number}: {_count(names)}; expected `rainy clean` "
            "(separate the two by a TAB where a name holds spaces)"
        )
    return names


def _way(pairs: PairList) -> Way:
    """The way from name to file that finds the first image of a list. Raises UserError."""
    folder = Path(pairs.source).parent
    ways = [Way(), Way(folder), Way(bare=True), Way(folder, bare=True)]
    name = next(pairs.names()).decode()
    for spelling in (name, name.replace("\\", "/")):
        for way in ways:
            if is_file(way(spelling)) or sole_image(way(spelling)):
                return way
    require_no_drive(pairs.where(0), name)
    tried = ", ".join(dict.fromkeys(str(way(name)) for way in ways))
    raise UserError(f"{pairs.where(0)}: no such image: {name} (looked for {tried})")


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
    """Both images of a pair, (H,W,3) uint8 BGR. Raises UserError, also where their sizes differ."""
    rainy = read_image(pair.rainy, pair.where)
    if pair.halves:
        return _halves(rainy, pair)
    if pair.clean is None:
        return rainy, None
    clean = read_image(pair.clean, pair.where)
    if rainy.shape != clean.shape:
        raise UserError(
            f"{pair.where}: the images of a pair differ in size: {pair.rainy} is "
            f"{rainy.shape[1]}x{rainy.shape[0]}, {pair.clean} is {clean.shape[1]}x{clean.shape[0]}"
        )
    return rainy, clean


def _halves(image: np.ndarray, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    width = image.shape[1]
    if width % 2:
        raise UserError(
            f"{pair.where}: {pair.rainy} is {width} pixels wide; expected an even number, as it "
            "holds two images side by side"
        )
    left, right = (np.ascontiguousarray(half) for half in np.split(image, 2, axis=1))
    return (left, right) if pair.halves == "rainy-left" else (right, left)
