"""Frames of a video for a clean image, held in memory or decoded anew for each band of rows."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from media.video_reader import VideoReader
from settings import UserError

MAX_HELD_BYTES = 2**30  # a longer video is decoded anew for each band of rows
SHIFT_SAMPLES = 16  # frames compared with the first one to see whether the camera moves
SHIFT_SIDE = 640  # pixels of the longer side for that comparison
SHIFT_LIMIT = 1.0  # pixels
SHIFT_GAIN = 0.8  # a shift is believed if moving back brings the difference below this share of it
# Two views: a correlation below the first, and a mean difference (grey levels) above the second.
SCENE_PEAK, SCENE_CHANGE = 0.2, 16.0
Tick = Callable[[int], None]  # called with how many frames, or rows, are done since the last call


class Video:
    """Frames start .. start+T-1 of a video file, T at most what was asked for; see read_video.

    Attributes:
        shape: (T,H,W,3).
        warnings: what a user should know: other streams, damage, fewer frames than asked for, a
            camera that moves.
        incomplete: whether the file is damaged, or cut short, within these frames.
    """

    def __init__(self, path: str, start: int, frames: int, tick: Tick = lambda _: None) -> None:
        self.path, self.start, self.warnings = path, start, []
        motion = MotionDetector(start, frames)
        with closing(self._open_reader(frames)) as reader:
            shape, count = (reader.height, reader.width, 3), 0
            # Memory that is not written to is not taken.
            held = np.empty((min(frames, MAX_HELD_BYTES // math.prod(shape)), *shape), np.uint8)
            for image in reader.read_images():
                if count < len(held):
                    held[count] = image
                motion.compare(count, image)
                count += 1
                tick(1)
            self.warnings += [*reader.notes, *reader.list_warnings(timestamps=False)]
            self.incomplete = reader.incomplete
        self._held = held[:count] if count <= len(held) else None
        self.shape = (count, *shape)
        if motion.warning:
            self.warnings.append(f"{path}: {motion.warning}; a clean image needs a still camera")
        if count < frames:
            self.warnings.append(f"{path}: frames from {start} on: {count}, asked for: {frames}")

    def _open_reader(self, frames: int) -> VideoReader:
        return VideoReader(Path(self.path), self.start, frames, quick=True)

    def frames(self) -> Iterator[np.ndarray]:
        """The frames one by one, (H,W,3) uint8 RGB."""
        if self._held is not None:
            yield from self._held
            return
        with closing(self._open_reader(self.shape[0])) as reader:
            yield from reader.read_images()

    def bands(self, frames: int) -> Iterator[tuple[int, np.ndarray]]:
        """The first frames as bands of rows: (first row, (frames,rows,W,3)), from the top down.

        A band lasts until the next one is asked for.
        """
        _, height, width, _ = self.shape
        if self._held is not None:
            yield 0, self._held[:frames]
            return
        rows = min(height, max(1, MAX_HELD_BYTES // (frames * width * 3)))
        memory = np.empty(frames * rows * width * 3, np.uint8)  # one band's, used for all
        for top in range(0, height, rows):
            shape = (frames, min(rows, height - top), width, 3)
            band = memory[: np.prod(shape)].reshape(shape)
            with closing(self._open_reader(frames)) as reader:
                for index, image in enumerate(reader.read_images()):
                    band[index] = image[top : top + rows]
            if index + 1 < frames:
                raise UserError(f"{self.path}: changed while it was read")
            yield top, band


def read_video(path: str, start: int, frames: int, tick: Tick = lambda _: None) -> Video:
    """Open a video and read up to `frames` frames from number `start` on.

    Frames of another size than the first are scaled to it; the comparison for a moving camera sees
    that too.

    Args:
        tick: called with 1 after each frame.

    Raises:
        UserError: the file cannot be read, is not a video, or has no frame at `start`.
    """
    return Video(path, start, frames, tick)


class MotionDetector:
    """Compares frames with the first by phase correlation; `warning` says what differs, or ''."""

    def __init__(self, start: int, frames: int) -> None:
        self.start, self.every = start, max(1, min(frames // SHIFT_SAMPLES, 16))
        self.warning = ""

    def compare(self, index: int, image: np.ndarray) -> None:
        """Compare frame `index`, (H,W,3) uint8 RGB, counted from the first one."""
        if index % self.every or self.warning:
            return
        scale = min(1.0, SHIFT_SIDE / max(image.shape[:2]))
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        if index == 0:
            self.first = grey
            window = np.outer(*(np.hanning(side + 2)[1:-1] for side in grey.shape))
            self.window = window.astype(np.float32)
            return
        # It writes to its arguments, so the first frame goes in as a copy.
        (x, y), peak = cv2.phaseCorrelate(self.first.copy(), grey.copy(), self.window)
        shift = float(np.hypot(x, y)) / scale
        difference = cv2.absdiff(self.first, grey).mean()
        if shift > SHIFT_LIMIT and self._compare_shifted(grey, x, y) < SHIFT_GAIN * difference:
            self.warning = (
                f"frame {self.start + index} is shifted by {shift:.1f} pixels against frame "
                f"{self.start}: the camera moves"
            )
        elif peak < SCENE_PEAK and difference > SCENE_CHANGE:
            self.warning = f"frame {self.start + index} does not show what frame {self.start} does"

    def _compare_shifted(self, grey: np.ndarray, x: float, y: float) -> float:
        """Mean difference to the first frame of one that is moved back by x, y."""
        matrix = np.array([[1, 0, -x], [0, 1, -y]])
        size = grey.shape[::-1]
        shifted = cv2.warpAffine(grey, matrix, size)
        inside = cv2.warpAffine(np.ones_like(grey), matrix, size) > 0.99
        return float(cv2.absdiff(self.first, shifted)[inside].mean()) if inside.any() else np.inf
