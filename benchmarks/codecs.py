"""Which codecs keep every frame and its time in derain: python benchmarks/codecs.py

The installed FFmpeg encodes a video with each codec. Its frames have uneven times where the
container can hold them. model/demo derains it, and the result is read. This prints the table of
docs/videos.md.
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
SLOTS = [0, 1, 2, 3, 4, 8, 9, 10, 15, 16, 17, 18]  # times of the frames, in 1/RATE s
MODEL = Path(__file__).resolve().parent.parent / "model" / "demo"


@dataclass(frozen=True)
class Codec:
    """A codec, FFmpeg's name of its encoder, the suffix of its file, and its pixel format."""

    name: str
    encoder: str
    suffix: str
    pixel_format: str = "yuv420p"


CODECS = [
    Codec("H.264", "libx264", ".mp4"),
    Codec("H.265", "libx265", ".mov"),
    Codec("AV1", "libsvtav1", ".mp4"),
    Codec("VP8", "libvpx", ".webm"),
    Codec("VP9", "libvpx-vp9", ".webm"),
    Codec("MPEG-1", "mpeg1video", ".ts"),
    Codec("MPEG-2", "mpeg2video", ".ts"),
    Codec("MPEG-4 part 2", "mpeg4", ".avi"),
    Codec("Sorenson H.263", "flv", ".flv"),
    Codec("Windows Media Video 8", "wmv2", ".wmv"),
    Codec("Motion JPEG", "mjpeg", ".avi", "yuvj420p"),
    Codec("ProRes", "prores_ks", ".mov", "yuv422p10le"),
    Codec("DNxHR", "dnxhd", ".mov", "yuv422p"),
    Codec("FFV1", "ffv1", ".mkv", "bgr0"),
    Codec("HuffYUV", "huffyuv", ".avi", "rgb24"),
    Codec("Ut Video", "utvideo", ".avi", "yuv422p"),
    Codec("uncompressed", "rawvideo", ".avi", "yuv420p"),
]


def write_video(codec: Codec, path: Path) -> None:
    """Write a short video with that codec, in which the picture moves."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    picture = np.kron(small, np.ones((8, 8, 1), np.uint8))
    options = {"x265-params": "log-level=none"} if codec.encoder == "libx265" else {}
    if codec.encoder == "dnxhd":
        options = {"profile": "dnxhr_sq"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec.encoder, rate=RATE, options=options)
        stream.width, stream.height = (256, 128) if codec.encoder == "dnxhd" else SIZE
        stream.pix_fmt = codec.pixel_format
        for index, slot in enumerate(SLOTS):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, index, 1), format="rgb24")
            frame = frame.reformat(stream.width, stream.height, codec.pixel_format)
            frame.pts, frame.time_base = slot, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def read_times(path: Path) -> list[float]:
    """The time of each frame, in seconds after the first."""
    source = VideoReader(path)
    times = [item.time for item in source.items if isinstance(item, av.VideoFrame)]
    source.close()
    return [float(time - times[0]) for time in times]


def measure_codec(codec: Codec, model: Path, folder: Path) -> tuple[int, float]:
    """The number of frames that come out of derain, and the largest error of a time, seconds.

    Raises:
        RuntimeError: derain failed.
    """
    path, target = folder / f"in{codec.suffix}", folder / "out.mp4"
    write_video(codec, path)
    settings = Settings(
        "derain", model=str(model), device="cpu", input=str(path), output=str(target)
    )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = derain(settings)
    if status:
        raise RuntimeError(f"{codec.name}: derain ended with status {status}: {err.getvalue()}")
    times = read_times(target)
    errors = [abs(time - slot / RATE) for time, slot in zip(times, SLOTS, strict=False)]
    return len(times), max(errors)


def main() -> int:
    print("| codec | container | frames in | frames out | largest error of a time |")
    print("|---|---|---|---|---|")
    for codec in CODECS:
        with tempfile.TemporaryDirectory() as folder:
            count, error = measure_codec(codec, MODEL, Path(folder))
        print(
            f"| {codec.name} (`{codec.encoder}`) | {codec.suffix[1:]} | {len(SLOTS)} | {count} | "
            f"{error * 1000:.1f} ms |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
