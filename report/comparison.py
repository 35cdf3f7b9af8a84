"""Figures of several methods on the same pictures: metrics.csv, means, table.md and table.tex."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from report.metrics import MEASURES, PROTOCOLS
from settings import UserError
from system.files import write_atomically
from system.reading import open_regular

INPUT = "input"  # the method that leaves the rainy image as it is
METRICS = [f"{protocol}_{measure}" for protocol in PROTOCOLS for measure in MEASURES]
COLUMNS = ["method", "name", "result", "truth", "width", "height", *METRICS]
DIGITS = {"psnr": 2, "ssim": 4}
TOLD = {
    "released": "RGB, as in the published results of SPANet",
    "rgb": "RGB",
    "y": "luminance",
    "y_down": "luminance, SSIM of large images averaged down",
    "y_round": "rounded luminance",
}
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What is measured of one result.

    Attributes:
        place: the place of its pair in the list.
        name: what the pair is called.
        width, height: pixels that were compared.
        scores: a number for each of METRICS, inf and nan as `measure` gives them.
    """

    method: str
    place: int
    name: str
    result: str
    truth: str
    width: int
    height: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Mean:
    """The means of a method over its images; nan where no image has the score.

    Attributes:
        places: of which pairs of the list its results are.
    """

    method: str
    places: frozenset[int]
    scores: dict[str, float]

    @property
    def images(self) -> int:
        return len(self.places)


def require_own_table(path: Path) -> None:
    """Raise UserError where there is a metrics.csv of another kind, such as that of a test."""
    try:
        with open_regular(path) as file:
            head = file.readline(10_000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head and not head.startswith(b"method,"):
        raise UserError(f"{path}: is not of -a score; expected another -o")


def means_of(scores: list[Score], methods: list[str]) -> list[Mean]:
    """The means of those methods that have a result, in their order."""
    means = []
    for method in methods:
        own = [score for score in scores if score.method == method]
        values = {m: [s.scores[m] for s in own if not math.isnan(s.scores[m])] for m in METRICS}
        if own:
            told = {m: float(np.mean(v)) if v else math.nan for m, v in values.items()}
            means.append(Mean(method, frozenset(score.place for score in own), told))
    return means


def are_alike(means: list[Mean]) -> bool:
    """Whether all are over the same pictures, and so may be compared."""
    return len({mean.places for mean in means}) == 1


def write_tables(folder: Path, means: list[Mean], listed: int) -> None:
    """Write table.md and table.tex: a table a protocol, a row a method, the best in bold.

    Args:
        listed: how many images there are.

    Raises:
        UserError: they cannot be written.
    """
    markdown = "\n".join(_markdown(protocol, means, listed) for protocol in PROTOCOLS)
    latex = "\n".join(_latex(protocol, means, listed) for protocol in PROTOCOLS)
    write_atomically(folder / "table.md", markdown.encode())
    write_atomically(folder / "table.tex", latex.encode())


def _markdown(protocol: str, means: list[Mean], listed: int) -> str:
    heads, rows = _cells(protocol, means)
    lines = [
        f"PSNR (dB) and SSIM in the `{protocol}` protocol ({TOLD[protocol]}), "
        f"{_images(means, listed)}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for name, cells in rows:
        bold = [f"**{text}**" if best else text for text, best in cells]
        lines.append("| " + " | ".join([_escaped(name), *bold]) + " |")
    return "\n".join(lines) + "\n"


def _escaped(name: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|~" else sign for sign in name)


def _latex(protocol: str, means: list[Mean], listed: int) -> str:
    heads, rows = _cells(protocol, means)
    told = f"\\texttt{{{_in_latex(protocol)}}} protocol ({TOLD[protocol]})"
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{PSNR (dB) and SSIM in the {told}, {_images(means, listed)}.}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"    \hline",
        "    " + " & ".join(heads) + r" \\",
        r"    \hline",
    ]
    for name, cells in rows:
        bold = [f"\\textbf{{{text}}}" if best else text for text, best in cells]
        lines.append("    " + " & ".join([_in_latex(name), *bold]) + r" \\")
    return "\n".join([*lines, r"    \hline", r"  \end{tabular}", r"\end{table}"]) + "\n"


def _in_latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)


def _images(means: list[Mean], listed: int) -> str:
    counts = {mean.images for mean in means}
    count = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    told = f"{listed} image{'s' * (listed > 1)}"
    if counts != {listed}:
        told = f"{count} of {told}"
    return told if are_alike(means) else f"{told}, not the same for all"


Cells = list[tuple[str, bool]]  # texts, and whether they are the best of their column


def _cells(protocol: str, means: list[Mean]) -> tuple[list[str], list[tuple[str, Cells]]]:
    """The headings of a protocol's table, and its rows: the name and the cells of each method."""
    columns = [[_figure(mean.scores, protocol, m) for mean in means] for m in MEASURES]
    heads, best = ["Method"], [_best(column) for column in columns]
    counted = not are_alike(means)
    heads += ["Images"] * counted + [m.upper() for m in MEASURES]
    rows = []
    for number, mean in enumerate(means):
        cells: Cells = [(str(mean.images), False)] * counted
        cells += [
            (column[number], column[number] == b) for column, b in zip(columns, best, strict=True)
        ]
        rows.append((mean.method, cells))
    return heads, rows


def _figure(scores: dict[str, float], protocol: str, measure: str) -> str:
    value = scores[f"{protocol}_{measure}"]
    if math.isnan(value):
        return "-"
    return f"{value:.{DIGITS[measure]}f}" if math.isfinite(value) else "inf"


def _best(column: list[str]) -> str:
    """The highest figure as it is shown: those that are equal to a reader are all the best."""
    return max((text for text in column if text != "-"), key=float, default="")


def show(means: list[Mean], listed: int) -> None:
    """Print the means, PSNR / SSIM, a line a method."""
    wide = max(len("method"), *(len(mean.method) for mean in means))
    print(f"{'method':{wide}}  images  " + "  ".join(f"{p:16}" for p in PROTOCOLS).rstrip())
    for mean in means:
        cells = (
            f"{mean.scores[f'{p}_psnr']:.4f} / {mean.scores[f'{p}_ssim']:.4f}" for p in PROTOCOLS
        )
        row = "  ".join(f"{cell:16}" for cell in cells).rstrip()
        print(f"{mean.method:{wide}}  {mean.images:6}  {row}")
    print(f"PSNR (dB) / SSIM, means over {_images(means, listed)}")
