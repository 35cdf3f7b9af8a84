"""A user's video, read frame by frame by PyAV (FFmpeg): frame k is the same in every action.

It keeps what a player needs: the timestamp of each frame, the meaning of its colours, its
orientation, the shape of its pixels, and the sound. VideoIntegrity counts damage and repairs.
"""

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.format import Flags
from av.sidedata.sidedata import Type

from media.video_container import (
    NO_FRAME,
    VideoIntegrity,
    choose_stream,
    describe_stream,
    is_cover,
    open_container,
)
from settings import UserError

MAX_FAILURES = 16  # failures to demux, one after the other, before the rest is given up
INTERLEAVING = 2  # seconds that sound may lie behind its frames in the file
# FFmpeg's quick conversions round downwards: a picture would darken by two grey levels. These are
# its SWS_BICUBIC, SWS_ACCURATE_RND and SWS_FULL_CHR_H_INT; older PyAV names but the first.
BICUBIC = 4
ACCURATE = BICUBIC | 0x40000 | 0x2000
HDR = {16: ", HDR (PQ)", 18: ", HDR (HLG)"}  # by FFmpeg's number of a transfer function
Item = av.VideoFrame | av.Packet


class VideoReader:
    """Frames start .. start+frames-1 of a video file; all from start on if frames is 0.

    Args:
        quick: the frames alone, decoded on several threads. If the file's end is damaged, more of
            them are lost.

    Attributes:
        first: the first of those frames.
        width, height: of the frames as they are shown, pixels.
        rate: frames per second, as the file says.
        frame_ticks: from one frame to the next by the rate, units of the stream's time base.
        count: how many frames to expect; 0 if the file does not say.
        start_time: where in the file they begin, seconds.
        copied: its streams of sound and of subtitles, which are not decoded.
        items: the frames, in order of rising timestamps, and the packets of the copied streams
            between them, to be read once. What cannot be decoded is left out. A frame of another
            size is scaled to the first one's. UserError: a frame cannot be deinterlaced.
        notes: what a user should know of it before it is read, a line each.

    Raises:
        UserError: not a video, or no frame at start.
    """

    def __init__(self, path: Path, start: int = 0, frames: int = 0, quick: bool = False) -> None:
        self.path, self.start, self.frames = path, start, frames
        self.container = open_container(path)
        try:
            self._open(quick)
        except BaseException:
            self.container.close()
            raise

    def _open(self, quick: bool) -> None:
        self.stream = choose_stream(self.path, self.container)
        self.stream.thread_type = "AUTO" if quick else "SLICE"
        streams = (*self.container.streams.audio, *self.container.streams.subtitles)
        self.copied = [each for each in streams if each.codec_context is not None and not quick]
        self._integrity = VideoIntegrity(self.container, self.stream, self.copied)
        self.rate = self._integrity.rate
        self.frame_ticks = max(1, round(1 / (self.rate * (self.stream.time_base or 1))))
        self._stop_time: float | Fraction | None = None  # where to read no further, seconds
        items = self._trim(self._deinterlace(self._repair_timestamps(self._decode())))
        head = []
        for item in items:
            head.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            decoded = self._integrity.counts["decoded"]
            reason = f"no frames from frame {self.start} on, of {decoded}"
            raise UserError(f"{self.path}: {reason if decoded else NO_FRAME}")
        self.first, self.items = item, chain(head, items)
        size = (self.first.width, self.first.height)
        self.width, self.height = size[::-1] if self.orientation.transposed else size
        remaining = max(0, self._integrity.total - self.start)
        self.count = min(remaining or self.frames, self.frames or remaining)
        self.notes = [f"{self.path}: {note}" for note in self._describe_format()]

    def _describe_format(self) -> Iterator[str]:
        for stream in self.container.streams.video:
            if stream is not self.stream:
                kind = "cover picture" if is_cover(stream) else "another video"
                taken = f"stream {self.stream.index} ({describe_stream(self.stream)}) is taken"
                content = f"{kind}, {describe_stream(stream)}"
                yield f"stream {stream.index} ({content}) is left out; {taken}"
        if self.orientation.unsupported:
            matrix = self.orientation.unsupported
            yield f"its display matrix ({matrix}) is no quarter turn or mirroring; not applied"
        pixels = self.first.format
        bits = max((component.bits for component in pixels.components), default=8)
        hdr = HDR.get(self.first.color_trc, "")
        if bits > 8 or hdr:
            yield f"its frames have {bits} bits a channel{hdr}; they are taken as 8 bits"
        # VP8 and VP9 hold transparency beside their frames.
        metadata = {key.lower(): text for key, text in self.stream.metadata.items()}
        alpha = pixels.name != "pal8" and any(each.is_alpha for each in pixels.components)
        if alpha or metadata.get("alpha_mode") == "1":
            yield "its frames have transparency, which is left out"

    def read_images(self) -> Iterator[np.ndarray]:
        """The frames as they are shown, (H,W,3) uint8 RGB, by FFmpeg's quick conversion. Once."""
        for item in self.items:
            if isinstance(item, av.VideoFrame):
                image = item.reformat(format="rgb24", interpolation=BICUBIC).to_ndarray()
                yield self.orientation.apply(image)

    def convert_frame(self, frame: av.VideoFrame) -> np.ndarray:
        """A frame as it is shown, (H,W,3) uint8 BGR."""
        image = frame.reformat(format="bgr24", interpolation=ACCURATE).to_ndarray()
        return self.orientation.apply(image)

    @property
    def incomplete(self) -> bool:
        """Whether something of what was read is missing."""
        return any(self._integrity.describe_missing())

    def list_warnings(self, timestamps: bool = True) -> list[str]:
        """What was found while it was read, a line each; see VideoIntegrity.describe_losses."""
        return [f"{self.path}: {line}" for line in self._integrity.describe_losses(timestamps)]

    def close(self) -> None:
        self.container.close()

    def _demux(self) -> Iterator[av.Packet]:
        failures = 0
        while failures < MAX_FAILURES:
            try:
                for packet in self.container.demux():
                    if packet.dts is None and not packet.size:
                        continue  # PyAV ends each stream with one
                    failures = 0
                    if self._stop_time is None:
                        self._integrity.count_packet(packet)
                    elif not self.copied or (
                        packet.dts is not None and packet.dts * packet.time_base > self._stop_time
                    ):
                        return
                    yield packet
                return
            except (av.error.FFmpegError, IndexError):  # the latter: a stream that turns up late
                failures += 1
                self._integrity.counts["failed"] += 1

    def _decode(self) -> Iterator[Item]:
        """The decoded frames with the file's own timestamps, and the packets of copied streams."""
        has_timestamps = not Flags.no_timestamps & Flags(self.container.format.flags)
        decoder = self.stream.codec_context
        size: tuple[int, int] | None = None
        sent = delay = 0  # packets decoded; those before the packet that brought the first frame
        for packet in chain(self._demux(), [None]):  # None: the decoder's last frames
            if packet is not None and packet.stream is not self.stream:
                if packet.stream in self.copied and packet.dts is not None:
                    yield packet
                continue
            if self._stop_time is not None:
                continue
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError:
                self._integrity.counts["failed"] += 1
                continue
            sent += 1
            for frame in frames:
                if size is None:
                    size, delay = (frame.width, frame.height), sent - 1
                    self.orientation = Orientation.from_frame(frame)
                self._integrity.counts["corrupt"] += frame.is_corrupt
                if (frame.width, frame.height) != size:
                    self._integrity.counts["scaled"] += 1
                    frame = frame.reformat(*size, interpolation=ACCURATE)
                if not has_timestamps:
                    frame.pts = None
                elif "avi" in self._integrity.formats and delay:
                    # It has the timestamps of decoding alone, which is so many frames ahead.
                    ahead = delay * self.frame_ticks
                    frame.pts = None if frame.dts is None else frame.dts - ahead
                frame.time_base = self.stream.time_base
                yield frame
        self._integrity.all_read = self._stop_time is None

    def _repair_timestamps(self, items: Iterator[Item]) -> Iterator[Item]:
        """Invent a timestamp if a frame has none, or one out of order; see repair_timestamp."""
        frame: av.VideoFrame | None = None
        last: int | None = None
        for item in chain(items, [None]):
            if isinstance(item, av.Packet):
                yield item
                continue
            if frame is not None and (item is not None or self._stop_time is None):
                following = None if item is None else item.pts
                pts = repair_timestamp(frame.pts, last, following, self.frame_ticks)
                self._integrity.counts["retimed"] += pts != frame.pts
                frame.pts = last = pts
                if following is not None and following > pts:
                    frame.duration = following - pts
                self._integrity.count_frame(frame)
                yield frame
            frame = item

    def _deinterlace(self, items: Iterator[Item]) -> Iterator[Item]:
        """Deinterlace by FFmpeg's filter bwdif, which gives as many frames; from the first
        interlaced frame on, as it passes others unchanged.
        """
        graph: Graph | None = None
        filtering: deque[av.VideoFrame] = deque()  # frames within the filter
        for item in items:
            if isinstance(item, av.Packet) or not (graph or item.interlaced_frame):
                yield item
                continue
            self._integrity.counts["deinterlaced"] += item.interlaced_frame
            filtering.append(item)
            try:
                if graph is None:
                    graph, size = Graph(), (item.width, item.height)
                    source = graph.add_buffer(None, *size, item.format, time_base=item.time_base)
                    filter = graph.add("bwdif", "mode=send_frame:deint=interlaced")
                    graph.link_nodes(source, filter, graph.add("buffersink")).configure()
                graph.push(item)
                frames = pull_frames(graph, filtering)
            except (av.error.FFmpegError, ValueError):
                reason = "interlaced frames of a size or kind that FFmpeg cannot deinterlace"
                raise UserError(f"{self.path}: {reason}; expected progressive ones") from None
            yield from frames
        if graph:
            graph.push(None)
            yield from pull_frames(graph, filtering)

    def _trim(self, items: Iterator[Item]) -> Iterator[Item]:
        """The chosen frames and their sound, earlier by what the file or the part begins late."""
        # A recording of a broadcast may begin at any hour.
        shift = Fraction(max(self.container.start_time or 0, 0), av.time_base)
        self.start_time = float(shift)
        count = 0
        # Packets from `begin` to `end`, in seconds, belong to the frames so far; later ones wait.
        begin: float | Fraction = -math.inf
        end: float | Fraction = -math.inf if self.start or self.frames else math.inf
        waiting: list[tuple[Fraction, av.Packet]] = []
        for item in items:
            ticks = item.dts if item.pts is None else item.pts
            seconds = Fraction((ticks or 0) * (item.time_base or 1))
            if isinstance(item, av.Packet):
                waiting.append((seconds, item))
            elif self._stop_time is None:  # one packet may bring several frames
                count += 1
                if self.start and count <= self.start + 1:
                    begin = seconds
                if count > self.start:
                    if self.start and count == self.start + 1:
                        shift, self.start_time = seconds, float(seconds)
                    duration = (item.duration or 0) * (item.time_base or 1) or 1 / self.rate
                    end = seconds + duration if self.frames else math.inf
                    if count == self.start + self.frames:
                        self._stop_time = end + INTERLEAVING
                    yield shift_timestamps(item, shift)
            yield from (shift_timestamps(each, shift) for at, each in waiting if begin <= at < end)
            waiting = [(at, each) for at, each in waiting if at >= max(begin, end)]
        if self._stop_time is None:
            yield from (shift_timestamps(each, shift) for _, each in waiting)


def repair_timestamp(pts: int | None, last: int | None, following: int | None, step: int) -> int:
    """The timestamp of a frame, in units of the time base: its own, or else an invented one.

    If the following frame's is later than the last frame's, this one's must lie between: one bad
    timestamp spoils none behind it.

    Args:
        step: from one frame to the next, by the rate.
    """
    if last is None:
        return pts or 0
    if following is not None and following > last + 1:
        return pts if pts is not None and last < pts <= following else (last + following) // 2
    return pts if pts is not None and pts > last else last + step


def shift_timestamps(item: Item, shift: Fraction) -> Item:
    """The item itself, `shift` seconds earlier."""
    if shift:
        ticks = round(shift / (item.time_base or 1))
        if isinstance(item, av.Packet) and item.dts is not None:
            item.dts -= ticks
        if item.pts is not None:
            item.pts -= ticks
    return item


def pull_frames(graph: Graph, filtering: deque[av.VideoFrame]) -> list[av.VideoFrame]:
    """The frames that the filter has done, with the timestamps of those that went in.

    Raises:
        ValueError, av.error.FFmpegError: it cannot take frames of that size or format.
    """
    frames = []
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while filtering:
            frame = graph.pull()
            assert isinstance(frame, av.VideoFrame)
            source = filtering.popleft()
            # The filter counts time in units of its own.
            frame.pts, frame.time_base = source.pts, source.time_base
            frame.duration = source.duration
            frames.append(frame)
    return frames


@dataclass(frozen=True)
class Orientation:
    """How decoded pixels become those that are shown: transposed first, then mirrored.

    Attributes:
        transposed: rows become columns.
        x_step, y_step: -1 if left becomes right, or top becomes bottom; else 1.
        unsupported: a display matrix that is none of the eight orientations, and is not applied.
    """

    transposed: bool = False
    x_step: int = 1
    y_step: int = 1
    unsupported: str = ""

    @classmethod
    def from_frame(cls, frame: av.VideoFrame) -> "Orientation":
        data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
        if data is None:
            return cls()
        # Fixed-point numbers. (x,y) of a decoded pixel is shown at (x,y) times the matrix.
        matrix = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2] / (1 << 16)
        signs = np.rint(matrix)
        # Each axis goes to one axis: a single 1 or -1 in every row and column.
        sums = [*np.abs(signs).sum(0), *np.abs(signs).sum(1)]
        if np.abs(matrix - signs).max() > 1e-3 or sums != [1, 1, 1, 1]:
            return cls(unsupported=" ".join(f"{number:g}" for number in matrix.round(3).flat))
        x_step, y_step = signs.sum(0).astype(int).tolist()
        return cls(bool(signs[0, 0] == 0), x_step, y_step)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Decoded pixels (H,W,3) as they are shown: (H,W,3), or (W,H,3) if transposed."""
        image = image.swapaxes(0, 1) if self.transposed else image
        return np.ascontiguousarray(image[:: self.y_step, :: self.x_step])
