"""Which codecs go through derain with every frame and every time: python benchmarks/codecs.py

Each is encoded by the installed FFmpeg, at uneven times where its container holds any, derained by
model/demo, and read again. What it prints is the table of docs/videos.md.
"""

import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from system import machine

machine.share_cores()

import av
import numpy as np

from actions.derain import derain
from media.video_reader import VideoReader
from settings import Settings

SIZE, RATE = (64, 48), 25
SLOTS = [0, 1, 2, 3, 4, 8, 9, 10, 15, 16, 17, 18]  # a frame at each, of 1/RATE s
MODEL = Path(__file__).resolve().parent.parent / "model" / "demo"


@dataclass(frozen=True)
class Kind:
    """A codec as FFmpeg calls its encoder, the suffix of a file that holds it, and its pixels."""

    name: str
    encoder: str
    suffix: str
    pixels: str = "yuv420p"


KINDS = [
    Kind("H.264", "libx264", ".mp4"),
    Kind("H.265", "libx265", ".mov"),
    Kind("AV1", "libsvtav1", ".mp4"),
    Kind("VP8", "libvpx", ".webm"),
    Kind("VP9", "libvpx-vp9", ".webm"),
    Kind("MPEG-1", "mpeg1video", ".ts"),
    Kind("MPEG-2", "mpeg2video", ".ts"),
    Kind("MPEG-4 part 2", "mpeg4", ".avi"),
    Kind("Sorenson H.263", "flv", ".flv"),
    Kind("Windows Media Video 8", "wmv2", ".wmv"),
    Kind("Motion JPEG", "mjpeg", ".avi", "yuvj420p"),
    Kind("ProRes", "prores_ks", ".mov", "yuv422p10le"),
    Kind("DNxHR", "dnxhd", ".mov", "yuv422p"),
    Kind("FFV1", "ffv1", ".mkv", "bgr0"),
    Kind("HuffYUV", "huffyuv", ".avi", "rgb24"),
    Kind("Ut Video", "utvideo", ".avi", "yuv422p"),
    Kind("uncompressed", "rawvideo", ".avi", "yuv420p"),
]


def write(kind: Kind, path: Path) -> None:
    """A short video of that kind, whose picture moves."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    picture = np.kron(small, np.ones((8, 8, 1), np.uint8))
    options = {"x265-params": "log-level=none"} if kind.encoder == "libx265" else {}
    if kind.encoder == "dnxhd":
        options = {"profile": "dnxhr_sq"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(kind.encoder, rate=RATE, options=options)
        stream.width, stream.height = (256, 128) if kind.encoder == "dnxhd" else SIZE
        stream.pix_fmt = kind.pixels
        for index, slot in enumerate(SLOTS):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, index, 1), format="rgb24")
            frame = frame.reformat(stream.width, stream.height, kind.pixels)
            frame.pts, frame.time_base = slot, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def times(path: Path) -> list[float]:
    """Of the frames, seconds after the first."""
    source = VideoReader(path)
    found = [item for item in source.items if isinstance(item, av.VideoFrame)]
    source.close()
    return [float(frame.time - found[0].time) for frame in found]


def round_trip(kind: Kind, model: Path, folder: Path) -> tuple[int, float]:
    """How many frames come out of derain, and the largest error of a time, seconds.

    Raises:
        RuntimeError: derain failed.
    """
    path, target = folder / f"in{kind.suffix}", folder / "out.mp4"
    write(kind, path)
    settings = Settings(
        "derain", model=str(model), device="cpu", input=str(path), output=str(target)
    )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = derain(settings)
    if status:
        raise RuntimeError(f"{kind.name}: derain ended with status {status}: {err.getvalue()}")
    found = times(target)
    expected = [slot / RATE for slot in SLOTS]
    errors = [abs(a - b) for a, b in zip(found, expected, strict=False)]
    return len(found), max(errors)


def main() -> int:
    print("| codec | container | frames in | frames out | largest error of a time |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            count, error = round_trip(kind, MODEL, Path(folder))
        print(
            f"| {kind.name} (`{kind.encoder}`) | {kind.suffix[1:]} | {len(SLOTS)} | {count} | "
            f"{error * 1000:.1f} ms |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
