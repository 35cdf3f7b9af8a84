"""A user's own pictures, read and written in their own kind: depth, grey, alpha, colour profile.

Pillow reads and writes what has 8 bits a channel; it has no colour of 16 bits, which is left to
OpenCV and tifffile.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from media import image_file
from media.image_file import BITS_PER_SAMPLE, SAMPLES_PER_PIXEL
from settings import UserError
from system import machine
from system.reading import read_bytes

# What a suffix stands for: Pillow's name of the format, and how it is saved.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jfif": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ".heic": ("HEIF", {"quality": 95}),
    ".heif": ("HEIF", {"quality": 95}),
}
WITH_EXIF = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF"}
DECODING_BYTES = 16  # of memory for a pixel: decoded, turned and split
MAX_EXIF_BYTES = 65000  # that a JPEG can hold
PNG_GREY_ALPHA = 4  # colour type of a PNG
PHOTOMETRIC, EXTRA_SAMPLES, SAMPLE_FORMAT = 262, 338, 339  # tags of TIFF
ASSOCIATED_ALPHA = 1  # of EXTRA_SAMPLES: colours are multiplied by alpha


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float image in 0..1 (clipped) as the 8-bit image that a file holds."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_preview(image: np.ndarray) -> np.ndarray:
    """An image of 8 or 16 bits, uint8 or uint16, as uint8."""
    return image if image.dtype == np.uint8 else to_uint8(image.astype(np.float32) / 65535)


@dataclass(frozen=True)
class Picture:
    """A picture, upright.

    Attributes:
        colour: (H,W,3) uint8 or uint16, BGR; of a grey picture, three equal channels.
        alpha: (H,W) of the same type, or None.
        grey: whether its file has one channel of colour.
        profile: the ICC profile of its colours, or None.
        exif: its EXIF data without the orientation, or None: of a TIFF and of 16 bits it is lost.
    """

    colour: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    profile: bytes | None
    exif: bytes | None

    @property
    def plain(self) -> bool:
        """Whether its colours are 8 bits of three channels of their own."""
        return self.colour.dtype == np.uint8 and not self.grey

    def with_colour(self, image: np.ndarray) -> "Picture":
        """This picture with the colours of image (H,W,3) float BGR, clipped to 0..1."""
        if self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        peak = np.iinfo(self.colour.dtype).max
        levels = np.rint(np.clip(image, 0, 1) * peak).astype(self.colour.dtype)
        return replace(self, colour=levels)


def read_picture(path: Path, name: str = "") -> Picture:
    """Read a picture: the one decoder of images for every action.

    Args:
        name: begins messages; the path if it is empty.

    Raises:
        UserError: not one whole image of a supported format, or larger than memory.
    """
    name, data = name or str(path), b""
    try:
        try:
            data = read_bytes(path)
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
        with image_file.mute_stderr():
            return _decode(data, name)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name}: not enough memory to read it") from None
    except Exception:  # decoders raise all kinds of exceptions at damaged files
        raise UserError(
            f"{name}: not an image that can be read, or damaged ({len(data)} bytes); "
            f"expected {image_file.FORMATS_TEXT}"
        ) from None


def read_image(path: Path, location: str) -> np.ndarray:
    """Read an image of a list as (H,W,3) uint8, BGR; greyscale is spread over the channels.

    Raises:
        UserError: as read_picture, or it has more than 8 bits a channel or transparent pixels.
            `location` begins the message.
    """
    name = f"{location}: {path}"
    picture = read_picture(path, name)
    if picture.colour.dtype != np.uint8:
        raise UserError(
            f"{name}: {picture.colour.dtype} values; expected 8 bits a channel: convert it first"
        )
    if picture.alpha is not None and (picture.alpha != 255).any():
        raise UserError(f"{name}: has transparent pixels; expected an opaque image")
    return picture.colour


def _decode(data: bytes, name: str) -> Picture:
    if data.startswith(image_file.PNG):
        Image.open(io.BytesIO(data)).verify()  # the checksums, which decoding skips
    image = image_file.open_image(io.BytesIO(data), name)
    required, free = image.width * image.height * DECODING_BYTES, machine.free_memory()
    if required > free:
        raise UserError(
            f"{name}: {image.width}x{image.height} pixels need {required / 2**30:.3g} GiB of "
            f"memory to be read alone, {free / 2**30:.3g} GiB are free; expected a smaller image"
        )
    if image_file.bit_depth(image, data) > 8 or image.mode in ("I", "F"):
        picture = _decode_16bit(data, image, name)
    else:
        picture = _decode_8bit(data, image)
    if isinstance(image, TiffImageFile):  # last, as it may take as much memory as the decoding
        image_file.check_tiff(data, image)
    return picture


def _decode_8bit(data: bytes, image: Image.Image) -> Picture:
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    mode = "RGBA" if transparent else "RGB"
    # Through RGB: Pillow cannot convert every mode into every other.
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if image.format == "PNG":
        image_file.check_png_rows(data, image)
    pixels = image_file.orient(pixels, image_file.read_orientation(image))
    colour = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2BGR)
    if image.format in ("JPEG", "MPO"):
        image_file.check_jpeg_rows(data, colour)
    # The profile of other modes is of inks, not of the colours that they are converted to.
    keeps_profile = image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
    return Picture(
        colour,
        pixels[..., 3].copy() if transparent else None,
        grey=image.mode in ("1", "L", "LA"),
        profile=image.info.get("icc_profile") if keeps_profile else None,
        exif=_read_exif(image),
    )


def _read_exif(image: Image.Image) -> bytes | None:
    """The EXIF data of an image without its orientation, if it can be written again."""
    if image.format not in WITH_EXIF:  # that of a TIFF is all its tags
        return None
    try:
        exif = image.getexif()
        exif.pop(image_file.ORIENTATION, None)
        data = exif.tobytes() if exif else b""
    except Exception:  # it is often damaged, and rarely missed
        return None
    return data if 0 < len(data) < MAX_EXIF_BYTES else None


def _decode_16bit(data: bytes, image: Image.Image, name: str) -> Picture:
    tags: Mapping[int, Any] = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits, channels = max(tags.get(BITS_PER_SAMPLE, (16,))), tags.get(SAMPLES_PER_PIXEL, 1)
    integer, photometric = max(tags.get(SAMPLE_FORMAT, (1,))) == 1, tags.get(PHOTOMETRIC, 2)
    if not integer or bits != 16 or channels == 2 or photometric > 2:
        raise UserError(
            f"{name}: a TIFF of {channels} channels of {bits} bits of a kind that is not read; "
            "expected 8 or 16 bits a channel, whole numbers, grey or RGB(A)"
        )
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("not decoded")
    if photometric == 0:  # white is 0
        pixels = 65535 - pixels
    pixels = np.ascontiguousarray(image_file.orient(pixels, image_file.read_orientation(image)))
    profile = image.info.get("icc_profile")
    if pixels.ndim == 2:
        return Picture(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), None, True, profile, None)
    colour = np.ascontiguousarray(pixels[..., :3])
    alpha = pixels[..., 3].copy() if pixels.shape[2] == 4 else None
    if alpha is not None and ASSOCIATED_ALPHA in tags.get(EXTRA_SAMPLES, ()):
        straight = colour.astype(np.float32) * 65535 / np.maximum(alpha, 1)[..., None]
        colour = np.rint(np.minimum(straight, 65535)).astype(np.uint16)
    grey = image.format == "PNG" and data[25] == PNG_GREY_ALPHA
    return Picture(colour, alpha, grey, profile, None)


def require_format(path: Path, picture: Picture) -> None:
    """Raise UserError unless the format that path's suffix names can hold the picture."""
    kind = FORMATS[path.suffix.lower()][0]
    if kind == "HEIF":
        image_file.require_heic(str(path))
    if picture.colour.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise UserError(f"{path}: {kind} cannot hold the input's 16 bits; expected PNG or TIFF")
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        raise UserError(
            f"{path}: {kind} cannot hold the input's transparency; expected PNG, WebP or TIFF"
        )


def encode_picture(path: Path, picture: Picture) -> bytes:
    """A picture as the bytes of a file, in the format of path's suffix.

    Raises:
        UserError: that format cannot hold it.
    """
    require_format(path, picture)
    kind, options = FORMATS[path.suffix.lower()]
    colour, alpha, file = picture.colour, picture.alpha, io.BytesIO()
    pixels = colour[..., 0] if picture.grey else colour[..., ::-1]  # RGB
    if alpha is not None:
        pixels = np.dstack([pixels, alpha])
    try:
        if colour.dtype == np.uint8:
            if picture.profile:
                options = options | {"icc_profile": picture.profile}
            if picture.exif and kind in WITH_EXIF:
                options = options | {"exif": picture.exif}
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
        elif kind == "TIFF":
            tifffile.imwrite(
                file,
                pixels,
                photometric="minisblack" if picture.grey else "rgb",
                extrasamples=None if alpha is None else ["unassalpha"],
                compression="zlib",
                iccprofile=picture.profile,
                metadata=None,
            )
        else:
            return _encode_16bit_png(picture)
    except MemoryError:
        raise UserError(f"{path}: not enough memory to write it") from None
    except (OSError, ValueError, cv2.error, struct.error) as error:
        height, width = colour.shape[:2]
        raise UserError(
            f"{path}: {width}x{height} pixels cannot be written as {kind}: {error}"
        ) from None
    return file.getvalue()


def _encode_16bit_png(picture: Picture) -> bytes:
    if picture.alpha is not None:
        pixels = np.dstack([picture.colour, picture.alpha])  # OpenCV has no grey with alpha
    else:
        pixels = picture.colour[..., 0] if picture.grey else picture.colour
    pixels = np.ascontiguousarray(pixels)
    colour_space = b"GRAY" if pixels.ndim == 2 else b"RGB "
    if picture.profile and picture.profile[16:20] == colour_space:
        profile = np.frombuffer(picture.profile, np.uint8)
        with image_file.mute_stderr():  # libpng refuses a damaged profile, and prints a line
            done, encoded = cv2.imencodeWithMetadata(
                ".png", pixels, [cv2.IMAGE_METADATA_ICCP], [profile]
            )
        if done:
            return encoded.tobytes()
    return cv2.imencode(".png", pixels)[1].tobytes()
