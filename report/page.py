"""The page of a result folder: index.html, which opens from disk and asks the network for nothing.

page.html is its template: the styles, and the program that draws the table, the histogram and
the picture in view from the data that is put into it here. Pictures lie in index_files/, reduced to
what a screen shows, and thumbnails of them, which the browser loads as they come into view.
"""

import html
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from report.metrics import PROTOCOLS
from report.table import Row
from report.visualize import heat_map
from settings import Settings, UserError
from system.files import write_atomically
from system.reading import open_regular

PAGE, PICTURES = "index.html", "index_files"
MARK = b'<meta name="generator" content="SPANet">'  # by which a page is known as ours
VIEW, THUMBNAIL = 1280, 128  # pixels of the longer side at most
KINDS = ("before", "after", "clean", "mask", "thumb")
PACKAGES = ("torch", "numpy", "numba", "opencv-python-headless", "scikit-image")


def require_own_page(folder: Path) -> None:
    """Raise UserError where the folder has an index.html that is not of this program."""
    page = folder / PAGE
    try:
        with open_regular(page) as file:
            own = MARK in file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{page}: cannot be read: {error.strerror}") from None
    if not own:
        raise UserError(f"{page}: is not a page of results; expected a folder without one")


def address(path: Path) -> str:
    """A relative path as a link from the page."""
    return quote(os.fsencode(path))


def own_files(folder: Path) -> list[Path]:
    """The page of an earlier run and its pictures, or where the page will be; nothing else."""
    pictures = (folder / PICTURES).glob("[0-9]*-*.jpg")
    return [folder / PAGE, *(p for p in pictures if p.stem.split("-", 1)[1] in KINDS)]


def remove_page(folder: Path) -> None:
    """Remove the page of an earlier run and its pictures; nothing else."""
    for path in own_files(folder):
        path.unlink(missing_ok=True)


def write_pictures(
    folder: Path,
    index: int,
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
    clean: np.ndarray | None = None,
) -> None:
    """Write what the page shows of row `index`.

    Args:
        before, after, clean: (H,W,3) uint8 BGR.
        mask: (H,W) float in 0..1.

    Raises:
        UserError: they cannot be written.
    """
    shown = {"before": before, "after": after, "clean": clean, "mask": heat_map(mask)}
    for kind, image in shown.items():
        if image is not None:
            _write_jpeg(folder, index, kind, _reduced(image, VIEW))
    _write_jpeg(folder, index, "thumb", _reduced(before, THUMBNAIL))


def _write_jpeg(folder: Path, index: int, kind: str, image: np.ndarray) -> None:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    write_atomically(folder / PICTURES / f"{index:06d}-{kind}.jpg", data.tobytes(), lasting=False)


def _reduced(image: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def scored_page(rows: list[Row], means: dict[str, float]) -> dict[str, Any]:
    """What the page shows of a test's rows, where the clean images are known."""
    columns, gains = [], []
    for protocol in PROTOCOLS:
        gains.append((protocol, len(columns) + 1))
        for measure, digits in (("PSNR", 4), ("SSIM", 4)):
            columns.append({"label": measure, "digits": digits})
            columns.append({"label": f"{measure} gain", "digits": digits, "signed": True})
    table = []
    for row in rows:
        values = []
        for protocol in PROTOCOLS:
            for measure in ("psnr", "ssim"):
                output, start = (
                    row.scores[f"{side}_{protocol}_{measure}"] for side in ("output", "input")
                )
                values += [output, output - start]
        table.append(_row(row, values))
    names = [
        f"{side}_{{}}_{measure}" for measure in ("psnr", "ssim") for side in ("input", "output")
    ]
    return {
        "lead": f"{_count(len(rows), 'picture')}, rainy and derained, beside the clean ones.",
        "columns": columns,
        "groups": [{"group": protocol, "span": 4} for protocol in PROTOCOLS],
        "gains": gains,
        "means": [[p, *(_number(means[name.format(p)]) for name in names)] for p in PROTOCOLS],
        "ten": {"label": "Worst ten", "column": 1, "descending": False},
        "clean": True,
        "rows": table,
    }


def plain_page(rows: list[Row]) -> dict[str, Any]:
    """What the page shows where the clean images are not known."""
    kinds = {"attention": 4, "change": 2, "seconds": 2, "frames": 0}
    columns = [{"label": name, "digits": digits} for name, digits in kinds.items()]
    return {
        "lead": f"{_count(len(rows), 'picture')}, rainy and derained. Attention is the mean of "
        "the attention map, change that of the difference in grey levels.",
        "columns": columns,
        "groups": [{"group": "", "span": len(columns)}],
        "gains": [],
        "means": [],
        "ten": {"label": "Ten most changed", "column": 1, "descending": True},
        "clean": False,
        "rows": [_row(row, [getattr(row, name) for name in kinds]) for row in rows],
    }


def _row(row: Row, values: Iterable[float]) -> dict[str, Any]:
    keys = ["index", "name", "width", "height", "file"] + ["source", "begin"] * bool(row.source)
    kept = {key: getattr(row, key) for key in keys}
    return kept | {"values": [_number(value) for value in values]}


def _number(value: float) -> float | str | None:
    """As JSON can hold it: it has no infinity and no NaN."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def about(model: str, device: str, seconds: float) -> list[tuple[str, str]]:
    """What was run: model, versions, device, time."""
    return [
        ("model", model),
        ("command", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        ("device", device),
        ("finished", datetime.now().astimezone().isoformat(" ", "seconds")),
        ("took", f"{seconds:.1f} s"),
        ("versions", ", ".join([f"Python {platform.python_version()}", *map(_version, PACKAGES)])),
    ]


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package}, installed otherwise"


def write_page(
    folder: Path, title: str, page: dict[str, Any], run: list[tuple[str, str]], settings: Settings
) -> None:
    """Write index.html. Raises UserError."""
    chosen = [(name, str(value)) for name, value in asdict(settings).items()]
    data = json.dumps(page | {"run": run, "settings": chosen}, allow_nan=False, ensure_ascii=False)
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    # Within a script nothing but `<` could end it.
    text = template.replace("{{TITLE}}", html.escape(title))
    text = text.replace("{{DATA}}", data.replace("<", "\\u003c"))
    write_atomically(folder / PAGE, text.encode())
