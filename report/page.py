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
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from report.copies import VIEW
from report.metrics import PROTOCOLS
from report.result_folder import PAGE
from report.tables import CLEAN, DERAINED, RAINY, Mean, Result, json_numbers
from settings import Settings
from system.files import write_atomically
from system.text import format_count

SCRIPTS = ("page.js", "page_pictures.js", "page_lists.js")
MODULES = ("torch", "numpy", "numba", "cv2", "skimage")  # whose versions the page shows
COLUMNS = {"attention": 4, "change": 2, "seconds": 2, "frames": 0}  # digits, without clean images


@dataclass(frozen=True)
class Side:
    """An image that the page can compare with another of the same picture.

    Attributes:
        name: rainy, derained or clean, or a method's.
        kind: in the names of its copies: rainy, derained or clean, or a method's number.
        scored: whether it is compared with the clean image; a picture may then lack it.
    """

    name: str
    kind: str
    scored: bool = False


PLAIN_SIDES = [Side(RAINY, RAINY), Side(DERAINED, DERAINED)]
SCORED_SIDES = [Side(RAINY, RAINY, True), Side(DERAINED, DERAINED, True), Side(CLEAN, CLEAN)]


def write_page(
    folder: Path, title: str, results: Sequence[Result], run: list[tuple[str, str]],
    settings: Settings, sides: Sequence[Side] = PLAIN_SIDES, means: Sequence[Mean] = (),
    links: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write index.html.

    Args:
        run: names and values of what was run.
        means: of the scored sides; none if there are no clean images.
        links: names of files in the folder.

    Raises:
        UserError: it cannot be written.
    """
    lead = f"{format_count(len(results), 'picture')}: {', '.join(side.name for side in sides)}."
    if not means:
        lead += " Attention is the mean of the attention map; change is the mean difference in"
        lead += " grey levels."
    data = {
        "lead": lead,
        "links": list(links),
        "sides": [asdict(side) for side in sides],
        "protocols": list(PROTOCOLS) if means else [],
        "gains": sides[0].name == RAINY,
        "columns": [] if means else [{"label": n, "digits": d} for n, d in COLUMNS.items()],
        "view": VIEW,
        "means": [
            {"side": m.method, "images": len(m.indices), "values": json_numbers(m.scores.values())}
            for m in means
        ],
        "rows": [_page_row(folder, result, sides, bool(means)) for result in results],
        "run": run,
        "settings": [(name, str(value)) for name, value in asdict(settings).items()],
    }
    text = json.dumps(data, allow_nan=False, ensure_ascii=False)
    parts = {
        "{{STYLE}}": _read_part("page.css"),
        "{{SCRIPT}}": "".join(map(_read_part, SCRIPTS)),
        "{{TITLE}}": html.escape(title),
        "{{DATA}}": text.replace("<", "\\u003c"),  # within a script nothing else could end it
    }
    page = re.sub(r"\{\{[A-Z]+\}\}", lambda match: parts[match[0]], _read_part("page.html"))
    write_atomically(folder / PAGE, page.encode())


def _page_row(folder: Path, result: Result, sides: Sequence[Side], scored: bool) -> dict:
    longer = max(result.width, result.height)
    files = {side.kind: result.files[side.name] for side in sides if side.name in result.files}
    scores = [result.scores.get(side.name) for side in sides]
    return {
        **{name: getattr(result, name) for name in ("index", "name", "width", "height", "begin")},
        "reduced": longer > VIEW,
        "copy": min(longer, VIEW),
        "has": [n for n, side in enumerate(sides) if scores[n] or not side.scored],
        "mask": not math.isnan(result.attention),
        "files": {kind: _link(folder, path) for kind, path in files.items()},
        "scores": [json_numbers(values.values()) if values else None for values in scores],
        "values": [] if scored else json_numbers(getattr(result, name) for name in COLUMNS),
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
