"""A user's own pictures, read and written in their own kind: depth, grey, alpha, colour profile.

Pillow reads and writes what has 8 bits a channel; it has no colour of 16 bits, which is left to
OpenCV and tifffile.
"""

import io
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from media import image_file
from media.pixels import to_uint8
from settings import UserError
from system import machine

# What a suffix stands for: Pillow's name of the format, and how it is saved.
FORMATS = {
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
READABLE = {name for name, _ in FORMATS.values()} | {"MPO"}  # a JPEG that more is appended to
WITH_EXIF = {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF"}
BYTES_TO_READ = 16  # a pixel: decoded, turned and split
LONGEST_EXIF = 65000  # bytes that a JPEG can hold
PNG_GREY_ALPHA = 4
# Tags of EXIF and TIFF.
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 0x0112, 258, 262, 277, 338, 339


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

    def preview(self) -> np.ndarray:
        """(H,W,3) uint8 BGR."""
        if self.colour.dtype == np.uint8:
            return self.colour
        return to_uint8(self.colour.astype(np.float32) / 65535)

    def with_colour(self, image: np.ndarray) -> "Picture":
        """This picture with the colours of image (H,W,3) float BGR, clipped to 0..1."""
        if self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        peak = np.iinfo(self.colour.dtype).max
        levels = np.rint(np.clip(image, 0, 1) * peak).astype(self.colour.dtype)
        return replace(self, colour=levels)


def read_picture(path: Path) -> Picture:
    """Read a picture.

    Raises:
        UserError: not one image of a known kind, cut short, or larger than memory.
    """
    return image_file.load(path, str(path), lambda data: _decode(data, path))


def _decode(data: bytes, path: Path) -> Picture:
    image = image_file.open_image(io.BytesIO(data), str(path))
    if image is None:
        raise ValueError("not a picture")
    if image.format not in READABLE:
        raise UserError(f"{path}: is {image.format}; expected {image_file.KINDS}")
    needed, free = image.width * image.height * BYTES_TO_READ, machine.free_memory()
    if needed > free:
        raise UserError(
            f"{path}: {image.width}x{image.height} pixels need {needed / 2**30:.3g} GiB of memory "
            f"to be read alone, {free / 2**30:.3g} GiB are free; expected a smaller image"
        )
    turn = image_file.apply_orientation(image, data)
    profile = image.info.get("icc_profile")
    if image_file.bit_depth(image, data) > 8 or image.mode in ("I", "F"):
        return _decode_deep(data, image, turn, profile, path)
    grey = image.mode in ("1", "L", "LA")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        profile = None  # of inks, not of the colours that they are turned into
    if image.format == "PNG":
        image_file.require_rows(data)
    colour, alpha = image_file.colours(image, turn)
    image_file.require_filled(data, colour)
    return Picture(colour, alpha, grey, profile, _exif(image))


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF data of an image without its orientation, where it can be written again."""
    if image.format not in WITH_EXIF:  # of a TIFF it is all its tags
        return None
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        data = exif.tobytes() if exif else b""
    except Exception:  # it is often damaged, and seldom missed
        return None
    return data if 0 < len(data) < LONGEST_EXIF else None


def _decode_deep(
    data: bytes, image: Image.Image, turn: image_file.Turn, profile: bytes | None, path: Path
) -> Picture:
    tags = image.tag_v2 if image.format == "TIFF" else {}
    whole = max(tags.get(_FORMAT, (1,))) == 1 and max(tags.get(_BITS, (16,))) == 16
    if not whole or tags.get(_SAMPLES, 1) == 2 or tags.get(_PHOTOMETRIC, 2) > 2:
        raise UserError(
            f"{path}: a TIFF of {tags.get(_SAMPLES, 1)} channels of {max(tags[_BITS])} bits of a "
            "kind that is not read; expected 8 or 16 bits a channel, whole numbers, grey or RGB(A)"
        )
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("not decoded")
    if tags:  # OpenCV has turned it
        if tags.get(_PHOTOMETRIC) == 0:  # white is 0
            pixels = 65535 - pixels
    else:
        pixels = np.ascontiguousarray(turn(pixels))
    grey = pixels.ndim == 2 or (image.format == "PNG" and data[25] == PNG_GREY_ALPHA)
    if pixels.ndim == 2:
        return Picture(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), None, True, profile, None)
    colour = np.ascontiguousarray(pixels[..., :3])
    alpha = pixels[..., 3].copy() if pixels.shape[2] == 4 else None
    if alpha is not None and 1 in tags.get(_EXTRA, ()):  # colours come multiplied by it
        full = colour.astype(np.float32) * 65535 / np.maximum(alpha, 1)[..., None]
        colour = np.rint(np.minimum(full, 65535)).astype(np.uint16)
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
            return _encode_deep_png(colour, alpha, picture)
    except MemoryError:
        raise UserError(f"{path}: not enough memory to write it") from None
    except (OSError, ValueError, cv2.error, struct.error) as error:
        height, width = colour.shape[:2]
        raise UserError(
            f"{path}: {width}x{height} pixels cannot be written as {kind}: {error}"
        ) from None
    return file.getvalue()


def _encode_deep_png(colour: np.ndarray, alpha: np.ndarray | None, picture: Picture) -> bytes:
    if alpha is not None:
        pixels = np.dstack([colour, alpha])  # OpenCV has no grey with alpha
    else:
        pixels = colour[..., 0] if picture.grey else colour
    profile = picture.profile if _is_profile(picture.profile, pixels.ndim == 2) else None
    data = [np.frombuffer(profile, np.uint8)] if profile else []
    kinds = [cv2.IMAGE_METADATA_ICCP] if profile else []
    done, encoded = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(pixels), kinds, data)
    if not done:
        raise ValueError("refused by OpenCV")
    return encoded.tobytes()


def _is_profile(profile: bytes | None, grey: bool) -> bool:
    """Whether libpng takes it: it would print a line of its own, and refuse the picture."""
    return (
        profile is not None
        and len(profile) > 132
        and int.from_bytes(profile[:4], "big") == len(profile)
        and len(profile) % 4 == 0
        and profile[16:20] == (b"GRAY" if grey else b"RGB ")
        and profile[36:40] == b"acsp"
    )
