"""Speed and memory of clean-image generation: python benchmarks/clean.py

The baseline goes from pixel to pixel in Python, in 8 processes, as the published notebook does
(written anew), and ends with one np.percentile. It runs in alternation with ours, on the same
frames, and must give the same image. Larger videos are also read by OpenCV, in alternation, and
the method stays the same. Memory is that of a process for each reader.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import machine

machine.share_cores()

import av
import cv2
import numpy as np

from rain import backgrounds, streaks
from rain.clean_image import clean_image
from rain.frames import Video

LARGE_SIZES = {"1080p": (1080, 1920), "4K": (2160, 3840)}
FRAMES = 100


def draw_rain_video(height: int, width: int, frames: int) -> np.ndarray:
    """Frames (T,H,W,3) RGB of rain and camera noise before a photograph."""
    clean = cv2.resize(backgrounds.photograph("coffee"), (width, height))
    rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
    rng = np.random.default_rng(0)
    return np.stack([f[..., ::-1] for f in streaks.rain_frames(clean, rain, frames, 2, rng)])


def count_row_votes(luma: np.ndarray) -> list[int]:
    """Votes for the percentiles 0..100 in a row of pixels, luma (T,W), pixel by pixel."""
    votes = [0] * 101
    frames = len(luma)
    for column in range(luma.shape[1]):
        values = sorted(luma[:, column].tolist())
        counts = Counter(values)
        mode_count = max(counts.values())
        mode = min(value for value, count in counts.items() if count == mode_count)
        first = values.index(mode)
        low, high = first / frames * 100, (first + mode_count - 1) / frames * 100
        for percentile in range(101):
            if low <= percentile <= high:
                votes[percentile] += 1
    return votes


def compute_baseline(frames: np.ndarray, pool: ProcessPoolExecutor) -> np.ndarray:
    """The clean image (H,W,3) uint8 of frames (T,H,W,3)."""
    red, green, blue = np.moveaxis(frames, -1, 0)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).astype(np.uint8)
    rows = [np.ascontiguousarray(luma[:, row]) for row in range(luma.shape[1])]
    votes = np.sum(list(pool.map(count_row_votes, rows, chunksize=8)), 0)
    return np.percentile(frames, int(votes.argmax()), axis=0).astype(np.uint8)


def time_call(call: Callable[[], object]) -> float:
    """Seconds of the call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare_with_baseline(turns: int) -> None:
    frames = draw_rain_video(240, 424, FRAMES)
    with ProcessPoolExecutor(8) as pool:
        if not np.array_equal(compute_baseline(frames, pool), clean_image(frames).image):
            sys.exit("clean.py: ours and the baseline make different images")
        times, baseline_times = [], []
        for _ in range(turns):
            baseline_times.append(time_call(lambda: compute_baseline(frames, pool)))
            times.append(min(time_call(lambda: clean_image(frames)) for _ in range(3)))
    seconds, baseline = sorted(times)[turns // 2], sorted(baseline_times)[turns // 2]
    print(f"424x240, {FRAMES} frames: ours {seconds:.3f} s, by pixel in 8 processes "
          f"{baseline:.2f} s, {baseline / seconds:.0f} times faster")  # fmt: skip


class OpenCvReader:
    """The part of VideoReader that Video uses, with frames from OpenCV."""

    notes, incomplete = (), False

    def __init__(self, path: str, start: int, frames: int) -> None:
        self.capture, self.frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG), frames
        self.height = int(self.capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.width = int(self.capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        for _ in range(start):
            self.capture.grab()

    def read_images(self) -> Iterator[np.ndarray]:
        for _ in range(self.frames):
            success, frame = self.capture.read()
            if not success:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def list_warnings(self, timestamps: bool) -> list[str]:
        return []

    def close(self) -> None:
        self.capture.release()


class OpenCvVideo(Video):
    def _open_reader(self, frames: int) -> OpenCvReader:
        return OpenCvReader(self.path, self.start, frames)


READERS = {"ours": Video, "OpenCV": OpenCvVideo}


def write_rain_video(path: Path, height: int, width: int) -> None:
    """FRAMES frames of MPEG-4: eight different ones, repeated."""
    frames = draw_rain_video(height, width, 8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 20 * height * width
        for t in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frames[t % 8], format="rgb24")))
        file.mux(stream.encode(None))


def measure_large_video(name: str, folder: Path, turns: int) -> None:
    path = folder / f"{name}.mp4"
    write_rain_video(path, *LARGE_SIZES[name])
    command = [sys.executable, __file__, "--video", str(path)]
    process = subprocess.run([*command, "--turns", str(turns)], capture_output=True, check=True)
    print(f"{name}, {FRAMES} frames: {process.stdout.decode().strip()}")
    for reader in READERS:
        process = subprocess.run([*command, "--reader", reader], capture_output=True, check=True)
        print(f"    by {reader}: {process.stdout.decode().strip()}", flush=True)


def measure_video(path: str, turns: int) -> None:
    """Print the times of reading a video and of its clean image, with both readers."""
    clean_image(np.zeros((2, 8, 8, 3), np.uint8))  # compiles
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    images = {}
    for _ in range(turns):
        for name, reader in READERS.items():
            start = time.perf_counter()
            video = reader(path, 0, FRAMES)
            middle = time.perf_counter()
            images[name] = clean_image(video).image
            times[name].append((middle - start, time.perf_counter() - middle))
    if not np.array_equal(*images.values()):
        sys.exit("clean.py: the two readers give different images")
    # The shortest of all turns, since other programs only add to a time.
    best = {name: np.min(pairs, 0) for name, pairs in times.items()}
    totals = {name: np.min(np.sum(pairs, 1)) for name, pairs in times.items()}
    parts = (
        f"{name}: first reading {best[name][0]:.1f} s, clean image {best[name][1]:.1f} s"
        for name in READERS
    )
    print(f"{'; '.join(parts)}; all of it {totals['ours'] / totals['OpenCV']:.2f} times OpenCV's")


def measure_memory(path: str, reader: str) -> None:
    clean_image(np.zeros((2, 8, 8, 3), np.uint8))  # compiles
    start = machine.peak_memory()
    clean_image(READERS[reader](path, 0, FRAMES))
    print(f"peak memory {machine.peak_memory():.0f} MiB ({start:.0f} before)")


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of clean-image generation.")
    parser.add_argument("--turns", type=int, default=3, help="of ours and of the baseline")
    parser.add_argument("--video", help="measure this video alone")
    parser.add_argument("--reader", choices=READERS, help="its memory by this reader")
    options = parser.parse_args()
    if options.video and options.reader:
        measure_memory(options.video, options.reader)
        return 0
    if options.video:
        measure_video(options.video, options.turns)
        return 0
    compare_with_baseline(options.turns)
    with tempfile.TemporaryDirectory() as folder:
        for name in LARGE_SIZES:
            measure_large_video(name, Path(folder), options.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
