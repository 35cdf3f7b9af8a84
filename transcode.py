"""A user's video, frame by frame, into one of the same size, times and length, by PyAV (FFmpeg).

Unlike video.py, which reads frames for a clean image, this keeps what a player needs: the time of
each frame, the meaning of its colours, which way up it is, and the sound.
"""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from files import SCRAP
from settings import UserError

# Encoder and its options by the suffix of the file to write: good enough to be looked at closely.
ENCODERS = {
    ".mp4": ("libx264", {"crf": "14", "preset": "medium"}),
    ".m4v": ("libx264", {"crf": "14", "preset": "medium"}),
    ".mov": ("libx264", {"crf": "14", "preset": "medium"}),
    ".mkv": ("libx264", {"crf": "14", "preset": "medium"}),
    ".webm": ("libvpx-vp9", {"crf": "15", "b": "0", "row-mt": "1", "cpu-used": "4"}),
}
LOSSLESS = {"ffv1", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "png", "lagarith", "magicyuv"}
# FFmpeg's quick conversions round downwards: a picture would darken by two grey levels.
ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
av.logging.set_level(av.logging.PANIC)  # what it would print, we tell in one line


class Source:
    """A video file to read.

    Attributes:
        first: its first frame.
        width, height: of the frames as they are shown, pixels.
        count: frames, as the file says or by its length and rate; 0 where neither is known.
        damaged: packets that could not be decoded so far.

    Raises:
        UserError: not a video.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.damaged = path, 0
        try:
            with av.open(str(path)) as container:
                self.first = next(container.decode(video=0))
            # Anew: a seek to the start would skip sound that begins before it.
            self.container = av.open(str(path))
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
        """Frames as they are decoded, and the packets of sound between them. Once.

        A packet that cannot be decoded is counted and left out.
        """
        for packet in self.container.demux(self.stream, *self.sound):
            if packet.stream is not self.stream:
                if packet.dts is not None:
                    yield packet
                continue
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                self.damaged += 1
                continue
            for frame in frames:
                if (frame.width, frame.height) != (self.first.width, self.first.height):
                    raise UserError(
                        f"{self.path}: a frame is {frame.width}x{frame.height}, those before are "
                        f"{self.first.width}x{self.first.height}"
                    )
                yield frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H,W,3) uint8 BGR, as shown."""
        image = frame.reformat(format="bgr24", interpolation=ACCURATE).to_ndarray()
        return np.ascontiguousarray(np.rot90(image, self.turns))

    def warnings(self) -> list[str]:
        if not self.damaged:
            return []
        return [
            f"{self.path}: {self.damaged} pieces could not be decoded; their frames are left out"
        ]

    def close(self) -> None:
        self.container.close()


class Sink:
    """A video file in the making: frames in, in order. close() makes it playable, whenever.

    Raises:
        UserError: from every method, where it cannot be written.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source, self.written = path, source, 0
        self.scrap = path.with_name(f"{SCRAP}{path.name}")
        name, options = ENCODERS[path.suffix.lower()]
        if source.stream.codec_context.name in LOSSLESS and path.suffix.lower() == ".mkv":
            name, options = "ffv1", {}
        like = source.first
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.container = av.open(str(self.scrap), "w", format=_container(path))
            self.stream = self.container.add_stream(name, rate=source.rate, options=options)
            self.stream.width, self.stream.height = source.width, source.height
            # Half as much colour as light needs even sides.
            even = source.width % 2 == 0 == source.height % 2
            lossy = "yuv420p" if even else "yuv444p"
            self.stream.pix_fmt = "bgr0" if name == "ffv1" else lossy
            context = self.stream.codec_context
            context.time_base = source.stream.time_base
            context.color_range, context.colorspace = like.color_range, like.colorspace
            context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
            self.sound, self.silenced = {}, 0
            for stream in source.sound:
                try:
                    copy = self.container.add_stream_from_template(stream)
                    self.sound[stream.index] = copy
                except (av.error.FFmpegError, ValueError):  # a kind that this container lacks
                    self.silenced += 1

    def sound_packet(self, packet: av.Packet) -> None:
        if packet.stream.index in self.sound:
            packet.stream = self.sound[packet.stream.index]
            with self._told():
                self.container.mux(packet)

    def frame(self, image: np.ndarray, like: av.VideoFrame) -> None:
        """Add (H,W,3) uint8 BGR at the time of the frame that it was made from."""
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        if self.stream.pix_fmt != "bgr0":
            frame = frame.reformat(
                format=self.stream.pix_fmt,
                dst_colorspace=like.colorspace,
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
        except (av.error.FFmpegError, OSError) as error:
            self.discard()
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None


def _container(path: Path) -> str:
    kinds = {".mkv": "matroska", ".m4v": "mp4"}
    return kinds.get(path.suffix.lower(), path.suffix.lower()[1:])
