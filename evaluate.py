"""Testing: test(session) derains a list of images and scores them where it has the truth.

In the result folder: derained/STEM.png, mask/STEM.png (the first attention map as a heat map),
compare/STEM.png (rainy, derained, clean where known, mask, side by side), metrics.csv (a row an
image), summary.json (the means, and what was run) and index.html (all of it, to look at).
"""

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dataset
import report
from files import require_writable, write_atomically
from lists import Pair, read_list
from metrics import MEASURES, PROTOCOLS, measure, to_uint8
from model import CONSTANT_MASK
from progress import Progress
from session import Session
from settings import UserError
from visualize import encode_png, heat_map, strip

COLUMNS = [f"{protocol}_{measure}" for protocol in PROTOCOLS for measure in MEASURES]
SIDES = ("output", "input")


def output_names(files: list[Path]) -> list[str]:
    """A name for each file's results: its stem, numbered where an earlier file has the same.

    No two are equal even on a file system that ignores case, and a file keeps its stem unless
    one before it in the list took it.
    """
    stems = [file.stem for file in files]
    reserved = {stem.casefold() for stem in stems}
    taken: set[str] = set()
    counts: dict[str, int] = {}  # the last number given to a stem
    names = []
    for stem in stems:
        name, number = stem, counts.get(stem.casefold(), 1)
        while name.casefold() in taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        counts[stem.casefold()] = number
        taken.add(name.casefold())
        names.append(name)
    return names


def test(session: Session) -> int:
    """Derain every image of `--test-list` with checkpoint `-m`. Returns the exit status, 0.

    Ranks share the images; the first one writes the table, in the order of the list.

    Raises:
        UserError: bad input, or results that cannot be written. Results of the images before it
            stay, each whole.
    """
    settings, first = session.settings, session.ranks.first
    pairs = read_list(settings.test_list)
    session.load(settings.model, resume=False)
    scored = pairs[0].clean is not None
    folder = Path(settings.result_dir)
    require_writable(folder)
    report.require_own_page(folder)
    session.ranks.exchange(None)  # all have looked before it goes
    if first:
        for stale in ("metrics.csv", "summary.json"):
            (folder / stale).unlink(missing_ok=True)
        report.remove_page(folder)
    session.ranks.exchange(None)  # none writes a picture of the new page before
    if first and not scored:
        print(f"{settings.test_list} has no clean images: pictures only, no metrics")
    session.net.eval()
    start = time.monotonic()
    rows = _derain_list(session, pairs, folder, scored)
    if not first:
        return 0
    seconds = time.monotonic() - start
    means = _means(rows) if scored else {}
    _write_summary(session, folder, rows, means, seconds)
    page = report.scored_page(rows, means) if scored else report.plain_page(rows)
    title = f"SPANet: {Path(settings.test_list).name}, derained by {settings.model}"
    report.write_page(folder, title, page, session.about(seconds), settings)
    print(f"results in {folder}: derained, mask, compare, summary.json" + ", metrics.csv" * scored)
    print(f"open {folder / report.PAGE} to look at them")
    deviations = [row["mask_deviation"] for row in rows if row["width"] * row["height"] > 1]
    if deviations and max(deviations) < CONSTANT_MASK:
        print(
            f"main.py: warning: the attention map of {session.path(settings.model)} is constant on "
            "every image, so the network does not look for rain; train it again with a lower --lr "
            "or another --seed",
            file=sys.stderr,
        )
    if scored:
        scores = {f"mean/{name}": value for name, value in means.items()}
        session.events("test_derain").scalars(scores, session.clock)
        _print_means(means, len(rows))
    return 0


def score(session: Session, pairs: list[Pair]) -> tuple[float, float]:
    """Mean PSNR and SSIM of whole derained images, in the released protocol, on every rank.

    Raises:
        UserError: a bad image.
    """
    sums = [0.0, 0.0]
    names = [f"released_{measure}" for measure in MEASURES]
    for values in _shared_out(session, pairs, lambda _, *pair: _released(session, *pair)):
        sums = [total + values[name] for total, name in zip(sums, names, strict=True)]
    psnr, ssim = (total / len(pairs) for total in sums)
    return psnr, ssim


def _released(session: Session, rainy: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    output, _ = session.derain(rainy)
    return measure(output, clean.astype(np.float32) / 255)


def _shared_out(
    session: Session, pairs: list[Pair], work: Callable[[int, np.ndarray, np.ndarray | None], Any]
) -> Iterator[Any]:
    """work(index, rainy, clean) of each pair in turn, each done by one of the ranks."""
    ranks = session.ranks
    own = range(ranks.rank, len(pairs), ranks.world_size)
    images = dataset.whole_images([pairs[index] for index in own], session.settings.num_workers)
    with closing(images):
        yield from ranks.share(len(pairs), lambda index: work(index, *next(images)))


def _derain_list(
    session: Session, pairs: list[Pair], folder: Path, scored: bool
) -> list[dict[str, Any]]:
    """Derain, score and write each image; the rows of metrics.csv."""
    settings, first = session.settings, session.ranks.first
    names = output_names([pair.rainy for pair in pairs])
    shown = ["psnr", "ssim"] if scored else []

    def work(index: int, rainy: np.ndarray, clean: np.ndarray | None) -> dict[str, Any]:
        pair, name, start = pairs[index], names[index], time.monotonic()
        output, mask = session.derain(rainy, f"{pair.where}: {pair.rainy}")
        seconds = time.monotonic() - start
        derained = to_uint8(output)
        _write_pictures(folder, name, rainy, clean, derained, mask)
        report.write_pictures(folder, index, rainy, derained, mask, clean)
        row = {"index": index, "name": name, "file": report.address(Path(f"derained/{name}.png")),
               "rainy": str(pair.rainy), "clean": str(pair.clean or ""), "frames": 1,
               "width": rainy.shape[1], "height": rainy.shape[0], "seconds": seconds}  # fmt: skip
        row |= report.figures(rainy, derained, mask) | {"note": session.tile_note(rainy)}
        row["mask_deviation"] = float(mask.std(dtype=np.float64))
        if scored:
            truth = clean.astype(np.float32) / 255
            row |= _scores("output", output, truth)
            row |= _scores("input", rainy.astype(np.float32) / 255, truth)
        return row

    rows = []
    with (
        _Table(folder / "metrics.csv" if scored and first else None) as table,
        Progress("image", 0, len(pairs), shown, settings.log_every, silent=not first) as progress,
    ):
        for index, row in enumerate(_shared_out(session, pairs, work)):
            if scored and first:
                scores = {f"image/{key}": row[key] for key in _score_names()}
                session.events("test_derain").scalars(scores, index)
            if row["note"] and first and not any(done["note"] for done in rows):
                print(row["note"])
            table.add(row)
            rows.append(row)
            values = {m: row[f"output_released_{m}"] for m in shown}
            progress.update(index, values)
    return rows


def _write_pictures(
    folder: Path,
    name: str,
    rainy: np.ndarray,
    clean: np.ndarray | None,
    derained: np.ndarray,
    mask: np.ndarray,
) -> None:
    heat = heat_map(mask)
    compared = [image for image in (rainy, derained, clean, heat) if image is not None]
    pictures = {"derained": derained, "mask": heat, "compare": strip(compared)}
    for kind, picture in pictures.items():
        path = folder / kind / f"{name}.png"
        write_atomically(path, encode_png(picture, str(path)))


def _score_names() -> list[str]:
    return [f"{side}_{column}" for side in SIDES for column in COLUMNS]


def _scores(side: str, image: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    return {f"{side}_{key}": value for key, value in measure(image, clean).items()}


class _Table:
    """metrics.csv, written row by row so that an interrupted run keeps what it measured."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> "_Table":
        if self.path:
            self.file = self.path.open("w", newline="", encoding="utf-8")
            columns = ["name", "rainy", "clean", "width", "height", *_score_names()]
            self.writer = csv.DictWriter(self.file, columns, extrasaction="ignore")
            self.writer.writeheader()
        return self

    def add(self, row: dict[str, Any]) -> None:
        if self.path:
            # An image smaller than its window has no SSIM: an empty cell.
            blank = {key: "" for key, v in row.items() if isinstance(v, float) and math.isnan(v)}
            try:
                self.writer.writerow(row | blank)
                self.file.flush()
            except OSError as error:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def __exit__(self, *_: object) -> None:
        if self.path:
            with suppress(OSError):  # what is left to write failed before, and was told then
                self.file.close()


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each score over the images that have it; nan where none has."""
    means = {}
    for name in _score_names():
        values = [row[name] for row in rows if not math.isnan(row[name])]
        means[name] = float(np.mean(values)) if values else math.nan
    return means


def _write_summary(
    session: Session,
    folder: Path,
    rows: list[dict[str, Any]],
    means: dict[str, float],
    seconds: float,
) -> None:
    settings = session.settings
    summary = {
        "model": str(session.path(settings.model)),
        "step": session.clock,
        "direction_attention": settings.direction_attention,
        "self_ensemble": settings.self_ensemble,
        "tile": settings.tile,
        "precision": settings.precision,
        "list": settings.test_list,
        "images": len(rows),
        "device": str(session.device),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        # JSON has no infinity (equal images) and no NaN (no image large enough).
        "means": {
            key: value if math.isfinite(value) else str(value) for key, value in means.items()
        },
    }
    text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "summary.json", (text + "\n").encode())


def _print_means(means: dict[str, float], count: int) -> None:
    images = f"{count} image{'s' if count > 1 else ''}"
    print("protocol  PSNR rainy -> derained  SSIM rainy -> derained")
    for protocol in PROTOCOLS:
        psnr, ssim = (
            " -> ".join(f"{means[f'{side}_{protocol}_{m}']:.4f}" for side in ("input", "output"))
            for m in MEASURES
        )
        print(f"{protocol:9} {psnr:24} {ssim}")
    psnr, ssim = means["output_released_psnr"], means["output_released_ssim"]
    print(f"PSNR {psnr:.4f}  SSIM {ssim:.4f}  (released protocol, {images})")
