"""Clean images from rain videos of a static camera (paper, section 3).

Rain covers a pixel in a few frames only, and brightens it. The value that a pixel shows most often,
the mode of its luminance over time, is therefore free of rain, and it lies somewhere in the sorted
values. Each pixel votes for the percentiles at which its own mode lies; the clean image takes the
winning percentile of every pixel and channel. The method in four steps, each a function below:
luminance, percentile_votes, mode_percentile, clean_image. Frames are (T,H,W,3) uint8 RGB.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np

from rain.frames import Tick, Video, read_video
from system.compiled import compiled
from system.machine import count_cores

__all__ = ["clean_image", "luminance", "mode_percentile", "percentile_votes", "read_video"]

Result = TypeVar("Result")
ROWS = 8  # that a thread works on at a time
PIXELS = 32  # whose histograms are counted together: they fit into the nearest cache
BLOCK = 256  # neighbouring values selected from together, in vector instructions
MAX_FRAMES = 65535  # counted in 16 bits
MODE_MARGIN = 2  # grey levels round the mode that count for it when its strength is judged
WEAK_MODE = 0.25  # share of frames within the margin below which a mode is weak


@dataclass(frozen=True)
class CleanImage:
    """A clean image and what speaks for or against it.

    Attributes:
        image: (H,W,3) uint8 RGB.
        percentile: the one taken, 0..100.
        frames: how many frames it was computed from.
        residual_rain: mean over frames, pixels and channels of max(frame - image, 0), grey levels.
        ghosting: share, 0..1, of pixels whose mode is weak: fewer than a quarter of the frames lie
            within 2 grey levels of it. Something other than rain moved there.
    """

    image: np.ndarray
    percentile: float
    frames: int
    residual_rain: float
    ghosting: float


def luminance(frames_rgb: np.ndarray, released: bool = False) -> np.ndarray:
    """Y = 0.299 R + 0.587 G + 0.114 B, truncated: (T,H,W,3) uint8 -> (T,H,W) uint8.

    Args:
        released: as the published notebook computes it: all but the first column plus 128, modulo
            256.
    """
    check_frames(frames_rgb, "luminance")
    luma = np.empty(frames_rgb.shape[:3], np.uint8)
    compute_luminance(np.ascontiguousarray(frames_rgb), 0, released, luma)
    return luma


def percentile_votes(luma: np.ndarray) -> np.ndarray:
    """How many pixels have their mode over time at each percentile 0..100: (101,) int64.

    Args:
        luma: (T,H,W) uint8. Of several modes a pixel's smallest counts.
    """
    return count_votes(np.ascontiguousarray(luma))[0]


def mode_percentile(luma: np.ndarray) -> int:
    """The percentile that most pixels vote for, of several the smallest; see percentile_votes."""
    return int(np.argmax(percentile_votes(luma)))


def clean_image(
    frames_rgb: np.ndarray | Video,
    percentile: float | None = None,
    released_luma: bool = False,
    frames: int | None = None,
    tick: Tick = lambda _: None,
) -> CleanImage:
    """The clean image of a rain video.

    Args:
        frames_rgb: (T,H,W,3) uint8 RGB, or a Video, which need not fit into memory.
        percentile: taken instead of the pixels' vote, 0..100.
        released_luma: vote with the published notebook's luminance.
        frames: use the first ones only; all by default.
        tick: called with the number of rows done since the last call; each row is done twice.

    Raises:
        ValueError: frames_rgb is not (T,H,W,3) uint8, or percentile is out of range.
    """
    if percentile is not None and not 0 <= percentile <= 100:
        raise ValueError(f"clean_image: percentile must be 0..100, got {percentile}")
    count, height, width, _ = frames_rgb.shape
    count = min(count, frames or count)

    def iterate_bands() -> Iterable[tuple[int, np.ndarray]]:
        if isinstance(frames_rgb, Video):
            return frames_rgb.bands(count)
        check_frames(frames_rgb, "clean_image")
        return [(0, np.ascontiguousarray(frames_rgb[:count]))]

    votes, weak_modes = np.zeros(101, np.int64), 0
    for _, band in iterate_bands():
        rows = band.shape[1]
        for row_votes, row_weak_modes in map_rows(partial(vote_rows, band, released_luma), rows):
            votes += row_votes
            weak_modes += row_weak_modes
        tick(rows)
    if percentile is None:
        percentile = int(np.argmax(votes))
    rank, table = interpolate_percentile(count, percentile)
    image, excess = np.empty((height, width * 3), np.uint8), 0.0
    for top, band in iterate_bands():
        rows = band.shape[1]
        values = band.reshape(count, rows, width * 3)
        target = image[top : top + rows]
        excess += sum(map_rows(partial(select_rows, values, rank, table, target), rows))
        tick(rows)
    residual_rain, ghosting = excess / (count * image.size), weak_modes / (height * width)
    return CleanImage(image.reshape(height, width, 3), percentile, count, residual_rain, ghosting)


def check_frames(array: np.ndarray, name: str) -> None:
    """Raises ValueError, naming the caller, unless array is (T,H,W,3) uint8."""
    right = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and array.size
    if not right or len(array) > MAX_FRAMES:
        got = f"{array.shape} {array.dtype}"
        raise ValueError(f"{name}: expected (T,H,W,3) uint8, T at most {MAX_FRAMES}, got {got}")


def map_rows(work: Callable[[int, int], Result], rows: int) -> list[Result]:
    """work(top, bottom) over all rows, a few at a time, on all cores; results in order."""
    tops = range(0, rows, ROWS)
    with ThreadPoolExecutor(count_cores()) as pool:
        return list(pool.map(work, tops, [min(top + ROWS, rows) for top in tops]))


def vote_rows(
    frames_rgb: np.ndarray, released: bool, top: int, bottom: int
) -> tuple[np.ndarray, int]:
    """count_votes of the rows top..bottom-1 of (T,H,W,3)."""
    luma = np.empty((len(frames_rgb), bottom - top, frames_rgb.shape[2]), np.uint8)
    compute_luminance(frames_rgb, top, released, luma)
    return count_votes(luma)


def select_rows(
    values: np.ndarray, rank: int, table: np.ndarray, image: np.ndarray, top: int, bottom: int
) -> float:
    """Fill rows top..bottom-1 of image (H,n); returns the sum of what values (T,H,n) exceed it."""
    select_values(values, rank, table, image, top, bottom)
    clean = image[top:bottom]
    return sum(cv2.norm(cv2.subtract(frame[top:bottom], clean), cv2.NORM_L1) for frame in values)


@compiled()
def compute_luminance(rgb: np.ndarray, top: int, released: bool, luma: np.ndarray) -> None:
    """Fill luma (T,rows,W) from the rows of rgb (T,H,W,3) from `top` on."""
    frames, rows, width = luma.shape
    exact = np.empty(width)
    for t in range(frames):
        for row in range(rows):
            line, out = rgb[t, top + row].reshape(3 * width), luma[t, row]
            # Two loops of one kind of work each become vector instructions, one of both does not.
            for i in range(width):
                exact[i] = 0.299 * line[3 * i] + 0.587 * line[3 * i + 1] + 0.114 * line[3 * i + 2]
            if released:
                exact[1:] += 128
            for i in range(width):
                out[i] = np.int32(exact[i])


def count_votes(luma: np.ndarray) -> tuple[np.ndarray, int]:
    """All pixels' votes for the percentiles 0..100, (101,) int64, and how many modes are weak."""
    # In double precision, in this order of operations: the rounding decides some votes.
    percent = np.arange(len(luma)) / len(luma) * 100
    lowest, highest = np.ceil(percent).astype(np.int64), np.floor(percent).astype(np.int64)
    steps = np.zeros(102, np.int64)
    weak_modes = add_votes(luma, lowest, highest, WEAK_MODE * len(luma), steps)
    return np.cumsum(steps)[:101], weak_modes


@compiled()
def add_votes(
    luma: np.ndarray, lowest: np.ndarray, highest: np.ndarray, needed: float, steps: np.ndarray
) -> int:
    """Add each pixel's votes to steps (102,), as differences between neighbouring percentiles.

    Args:
        luma: (T,rows,W) uint8.
        lowest, highest: (T,), for each position in the sorted values: the least integer percentile
            not below it, and the greatest not above it.
        needed: frames near the mode below which it is weak.

    Returns how many modes are weak.
    """
    frames, rows, width = luma.shape
    histograms = np.empty((PIXELS, 256), np.uint16)
    darkest, brightest = np.empty(PIXELS, np.uint8), np.empty(PIXELS, np.uint8)
    weak_modes = 0
    for row in range(rows):
        for left in range(0, width, PIXELS):
            size = min(PIXELS, width - left)
            histograms[:] = 0
            darkest[:] = 255
            brightest[:] = 0
            for t in range(frames):
                line = luma[t, row, left : left + size]
                for i in range(size):
                    histograms[i, line[i]] += 1
                for i in range(size):
                    darkest[i] = min(darkest[i], line[i])
                    brightest[i] = max(brightest[i], line[i])
            for i in range(size):
                histogram = histograms[i]
                mode, peak, first, below = 0, 0, 0, 0
                for value in range(darkest[i], brightest[i] + 1):
                    count = histogram[value]
                    if count > peak:  # of several modes the smallest stays
                        mode, peak, first = value, count, below
                    below += count
                begin, end = lowest[first], highest[first + peak - 1]
                if begin <= end:
                    steps[begin] += 1
                    steps[end + 1] -= 1
                near = histogram[max(0, mode - MODE_MARGIN) : mode + MODE_MARGIN + 1].sum()
                weak_modes += near < needed
    return weak_modes


def interpolate_percentile(frames: int, percentile: float) -> tuple[int, np.ndarray]:
    """Where in the sorted values a percentile lies: its rank, and the value for those at rank and
    rank + 1, truncated, as a table (256,256) uint8. By np.percentile's arithmetic.
    """
    position = (frames - 1) * (percentile / 100)
    rank = min(int(position), frames - 1)
    weight = position - rank
    lower, upper = np.arange(256.0)[:, None], np.arange(256.0)
    step = upper - lower
    value = lower + step * weight if weight < 0.5 else upper - step * (1 - weight)
    return rank, np.clip(value, 0, 255).astype(np.uint8)


@compiled()
def select_values(
    values: np.ndarray, rank: int, table: np.ndarray, image: np.ndarray, top: int, bottom: int
) -> None:
    """Write the percentiles over time of values (T,H,n) into rows top..bottom-1 of image (H,n).

    The value at `rank` is found bit by bit, from the highest: it has the bit if no more than `rank`
    values lie below the number so far with it. BLOCK values are counted together, in loops that
    the compiler turns into vector instructions, and in 8 bits as long as 255 frames fit.
    """
    frames, _, width = values.shape
    block = np.empty((frames, BLOCK), np.uint8)
    trial, lower = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    upper, few = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    count = np.empty(BLOCK, np.uint16)
    for row in range(top, bottom):
        for left in range(0, width, BLOCK):
            size = min(BLOCK, width - left)
            for t in range(frames):  # frames are far apart in memory
                block[t, :size] = values[t, row, left : left + size]
            lower[:] = 0
            for shift in range(7, -1, -1):
                trial[:] = lower | (1 << shift)
                count[:] = 0
                for start in range(0, frames, 255):
                    few[:] = 0
                    for t in range(start, min(start + 255, frames)):
                        for i in range(BLOCK):
                            few[i] += np.uint8(block[t, i] < trial[i])
                    count += few
                for i in range(BLOCK):
                    if count[i] <= rank:
                        lower[i] = trial[i]
            count[:] = 0
            upper[:] = 255
            for t in range(frames):
                for i in range(BLOCK):
                    value = block[t, i]
                    count[i] += value <= lower[i]
                    upper[i] = min(upper[i], value if value > lower[i] else np.uint8(255))
            for i in range(size):
                following = lower[i] if count[i] > rank + 1 else upper[i]
                image[row, left + i] = table[lower[i], following]
