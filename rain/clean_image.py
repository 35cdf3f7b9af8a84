"""Clean images from rain videos of a static camera (paper, section 3).

Rain covers a pixel in a few frames only, and brightens it. The value that a pixel shows most often,
the mode of its luminance over time, is therefore free of rain, and it lies somewhere in the sorted
values. Each pixel votes for the percentiles at which its own mode lies; the clean image takes the
winning percentile of every pixel and channel. Frames are (T,H,W,3) uint8 RGB throughout.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from rain.frames import Tick, Video, read_video
from system.compiled import compiled
from system.machine import count_cores

__all__ = [
    "Clean",
    "clean_image",
    "luminance",
    "mode_percentile",
    "percentile_votes",
    "read_video",
]

ROWS = 8  # rows that a thread works on at a time
PIXELS = 32  # pixels whose values are counted together: their counts fit into the nearest cache
BLOCK = 64  # neighbouring values selected from together, in vector instructions
MOST_FRAMES = 65535  # counted in 16 bits
MODE_MARGIN = 2  # grey levels round the mode that count for it when its strength is judged
WEAK_MODE = 0.25  # share of frames within the margin below which a mode is weak


@dataclass(frozen=True)
class Clean:
    """A clean image and what speaks for or against it.

    Attributes:
        image: (H,W,3) uint8 RGB.
        percentile: the one taken, 0..100.
        frames: how many frames it was made from.
        residual_rain: mean over frames, pixels and channels of max(frame - image, 0), grey levels.
        ghosting: share, 0..1, of pixels whose mode is weak: fewer than a quarter of the frames lie
            within 2 grey levels of it. Something other than rain moved there.
    """

    image: np.ndarray
    percentile: float
    frames: int
    residual_rain: float
    ghosting: float


@compiled()
def _luminance(rgb, top, released, luma):
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


@compiled()
def _vote(luma, low, high, margin, needed, votes):
    """Add each pixel's vote to votes (102,), as differences; return how many modes are weak."""
    frames, rows, width = luma.shape
    counts = np.empty((PIXELS, 256), np.uint16)
    least, most = np.empty(PIXELS, np.uint8), np.empty(PIXELS, np.uint8)
    weak = 0
    for row in range(rows):
        for left in range(0, width, PIXELS):
            size = min(PIXELS, width - left)
            counts[:] = 0
            least[:] = 255
            most[:] = 0
            for t in range(frames):
                now = luma[t, row, left : left + size]
                for i in range(size):
                    counts[i, now[i]] += 1
                for i in range(size):
                    least[i] = min(least[i], now[i])
                    most[i] = max(most[i], now[i])
            for i in range(size):
                own = counts[i]
                mode, peak, first, before = 0, 0, 0, 0
                for value in range(least[i], most[i] + 1):
                    count = own[value]
                    if count > peak:  # of several modes the smallest stays
                        mode, peak, first = value, count, before
                    before += count
                begin, end = low[first], high[first + peak - 1]
                if begin <= end:
                    votes[begin] += 1
                    votes[end + 1] -= 1
                near = 0
                for value in range(max(0, mode - margin), min(256, mode + margin + 1)):
                    near += own[value]
                if near < needed:
                    weak += 1
    return weak


@compiled()
def _select(values, top, bottom, k, between, image):
    """Write percentiles of values (T,rows,n) into image (rows,n); return the sum above them.

    The k-th smallest value is found bit by bit, from the highest: it has the bit if no more than
    k values lie below the number so far with it. Counting runs over BLOCK values at once, in
    loops that the compiler turns into vector instructions.
    `between` gives the result from the k-th and the following value.
    """
    frames, _, width = values.shape
    # Four frames are compared at a time; 255, which fills up, is below nothing.
    padded = (frames + 3) // 4 * 4
    window = np.full((padded, (width + BLOCK - 1) // BLOCK * BLOCK), 255, np.uint8)
    found, trial = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
    following = np.empty(BLOCK, np.uint8)
    count = np.empty(BLOCK, np.uint16)
    above = np.empty(BLOCK, np.uint32)
    total = 0
    for row in range(top, bottom):
        for t in range(frames):  # a row at a time: frames are far apart in memory
            window[t, :width] = values[t, row]
        for left in range(0, width, BLOCK):
            size = min(BLOCK, width - left)
            found[:] = 0
            for shift in range(7, -1, -1):
                count[:] = 0
                for i in range(BLOCK):
                    trial[i] = found[i] | (1 << shift)
                for t in range(0, padded, 4):
                    four = window[t : t + 4, left : left + BLOCK]
                    a, b, c, d = four[0], four[1], four[2], four[3]
                    for i in range(BLOCK):
                        x = trial[i]
                        count[i] += np.uint8(a[i] < x) + (b[i] < x) + (c[i] < x) + (d[i] < x)
                for i in range(BLOCK):
                    if count[i] <= k:
                        found[i] = trial[i]
            count[:] = 0
            following[:] = 255
            for t in range(frames):
                now = window[t, left : left + BLOCK]
                for i in range(BLOCK):
                    value = now[i]
                    count[i] += value <= found[i]
                    following[i] = min(following[i], value if value > found[i] else np.uint8(255))
            above[:] = 0
            for i in range(size):
                upper = found[i] if count[i] > k + 1 else following[i]
                found[i] = between[found[i], upper]
                image[row, left + i] = found[i]
            for t in range(frames):
                now = window[t, left : left + BLOCK]
                for i in range(BLOCK):
                    above[i] += np.uint8(max(now[i], found[i]) - found[i])
            for i in range(size):
                total += above[i]
    return total


def _in_threads(work: Callable[[int, int], object], rows: int, tick: Tick) -> list:
    """work(top, bottom) over all rows, a few at a time, on all cores; results in order."""
    results = []
    with ThreadPoolExecutor(count_cores()) as pool:
        tops = range(0, rows, ROWS)
        bottoms = [min(top + ROWS, rows) for top in tops]
        for top, bottom, result in zip(tops, bottoms, pool.map(work, tops, bottoms), strict=True):
            results.append(result)
            tick(bottom - top)
    return results


def _position_percents(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """For each position in the sorted values: least percentile not below it, most not above."""
    percent = np.arange(frames) / frames * 100  # double precision, in this order of operations
    return np.ceil(percent).astype(np.int64), np.floor(percent).astype(np.int64)


def _totals(differences: np.ndarray) -> np.ndarray:
    return np.cumsum(differences)[:101]


def _check(array: np.ndarray, name: str, shape: str, channels: bool) -> None:
    right = array.ndim == (4 if channels else 3) and (not channels or array.shape[3] == 3)
    if array.dtype != np.uint8 or not right or array.size == 0 or len(array) > MOST_FRAMES:
        raise ValueError(
            f"{name}: expected {shape} uint8, T at most {MOST_FRAMES}, got {array.shape} "
            f"{array.dtype}"
        )


def luminance(frames_rgb: np.ndarray, released: bool = False) -> np.ndarray:
    """Y = 0.299 R + 0.587 G + 0.114 B, truncated: (T,H,W,3) uint8 -> (T,H,W) uint8.

    Args:
        released: as the published notebook computes it: all but the first column plus 128, modulo
            256.
    """
    _check(frames_rgb, "luminance", "(T,H,W,3)", channels=True)
    luma = np.empty(frames_rgb.shape[:3], np.uint8)
    _luminance(np.ascontiguousarray(frames_rgb), 0, released, luma)
    return luma


def percentile_votes(luma: np.ndarray) -> np.ndarray:
    """How many pixels have their mode over time at each percentile 0..100: (101,) int64.

    Args:
        luma: (T,H,W) uint8. Of several modes a pixel's smallest counts.

    Raises:
        ValueError: luma is not (T,H,W) uint8, or empty.
    """
    _check(luma, "percentile_votes", "(T,H,W)", channels=False)
    votes = np.zeros(102, np.int64)
    _vote(np.ascontiguousarray(luma), *_position_percents(len(luma)), MODE_MARGIN, 0.0, votes)
    return _totals(votes)


def mode_percentile(luma: np.ndarray) -> int:
    """The percentile that most pixels vote for, of several the smallest; see percentile_votes."""
    return int(np.argmax(percentile_votes(luma)))


def clean_image(
    frames_rgb: np.ndarray | Video,
    percentile: float | None = None,
    released_luma: bool = False,
    frames: int | None = None,
    tick: Tick | None = None,
) -> Clean:
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
    tick = tick or (lambda _: None)
    votes, weak = _votes(frames_rgb, count, released_luma, tick)
    if percentile is None:
        percentile = int(np.argmax(votes))
    image, above = _percentile_image(frames_rgb, count, percentile, tick)
    return Clean(image, percentile, count, above / (count * image.size), weak / (height * width))


def _bands(source: np.ndarray | Video, count: int) -> Iterator[tuple[int, np.ndarray]]:
    if isinstance(source, Video):
        yield from source.bands(count)
    else:
        _check(source, "clean_image", "(T,H,W,3)", channels=True)
        yield 0, np.ascontiguousarray(source[:count])


def _votes(
    source: np.ndarray | Video, count: int, released: bool, tick: Tick
) -> tuple[np.ndarray, int]:
    """All pixels' votes (101,), and how many pixels have a weak mode."""
    low, high = _position_percents(count)

    def vote(band: np.ndarray, top: int, bottom: int) -> tuple[np.ndarray, int]:
        votes = np.zeros(102, np.int64)
        luma = np.empty((count, bottom - top, band.shape[2]), np.uint8)
        _luminance(band, top, released, luma)
        return votes, _vote(luma, low, high, MODE_MARGIN, WEAK_MODE * count, votes)

    votes, weak = np.zeros(102, np.int64), 0
    for _, band in _bands(source, count):
        for own, few in _in_threads(partial(vote, band), band.shape[1], tick):
            votes += own
            weak += few
    return _totals(votes), weak


def _percentile_image(
    source: np.ndarray | Video, count: int, percentile: float, tick: Tick
) -> tuple[np.ndarray, int]:
    """np.percentile over time, truncated to uint8, and the sum of what frames have above it."""
    _, height, width, _ = source.shape
    image, above = np.empty((height, width, 3), np.uint8), 0
    k, between = _interpolation(count, percentile)

    def select(values: np.ndarray, place: np.ndarray, top: int, bottom: int) -> int:
        return _select(values, top, bottom, k, between, place)

    for top, band in _bands(source, count):
        rows = band.shape[1]
        values = band.reshape(count, rows, width * 3)
        place = image[top : top + rows].reshape(rows, width * 3)
        above += sum(_in_threads(partial(select, values, place), rows, tick))
    return image, above


def _interpolation(frames: int, percentile: float) -> tuple[int, np.ndarray]:
    """Position k of a percentile, and its value, truncated, from those at k and at k+1.

    The table (256,256) holds what np.percentile gives for each pair, by the same arithmetic.
    """
    position = (frames - 1) * (percentile / 100)
    k = min(int(position), frames - 1)
    weight = position - k
    here, following = np.arange(256.0)[:, None], np.arange(256.0)
    step = following - here
    value = here + step * weight if weight < 0.5 else following - step * (1 - weight)
    return k, np.clip(value, 0, 255).astype(np.uint8)
