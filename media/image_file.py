"""The file of a picture: the one way in for every reader of pictures, whole or refused.

Decoders differ in what they let pass: Pillow skips the checksums of a PNG, OpenCV those within a
TIFF, and both make up the rows that a file declares and does not hold. What is damage is decided
here, so that an image is as good, or as bad, for deraining as for testing and training.
"""

import contextlib
import io
import math
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from settings import UserError
from system.reading import open_regular, read_bytes

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are told by us
# Of odd metadata, which is not the user's concern.
warnings.filterwarnings("ignore", module=r"PIL\b|tifffile\b")
Image.MAX_IMAGE_PIXELS = None  # a user's own files; what memory holds is checked elsewhere

T = TypeVar("T")
PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II*\0", b"MM\0*")
KINDS = "PNG, JPEG, WebP, AVIF, HEIC, TIFF or BMP"
PHOTOS = {"AVIF", "HEIF"}  # of which OpenCV reads none, or not alike
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PIXEL_BITS = re.compile(rb"pixi\0{4}([\x01-\x04])(.{4})", re.DOTALL)  # channels, bits of each
SEVERAL = {"MPO"}  # a JPEG that more is appended to: the first is the picture
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF
Turn = Callable[[np.ndarray], np.ndarray]
_UPRIGHT: dict[int, Turn] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
# Put behind the data of a JPEG, this changes what a decoder makes of a file that is cut short, and
# nothing else: random bits between all the marks at which a decoder may wait for more.
FILLING = b"".join(b"\x5a\xc3\x96\x3c\xa5" * 8 + b"\xff" + bytes([0xD0 + n % 8]) for n in range(24))
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
COLOURLESS = 3  # grey levels between channels that rounding makes
BLOCK = 1 << 20  # bytes unpacked at a time
HEAD = 1 << 16  # bytes in which a file tells its depth
# Tags of a TIFF; of strips and tiles, where they start and how long they are.
ROWS, COMPRESSION, SAMPLES, ROWS_A_STRIP, PLANES = 257, 259, 277, 278, 284
STRIPS, TILES = (273, 279), (324, 325)
DEFLATE = (8, 32946)
_stderr = threading.Lock()


def load(path: Path, name: str, decode: Callable[[bytes], T]) -> T:
    """What decode makes of the bytes of a picture's file.

    Args:
        name: how a message names the file.
        decode: may raise anything for what it cannot decode.

    Raises:
        UserError: the file cannot be read, is damaged or cut short, or cannot be decoded.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"{name}: not enough memory to read it") from None
    try:
        with _silence():
            if data.startswith(PNG):
                list(_chunks(data))  # which raises
            found = decode(data)
            if data.startswith(TIFF):  # last, as it takes as much memory as the decoding
                _require_whole_tiff(data)
            return found
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name}: not enough memory to read it") from None
    except Exception:  # what the decoders raise at damaged files is as good as anything
        raise UserError(
            f"{name}: not an image that can be read, or damaged ({len(data)} bytes); "
            f"expected {KINDS}"
        ) from None


def open_image(file: BinaryIO, name: str) -> Image.Image | None:
    """The picture in a file, of which only the header was read; None where Pillow knows it not.

    Raises:
        UserError: it holds several images, or is of a kind that is not read here. Where it is
            damaged, anything.
    """
    head = file.read(HEAD)
    file.seek(0)
    if _is_heic(head):
        require_heic(name)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        return None
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format not in SEVERAL:
        raise UserError(f"{name}: holds {count} images; expected one")
    if image.format in PHOTOS and bit_depth(image, head) > 8:
        raise UserError(
            f"{name}: {image.format} of {bit_depth(image, head)} bits a channel, of which 8 would "
            "be "
            "read; expected 8, or PNG or TIFF"
        )
    return image


def _is_heic(head: bytes) -> bool:
    """Whether a file begins as HEIC does; AVIF shares its container, and one of its brands."""
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and b"avif" not in head[8:64]


def require_heic(name: str) -> None:
    """Have Pillow read and write HEIC. Raises UserError, which says how, where it cannot."""
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            f"{name}: HEIC needs the package pillow-heif; to get it: pip install pillow-heif"
        ) from None
    pillow_heif.register_heif_opener()


def apply_orientation(image: Image.Image, data: bytes = b"") -> Turn:
    """What turns the pixels of a picture, as its file holds them, the way it is to be seen.

    Args:
        data: its file, where what stands behind the pixels of a PNG is to count too.
    """
    return _UPRIGHT.get(_orientation(image, data), lambda pixels: pixels)


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":  # which Pillow turns itself
        return 1
    # A PNG that has yet shown no EXIF data would be decoded in search of it.
    plain = image.format == "PNG" and b"eXIf" not in data
    try:
        exif = Image.Image.getexif(image) if plain else image.getexif()
        return exif.get(_ORIENTATION, 1)
    except Exception:  # EXIF data is often damaged, and seldom missed
        return 1


def bit_depth(image: Image.Image, head: bytes) -> int:
    """Bits a channel of the file. Pillow reduces more than 8 to 8, mostly, and does not tell."""
    if image.format == "PNG":
        return head[24]
    if image.format in PHOTOS:
        found = PIXEL_BITS.findall(head)
        return max((max(each[: count[0]]) for count, each in found), default=8)
    return max(image.tag_v2.get(_BITS, (1,))) if image.format == "TIFF" else 8


def image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, as its header has them.

    None where the header does not promise a picture of 8 bits a channel: to read it all then tells.
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            file.seek(0)
            image = open_image(file, "")
            if image is None or bit_depth(image, head) > 8 or image.mode in ("I", "F"):
                return None
            blank = np.broadcast_to(False, (image.height, image.width))
            height, width = apply_orientation(image)(blank).shape
            return width, height
    except Exception:  # as of all that decodes
        return None


def colours(image: Image.Image, turn: Turn) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of 8 bits a channel: (H,W,3) uint8 BGR, and where there is transparency (H,W) alpha.

    Args:
        turn: what turns them upright.
    """
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    # Through RGB: Pillow cannot turn every mode into every other.
    pixels = turn(np.asarray(image.convert("RGBA" if transparent else "RGB")))
    alpha = pixels[..., 3].copy() if transparent else None
    return np.ascontiguousarray(pixels[..., 2::-1]), alpha


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Within it, what libpng, libtiff and libjpeg print on standard error is lost."""
    with _stderr, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is no standard error
            kept = os.dup(2)
            stack.callback(os.close, kept)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            stack.callback(os.dup2, kept, 2)
        yield


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk of a PNG, to the last. Raises at a wrong checksum."""
    view, at, kind = memoryview(data), len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if zlib.crc32(view[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]:
            raise ValueError("a checksum of the file is wrong")
        yield kind, view[at + 8 : end - 4]
        at = end


def require_rows(data: bytes) -> None:
    """Raise ValueError unless a PNG holds as many rows as it declares; libpng looks, not Pillow."""
    parts = [content for kind, content in _chunks(data) if kind == b"IDAT"]
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    deep = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    needed = sum(h * (1 + (w * deep + 7) // 8) for w, h in _passes(width, height, interlaced))
    if _inflated(parts, needed) < needed:
        raise ValueError("rows are missing")


def _inflated(parts: Iterable[bytes], enough: float = math.inf) -> int:
    """How many bytes the parts of a zlib stream hold; counting ends when there are enough.

    Raises zlib.error, or ValueError where the stream has no end. Its checksum is looked at only if
    it is read to its end.
    """
    inflater, found = zlib.decompressobj(), 0
    for part in parts:
        while part and not inflater.eof and found < enough:
            found += len(inflater.decompress(part, BLOCK))
            part = inflater.unconsumed_tail
    if found < enough and not inflater.eof:
        raise ValueError("cut short")
    return found


def _passes(width: int, height: int, interlaced: int) -> list[tuple[int, int]]:
    """Width and height of the parts of a PNG, those of Adam7 where it is interlaced."""
    if not interlaced:
        return [(width, height)]
    starts = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    sizes = [
        (-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in [*starts, (0, 1, 1, 2)]
    ]
    return [(w, h) for w, h in sizes if w > 0 and h > 0]


def require_filled(data: bytes, pixels: np.ndarray) -> None:
    """Raise ValueError where pixels (H,W,3), decoded from a JPEG, have rows that it does not hold.

    Decoders make them grey, and something else where there is more to read. Only a picture with a
    colourless corner is looked at so, as it is decoded twice again, at an eighth of its size.
    """
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    if not data.startswith(JPEG) or np.ptp(corners, axis=1).min() > COLOURLESS:
        return
    if (_eighth(FILLING.join(_scans(data))) != _eighth(data)).any():
        raise ValueError("rows are missing")


def _eighth(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)


def _scans(data: bytes) -> list[bytes]:
    """A JPEG cut where its scans end; the last part begins with the mark of the picture's end."""
    at, parts, start = 2, [], 0
    while True:
        while data[at + 1] == 0xFF:  # bytes that fill, which may stand before any mark
            at += 1
        if (mark := data[at + 1]) == 0xD9:
            break
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if mark == 0xDA:  # what follows is entropy-coded, up to a mark of another kind
            at = END_OF_SCAN.search(data, at).start()
            parts.append(data[start:at])
            start = at
    return [*parts, data[start:]]


def _require_whole_tiff(data: bytes) -> None:
    """As many strips as the declared rows need, each whole.

    Pillow refuses what cannot be unpacked; checksums are looked at here, as libtiff stops when it
    has its pixels.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:  # of a kind that Pillow does not know, and OpenCV may
        return
    tags = image.tag_v2
    if STRIPS[0] in tags:
        rows = min(tags.get(ROWS_A_STRIP, tags[ROWS]), tags[ROWS])
        planes = tags.get(SAMPLES, 1) if tags.get(PLANES) == 2 else 1
        if len(tags[STRIPS[0]]) < -(-tags[ROWS] // rows) * planes:
            raise ValueError("rows are missing")
    image.load()
    starts, lengths = STRIPS if STRIPS[0] in tags else TILES
    if tags.get(COMPRESSION) in DEFLATE:
        for start, length in zip(tags[starts], tags[lengths], strict=True):
            _inflated([data[start : start + length]])
