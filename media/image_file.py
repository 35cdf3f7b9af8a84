"""The file of a picture: its header, and whether it is whole.

Pillow and OpenCV skip checksums, and both invent the rows that a file declares and does not hold.
The checks here refuse such files, whatever they are read for.
"""

import contextlib
import io
import math
import os
import re
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from settings import UserError, format_count
from system.files import open_regular

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # this program reports errors
# Warnings about odd metadata do not concern the user.
warnings.filterwarnings("ignore", module=r"PIL\b|tifffile\b")
pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # a user's own files; the decoder checks the memory

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
FORMATS = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "TIFF", "BMP"}  # as Pillow calls them
FORMATS_TEXT = "PNG, JPEG, WebP, AVIF, HEIC, TIFF or BMP"
PIXI_BOX = re.compile(rb"pixi\0{4}([\x01-\x04])(.{4})", re.DOTALL)  # channels, bits of each
HEADER_BYTES = 1 << 16  # in which a file declares its bit depth
INFLATE_BYTES = 1 << 20  # unpacked at a time
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # tags of EXIF and TIFF
RGB = 2  # photometric interpretation; 0 and 1 are grey
DEFLATE = (8, 32946)
MISSING_ROWS = re.compile(rb"premature end|instead of RST")  # what libjpeg prints of them
GREY_TOLERANCE = 3  # grey levels between the channels of grey, by rounding
_stderr_lock = threading.Lock()


def open_image(file: IO[bytes], name: str) -> Image.Image:
    """Open the picture in a file, of which only the header is read.

    Raises:
        UserError: it holds several images, or is of an unsupported format.
        Exception: it is damaged.
    """
    header = file.read(HEADER_BYTES)
    file.seek(0)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        if header.startswith((b"II*\0", b"MM\0*")):
            file.seek(0)
            require_tiff_kind(file, name)
        raise
    count = getattr(image, "n_frames", 1)
    # An MPO is a JPEG with more images appended: the first is the picture.
    if count > 1 and image.format != "MPO":
        raise UserError(f"{name}: holds {count} images; expected one")
    if image.format not in FORMATS:
        raise UserError(f"{name}: is {image.format}; expected {FORMATS_TEXT}")
    depth = bit_depth(image, header)
    if image.format in ("AVIF", "HEIF") and depth > 8:
        raise UserError(f"{name}: {image.format} of {depth} bits; expected 8, or PNG or TIFF")
    return image


def require_tiff_kind(file: IO[bytes], name: str) -> None:
    """Raise UserError unless a TIFF is of a kind that is read: Pillow says of others that no
    format fits, or reduces them.
    """
    page: Any = tifffile.TiffFile(file).pages.first
    bits, channels, whole = page.bitspersample, page.samplesperpixel, page.sampleformat == 1
    if whole and (bits <= 8 or (bits == 16 and channels != 2 and page.photometric <= RGB)):
        return
    raise UserError(
        f"{name}: a TIFF of {format_count(channels, 'channel')} of {bits}-bit "
        f"{'whole numbers' if whole else 'floats'}; expected 8 or 16 bits, whole numbers, grey or "
        "RGB(A)"
    )


def read_orientation(image: Image.Image, header_only: bool = False) -> int:
    """EXIF orientation of a picture, 1 to 8; 1 for TIFF, which Pillow and OpenCV turn themselves.

    Args:
        header_only: do not decode a PNG to find EXIF data behind its pixels.
    """
    if image.format == "TIFF":
        return 1
    try:  # PngImageFile.getexif decodes the image
        exif = Image.Image.getexif(image) if header_only else image.getexif()
        orientation = exif.get(ORIENTATION, 1)
    except Exception:  # EXIF data is often damaged, and rarely missed
        return 1
    return orientation if orientation in range(1, 9) else 1


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H,W) or (H,W,C) upright. Returns a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def bit_depth(image: Image.Image, header: bytes) -> int:
    """Bits a channel of the file. Pillow silently reduces most images of more than 8 bits to 8."""
    if image.format == "PNG":
        return header[24]
    if image.format in ("AVIF", "HEIF"):
        boxes = PIXI_BOX.findall(header)
        return max((max(bits[: channels[0]]) for channels, bits in boxes), default=8)
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    return 8


def image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, by its header.

    None if the header is not that of a picture of 8 bits a channel: read the whole file then.
    """
    try:
        with open_regular(path) as file:
            header = file.read(HEADER_BYTES)
            file.seek(0)
            image = open_image(file, "")
            if bit_depth(image, header) > 8 or image.mode in ("I", "F"):
                return None
            turned = read_orientation(image, header_only=True) >= 5
            return image.size[::-1] if turned else image.size
    except Exception:  # decoders raise all kinds of exceptions at damaged files
        return None


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture that is read, whatever its suffix."""
    with contextlib.suppress(Exception), open_regular(path) as file:
        open_image(file, "")
        return True
    return False


@contextlib.contextmanager
def mute_stderr() -> Iterator[None]:
    """Within it, what libpng, libtiff and libjpeg print on standard error is lost."""
    with _stderr_lock, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is no standard error
            stderr = os.dup(2)
            stack.callback(os.close, stderr)
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), 2)
            stack.callback(os.dup2, stderr, 2)
        yield


def check_png_rows(data: bytes, image: Image.Image) -> None:
    """Raise ValueError if a PNG, decoded by Pillow, holds fewer rows than it declares.

    Pillow leaves the missing rows at 0; OpenCV refuses them. The file is decoded a second time only
    if the last row is 0 or, because rows come in another order, if it is interlaced.
    """
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    suspect = image.info.get("interlace") or not last_row.getbbox(alpha_only=False)
    if suspect and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        raise ValueError("rows are missing")


def check_jpeg_rows(data: bytes, pixels: np.ndarray) -> None:
    """Raise ValueError if pixels (H,W,3), decoded from a JPEG, have rows that it does not hold.

    Decoders make missing rows grey, and libjpeg only prints that it did. So a picture with a grey
    corner is decoded again, at an eighth of its size. Call this within mute_stderr.
    """
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
    if np.ptp(corners, axis=1).min() > GREY_TOLERANCE:
        return
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
        printed.seek(0)
        if MISSING_ROWS.search(printed.read()):
            raise ValueError("rows are missing")


def check_tiff(data: bytes, image: TiffImageFile) -> None:
    """Raise unless a TIFF has as many strips as its declared rows need, each whole.

    Pillow refuses what cannot be unpacked. Checksums are verified here, because libtiff stops when
    it has its pixels.
    """
    page: Any = tifffile.TiffFile(io.BytesIO(data)).pages.first
    if len(page.dataoffsets) < math.prod(page.chunked):
        raise ValueError("rows are missing")
    image.load()
    if page.compression in DEFLATE:
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            inflater, part = zlib.decompressobj(), data[start : start + length]
            while part:  # a part at a time, as a small file may unpack to any size
                inflater.decompress(part, INFLATE_BYTES)
                part = inflater.unconsumed_tail
            if not inflater.eof:
                raise ValueError("cut short")
