"""The pictures of a page, in index_files/: copies that it can draw, and thumbnails.

A copy lies in a script that hands it to the page, as a page on disk may neither read nor save what
it draws from an image file. It is exact up to VIEW pixels a side, and reduced above.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from system.files import write_atomically

FOLDER = "index_files"
VIEW, THUMBNAIL = 1280, 160  # pixels of the longer side at most
OWN = re.compile(r"\d{6,}-(before|after|clean|mask|thumb|\d+)\.(js|jpg)")
HUE = (147, 20, 255)  # BGR, of the attention map


def own_copies(folder: Path) -> list[Path]:
    """The pictures of an earlier page; nothing else."""
    return [path for path in (folder / FOLDER).glob("[0-9]*-*") if OWN.fullmatch(path.name)]


def write_pictures(
    folder: Path, index: int, images: Mapping[str, np.ndarray], mask: np.ndarray | None = None
) -> None:
    """Write what the page shows of picture `index`.

    Args:
        images: (H,W,3) uint8 BGR, by the kinds of their sides; of the first there is a thumbnail.
        mask: (H,W) float in 0..1.

    Raises:
        UserError: they cannot be written.
    """
    exact = "clean" in images  # an error map would show the losses of a JPEG
    for kind, image in images.items():
        _write_copy(
            folder, index, kind, _reduced(image, VIEW), exact=exact or max(image.shape[:2]) <= VIEW
        )
    if mask is not None:
        strength = np.rint(_reduced(np.nan_to_num(mask).clip(0, 1), VIEW) * 255).astype(np.uint8)
        hue = np.full((*strength.shape, 3), HUE, np.uint8)
        _write_copy(folder, index, "mask", np.dstack([hue, strength]), exact=True)
    thumbnail = _reduced(next(iter(images.values())), THUMBNAIL)
    _, data = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 90])
    _write(folder, f"{index:06d}-thumb.jpg", data.tobytes())


def _write_copy(folder: Path, index: int, kind: str, image: np.ndarray, exact: bool) -> None:
    if exact:
        (_, data), media = cv2.imencode(".png", image), "image/png"
    else:
        (_, data), media = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90]), "image/jpeg"
    key = f"{index:06d}-{kind}"
    text = b'copy("%s", "data:%s;base64,%s");\n'
    script = text % (key.encode(), media.encode(), base64.b64encode(data.tobytes()))
    _write(folder, f"{key}.js", script)


def _write(folder: Path, name: str, data: bytes) -> None:
    write_atomically(folder / FOLDER / name, data, durable=False)


def _reduced(image: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
