"""The pictures of a page, in index_files/: copies that it can draw, and thumbnails.

A copy is a script that passes the image to the page: a page on disk may neither read nor save what
it draws from an image file. It is exact up to VIEW pixels a side, and smaller above.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from media.folders import PAGE_FILES
from system.files import write_atomically

VIEW, THUMBNAIL = 1280, 160  # pixels of the longer side at most
COPY_NAME = re.compile(r"\d{6,}-(rainy|derained|before|after|clean|mask|thumb|\d+)\.(js|jpg)")
MASK_COLOUR = (147, 20, 255)  # BGR
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 90]


def find_copies(folder: Path) -> list[Path]:
    """The pictures of an earlier page in a folder; nothing else."""
    return [p for p in (folder / PAGE_FILES).glob("[0-9]*-*") if COPY_NAME.fullmatch(p.name)]


def write_copies(
    folder: Path, index: int, images: Mapping[str, np.ndarray], mask: np.ndarray | None = None
) -> None:
    """Write the copies of picture `index`, and a thumbnail of its first image.

    Args:
        images: (H,W,3) uint8 BGR, by the kinds of their sides.
        mask: (H,W) float in 0..1.

    Raises:
        UserError: they cannot be written.
    """
    lossless = "clean" in images  # an error map would show the losses of a JPEG
    for kind, image in images.items():
        exact = lossless or max(image.shape[:2]) <= VIEW
        _write_copy(folder, index, kind, _shrink(image, VIEW), exact)
    if mask is not None:
        alpha = np.rint(_shrink(np.nan_to_num(mask).clip(0, 1), VIEW) * 255).astype(np.uint8)
        colour = np.full((*alpha.shape, 3), MASK_COLOUR, np.uint8)
        _write_copy(folder, index, "mask", np.dstack([colour, alpha]), exact=True)
    _, jpeg = cv2.imencode(".jpg", _shrink(next(iter(images.values())), THUMBNAIL), JPEG_OPTIONS)
    thumbnail = folder / PAGE_FILES / f"{index:06d}-thumb.jpg"
    write_atomically(thumbnail, jpeg.tobytes(), durable=False)


def _write_copy(folder: Path, index: int, kind: str, image: np.ndarray, exact: bool) -> None:
    suffix, options = (".png", []) if exact else (".jpg", JPEG_OPTIONS)
    _, data = cv2.imencode(suffix, image, options)
    key, media_type = f"{index:06d}-{kind}", "image/png" if exact else "image/jpeg"
    base64_text = base64.b64encode(data.tobytes()).decode()
    script = f'copy("{key}", "data:{media_type};base64,{base64_text}");\n'
    write_atomically(folder / PAGE_FILES / f"{key}.js", script.encode(), durable=False)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An image whose longer side has at most that many pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
