"""Videos for the tests, as phones, dashcams and recorders make them, and as damage leaves them."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags
from conftest import DATA
from test_videos import DERAIN

from media.video_reader import VideoReader

SIZE = (64, 48)
PIXELS = {"mjpeg": "yuvj420p", "ffv1": "bgr0", "libx264rgb": "bgr24"}  # others: yuv420p
QUIET = {"libx265": {"x265-params": "log-level=none:keyint=8"}}
KEYED = {"g": "8", "bf": "0"}  # a key frame in eight, each frame decoded from those before it


def case(name: str) -> Path:
    """A copy, in the test's own folder, of one of the small files of tests/data/videos."""
    Path(name).write_bytes((DATA / "videos" / name).read_bytes())
    return Path(name)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H,W,3) uint8 BGR, smooth, no axis or corner of it like another; a bar shows the index."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 60)], -1)
    left = index % 12 * width // 12
    image[height // 4 : height // 2, left : left + width // 12] = 240
    return cv2.GaussianBlur(image.astype(np.uint8), (3, 3), 0)


def make(
    path: str,
    codec: str = "libx264",
    count: int = 12,
    slots: list[int] | None = None,
    options: dict[str, str] | None = None,
    pixels: str = "",
    covers: int = 0,
    last: int = 0,
    **more: dict[str, str],
) -> Path:
    """A video of picture(0), picture(1), ... at 1/25 s times their slots; covers come first.

    last: so many slots the last frame is shown, 0 to let the encoder choose.
    more: container_options, and the metadata of file and stream.
    """
    with av.open(path, "w", container_options=more.get("container_options", {})) as file:
        file.metadata.update(more.get("metadata", {}))
        for _ in range(covers):
            cover = file.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 80, 100, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        stream = file.add_stream(codec, rate=25, options=QUIET.get(codec, {}) | (options or {}))
        stream.width, stream.height = SIZE
        stream.pix_fmt = pixels or PIXELS.get(codec, "yuv420p")
        stream.metadata.update(more.get("stream_metadata", {}))
        for cover in [one for one in file.streams if one is not stream]:
            image = av.VideoFrame.from_ndarray(picture(0, (80, 100)), format="bgr24")
            file.mux([*cover.encode(image), *cover.encode(None)])
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
            frame.pts, frame.time_base = slots[index] if slots else index, Fraction(1, 25)
            if last:
                stream.codec_context.flags |= Flags.frame_duration
                frame.duration = last if index == count - 1 else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return Path(path)


def write_y4m(path: str, size: tuple[int, int], rate: str) -> Path:
    """A video of three grey frames, whose header may say anything."""
    header = f"YUV4MPEG2 W{size[0]} H{size[1]} F{rate} Ip C444\n".encode()
    Path(path).write_bytes(header + 3 * (b"FRAME\n" + bytes([90]) * (3 * size[0] * size[1])))
    return Path(path)


def remux(
    path: Path,
    target: str,
    change: Callable[[int, av.Packet], None] = lambda *_: None,
    every: bool = False,
    **options: dict[str, str],
) -> Path:
    """The same packets in another file; `change` gets the number, in its stream, and the packet of
    each frame, or each packet of all streams.
    """
    with av.open(str(path)) as source, av.open(target, "w", **options) as file:
        copies = {one.index: file.add_stream_from_template(one) for one in source.streams}
        numbers = dict.fromkeys(copies, 0)
        for packet in source.demux():
            if packet.dts is None:
                continue
            index = packet.stream.index
            if every or packet.stream.type == "video":
                change(numbers[index], packet)
            numbers[index] += 1
            packet.stream = copies[index]
            file.mux(packet)
    return Path(target)


def damage(path: Path, which: list[int]) -> Path:
    """Overwrite the data of some packets of the first video."""
    with av.open(str(path)) as file:
        places = [(one.pos, one.size) for one in file.demux(video=0) if one.size]
    data = bytearray(path.read_bytes())
    for index in which:
        place, size = places[index]
        # What begins a packet in MKV is left, or the whole of it would be taken for a hole.
        start = data.index(_packet(path, index)[:8], place)
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def _packet(path: Path, which: int) -> bytes:
    with av.open(str(path)) as file:
        return bytes([one for one in file.demux(video=0) if one.size][which])


def cut(path: Path, share: float = 0.8) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def with_matrix(path: Path, numbers: tuple[float, float, float, float]) -> Path:
    """Give an MP4 or MOV a display matrix (a b, c d)."""
    whole = [round(number * (1 << 16)) for number in numbers]
    fields = (whole[0], whole[1], 0, whole[2], whole[3], 0, 0, 0, 1 << 30)
    plain = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    old, new = (b"".join(v.to_bytes(4, "big", signed=True) for v in m) for m in (plain, fields))
    data = path.read_bytes()
    place = data.index(old, data.index(b"tkhd"))
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    return path


def derain(run, path: Path, target: str, *more: object) -> tuple[int, list[str]]:
    """Status and the lines of standard error, without the name of the program."""
    status, _, err = run(*DERAIN, "-i", path, "-o", target, *more)
    return status, [line.removeprefix("main.py: ") for line in err.splitlines()]


def read(path: str | Path, **options: int) -> tuple[list[np.ndarray], list[float]]:
    """The frames as shown, (H,W,3) BGR, and their times in seconds."""
    source = VideoReader(Path(path), **options)
    found = [item for item in source.items if isinstance(item, av.VideoFrame)]
    images = [source.convert_frame(frame) for frame in found]
    source.close()
    return images, [float(frame.time) for frame in found]


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two images, grey levels; huge where their shapes differ."""
    return float(np.abs(a.astype(int) - b).mean()) if a.shape == b.shape else np.inf


def with_subtitles(
    path: str,
    codec: str,
    lines: tuple[tuple[bytes, int], ...] = ((b"one", 0), (b"two", 200)),
) -> Path:
    """A video with lines of text of 0.2 s each, which begin at so many milliseconds."""
    make("plain.mkv", options={"bf": "0"})
    with av.open("plain.mkv") as source, av.open(path, "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        text = target.add_mux_stream(codec)
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
        for line, at in lines:
            data = len(line).to_bytes(2, "big") + line if codec == "mov_text" else line
            packet = av.Packet(data)
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = at
            packet.duration = 200
            target.mux(packet)
    return Path(path)
