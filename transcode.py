"""A user's video, frame by frame, into one of the same size, times and length, by PyAV (FFmpeg).

Unlike video.py, which reads frames for a clean image, this keeps what a player needs: the time of
each frame, the meaning of its colours, which way up it is, the shape of its pixels, and the sound.
"""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

from files import SCRAP
from settings import UserError

# Encoder and its options by the suffix of the file to write: good enough to be looked at closely.
X264 = ("libx264", {"crf": "14", "preset": "medium"})
ENCODERS = {
    ".mp4": X264,
    ".m4v": X264,
    ".mov": X264,
    ".mkv": X264,
    ".webm": ("libvpx-vp9", {"crf": "15", "b": "0", "row-mt": "1", "cpu-used": "4"}),
}
CONTAINERS = {".mkv": "matroska", ".m4v": "mp4"}  # where the suffix is not the name
LOSSLESS = {"ffv1", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "png", "lagarith", "magicyuv"}
UNTIMED = {"avi", "h264", "hevc", "mpegvideo"}  # formats that hold no times of frames
# FFmpeg's quick conversions round downwards: a picture would darken by two grey levels. These are
# its SWS_BICUBIC, SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT; older PyAV names but the first.
ACCURATE = 4 | 0x40000 | 0x2000
RGB, BT709 = 0, 1  # FFmpeg's numbers of colour spaces
av.logging.set_level(av.logging.PANIC)  # what it would print, we tell in one line


class Source:
    """A video file to read.

    Attributes:
        first: its first frame.
        width, height: of the frames as they are shown, pixels.
        count: frames, as the file says or by its length and rate; 0 where neither is known.

    Raises:
        UserError: not a video.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._damaged, self._scaled = path, 0, 0
        try:
            with av.open(_address(path)) as container:
                self.first = next(container.decode(video=0))
            # Anew: a seek to the start would skip sound that begins before it.
            self.container = av.open(_address(path))
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "AUTO"
        except (av.error.FFmpegError, OSError, IndexError, StopIteration, ValueError) as error:
            reason = error.strerror if isinstance(error, PermissionError) else "no frame in it"
            raise UserError(f"{path}: not a video that can be read: {reason}") from None
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.turns = self.first.rotation // 90 % 4
        sides = (self.first.width, self.first.height)
        self.width, self.height = sides[::-1] if self.turns % 2 else sides
        length = float(self.container.duration or 0) / av.time_base
        self.count = self.stream.frames or round(length * self.rate)

    @property
    def sound(self) -> list:
        return list(self.container.streams.audio)

    def packets(self) -> Iterator[av.VideoFrame | av.Packet]:
        """Frames as they are decoded, at rising times, and the packets of sound between them. Once.

        What cannot be decoded is left out. A frame of another size is scaled to the first one's.
        """
        step = max(1, round(1 / (self.rate * self.stream.time_base)))
        untimed = bool(UNTIMED & set(self.container.format.name.split(",")))
        last = None
        for packet in self._demuxed():
            if packet.stream is not self.stream:
                if packet.dts is not None:
                    yield packet
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self._damaged += 1
                continue
            for frame in frames:
                if (frame.width, frame.height) != (self.first.width, self.first.height):
                    self._scaled += 1
                    frame = self._as_first(frame)
                if last is not None and (untimed or frame.pts is None or frame.pts <= last):
                    frame.pts = last + step
                last = frame.pts = frame.pts or 0
                frame.time_base = self.stream.time_base
                yield frame

    def _demuxed(self) -> Iterator[av.Packet]:
        packets = self.container.demux(self.stream, *self.sound)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, IndexError):  # the latter: a stream that turns up late
                self._damaged += 1
                return
            if packet is None:
                return
            yield packet

    def _as_first(self, frame: av.VideoFrame) -> av.VideoFrame:
        pts = frame.pts
        frame = frame.reformat(self.first.width, self.first.height, interpolation=ACCURATE)
        frame.pts = pts
        return frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H,W,3) uint8 BGR, as shown."""
        image = frame.reformat(format="bgr24", interpolation=ACCURATE).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, self.turns))

    def warnings(self) -> list[str]:
        found = []
        if self._damaged:
            found.append(f"{self.path}: {self._damaged} pieces could not be read and are left out")
        if self._scaled:
            found.append(
                f"{self.path}: {self._scaled} frames of another size are scaled to "
                f"{self.width}x{self.height}"
            )
        return found

    def close(self) -> None:
        self.container.close()


class Unwritable(UserError):
    """A video file that cannot be written."""


class Sink:
    """A video file in the making: frames in, in order. close() makes it playable, whenever.

    Raises:
        Unwritable: from every method, where it cannot be written; what there was of it is gone.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source, self.written, self.silenced = path, source, 0, False
        self.scrap = path.with_name(f"{SCRAP}{path.stem[:40]}{path.suffix}")
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open(source.sound)
            except (av.error.FFmpegError, ValueError):
                if not source.sound:
                    raise
                # Not every container holds every kind of sound.
                self.container.close()
                self.silenced = True
                self._open([])

    def _open(self, sound: list) -> None:
        source, suffix = self.source, self.path.suffix.lower()
        name, options = ENCODERS[suffix]
        if source.stream.codec_context.name in LOSSLESS and suffix == ".mkv":
            name, options = "ffv1", {}
        kind = CONTAINERS.get(suffix, suffix[1:])
        self.container = av.open(_address(self.scrap), "w", format=kind)
        self.stream = self.container.add_stream(name, rate=source.rate, options=options)
        self.stream.width, self.stream.height = source.width, source.height
        # Half as much colour as light needs even sides.
        even = source.width % 2 == 0 == source.height % 2
        lossy = "yuv420p" if even else "yuv444p"
        self.stream.pix_fmt = "bgr0" if name == "ffv1" else lossy
        context, first = self.stream.codec_context, source.first
        context.time_base = source.stream.time_base
        context.color_range, context.colorspace = first.color_range, self._colours(first)
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        shape = source.stream.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if source.turns % 2 else shape
        self.sound = {one.index: self.container.add_stream_from_template(one) for one in sound}
        self._heard: dict[int, int] = {}  # the time of the last packet of sound
        self.container.start_encoding()

    @staticmethod
    def _colours(frame: av.VideoFrame) -> int:
        return BT709 if frame.colorspace == RGB else frame.colorspace

    def sound_packet(self, packet: av.Packet) -> None:
        index = packet.stream.index
        # Joined files begin their times anew, which no container takes.
        if index in self.sound and packet.dts > self._heard.get(index, packet.dts - 1):
            self._heard[index] = packet.dts
            packet.stream = self.sound[index]
            with self._told():
                self.container.mux(packet)

    def frame(self, image: np.ndarray, like: av.VideoFrame) -> None:
        """Add (H,W,3) uint8 BGR at the time of the frame that it was made from."""
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        if self.stream.pix_fmt != "bgr0":
            frame = frame.reformat(
                format=self.stream.pix_fmt,
                dst_colorspace=self._colours(like),
                dst_color_range=like.color_range or ColorRange.MPEG,
                interpolation=ACCURATE,
            )
        frame.pts, frame.time_base = like.pts, like.time_base
        with self._told():
            self.container.mux(self.stream.encode(frame))
        self.written += 1

    def warnings(self) -> list[str]:
        if not self.silenced:
            return []
        return [f"{self.path}: this kind of file cannot hold the input's sound, which is left out"]

    def close(self) -> None:
        """Finish the file, with as many frames as there are, and give it its name."""
        with self._told():
            self.container.mux(self.stream.encode(None))
            self.container.close()
            self.scrap.replace(self.path)

    def discard(self) -> None:
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self.container.close()
        self.scrap.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if hasattr(self, "container"):
                self.discard()
            reason = getattr(error, "strerror", None) or error
            raise Unwritable(f"{self.path}: cannot be written: {reason}") from None


def _address(path: Path) -> str:
    return f"file:{path}"  # a colon in a name would else end a protocol
