"""The page of a result folder: index.html, which opens from disk and asks the network for nothing.

Its template is page.html, into which go the data, page.css, page.js (zoom, pointer and keys),
page_pictures.js (the picture in view) and page_lists.js (scores, thumbnails, tables).

Its pictures are in index_files/: copies that it can draw, and thumbnails. A copy is a script that
passes the image to the page: a page on disk may neither read nor save what it draws from an image
file. It is exact up to VIEW pixels a side, and smaller above. Of pictures after the first
MOST_COPIED it draws the files themselves: copies take a few MB for each.
"""

import base64
import html
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from media.folders import PAGE_FILES
from report.metrics import PROTOCOLS
from report.tables import CLEAN, DERAINED, RAINY, Mean, Result, encode_json
from report.visualize import MASK_COLOUR, shrink
from settings import Settings, format_count
from system.files import write_atomically

PAGE = "index.html"
SCRIPTS = ("page.js", "page_pictures.js", "page_lists.js")
MODULES = ("torch", "numpy", "numba", "cv2", "skimage")  # whose versions the page shows
COLUMNS = {"attention": 4, "change": 2, "seconds": 2, "frames": 0}  # digits, without clean images
VIEW, THUMBNAIL = 1280, 160  # pixels of the longer side at most
MOST_COPIED = 1000
COPY_NAME = re.compile(r"\d{6,}-(rainy|derained|before|after|clean|mask|thumb|\d+)\.(js|jpg)")
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 90]
# The images of a picture that the page can compare: by their names, what the names of their copies
# end with. That of a method, whose name may hold anything, is a number.
PLAIN_SIDES = {RAINY: RAINY, DERAINED: DERAINED}
TEST_SIDES = PLAIN_SIDES | {CLEAN: CLEAN}


def write_page(
    folder: Path, title: str, results: Sequence[Result], run: list[tuple[str, str]],
    settings: Settings, sides: Mapping[str, str] = PLAIN_SIDES, means: Sequence[Mean] = (),
    links: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write index.html.

    Args:
        run: names and values of what was run.
        sides: see PLAIN_SIDES.
        means: of the sides, except clean; none if there are no clean images.
        links: names of files in the folder.

    Raises:
        UserError: it cannot be written.
    """
    videos = sum(result.begin is not None for result in results)
    counts = {"picture": len(results) - videos, "video": videos}
    shown = [format_count(count, noun) for noun, count in counts.items() if count]
    methods = [number for number, name in enumerate(sides) if name not in (RAINY, CLEAN)]
    data = {
        "lead": f"{', '.join(shown)}: {', '.join(sides)}.",
        "links": list(links),
        "sides": [
            {"name": name, "kind": kind, "scored": bool(means) and name != CLEAN}
            for name, kind in sides.items()
        ],
        "protocols": list(PROTOCOLS) if means else [],
        "gains": RAINY in sides,
        # The two sides that it opens on.
        "opening": methods[:2] if len(methods) > 1 else [0, min(1, len(sides) - 1)],
        "columns": [] if means else [{"label": n, "digits": d} for n, d in COLUMNS.items()],
        "view": VIEW,
        "copied": MOST_COPIED,
        "means": [
            {"side": m.method, "images": len(m.indices), "values": list(m.scores.values())}
            for m in means
        ],
        "rows": [_page_row(folder, result, sides, bool(means)) for result in results],
        "run": run,
        "settings": [(name, str(value)) for name, value in asdict(settings).items()],
    }
    parts = {
        "{{STYLE}}": _read_part("page.css"),
        "{{SCRIPT}}": "".join(map(_read_part, SCRIPTS)),
        "{{TITLE}}": html.escape(title),
        # Within a script nothing else could end it.
        "{{DATA}}": encode_json(data).replace("<", "\\u003c"),
    }
    page = re.sub(r"\{\{[A-Z]+\}\}", lambda match: parts[match[0]], _read_part("page.html"))
    write_atomically(folder / PAGE, page.encode())


def _page_row(folder: Path, result: Result, sides: Mapping[str, str], has_scores: bool) -> dict:
    scores = [result.scores.get(name) for name in sides]
    return {
        **{name: getattr(result, name) for name in ("index", "name", "width", "height", "begin")},
        "has": [n for n, name in enumerate(sides) if scores[n] or not has_scores or name == CLEAN],
        "mask": not math.isnan(result.attention),
        "files": {sides[n]: _link(folder, path) for n, path in result.files.items() if n in sides},
        "scores": [list(values.values()) if values else None for values in scores],
        "values": [] if has_scores else [getattr(result, name) for name in COLUMNS],
    }


def _link(folder: Path, path: Path) -> str:
    try:
        relative = os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()
    return quote(os.fsencode(relative).replace(os.sep.encode(), b"/"))


def describe_run(source: tuple[str, str], device: str, seconds: float) -> list[tuple[str, str]]:
    """What was run, as names and values: source, command, device, time, versions."""
    loaded = [(name, sys.modules[name]) for name in MODULES if name in sys.modules]
    versions = [("Python", platform.python_version()), *((n, m.__version__) for n, m in loaded)]
    return [
        source,
        ("command", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        ("device", device),
        ("finished", datetime.now().astimezone().isoformat(" ", "seconds")),
        ("took", f"{seconds:.1f} s"),
        ("versions", ", ".join(" ".join(version) for version in versions)),
    ]


def _read_part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def find_copies(folder: Path) -> list[Path]:
    """The pictures of an earlier page in a folder; nothing else."""
    return [p for p in (folder / PAGE_FILES).glob("[0-9]*-*") if COPY_NAME.fullmatch(p.name)]


def write_copies(
    folder: Path, index: int, images: Mapping[str, np.ndarray], mask: np.ndarray | None = None
) -> None:
    """Write the copies of picture `index`, if it has some, and a thumbnail of its first image.

    Args:
        images: (H,W,3) uint8 BGR, by what the names of their copies end with.
        mask: (H,W) float in 0..1.

    Raises:
        UserError: they cannot be written.
    """
    lossless = "clean" in images  # an error map would show the losses of a JPEG
    is_copied = index < MOST_COPIED
    for kind, image in images.items() if is_copied else ():
        exact = lossless or max(image.shape[:2]) <= VIEW
        _write_copy(folder, index, kind, shrink(image, VIEW), exact)
    if mask is not None and is_copied:
        alpha = np.rint(shrink(np.nan_to_num(mask).clip(0, 1), VIEW) * 255).astype(np.uint8)
        colour = np.full((*alpha.shape, 3), MASK_COLOUR, np.uint8)
        _write_copy(folder, index, "mask", np.dstack([colour, alpha]), exact=True)
    _, jpeg = cv2.imencode(".jpg", shrink(next(iter(images.values())), THUMBNAIL), JPEG_OPTIONS)
    thumbnail = folder / PAGE_FILES / f"{index:06d}-thumb.jpg"
    write_atomically(thumbnail, jpeg.tobytes(), durable=False)


def _write_copy(folder: Path, index: int, kind: str, image: np.ndarray, exact: bool) -> None:
    suffix, options = (".png", []) if exact else (".jpg", JPEG_OPTIONS)
    _, data = cv2.imencode(suffix, image, options)
    key, media_type = f"{index:06d}-{kind}", "image/png" if exact else "image/jpeg"
    base64_text = base64.b64encode(data.tobytes()).decode()
    script = f'copy("{key}", "data:{media_type};base64,{base64_text}");\n'
    write_atomically(folder / PAGE_FILES / f"{key}.js", script.encode(), durable=False)
