"""A user's video, read frame by frame by PyAV (FFmpeg): frame k is the same in every action.

It keeps what a player needs: the time of each frame, the meaning of its colours, which way up it
is, the shape of its pixels, and the sound. What is damaged, missing or guessed is counted and told.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.format import Flags

from media.account import VideoIntegrity
from media.container import NOTHING, best_stream, find_dropped_streams, open_container
from media.deinterlacing import Deinterlacer
from media.orientation import Orientation
from settings import UserError

MOST_FAILURES = 16  # times in a row that nothing can be read before the file is given up
BEYOND = 2  # seconds that sound may lie behind its frames in the file
# FFmpeg's quick conversions round downwards: a picture would darken by two grey levels. These are
# its SWS_BICUBIC, SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT; older PyAV names but the first.
QUICK = 4
ACCURATE = QUICK | 0x40000 | 0x2000
HDR = {16: ", HDR (PQ)", 18: ", HDR (HLG)"}  # by FFmpeg's number of a transfer function
Item = av.VideoFrame | av.Packet


class VideoReader:
    """Frames start .. start+frames-1 of a video file; all from start on where frames is 0.

    Args:
        quick: the frames alone, decoded on several threads. If the file's end is damaged, more of
            them are lost.

    Attributes:
        first: the first of those frames.
        width, height: of the frames as they are shown, pixels.
        rate: frames a second, as the file says.
        count: how many frames to expect; 0 where the file does not tell.
        begin: where in the file they begin, seconds.
        copied: its streams of sound and of subtitles.
        notes: what a user should know of it before it is read, a line each.

    Raises:
        UserError: not a video, or no frame at start.
    """

    def __init__(self, path: Path, start: int = 0, frames: int = 0, quick: bool = False) -> None:
        self.path, self.start, self.frames, self.begin = path, start, frames, 0.0
        self.container = open_container(path)
        try:
            self._open(quick)
        except BaseException:
            self.container.close()
            raise

    def _open(self, quick: bool) -> None:
        self.stream = best_stream(self.path, self.container)
        self.stream.thread_type = "AUTO" if quick else "SLICE"
        streams = (*self.container.streams.audio, *self.container.streams.subtitles)
        self.copied = [one for one in streams if one.codec_context is not None and not quick]
        self._untimed = bool(Flags.no_timestamps & Flags(self.container.format.flags))
        self._account = VideoIntegrity.of(self.stream, self.copied)
        self.rate = self._account.rate
        self._deinterlacer = Deinterlacer()
        self._last: int | None = None  # time of a frame
        self._next: av.VideoFrame | None = None  # decoded; what follows it may correct its time
        self._sent = self._delay = 0  # packets decoded, and of them before the first frame came
        self._stop: Fraction | None = None  # where to read no further
        self._items = self._chosen()
        self._waiting: list[Item] = []  # read until the first frame came
        for item in self._items:
            self._waiting.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            there = self._account.decoded
            if there:
                raise UserError(f"{self.path}: no frames from frame {self.start} on, of {there}")
            raise UserError(f"{self.path}: {NOTHING}: no frame in it")
        self.first = item
        sides = (self.first.width, self.first.height)
        self.width, self.height = sides[::-1] if self.orientation.swapped else sides
        left = max(0, self._account.total - self.start)
        self.count = min(left or self.frames, self.frames or left)
        self.notes = [f"{self.path}: {note}" for note in self._known()]

    def _known(self) -> Iterator[str]:
        yield from find_dropped_streams(self.container, self.stream)
        if self.orientation.odd:
            yield (
                f"its display matrix ({self.orientation.odd}) is neither a quarter turn nor a "
                "mirroring; the frames stay as they are stored"
            )
        kind = self.first.format
        bits = max((part.bits for part in kind.components), default=8)
        light = HDR.get(self.first.color_trc, "")
        if bits > 8 or light:
            yield f"its frames have {bits} bits a channel{light}; they are taken as 8 bits"
        # VP8 and VP9 hold transparency beside their frames.
        told = {key.lower(): text for key, text in self.stream.metadata.items()}
        alpha = kind.name != "pal8" and any(part.is_alpha for part in kind.components)
        if alpha or told.get("alpha_mode") == "1":
            yield "its frames have transparency, which is left out"

    def packets(self) -> Iterator[Item]:
        """Frames as they are decoded, at rising times, and the packets of the copied streams
        between them. Once.

        What cannot be decoded is left out. A frame of another size is scaled to the first one's.

        Raises:
            UserError: interlaced frames that cannot be deinterlaced.
        """
        yield from self._waiting
        self._waiting.clear()
        yield from self._items

    def images(self) -> Iterator[np.ndarray]:
        """The frames as they are shown, (H,W,3) uint8 RGB, by FFmpeg's quick conversion. Once."""
        for item in self.packets():
            if isinstance(item, av.VideoFrame):
                image = item.reformat(format="rgb24", interpolation=QUICK).to_ndarray()
                yield self.orientation.upright(image)

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H,W,3) uint8 BGR, as shown."""
        image = frame.reformat(format="bgr24", interpolation=ACCURATE).to_ndarray()
        return self.orientation.upright(image)

    @property
    def incomplete(self) -> bool:
        """Whether something of what was read is missing."""
        return bool(self._account.missing())

    def warnings(self, times: bool = True) -> list[str]:
        """What was found while it was read, a line each; of frames' times where those matter."""
        return [f"{self.path}: {line}" for line in self._account.warnings(times)]

    def close(self) -> None:
        self.container.close()

    def _chosen(self) -> Iterator[Item]:
        """The chosen frames and their sound, at times from 0 on where they begin later."""
        # A recording of a broadcast may begin at any hour.
        index, end = 0, None
        shift = Fraction(max(self.container.start_time or 0, 0), av.time_base)
        self.begin = float(shift)
        held: list[av.Packet] = []  # read, and it is not known yet whether they belong to a part
        for item in self._all():
            time = _time(item)
            if isinstance(item, av.Packet):
                if end is None and (self.frames or index <= self.start > 0):
                    held.append(item)
                elif (not self.start or time >= shift) and (end is None or time < end):
                    yield _earlier(item, shift)
                continue
            index += 1
            if end is not None:
                continue  # one packet may bring several frames
            if self.start and index <= self.start + 1:
                held = [packet for packet in held if _time(packet) >= time]
            if index <= self.start:
                continue
            if self.start and index == self.start + 1:
                shift, self.begin = time, float(time)
            until = time + (item.duration * item.time_base if item.duration else 1 / self.rate)
            if index == self.start + self.frames:
                end = until
                self._stop = end + BEYOND
            now = [packet for packet in held if not self.frames or _time(packet) < until]
            held = [packet for packet in held if packet not in now]
            yield _earlier(item, shift)
            yield from (_earlier(packet, shift) for packet in now)
        if end is None:
            yield from (_earlier(packet, shift) for packet in held)

    def _all(self) -> Iterator[Item]:
        for packet in self._demuxed():
            if packet.stream in self.copied and packet.dts is not None:
                yield packet
            elif packet.stream is self.stream and self._stop is None:
                yield from self._decoded(packet)
        if self._stop is None:
            yield from self._decoded(None)
            yield from self._followed(None)
            yield from self._deinterlacer.flush()
            self._account.all_read = True
        self._account.interlaced = self._deinterlacer.count

    def _demuxed(self) -> Iterator[av.Packet]:
        failures = 0
        while failures < MOST_FAILURES:
            try:
                for packet in self.container.demux():
                    if packet.dts is None and not packet.size:
                        continue  # what PyAV ends each stream with
                    failures = 0
                    if self._stop is None:
                        self._account.see(packet)
                    elif not self.copied or self._is_beyond(packet):
                        return
                    yield packet
                return
            except (av.error.FFmpegError, IndexError):  # the latter: a stream that turns up late
                failures += 1
                self._account.failed += 1

    def _is_beyond(self, packet: av.Packet) -> bool:
        return packet.dts is not None and packet.dts * packet.time_base > self._stop

    def _decoded(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        """The frames that a packet, or the end, brings."""
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            self._account.failed += 1
            return
        self._sent += 1
        for frame in frames:
            if self._next is None:
                self._delay = self._sent - 1
                self.orientation = Orientation.of(frame)
                self._size = frame.width, frame.height
            self._account.marked += frame.is_corrupt
            frame = self._sized(frame)
            frame.pts, frame.time_base = self._own_time(frame), self.stream.time_base
            yield from self._followed(frame)

    def _followed(self, coming: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """What can be shown, now that it is known which frame comes next; None at the end."""
        frame, self._next = self._next, coming
        if frame is None:
            return
        self._account.decoded += 1
        self._set_time(frame, None if coming is None else coming.pts)
        try:
            yield from self._deinterlacer.push(frame)
        except (av.error.FFmpegError, ValueError):
            raise UserError(
                f"{self.path}: its frames are interlaced, and of a size or kind that FFmpeg's "
                "bwdif cannot deinterlace; expected progressive ones"
            ) from None

    def _sized(self, frame: av.VideoFrame) -> av.VideoFrame:
        if (frame.width, frame.height) == self._size:
            return frame
        self._account.scaled += 1
        scaled = frame.reformat(*self._size, interpolation=ACCURATE)
        scaled.pts, scaled.dts, scaled.duration = frame.pts, frame.dts, frame.duration
        return scaled

    def _own_time(self, frame: av.VideoFrame) -> int | None:
        """As the file has it, in units of the stream."""
        if self._untimed:
            return None
        if "avi" in self._account.formats and self._delay:
            # It has the times of decoding alone, which is so many frames ahead.
            return None if frame.dts is None else frame.dts - self._delay * self._step
        return frame.pts

    @property
    def _step(self) -> int:
        return max(1, round(1 / (self.rate * self.stream.time_base)))

    def _set_time(self, frame: av.VideoFrame, after: int | None) -> None:
        """Make up a time where the frame has none, or one out of order.

        after: the next frame's own. If it is later than the last frame's, that of this frame must
            lie between, and one bad time spoils none behind it.
        """
        time, last = frame.pts, self._last
        room = last is not None and after is not None and after > last + 1
        if time is None or (last is not None and time <= last) or (room and time > after):
            self._account.placed += 1
            late = 0 if last is None else last + self._step
            time = (last + after) // 2 if room else late
        frame.pts = time
        if after is not None and after > time:
            frame.duration = after - time
        self._account.until = float(frame.time)
        if last is None:
            self._account.begin = self._account.until
        self._last = time


def _time(item: Item) -> Fraction:
    """Seconds."""
    return (item.dts if item.pts is None else item.pts) * item.time_base


def _earlier(item: Item, shift: Fraction) -> Item:
    """The item, so many seconds earlier."""
    if shift:
        units = round(shift / item.time_base)
        if isinstance(item, av.Packet) and item.dts is not None:
            item.dts -= units
        if item.pts is not None:
            item.pts -= units
    return item
