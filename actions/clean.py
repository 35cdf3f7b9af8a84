"""The action `clean`: the clean image of a rain video, or candidates to choose from."""

from pathlib import Path

import cv2
import numpy as np

from rain.clean_image import CleanImage, clean_image
from rain.frames import Video, read_video
from report.visualize import contact_sheet, encode_png
from settings import Settings, UserError
from system.files import check_no_overlap, require_writable, write_atomically
from system.progress import Progress, warn

DEFAULT_FRAMES = 100  # that a clean image is computed from, unless --frames says otherwise


def clean(settings: Settings) -> int:
    """Write the clean image of video `-i` to `-o`, or one for each of --candidates and a sheet.

    Returns the exit status: 2 if the video is damaged, or cut short, within those frames.

    Raises:
        UserError: bad input, or an output that cannot be written.
    """
    path = Path(settings.output)
    if not settings.input:
        raise UserError("-i: expected a rain video")
    if path.suffix.lower() != ".png":
        raise UserError(f"-o: {settings.output!r}: expected the name of a PNG file")
    counts, targets = [settings.frames or DEFAULT_FRAMES], [path]
    sheet = path.with_stem(f"{path.stem}-candidates")
    if settings.candidates:
        counts = parse_candidates(settings.candidates)
        targets = [sheet, *(path.with_stem(f"{path.stem}-{count}") for count in counts)]
    for target in targets:
        if target.is_dir():
            raise UserError(f"{target}: is a folder; expected the name of a PNG file")
    check_no_overlap([Path(settings.only_input)], targets, "-o")
    read_video(settings.only_input, settings.start, 1)  # bad input leaves no folder behind
    require_writable(path.parent)
    video = load_video(settings.only_input, settings.start, max(counts))
    images, captions = [], []
    # Counts that the video is too short for come to the same, all of its frames.
    for count in sorted({min(count, video.shape[0]) for count in counts}):
        target = path.with_stem(f"{path.stem}-{count}") if settings.candidates else path
        result = compute_clean_image(video, settings, count)
        write_image(target, result.image)
        origin = f"{count} frames, percentile {result.percentile:g}"
        quality = f"residual rain {result.residual_rain:.3f}, ghosting {result.ghosting:.2%}"
        print(f"{target}: {origin}, {quality}")
        images.append(result.image)
        captions.append(f"{origin}\n{quality}")
    if settings.candidates:
        images.insert(0, next(iter(video.frames())))
        captions.insert(0, f"frame {settings.start}\n")
        write_image(sheet, contact_sheet(images, captions))
        print(f"{sheet}: the candidates side by side")
    return 2 if video.incomplete else 0


def parse_candidates(text: str) -> list[int]:
    """Numbers of frames, separated by commas. Raises UserError."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [0]
    if not all(1 <= count <= 65535 for count in counts):
        expected = "expected numbers of frames from 1 to 65535, as 20,50,100"
        raise UserError(f"--candidates: {text!r}: {expected}")
    return counts


def load_video(path: str, start: int, frames: int) -> Video:
    """read_video with progress; its warnings go to standard error, a line each."""
    with Progress("frame", 0, frames, []) as progress:
        video = read_video(path, start, frames, progress.advance)
    for warning in video.warnings:
        warn(f"warning: {warning}")
    return video


def compute_clean_image(video: Video, settings: Settings, frames: int | None = None) -> CleanImage:
    """clean_image by the settings, with progress."""
    percentile = None if settings.percentile < 0 else settings.percentile
    with Progress("row", 0, 2 * video.shape[1], []) as progress:
        return clean_image(video, percentile, frames=frames, tick=progress.advance)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H,W,3) uint8 RGB as a PNG file."""
    write_atomically(path, encode_png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), str(path)))
