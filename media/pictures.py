"""A user's own pictures, read and written in their own kind: depth, grey, alpha, colour profile.

Pillow reads and writes what has 8 bits a channel; it has no colour of 16 bits, which is left to
OpenCV and tifffile.
"""

import contextlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image
from PIL.ExifTags import IFD
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import TiffImageFile

from media import image_file
from settings import UserError
from system import machine
from system.files import read_bytes

# What a suffix stands for: Pillow's name of the format, and how it is saved.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    **dict.fromkeys((".jpg", ".jpeg", ".jfif"), ("JPEG", {"quality": 95, "subsampling": 0})),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", {"compression": "tiff_deflate"})),
    ".bmp": ("BMP", {}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    **dict.fromkeys((".heic", ".heif"), ("HEIF", {"quality": 95})),
}
# What each format can hold beside pixels, by Pillow's names; TEXT and a keyword for its texts.
TEXT = "text:"
TIFF_TEXTS = {"Description": 270, "Software": 305, "Author": 315, "Copyright": 33432}
PHOTO = {"icc_profile", "exif", "xmp"}
METADATA = {
    "PNG": PHOTO | {"dpi", "gamma", TEXT},
    "JPEG": PHOTO | {"dpi", f"{TEXT}Comment"},
    "TIFF": {"icc_profile", "xmp", "dpi", *(TEXT + keyword for keyword in TIFF_TEXTS)},
    "BMP": {"dpi"},
}
DECODING_BYTES = 16  # of memory for a pixel: decoded, turned and split
MAX_SEGMENT_BYTES = 65000  # of EXIF, XMP or a comment in a JPEG
SRGB_GAMMA = 1 / 2.2  # which is that of files without any
PNG_HEADER_BYTES = 33
PNG_GREY_ALPHA = 4  # colour type of a PNG
PNG_XMP, TIFF_XMP = "XML:com.adobe.xmp", 700
PHOTOMETRIC, EXTRA_SAMPLES = 262, 338  # tags of TIFF
ASSOCIATED_ALPHA, ALPHA = 1, 2  # of EXTRA_SAMPLES; of the former, colours are multiplied by alpha


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
        alpha: (H,W) of the same type, or None if the picture is opaque.
        grey: whether its file has one channel of colour.
        metadata: what its file holds beside pixels, by the keys of METADATA; others cannot be kept.
    """

    colour: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)

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
        data = read_bytes(path)
        with image_file.mute_stderr():
            return _decode(data, name)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name}: not enough memory to read it") from None
    except Exception as error:  # decoders raise all kinds of exceptions at damaged files
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
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
    if picture.alpha is not None:
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
        pixels, grey = _decode_16bit(data, image, name)
    else:
        pixels, grey = _decode_8bit(data, image)
    colour, alpha = np.ascontiguousarray(pixels[..., :3]), pixels[..., 3:]
    if image.format in ("JPEG", "MPO"):
        image_file.check_jpeg_rows(data, colour)
    if isinstance(image, TiffImageFile):  # last, as it may take as much memory as the decoding
        image_file.check_tiff(data, image)
    transparent = (alpha != np.iinfo(alpha.dtype).max).any()
    return Picture(
        colour, alpha[..., 0].copy() if transparent else None, grey, _read_metadata(image)
    )


def _decode_8bit(data: bytes, image: Image.Image) -> tuple[np.ndarray, bool]:
    """The pixels of an image, (H,W,3 or 4) BGR or BGRA, upright, and whether it is grey."""
    transparent = image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info
    mode = "RGBA" if transparent else "RGB"
    # Through RGB: Pillow cannot convert every mode into every other.
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if image.format == "PNG":
        image_file.check_png_rows(data, image)
    pixels = image_file.orient(pixels, image_file.read_orientation(image))
    code = cv2.COLOR_RGBA2BGRA if transparent else cv2.COLOR_RGB2BGR
    return cv2.cvtColor(np.ascontiguousarray(pixels), code), image.mode in ("1", "L", "LA")


def _decode_16bit(data: bytes, image: Image.Image, name: str) -> tuple[np.ndarray, bool]:
    """As _decode_8bit, of 16 bits, which Pillow reduces."""
    tags: Mapping[int, Any] = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if isinstance(image, TiffImageFile):
        image_file.require_tiff_kind(io.BytesIO(data), name)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("not decoded")
    if tags.get(PHOTOMETRIC) == 0:  # white is 0
        pixels = 65535 - pixels
    pixels = image_file.orient(pixels, image_file.read_orientation(image))
    if pixels.ndim == 2:
        return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2BGR), True
    extra = tags.get(EXTRA_SAMPLES, (ALPHA,))[0]
    if extra == ASSOCIATED_ALPHA and pixels.shape[2] == 4:
        alpha = pixels[..., 3:]
        straight = pixels[..., :3].astype(np.float32) * 65535 / np.maximum(alpha, 1)
        pixels = np.dstack([np.rint(np.minimum(straight, 65535)).astype(np.uint16), alpha])
    elif extra != ALPHA:
        pixels = pixels[..., :3]
    return pixels, image.format == "PNG" and data[25] == PNG_GREY_ALPHA


def _read_metadata(image: Image.Image) -> dict[str, Any]:
    """Picture.metadata of an image; damaged metadata is none."""
    info, texts = image.info, dict(getattr(image, "text", {}))
    metadata = {key: info[key] for key in ("icc_profile", "xmp", "dpi", "gamma") if info.get(key)}
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"):
        metadata.pop("icc_profile", None)  # of inks, not of the colours that they are converted to
    if not any(metadata.get("dpi", ())):
        metadata.pop("dpi", None)
    if abs(metadata.get("gamma", SRGB_GAMMA) - SRGB_GAMMA) < 0.001:
        metadata.pop("gamma", None)
    if image.format in ("JPEG", "MPO"):
        texts["Comment"] = info.get("comment")
    if isinstance(image, TiffImageFile):
        texts = {keyword: image.tag_v2.get(tag) for keyword, tag in TIFF_TEXTS.items()}
        if set(image.tag_v2.get(EXTRA_SAMPLES, ())) - {ASSOCIATED_ALPHA, ALPHA}:
            metadata["channels that are neither colour nor alpha"] = True
    metadata |= {TEXT + key: text for key, text in texts.items() if text and key != PNG_XMP}
    if getattr(image, "n_frames", 1) > 1:
        metadata["all images but the first"] = True
    with contextlib.suppress(Exception):
        exif = image.getexif()
        is_tiff = isinstance(image, TiffImageFile)  # whose EXIF data is all its tags
        for tag in set(exif) - {IFD.Exif, IFD.GPSInfo} if is_tiff else {image_file.ORIENTATION}:
            exif.pop(tag, None)
        if exif:
            metadata["exif"] = exif.tobytes()
    return metadata


def require_format(path: Path, picture: Picture) -> None:
    """Raise UserError unless the format that path's suffix names can hold the picture."""
    kind = FORMATS[path.suffix.lower()][0]
    if picture.colour.dtype == np.uint16 and kind not in ("PNG", "TIFF"):
        raise UserError(f"{path}: {kind} cannot hold the input's 16 bits; expected PNG or TIFF")
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        raise UserError(
            f"{path}: {kind} cannot hold the input's transparency; expected PNG, WebP or TIFF"
        )


def _can_hold(kind: str, key: str, value: Any) -> bool:
    held = METADATA.get(kind, PHOTO)
    if kind == "JPEG" and key in ("exif", "xmp") and len(value) > MAX_SEGMENT_BYTES:
        return False
    return key in held or (TEXT in held and key.startswith(TEXT))


def describe_dropped(path: Path, picture: Picture) -> str:
    """What the format of path's suffix cannot hold of a picture's metadata, or ""."""
    kind, metadata = FORMATS[path.suffix.lower()][0], picture.metadata.items()
    return ", ".join(key for key, value in metadata if not _can_hold(kind, key, value))


def _format_metadata(kind: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that a format can hold, as options of Pillow's save."""
    held = {key: value for key, value in metadata.items() if _can_hold(kind, key, value)}
    texts = {key.removeprefix(TEXT): held.pop(key) for key in list(held) if key.startswith(TEXT)}
    if kind == "JPEG":
        held["comment"] = texts.get("Comment", b"")
    elif kind == "TIFF":
        held["tiffinfo"] = {TIFF_TEXTS[keyword]: text for keyword, text in texts.items()}
        if "xmp" in held:
            held["tiffinfo"][TIFF_XMP] = held["xmp"]
    elif kind == "PNG":
        held["pnginfo"] = chunks = PngInfo()
        if "gamma" in held:
            chunks.add(b"gAMA", struct.pack(">I", round(held["gamma"] * 100_000)))
        for keyword, text in texts.items():
            chunks.add_text(keyword, text if isinstance(text, str) else text.decode("latin-1"))
        if "xmp" in held:
            chunks.add_itxt(PNG_XMP, held["xmp"].decode(errors="replace"))
    return held


def encode_picture(path: Path, picture: Picture) -> bytes:
    """A picture as the bytes of a file, in the format of path's suffix.

    Raises:
        UserError: that format cannot hold it.
    """
    require_format(path, picture)
    kind, options = FORMATS[path.suffix.lower()]
    options = options | _format_metadata(kind, picture.metadata)
    colour, alpha, file = picture.colour, picture.alpha, io.BytesIO()
    pixels = colour[..., 0] if picture.grey else colour[..., ::-1]  # RGB
    if alpha is not None:
        pixels = np.dstack([pixels, alpha])
    try:
        if colour.dtype == np.uint8:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
        elif kind == "TIFF":
            tifffile.imwrite(
                file,
                pixels,
                photometric="minisblack" if picture.grey else "rgb",
                extrasamples=None if alpha is None else ["unassalpha"],
                compression="zlib",
                iccprofile=options.get("icc_profile"),
                resolution=options.get("dpi"),
                resolutionunit="INCH" if "dpi" in options else None,
                metadata=None,
                software=False,
                extratags=[
                    (tag, "B" if tag == TIFF_XMP else "s", len(value), value, True)
                    for tag, value in options["tiffinfo"].items()
                ],
            )
        else:
            return _encode_16bit_png(picture, options)
    except MemoryError:
        raise UserError(f"{path}: not enough memory to write it") from None
    except (OSError, ValueError, cv2.error, struct.error) as error:
        height, width = colour.shape[:2]
        raise UserError(
            f"{path}: {width}x{height} pixels cannot be written as {kind}: {error}"
        ) from None
    return file.getvalue()


def _encode_16bit_png(picture: Picture, options: dict[str, Any]) -> bytes:
    """A PNG with OpenCV's pixels, and the metadata of one that Pillow writes."""
    if picture.alpha is not None:
        pixels = np.dstack([picture.colour, picture.alpha])  # OpenCV has no grey with alpha
    else:
        pixels = picture.colour[..., 0] if picture.grey else picture.colour
    data = cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG", **options)
    chunks = file.getvalue()[PNG_HEADER_BYTES : file.getvalue().rindex(b"IDAT") - 4]
    return data[:PNG_HEADER_BYTES] + chunks + data[PNG_HEADER_BYTES:]
