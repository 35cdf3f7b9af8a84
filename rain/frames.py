"""Frames of a video for a clean image, held in memory or decoded anew for each band of rows."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from media.video_reader import VideoReader
from settings import UserError

HELD_BYTES = 2**30  # frames kept in memory; a longer video is decoded anew for each band of rows
SHIFT_SAMPLES = 16  # frames compared with the first one to see whether the camera moves
SHIFT_SIDE = 640  # pixels of the longer side for that comparison
SHIFT_LIMIT = 1.0  # pixels
SHIFT_GAIN = 0.8  # a shift is believed if moving back brings the difference below this share of it
SCENE_PEAK, SCENE_CHANGE = 0.2, 16.0  # two views: correlation below, mean difference (grey) above
Tick = Callable[[int], None]  # told how many frames, or rows, are done since the last call


class Video:
    """Frames start .. start+T-1 of a video file, T at most what was asked for; see read_video.

    Attributes:
        shape: (T,H,W,3).
        warnings: what a user should know: other streams, damage, fewer frames than asked for, a
            camera that moves.
        incomplete: the file is damaged, or cut short, within these frames.
    """

    def __init__(self, path: str, start: int, frames: int, tick: Tick | None = None) -> None:
        self.path, self.start, self.warnings, self.incomplete = path, start, [], False
        self._held: np.ndarray | None = None
        with closing(self._source(frames)) as source:
            self.shape = self._first_pass(source, frames, tick or (lambda _: None))
            self.incomplete = source.incomplete
        if self.shape[0] < frames:
            self.warnings.append(
                f"{path}: frames from {start} on: {self.shape[0]}, asked for: {frames}; "
                "going on with those that are there"
            )

    def _source(self, frames: int) -> VideoReader:
        return VideoReader(Path(self.path), self.start, frames, quick=True)

    def decode(self, frames: int) -> Iterator[np.ndarray]:
        """Frames one by one, (H,W,3) RGB, at most that many."""
        with closing(self._source(frames)) as source:
            yield from source.read_images()

    def _first_pass(
        self, source: VideoReader, frames: int, tick: Tick
    ) -> tuple[int, int, int, int]:
        """Count the frames, keep them if they fit, and look for a camera that moves."""
        held, count, motion = None, 0, _Motion(self.start, frames)
        for frame in source.read_images():
            if count == 0:
                height, width = frame.shape[:2]
                # Memory that is not written to is not taken.
                held = np.empty((min(frames, HELD_BYTES // frame.nbytes), *frame.shape), np.uint8)
            if held is not None and count < len(held):
                held[count] = frame
            else:
                held = None
            motion.look(count, frame)
            count += 1
            tick(1)
        self._held = None if held is None else held[:count]
        self.warnings += [*source.notes, *source.list_warnings(timestamps=False)]
        if motion.found:
            self.warnings.append(f"{self.path}: {motion.found}; a clean image needs a still camera")
        return count, height, width, 3

    def bands(self, frames: int) -> Iterator[tuple[int, np.ndarray]]:
        """The first frames as bands of rows: (first row, (frames,rows,W,3)), from the top down.

        A band lasts until the next one is asked for.
        """
        _, height, width, _ = self.shape
        if self._held is not None:
            yield 0, self._held[:frames]
            return
        rows = min(height, max(1, HELD_BYTES // (frames * width * 3)))
        memory = np.empty(frames * rows * width * 3, np.uint8)  # one band's, used for all
        for top in range(0, height, rows):
            shape = (frames, min(rows, height - top), width, 3)
            band = memory[: np.prod(shape)].reshape(shape)
            count = 0
            for frame in self.decode(frames):
                if frame.shape != self.shape[1:]:
                    raise UserError(f"{self.path}: changed while it was read")
                band[count] = frame[top : top + rows]
                count += 1
            if count < frames:
                raise UserError(f"{self.path}: changed while it was read")
            yield top, band

    def frames(self) -> Iterator[np.ndarray]:
        """The frames one by one, (H,W,3) RGB."""
        yield from self.decode(self.shape[0]) if self._held is None else self._held


def read_video(path: str, start: int, frames: int, tick: Tick | None = None) -> Video:
    """Open a video and read up to `frames` frames from number `start` on.

    Frames of another size than the first are scaled to it; the comparison for a moving camera sees
    that too.

    Args:
        tick: called with 1 after each frame.

    Raises:
        UserError: the file cannot be read, is not a video, or has no frame at `start`.
    """
    return Video(path, start, frames, tick)


class _Motion:
    """Compares frames with the first by phase correlation; `found` says what differs, or ''."""

    def __init__(self, start: int, frames: int) -> None:
        self.start, self.every = start, max(1, min(frames // SHIFT_SAMPLES, 16))
        self.found = ""

    def look(self, index: int, frame: np.ndarray) -> None:
        if index % self.every or self.found:
            return
        scale = min(1.0, SHIFT_SIDE / max(frame.shape[:2]))
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        size = [max(1, round(side * scale)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        grey = grey.astype(np.float32)
        if index == 0:
            self.first = grey
            self.window = np.outer(*(_hann(side) for side in grey.shape)).astype(np.float32)
            return
        # It writes to its arguments, so the first frame goes in as a copy.
        (x, y), peak = cv2.phaseCorrelate(self.first.copy(), grey.copy(), self.window)
        shift = float(np.hypot(x, y)) / scale
        difference = cv2.absdiff(self.first, grey).mean()
        if shift > SHIFT_LIMIT and self._difference_moved(grey, x, y) < SHIFT_GAIN * difference:
            self.found = (
                f"frame {self.start + index} is shifted by {shift:.1f} pixels against frame "
                f"{self.start}: the camera moves"
            )
        elif peak < SCENE_PEAK and difference > SCENE_CHANGE:
            self.found = f"frame {self.start + index} does not show what frame {self.start} does"

    def _difference_moved(self, grey: np.ndarray, x: float, y: float) -> float:
        """Mean difference to the first frame of one that is moved back by x, y."""
        height, width = grey.shape
        back = np.array([[1, 0, -x], [0, 1, -y]])
        moved = cv2.warpAffine(grey, back, (width, height))
        shown = cv2.warpAffine(np.ones_like(grey), back, (width, height)) > 0.99
        return float(cv2.absdiff(self.first, moved)[shown].mean()) if shown.any() else np.inf


def _hann(length: int) -> np.ndarray:
    return np.hanning(length + 2)[1:-1]
