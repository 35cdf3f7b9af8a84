"""Speed and memory of clean-image generation: python benchmarks/clean.py

The baseline goes from pixel to pixel in Python, in 8 processes, as the published notebook does
(written anew), and ends with one np.percentile. Both make the same image from the same frames in
one process, by turns. Larger cases are held against the same method with frames read by OpenCV,
also by turns in one process; memory is that of a process for each reader.
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

LARGE = {"1080p": (1080, 1920), "4K": (2160, 3840)}
FRAMES = 100


def rain_video(height: int, width: int, frames: int) -> np.ndarray:
    """Frames (T,H,W,3) RGB of rain and camera noise before a photograph."""
    clean = cv2.resize(backgrounds.photograph("coffee"), (width, height))
    rain = [streaks.Rain(1.5, 10, 25, 1, 110, 0.6)]
    rng = np.random.default_rng(0)
    return np.stack([f[..., ::-1] for f in streaks.rain_frames(clean, rain, frames, 2, rng)])


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


class OpenCvReader:
    """What Video needs of a VideoReader, by OpenCV's own reader of videos."""

    notes, incomplete = (), False

    def __init__(self, path: str, start: int, frames: int) -> None:
        self.capture, self.frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG), frames
        for _ in range(start):
            self.capture.grab()

    def read_images(self) -> Iterator[np.ndarray]:
        for _ in range(self.frames):
            there, frame = self.capture.read()
            if not there:
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


def write_rain(path: Path, height: int, width: int) -> None:
    """FRAMES frames of MPEG-4, eight different ones over and over."""
    few = rain_video(height, width, 8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 20 * height * width
        for t in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(few[t % 8], format="rgb24")))
        file.mux(stream.encode(None))


def measure_large(name: str, folder: Path, turns: int) -> None:
    path = folder / f"{name}.mp4"
    write_rain(path, *LARGE[name])
    command = [sys.executable, __file__, "--video", str(path)]
    done = subprocess.run([*command, "--turns", str(turns)], capture_output=True, check=True)
    print(f"{name}, {FRAMES} frames: {done.stdout.decode().strip()}")
    for reader in READERS:
        done = subprocess.run([*command, "--reader", reader], capture_output=True, check=True)
        print(f"    by {reader}: {done.stdout.decode().strip()}", flush=True)


def measure_video(path: str, turns: int) -> None:
    """Time of reading a video and of its clean image, by both readers in turn."""
    clean_image(np.zeros((2, 8, 8, 3), np.uint8))  # compiles
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    images = {}
    for _ in range(turns):
        for name, kind in READERS.items():
            video = []
            reading = seconds(lambda kind=kind, video=video: video.append(kind(path, 0, FRAMES)))
            start = time.perf_counter()
            images[name] = clean_image(video[0]).image
            times[name].append((reading, time.perf_counter() - start))
    if not np.array_equal(*images.values()):
        sys.exit("clean.py: the two readers give different images")
    # The best of the turns: what else the machine does only adds to a time.
    best = {name: np.min(found, 0) for name, found in times.items()}
    whole = {name: np.min(np.sum(found, 1)) for name, found in times.items()}
    parts = (
        f"{name}: first reading {best[name][0]:.1f} s, clean image {best[name][1]:.1f} s"
        for name in READERS
    )
    print(f"{'; '.join(parts)}; all of it {whole['ours'] / whole['OpenCV']:.2f} times OpenCV's")


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
    compare(options.turns)
    with tempfile.TemporaryDirectory() as folder:
        for name in LARGE:
            measure_large(name, Path(folder), options.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
