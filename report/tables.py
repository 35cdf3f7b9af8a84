"""Results of pictures, their means, and the tables that hold them: CSV, JSON, Markdown, LaTeX.

metrics.csv is wide in a test (a row a picture) and long where methods are scored (a row a result).
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from report.metrics import MEASURES, PROTOCOLS
from settings import format_count, one_line
from system.files import format_path, translate_write_errors, write_atomically

RAINY, DERAINED, CLEAN = "rainy", "derained", "clean"  # names of images
SCORE_NAMES = [f"{protocol}_{measure}" for protocol in PROTOCOLS for measure in MEASURES]
PREFIXES = {"output": DERAINED, "rainy": RAINY}  # of the scores in a wide table
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first characters of cells that spreadsheets compute
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
})  # fmt: skip


@dataclass
class Result:
    """The result of one picture, or of the middle frame of a video.

    Attributes:
        index: its place among the pictures of the run, which is in the names of its copies.
        width, height: pixels.
        files: by the names of its images: rainy, clean, and derained or a method's.
        scores: by the names of its images, a number for each of SCORE_NAMES. PSNR of equal images
            is inf; SSIM of images smaller than its window is nan.
        compared: (width, height) that was scored, by the names of its images; if not all of it.
        attention, deviation: mean and standard deviation of the attention map, which is in 0..1.
        change: mean difference between rainy and derained image, in grey levels of 255.
        seconds: that deraining took.
        frames: number of frames of a video.
        begin: of a video, the time in the rainy one at which the derained one begins, seconds.
        note: for the user, printed once for all results.
        dropped: metadata of the rainy picture that the format of the derained one cannot hold.
    """

    index: int
    name: str
    files: dict[str, Path]
    width: int
    height: int
    attention: float = math.nan
    deviation: float = math.nan
    change: float = math.nan
    seconds: float = 0.0
    frames: int = 1
    begin: float | None = None
    note: str = ""
    dropped: str = ""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    compared: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_images(
        cls, index: int, name: str, files: dict[str, Path], rainy: np.ndarray,
        derained: np.ndarray, mask: np.ndarray | None,
    ) -> "Result":  # fmt: skip
        """The result of (H,W,3) images of one integer type, and of a mask (H,W) in 0..1, if any."""
        result = cls(index, name, files, rainy.shape[1], rainy.shape[0])
        levels = np.iinfo(rainy.dtype).max
        result.change = float(cv2.absdiff(rainy, derained).mean() * 255 / levels)
        if mask is not None:
            result.attention = float(mask.mean())
            result.deviation = float(mask.std(dtype=np.float64))
        return result

    def gain(self, protocol: str) -> float:
        """PSNR of the derained image over the rainy one, in dB."""
        rainy, derained = (self.scores[image][f"{protocol}_psnr"] for image in (RAINY, DERAINED))
        return derained - rainy


@dataclass(frozen=True)
class Mean:
    """The mean scores of a method; nan where no picture has the score.

    Attributes:
        indices: of the pictures that the method has a result of.
    """

    method: str
    indices: frozenset[int]
    scores: dict[str, float]


Sets = dict[str, list[Mean]]  # by the names of the sets; the sole one has none


def compute_set_means(
    results: Sequence[Result], sets: Iterable[str], methods: Sequence[str]
) -> Sets:
    """The means over each set, whose name begins those of its pictures."""
    prefixes = {name: f"{name}/" * bool(name) for name in sets}
    return {
        name: compute_means([r for r in results if r.name.startswith(prefix)], methods)
        for name, prefix in prefixes.items()
    }


def compute_means(results: Sequence[Result], methods: Sequence[str]) -> list[Mean]:
    """The means of those methods that have a result, in their order."""
    means = []
    for method in methods:
        scored = [result for result in results if method in result.scores]
        if scored:
            scores = {
                m: _mean([result.scores[method][m] for result in scored]) for m in SCORE_NAMES
            }
            means.append(Mean(method, frozenset(result.index for result in scored), scores))
    return means


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def share_pictures(means: Sequence[Mean]) -> bool:
    """Whether all means are over the same pictures, and so may be compared."""
    return len({mean.indices for mean in means}) == 1


def count_pictures(means: Sequence[Mean], listed: int) -> str:
    """The number of pictures behind the means, of those that were listed, as text."""
    counts = {len(mean.indices) for mean in means}
    text = format_count(listed, "image")
    if counts != {listed}:
        text = f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} of {text}"
    return text if share_pictures(means) else f"{text}, not the same for all"


def flatten_scores(scores: Mapping[str, dict[str, float]]) -> dict[str, float]:
    """Scores by the columns of a wide table, `output_released_psnr` and so on."""
    return {
        f"{prefix}_{name}": scores[image][name]
        for prefix, image in PREFIXES.items()
        for name in SCORE_NAMES
    }


def flatten_means(means: Sequence[Mean]) -> dict[str, float]:
    """The means of a test by the columns of a wide table; none if there are no scores."""
    return flatten_scores({mean.method: mean.scores for mean in means}) if means else {}


# CSV and JSON


def wide_row(result: Result) -> dict[str, str | float]:
    """The row of a picture in a test's metrics.csv."""
    files = {image: format_path(result.files[image]) for image in (RAINY, CLEAN)}
    size = {"width": result.width, "height": result.height}
    return {"name": result.name, **files, **size, **flatten_scores(result.scores)}


def long_rows(result: Result) -> list[dict[str, str | float]]:
    """The rows of a picture in the metrics.csv of scored methods, one a method."""
    rows: list[dict[str, str | float]] = []
    for method, scores in result.scores.items():
        width, height = result.compared.get(method, (result.width, result.height))
        files = {"result": result.files[method], "truth": result.files[CLEAN]}
        paths = {name: format_path(path) for name, path in files.items()}
        size = {"width": width, "height": height}
        rows.append({"method": method, "name": result.name, **paths, **size, **scores})
    return rows


def append_row(path: Path, row: Mapping[str, str | float]) -> None:
    """Append the values of the columns to a CSV file; nan leaves a cell empty. Raises UserError.

    The first row creates the file: a table without any is no result. Each is written at once, so
    that an interrupted run keeps what it measured.
    """
    cells = {
        column: escape_csv_formula(value) if isinstance(value, str) else value
        for column, value in row.items()
        if value == value  # not nan
    }
    is_new = not path.exists()
    with (
        translate_write_errors(path),
        path.open("a", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(cells)


def escape_csv_formula(text: str) -> str:
    """A cell's text, behind a mark that keeps spreadsheets from computing it."""
    return f"'{text}" if text.startswith(FORMULA) else text


def encode_json(content: dict[str, object], indent: int | None = None) -> str:
    """A dict as JSON, which has neither infinity nor NaN: those are texts, "inf" and "nan"."""
    finite = json.loads(json.dumps(content), parse_constant=lambda name: str(float(name)))
    return json.dumps(finite, indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write a JSON file. Raises UserError."""
    write_atomically(path, (encode_json(content, 2) + "\n").encode(errors="replace"))


# Tables of a paper


def write_tables(
    folder: Path, means: list[Mean], listed: int, sets: Sets, protocols: Iterable[str]
) -> None:
    """Write table.md and table.tex: a table a protocol, a row a method, the best in bold.

    Args:
        means: over the pictures of all sets.
        listed: the number of pictures in the lists.

    Raises:
        UserError: a file cannot be written.
    """
    count = count_pictures(means, listed)
    for name, format_table in (("table.md", _format_markdown), ("table.tex", _format_latex)):
        tables = [format_table(protocol, sets, count) for protocol in protocols]
        write_atomically(folder / name, "\n".join(tables).encode())


def _format_markdown(protocol: str, sets: Sets, count: str) -> str:
    headings, *rows = _format_cells(protocol, sets, "**{}**")
    title = f"PSNR (dB) and SSIM in the `{protocol}` protocol ({PROTOCOLS[protocol]})"
    lines = [f"{title}, {count}.", ""]
    lines += ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for method, *cells in rows:
        name = re.sub(r"[\\`*_{}\[\]<>#|~]", r"\\\g<0>", method)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _format_latex(protocol: str, sets: Sets, count: str) -> str:
    headings, *rows = _format_cells(protocol, sets, "\\textbf{{{}}}")
    name = f"\\texttt{{{protocol.translate(LATEX)}}} protocol ({PROTOCOLS[protocol]})"
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{PSNR (dB) and SSIM in the {name}, {count}.}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
        r"    \hline",
        "    " + " & ".join(heading.translate(LATEX) for heading in headings) + r" \\",
        r"    \hline",
        *(
            "    " + " & ".join([method.translate(LATEX), *cells]) + r" \\"
            for method, *cells in rows
        ),
        r"    \hline",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _format_cells(protocol: str, sets: Sets, bold: str) -> Iterator[tuple[str, ...]]:
    """The headings of a protocol's table, then the row of each method, its name first.

    Figures that are equal as shown are all the best.

    Args:
        bold: the format of the best figure in its column.
    """
    methods = list(dict.fromkeys(mean.method for means in sets.values() for mean in means))
    columns = [["Method", *methods]]
    for test_set, means in sets.items():
        own = {mean.method: mean for mean in means}
        prefix = f"{test_set} " * bool(test_set)
        if not share_pictures(means):
            counts = (len(own[method].indices) if method in own else 0 for method in methods)
            columns.append([f"{prefix}Images", *map(str, counts)])
        for measure, digits in MEASURES.items():
            name = f"{protocol}_{measure}"
            values = [own[m].scores[name] if m in own else math.nan for m in methods]
            texts = ["-" if math.isnan(v) else f"{v:.{digits}f}" for v in values]
            best = max((text for text in texts if text != "-"), key=float, default="")
            cells = (bold.format(text) if text == best else text for text in texts)
            columns.append([prefix + measure.upper(), *cells])
    return zip(*columns, strict=True)


# Printed


def print_means(means: list[Mean], count: str, heading: str = "method") -> None:
    """Print the means, PSNR / SSIM, a line a method.

    Args:
        count: over what they are, see count_pictures.
    """
    width = max(len(heading), *(len(mean.method) for mean in means))
    rows = [[heading, "images", *PROTOCOLS]]
    for mean in means:
        scores = [[mean.scores[f"{p}_{m}"] for m in MEASURES] for p in PROTOCOLS]
        cells = [f"{psnr:.4f} / {ssim:.4f}" for psnr, ssim in scores]
        rows.append([mean.method, str(len(mean.indices)), *cells])
    for method, images, *cells in rows:
        row = "  ".join(f"{cell:16}" for cell in cells).rstrip()
        print(f"{method:{width}}  {images:>6}  {row}")
    print(f"PSNR (dB) / SSIM, means over {count}")


def print_worst(results: Sequence[Result]) -> None:
    """Print the picture with the lowest PSNR, and of those that lose PSNR, the one that loses most.

    If rainy and clean image are equal, PSNR can only drop; such pictures are listed separately.
    """

    def psnr(result: Result, image: str = DERAINED) -> float:
        return result.scores[image]["released_psnr"]

    lowest = min(results, key=psnr)
    print(f"lowest PSNR: {one_line(lowest.name)}, {psnr(lowest):.4f} dB")
    wet = [result for result in results if math.isfinite(psnr(result, RAINY))]
    losers = [result for result in wet if result.gain("released") <= -5e-5]  # less is printed as 0
    if losers:
        worst = min(losers, key=lambda result: result.gain("released"))
        loss = -worst.gain("released")
        text = f"{one_line(worst.name)}, {loss:.4f} dB; {len(losers)} of {len(wet)} lose"
        print(f"largest loss against the rainy image: {text}")
    dry = [result for result in results if math.isinf(psnr(result, RAINY))]
    if dry:
        worst = min(dry, key=psnr)
        change = f"most in {one_line(worst.name)}, {psnr(worst):.4f} dB"
        print(
            f"the rainy and clean images are equal in {len(dry)} of {len(results)} pairs: there "
            f"PSNR shows what was changed, {change if math.isfinite(psnr(worst)) else 'nothing'}"
        )
