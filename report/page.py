"""The page of a result folder: index.html, which opens from disk and asks the network for nothing.

Its template is page.html, into which go the data, page.css, page.js (zoom, pointer and keys),
page_pictures.js (the picture in view) and page_lists.js (scores, thumbnails, tables). Its pictures
are those of copies.py.
"""

import html
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from report.copies import VIEW
from report.metrics import MEASURES, PROTOCOLS
from report.result_folder import PAGE
from report.table import SIDES, Row
from settings import Settings
from system.files import write_atomically

SCRIPTS = ("page.js", "page_pictures.js", "page_lists.js")
PACKAGES = ("torch", "numpy", "numba", "opencv-python-headless", "scikit-image")


@dataclass(frozen=True)
class Side:
    """What the slider of a page can show of each picture.

    Attributes:
        name: what it is called.
        kind: what its copies are called: before, after, clean, or a number.
        scored: whether it is held against the clean one.
    """

    name: str
    kind: str
    scored: bool = False


@dataclass
class Shown:
    """A picture of a page.

    Attributes:
        index: the number of its copies.
        width, height: pixels.
        has: the kinds of the sides that it has copies of.
        mask: whether it has an attention map.
        files: the files of its sides, as links from the page, by kind.
        scores: by kind, a number for each protocol and measure.
        values: one for each further column of the page.
        begin: of a video, where in the rainy one the derained one begins, seconds.
    """

    index: int
    name: str
    width: int
    height: int
    has: Sequence[str]
    mask: bool = False
    files: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    values: Sequence[float] = ()
    begin: float | None = None


BEFORE, AFTER, CLEAN = Side("rainy", "before"), Side("derained", "after"), Side("clean", "clean")


def files_of(folder: Path, **files: Path | None) -> dict[str, str]:
    """Links from the page in a folder to files, by the kinds of their sides."""
    return {kind: _link(folder, path) for kind, path in files.items() if path}


def _link(folder: Path, path: Path) -> str:
    try:
        relative = os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()
    return quote(os.fsencode(relative).replace(os.sep.encode(), b"/"))


def scored_page(rows: list[Row], means: dict[str, float], links: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a test's rows, where the clean images are known."""
    sides = [Side("rainy", "before", True), Side("derained", "after", True), CLEAN]
    kinds = dict(zip(SIDES, ("after", "before"), strict=True))
    shown = []
    for row in rows:
        scores = {
            kind: {name: row.scores[f"{side}_{name}"] for name in _names()}
            for side, kind in kinds.items()
        }
        shown.append(_shown(row, sides, scores=scores))
    told = [
        (side.name, len(rows), {name: means[f"{own}_{name}"] for name in _names()})
        for side, own in zip(sides, reversed(SIDES), strict=False)
    ]
    lead = f"{_count(len(rows), 'picture')}, rainy and derained, beside the clean ones."
    return content(lead, sides, shown, told, links)


def plain_page(rows: list[Row], links: Sequence[str] = ()) -> dict[str, Any]:
    """What the page shows where the clean images are not known."""
    kinds = {"attention": 4, "change": 2, "seconds": 2, "frames": 0}
    sides = [BEFORE, AFTER]
    shown = [_shown(row, sides, values=[getattr(row, name) for name in kinds]) for row in rows]
    lead = (
        f"{_count(len(rows), 'picture')}, rainy and derained. Attention is the mean of the "
        "attention map, change that of the difference in grey levels."
    )
    columns = [{"label": name, "digits": digits} for name, digits in kinds.items()]
    return content(lead, sides, shown, [], links) | {"columns": columns, "by": 1}


def content(
    lead: str,
    sides: list[Side],
    shown: list[Shown],
    means: list[tuple[str, int, dict[str, float]]],
    links: Sequence[str],
    input: bool = True,
) -> dict[str, Any]:
    """The data of a page.

    Args:
        means: name, number of images and means of each scored side.
        links: names of files beside the page.
        input: whether the first scored side is the rainy image, over which others have gains.
    """
    return {
        "lead": lead,
        "links": list(links),
        "sides": [asdict(side) for side in sides],
        "protocols": list(PROTOCOLS) if means else [],
        "input": input,
        "columns": [],
        "by": None,
        "view": VIEW,
        "means": [
            {"side": name, "images": count, "values": _numbers(values)}
            for name, count, values in means
        ],
        "rows": [_row(picture, sides) for picture in shown],
    }


def _shown(row: Row, sides: list[Side], **told: Any) -> Shown:
    has = [side.kind for side in sides]
    masked = not math.isnan(row.attention)
    about = row.index, row.name, row.width, row.height, has, masked, row.files
    return Shown(*about, begin=row.begin, **told)


def _row(picture: Shown, sides: list[Side]) -> dict[str, Any]:
    longer = max(picture.width, picture.height)
    scores = (picture.scores.get(side.kind) for side in sides)
    return {
        "index": picture.index,
        "name": picture.name,
        "width": picture.width,
        "height": picture.height,
        "reduced": longer > VIEW,
        "copy": min(longer, VIEW),
        "has": [number for number, side in enumerate(sides) if side.kind in picture.has],
        "mask": picture.mask,
        "begin": picture.begin,
        "files": picture.files,
        "scores": [_numbers(values) if values else None for values in scores],
        "values": [_number(value) for value in picture.values],
    }


def _names() -> list[str]:
    return [f"{protocol}_{measure}" for protocol in PROTOCOLS for measure in MEASURES]


def _numbers(scores: dict[str, float]) -> list[float | str | None]:
    return [_number(scores[name]) for name in _names()]


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
    parts = {
        "{{STYLE}}": _part("page.css"),
        "{{SCRIPT}}": "".join(map(_part, SCRIPTS)),
        "{{TITLE}}": html.escape(title),
        "{{DATA}}": data.replace("<", "\\u003c"),  # within a script nothing else could end it
    }
    text = re.sub(r"\{\{[A-Z]+\}\}", lambda found: parts[found[0]], _part("page.html"))
    write_atomically(folder / PAGE, text.encode())


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
