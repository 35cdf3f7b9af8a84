"""The rows of results: what is known of each picture, their means, and the tables they go to."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from report.metrics import MEASURES, PROTOCOLS
from settings import UserError, one_line
from system.files import write_atomically

SIDES = ("output", "input")
SCORES = [f"{side}_{p}_{m}" for side in SIDES for p in PROTOCOLS for m in MEASURES]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that spreadsheets compute, or run
COLUMNS = ["name", "rainy", "clean", "width", "height", *SCORES]


@dataclass
class Row:
    """What is told of one picture, or of the frame in the middle of a video.

    Attributes:
        index: the number of its pictures on the page.
        name: what it is called.
        files: links from the page to its files, by the side that they show: before, after, clean.
        width, height: pixels.
        attention, deviation: mean and standard deviation of the attention map, which is in 0..1.
        change: mean difference between before and after, in grey levels of 255.
        seconds: what deraining it took.
        frames: how many frames a video has.
        begin: of a video, where in the rainy one the derained one begins, seconds.
        note: what a person should know of it, told once for all rows.
        rainy, clean: the files of its pair.
        scores: a number for each of SCORES, where the clean image is known. Of equal images PSNR is
            inf; of images smaller than its window SSIM is nan.
    """

    index: int
    name: str
    files: dict[str, str]
    width: int
    height: int
    attention: float
    deviation: float
    change: float
    seconds: float = 0.0
    frames: int = 1
    begin: float | None = None
    note: str = ""
    rainy: str = ""
    clean: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        index: int,
        name: str,
        files: dict[str, str],
        before: np.ndarray,
        after: np.ndarray,
        mask: np.ndarray | None,
    ) -> "Row":
        """The row of a picture: before and after (H,W,3) of one whole type, mask (H,W) in 0..1.

        Without a mask nothing is told of it.
        """
        height, width = before.shape[:2]
        change = cv2.absdiff(before, after).mean() * 255 / np.iinfo(before.dtype).max
        attention = deviation = math.nan
        if mask is not None:
            attention, deviation = float(mask.mean()), float(mask.std(dtype=np.float64))
        return cls(index, name, files, width, height, attention, deviation, float(change))


class Table:
    """A CSV file, written row by row so that an interrupted run keeps what it measured.

    There is none until the first row: a table without any would be no result.

    Args:
        path: the file, or None to write nothing.
    """

    def __init__(self, path: Path | None, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns

    def __enter__(self) -> "Table":
        self.file: TextIO | None = None
        return self

    def add(self, texts: Iterable[str], numbers: Iterable[float]) -> None:
        """Write a row. Of a number that is nan the cell is empty. Raises UserError."""
        if not self.path:
            return
        cells = [
            *map(escape_csv_formula, texts),
            *("" if math.isnan(one) else one for one in numbers),
        ]
        try:
            if not self.file:
                self.file = self.path.open("w", newline="", encoding="utf-8", errors="replace")
                self.writer = csv.writer(self.file)
                self.writer.writerow(self.columns)
            self.writer.writerow(cells)
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        if self.file:
            with suppress(OSError):  # what is left to write failed before, and was told then
                self.file.close()


def escape_csv_formula(text: str) -> str:
    """A text for a cell, behind the mark by which spreadsheets leave it as it is."""
    return f"'{text}" if text.startswith(FORMULA) else text


def means_of(rows: list[Row]) -> dict[str, float]:
    """Mean of each score over the images that have it; nan where none has."""
    means = {}
    for name in SCORES:
        values = [row.scores[name] for row in rows if not math.isnan(row.scores[name])]
        means[name] = float(np.mean(values)) if values else math.nan
    return means


def write_summary(path: Path, facts: dict[str, str | int | float | bool], means: dict[str, float]):
    """Write what was run and the means as JSON. Raises UserError."""
    write_json(path, facts | {"means": in_json(means)})


def in_json(scores: dict[str, float]) -> dict[str, float | str]:
    """JSON has no infinity (equal images) and no NaN (no image large enough)."""
    return {key: value if math.isfinite(value) else str(value) for key, value in scores.items()}


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Write what was found out. Raises UserError."""
    text = json.dumps(told, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode(errors="replace"))


def print_means(means: dict[str, float], count: int, listed: int) -> None:
    """Print the means over `count` of the images that were listed."""
    images = ("" if count == listed else f"{count} of ") + f"{listed} image{'s' * (listed > 1)}"
    print("protocol  PSNR rainy -> derained  SSIM rainy -> derained")
    for protocol in PROTOCOLS:
        psnr, ssim = (
            " -> ".join(f"{means[f'{side}_{protocol}_{m}']:.4f}" for side in ("input", "output"))
            for m in MEASURES
        )
        print(f"{protocol:8} {psnr:24} {ssim}")
    psnr, ssim = means["output_released_psnr"], means["output_released_ssim"]
    print(f"PSNR {psnr:.4f}  SSIM {ssim:.4f}  (released protocol, {images})")


def print_worst(rows: list[Row]) -> None:
    """Print which image comes out worst, and of those that lose, which loses most.

    An image without rain, whose PSNR is infinite, can but lose: such are told of by themselves.
    """

    def after(row: Row) -> float:
        return row.scores["output_released_psnr"]

    def loss(row: Row) -> float:
        return row.scores["input_released_psnr"] - after(row)

    lowest = min(rows, key=after)
    print(f"lowest PSNR: {one_line(lowest.name)}, {after(lowest):.4f} dB")
    rained = [row for row in rows if math.isfinite(row.scores["input_released_psnr"])]
    losers = [row for row in rained if loss(row) >= 5e-5]  # less would be printed as none
    if losers:
        worst = max(losers, key=loss)
        print(
            f"largest loss against the rainy image: {one_line(worst.name)}, {loss(worst):.4f} dB; "
            f"{len(losers)} of {len(rained)} lose"
        )
    if len(rained) < len(rows):
        dry = [row for row in rows if math.isinf(row.scores["input_released_psnr"])]
        least = min(dry, key=after)
        told = f"most in {one_line(least.name)}, {after(least):.4f} dB"
        print(
            f"the rainy and clean images are equal in {len(dry)} of {len(rows)} pairs: there PSNR "
            f"tells what was changed, {told if math.isfinite(after(least)) else 'nothing'}"
        )
