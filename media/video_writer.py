"""A derained video in the making: size, times, colours and sound are those of its source."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange

from media.video import ACCURATE, Source, address
from settings import UserError
from system.files import begin

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
RGB, BT709 = 0, 1  # FFmpeg's numbers of colour spaces


class Unwritable(UserError):
    """A video file that cannot be written."""


class Sink:
    """A video file in the making: frames in, in order. close() makes it playable, whenever.

    Raises:
        Unwritable: from every method, where it cannot be written; what there was of it is gone.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source, self.written, self.silenced = path, source, 0, False
        with self._told():
            self.unfinished = begin(path, path.suffix)
            try:
                self._open_with_sound(source.sound)
            except BaseException:  # a signal too: nobody holds the file yet, who would remove it
                self.discard()
                raise

    def _open_with_sound(self, sound: list) -> None:
        try:
            self._open(sound)
        except (av.error.FFmpegError, ValueError):
            if not sound:
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
        self.container = av.open(address(self.unfinished), "w", format=kind)
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
            self.unfinished.replace(self.path)

    def discard(self) -> None:
        if hasattr(self, "container"):
            with contextlib.suppress(av.error.FFmpegError, OSError):
                self.container.close()
        if hasattr(self, "unfinished"):
            self.unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.discard()
            reason = getattr(error, "strerror", None) or error
            raise Unwritable(f"{self.path}: cannot be written: {reason}") from None
