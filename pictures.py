"""A user's own pictures, read and written in their own kind: depth, grey, alpha, colour profile.

Pillow reads and writes what has 8 bits a channel; it has no colour of 16 bits, which is left to
OpenCV and tifffile.
"""

import io
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps

from files import write_atomically
from metrics import to_uint8
from settings import UserError

# What a suffix stands for: Pillow's name of the format, and how it is saved.
FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
}
READABLE = {"PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP"}  # MPO: a JPEG that more is appended to
WITH_EXIF = {"PNG", "JPEG", "MPO", "WEBP"}
KINDS = "PNG, JPEG, WebP, TIFF or BMP"
_ORIENTATION, _BITS, _SAMPLES = 0x0112, 258, 277  # tags of EXIF and TIFF
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are told by us
Image.MAX_IMAGE_PIXELS = None  # a user's own files; what memory holds is checked elsewhere


@dataclass(frozen=True)
class Picture:
    """A picture, upright.

    Attributes:
        colour: (H,W,3) uint8 or uint16, BGR; of a grey picture, three equal channels.
        alpha: (H,W) of the same type, or None.
        grey: whether its file has one channel of colour.
        profile: the ICC profile of its colours, or None.
        exif: its EXIF data without the orientation, or None.
    """

    colour: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    profile: bytes | None
    exif: Image.Exif | None

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
    """Read a picture. Raises UserError: not one image of a known kind, or cut short."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not the user's concern
            return _decode(data, path)
    except (OSError, SyntaxError, ValueError, EOFError, cv2.error):
        raise UserError(
            f"{path}: not an image, or damaged ({len(data)} bytes); expected {KINDS}"
        ) from None


def _decode(data: bytes, path: Path) -> Picture:
    image = Image.open(io.BytesIO(data))
    if image.format not in READABLE:
        raise UserError(f"{path}: is {image.format}; expected {KINDS}")
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise UserError(f"{path}: holds {count} images; expected one")
    orientation = image.getexif().get(_ORIENTATION, 1)
    profile = image.info.get("icc_profile")
    if _bits(image, data) > 8 or image.mode in ("I", "F"):
        return _decode_deep(data, image, orientation, profile, path)
    ImageOps.exif_transpose(image, in_place=True)
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        profile = None  # of inks, not of the colours that they are turned into
    # Through RGB: Pillow cannot turn every mode into every other.
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    colour = np.ascontiguousarray(pixels[..., 2::-1])
    alpha = pixels[..., 3].copy() if transparent else None
    exif = image.getexif() if image.format in WITH_EXIF else None  # of a TIFF it is all its tags
    return Picture(colour, alpha, grey, profile, exif or None)


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a channel of the file. Pillow reduces colour of 16 bits to 8 and does not tell."""
    if image.format == "PNG":
        return data[24]
    return max(image.tag_v2.get(_BITS, (1,))) if image.format == "TIFF" else 8


def _decode_deep(
    data: bytes, image: Image.Image, orientation: int, profile: bytes | None, path: Path
) -> Picture:
    samples = image.tag_v2.get(_SAMPLES, 1) if image.format == "TIFF" else 0
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("not decoded")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint16 or image.mode == "CMYK" or samples not in (0, channels):
        raise UserError(
            f"{path}: {max(samples, channels)} channels of {pixels.dtype}; "
            "expected 8 or 16 bits a channel, grey or RGB, with or without alpha"
        )
    if image.format == "PNG":  # of a TIFF, OpenCV does it
        pixels = np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(pixels))
    alpha = pixels[..., 3].copy() if channels == 4 else None
    if channels == 1:
        colour = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    else:
        colour = np.ascontiguousarray(pixels[..., :3])
    return Picture(colour, alpha, image.mode in ("I;16", "I", "LA"), profile, None)


def require_format(path: Path, picture: Picture) -> None:
    """Raise UserError unless the format that path's suffix names can hold the picture."""
    kind = FORMATS[path.suffix.lower()][0]
    if picture.colour.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise UserError(f"{path}: {kind} cannot hold the input's 16 bits; expected PNG or TIFF")
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        raise UserError(
            f"{path}: {kind} cannot hold the input's transparency; expected PNG, WebP or TIFF"
        )


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in the format of path's suffix. Raises UserError."""
    require_format(path, picture)
    write_atomically(path, _encode(path, picture))


def _encode(path: Path, picture: Picture) -> bytes:
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
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written as {kind}: {error}") from None
    return file.getvalue()


def _encode_deep_png(colour: np.ndarray, alpha: np.ndarray | None, picture: Picture) -> bytes:
    if alpha is not None:
        pixels = np.dstack([colour, alpha])  # OpenCV has no grey with alpha
    else:
        pixels = colour[..., 0] if picture.grey else colour
    profile = picture.profile
    data = [np.frombuffer(profile, np.uint8)] if profile else []
    kinds = [cv2.IMAGE_METADATA_ICCP] if profile else []
    done, encoded = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(pixels), kinds, data)
    if not done:
        raise ValueError("too large")
    return encoded.tobytes()
