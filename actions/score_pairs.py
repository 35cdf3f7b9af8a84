"""The work of the action `score` on one pair of the list, which a process of its own does."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from media.image_file import JPEG
from media.lists import Pair, read_pair
from media.pictures import read_image
from report import page
from report.comparison import Score
from report.copies import write_pictures
from report.metrics import measure
from settings import UserError
from system.files import format_path
from system.reading import open_regular


@dataclass(frozen=True)
class Task:
    """One pair of the list, and the result of each method for it, by the method's number."""

    place: int
    name: str
    pair: Pair
    results: dict[int, Path]


@dataclass
class Done:
    """What came of a task.

    Attributes:
        scores: of the input, if there is one, and of each method that has a good result.
        shown: the picture of the page; None where nothing was scored.
        complaints: what is wrong, a line each.
        jpeg, cropped: the numbers of the methods whose result is a JPEG, or was cropped.
    """

    scores: list[Score] = field(default_factory=list)
    shown: page.Shown | None = None
    complaints: list[str] = field(default_factory=list)
    jpeg: list[int] = field(default_factory=list)
    cropped: list[int] = field(default_factory=list)


def score_pair(task: Task, names: list[str], folder: Path, crop: bool) -> Done:
    """Measure every result of a pair, and write what the page shows of it."""
    cv2.setNumThreads(0)  # the cores have a process each
    done, pair = Done(), task.pair
    try:
        rainy, clean = read_pair(pair)
    except UserError as error:
        done.complaints.append(str(error))
        return done
    images = {"before": rainy, "clean": rainy if clean is None else clean}
    if clean is None:
        del images["before"]
    truth = images["clean"]
    height, width = truth.shape[:2]
    scores: dict[str, dict[str, float]] = {}

    def add(number: int, kind: str, path: Path, image: np.ndarray) -> None:
        tall, wide = (min(sides) for sides in zip(image.shape[:2], truth.shape[:2], strict=True))
        found = measure(image[:tall, :wide], truth[:tall, :wide], order="BGR")
        scores[kind] = found
        about = format_path(path), format_path(pair.clean or pair.rainy), wide, tall
        done.scores.append(Score(names[number], task.place, task.name, *about, found))

    if clean is not None:
        add(0, "before", pair.rainy, rainy)
    for number, path in task.results.items():
        try:
            image = read_image(path, f"{names[number]}, for {pair.location}")
        except UserError as error:
            done.complaints.append(str(error))
            continue
        if image.shape != truth.shape:
            sizes = f"{image.shape[1]}x{image.shape[0]}, its truth {width}x{height}"
            if not crop:
                done.complaints.append(
                    f"{names[number]}: {format_path(path)} is {sizes}; not scored: "
                    "expected one size, or --crop-to-common to compare what they share at the "
                    "top left"
                )
                continue
            done.cropped.append(number)
        if _is_jpeg(path):
            done.jpeg.append(number)
        add(number, str(number), path, image)
        images[str(number)] = _of_size(image, height, width)
    if scores:
        write_pictures(folder, task.place, images)
        results = {str(number): path for number, path in task.results.items()}
        sources = {} if pair.halves else {"before": pair.rainy, "clean": pair.clean or pair.rainy}
        if clean is None:
            sources.pop("before", None)
        files = page.files_of(folder, **sources, **results)
        about = task.place, task.name, width, height, list(images)
        done.shown = page.Shown(*about, files=files, scores=scores)
    return done


def _is_jpeg(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(JPEG)) == JPEG


def _of_size(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left part of an image, black where it holds less."""
    image = image[:height, :width]
    below, beside = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, below), (0, beside), (0, 0))) if below or beside else image
