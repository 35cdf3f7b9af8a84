"""The action `clean`: the clean image of a rain video, or candidates to choose from."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from rain.clean_image import Clean, clean_image
from rain.frames import Video, read_video
from report.visualize import contact_sheet, encode_png
from settings import Settings, UserError
from system.files import check_no_overlap, require_writable, write_atomically
from system.progress import Progress, warn

FRAMES = 100  # that a clean image is made from, unless --frames says otherwise


def clean(settings: Settings) -> int:
    """Write the clean image of video `-i` to `-o`, or one for each of --candidates and a sheet.

    Returns the exit status: 2 where the video is damaged, or cut short, within those frames.

    Raises:
        UserError: bad input, or an output that cannot be written.
    """
    path, settings = Path(settings.output), of_frames(settings)
    if not settings.input:
        raise UserError("-i: expected a rain video")
    if path.suffix.lower() != ".png":
        raise UserError(f"-o: {settings.output!r}: expected the name of a PNG file")
    counts = _candidates(settings.candidates) if settings.candidates else [settings.frames]
    sheet = path.with_stem(f"{path.stem}-candidates")
    written = [_candidate(path, count) for count in counts] if settings.candidates else [path]
    for target in (*written, sheet):
        if target.is_dir():
            raise UserError(f"{target}: is a folder; expected the name of a PNG file")
    check_no_overlap([Path(settings.input)], [*written, sheet], "-o")
    read_video(settings.input, settings.start, 1)  # bad input leaves no folder behind
    require_writable(path.parent)
    video = open_video(settings.input, settings.start, max(counts))
    if not settings.candidates:
        write_image(path, make_clean(video, settings))
        return 2 if video.incomplete else 0
    # Counts that the video is too short for come to the same, all of its frames.
    counts = sorted({min(count, video.shape[0]) for count in counts})
    made = []
    for count in counts:
        made.append(make_clean(video, settings, count))
        write_image(_candidate(path, count), made[-1])
    first = next(iter(video.frames()))
    captions = [f"frame {settings.start}\n"] + [
        f"{one.frames} frames, percentile {one.percentile:g}\n{_figures(one)}" for one in made
    ]
    pictures = [_bgr(image) for image in (first, *(one.image for one in made))]
    write_atomically(sheet, encode_png(contact_sheet(pictures, captions), str(sheet)))
    print(f"{sheet}: the candidates side by side")
    return 2 if video.incomplete else 0


def of_frames(settings: Settings) -> Settings:
    """The settings with a number of frames."""
    return replace(settings, frames=settings.frames or FRAMES)


def _candidate(path: Path, count: int) -> Path:
    return path.with_stem(f"{path.stem}-{count}")


def _candidates(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= 65535 for count in counts):
        raise UserError(
            f"--candidates: {text!r}: expected numbers of frames from 1 to 65535, as 20,50,100"
        )
    return counts


def open_video(path: str, start: int, frames: int) -> Video:
    """read_video with progress; what it warns of goes to standard error, a line each."""
    with Progress("frame", 0, frames, []) as progress:
        video = read_video(path, start, frames, progress.advance)
    for warning in video.warnings:
        warn(f"warning: {warning}")
    return video


def make_clean(video: Video, settings: Settings, frames: int | None = None) -> Clean:
    """clean_image by the settings, with progress."""
    percentile = None if settings.percentile < 0 else settings.percentile
    with Progress("row", 0, 2 * video.shape[1], []) as progress:
        return clean_image(video, percentile, frames=frames, tick=progress.advance)


def write_image(path: Path, made: Clean) -> None:
    """Write a clean image and print what it was made from and how good it looks in figures."""
    write_atomically(path, encode_png(_bgr(made.image), str(path)))
    print(f"{path}: {made.frames} frames, percentile {made.percentile:g}, {_figures(made)}")


def _figures(made: Clean) -> str:
    return f"residual rain {made.residual_rain:.3f}, ghosting {made.ghosting:.2%}"


def _bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
