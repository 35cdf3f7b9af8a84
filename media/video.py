"""A user's video, read frame by frame by PyAV (FFmpeg); video_writer.py makes another of it.

Unlike rain/frames.py, which reads frames for a clean image, this keeps what a player needs: the
time of each frame, the meaning of its colours, which way up it is, the shape of its pixels, and the
sound.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from settings import UserError
from system.reading import open_regular

UNTIMED = {"avi", "h264", "hevc", "mpegvideo"}  # formats that hold no times of frames
# FFmpeg's quick conversions round downwards: a picture would darken by two grey levels. These are
# its SWS_BICUBIC, SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT; older PyAV names but the first.
ACCURATE = 4 | 0x40000 | 0x2000
# FFmpeg's formats whose files name others to play, wherever those lie, or reach for the network.
SCRIPTS = {"concat", "dash", "hls", "imf", "image2", "rtsp", "sap", "sdp", "vobsub"}
av.logging.set_level(av.logging.PANIC)  # what it would print, we tell in one line


def require_own_frames(path: Path) -> None:
    """Raise UserError unless path is a regular file, and no list of other files to play."""
    formats = ",".join(av.formats_available - SCRIPTS)
    try:
        open_regular(path).close()
        av.open(address(path), options={"format_whitelist": formats}).close()
    except av.error.ArgumentError:  # said of a format that is not among those
        raise UserError(
            f"{path}: not a video that can be read: a list of other files; expected a video"
        ) from None
    except (av.error.FFmpegError, ValueError):
        return  # the reader of the frames says what is wrong
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


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
        require_own_frames(path)
        try:
            with av.open(address(path)) as container:
                self.first = next(container.decode(video=0))
            # Anew: a seek to the start would skip sound that begins before it.
            self.container = av.open(address(path))
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "AUTO"
        except (av.error.FFmpegError, OSError, IndexError, StopIteration, ValueError):
            raise UserError(f"{path}: not a video that can be read: no frame in it") from None
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


def address(path: Path) -> str:
    """A path as FFmpeg takes it."""
    return f"file:{path}"  # a colon in a name would else end a protocol
