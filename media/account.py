"""What a video promises, held against what was read of it: nothing is missing without a word."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av

from media.container import SORTS

# Formats whose header says how long the file is. Of others FFmpeg only guesses.
HEADED = {"asf", "avi", "flv", "ivf", "matroska", "mov", "mxf", "webm"}
SLACK = 0.05  # seconds by which a file may end before its header says, or a frame and a half
FEW = 0.98  # of the frames that times and rate make: fewer are told


@dataclass
class VideoIntegrity:
    """Of one video while it is read.

    Attributes:
        rate: frames a second.
        total: frames, as the file says or by its length and rate; 0 where neither is known.
        indexed: packets that the index of an MP4 or AVI lists, by the number of the stream; of
            other formats none.
        length: seconds that the header promises, 0 where it does not; of the video where `alone`,
            else of all streams.
        packets: demuxed, by the number of the stream.
        hidden: packets of frames that are not to be shown.
        decoded: frames.
        failed: how many times nothing could be read or decoded.
        marked: packets and frames that FFmpeg marks as damaged.
        scaled, placed, interlaced: frames of another size; whose times are made up; deinterlaced.
        end: how far the file was read, seconds.
        begin, until: times of the first frame and of the last one, seconds.
        all_read: to its end.
        formats: FFmpeg's names of its container.
    """

    stream: av.video.stream.VideoStream
    rate: Fraction
    total: int = 0
    indexed: dict[int, int] = field(default_factory=dict)
    length: float = 0.0
    packets: Counter[int] = field(default_factory=Counter)
    hidden: int = 0
    decoded: int = 0
    failed: int = 0
    marked: int = 0
    scaled: int = 0
    placed: int = 0
    interlaced: int = 0
    end: float = 0.0
    begin: float = 0.0
    until: float = 0.0
    all_read: bool = False
    alone: bool = False
    formats: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, stream: av.video.stream.VideoStream, copied: Sequence[av.stream.Stream]
    ) -> "VideoIntegrity":
        container = stream.container
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        formats = set(container.format.name.split(","))
        length = float(container.duration or 0) / av.time_base
        found = cls(stream, rate, stream.frames or round(length * rate), formats=formats)
        if formats & {"avi", "mov"}:
            # It may grow while fragments are read. What has no bytes brings no packet.
            found.indexed = {
                one.index: sum(entry.size > 0 for entry in one.index_entries)
                for one in (stream, *copied)
            }
        if "avi" in formats and stream.frames:  # of which each is a moment, dropped or not
            found.length, found.alone = float(stream.frames / rate), True
        elif "mov" in formats:
            found.length = 0.0  # an edit list may make it longer than what is there
        elif HEADED & formats:
            found.length = length
        return found

    def see(self, packet: av.Packet) -> None:
        """Note a packet of any stream."""
        self.packets[packet.stream.index] += 1
        if packet.stream is self.stream:
            self.hidden += packet.is_discard  # by an edit list
            self.marked += packet.is_corrupt
        elif self.alone:
            return
        times = [time for time in (packet.pts, packet.dts) if time is not None]
        if times:
            end = (max(times) + (packet.duration or 0)) * packet.time_base
            self.end = max(self.end, float(end))

    def missing(self) -> list[str]:
        """What of it was promised and did not come, a line each."""
        frames = self._missing_frames()
        lines = [frames] if frames else []
        for index, promised in self.indexed.items():
            lost = promised - self.packets[index]
            if self.all_read and lost > 0 and index != self.stream.index:
                sort = SORTS[self.stream.container.streams[index].type]
                lines.append(f"stream {index} ({sort}): {lost} of {promised} packets are missing")
        return lines

    def _missing_frames(self) -> str:
        indexed, came = (of.get(self.stream.index, 0) for of in (self.indexed, self.packets))
        promised = max(indexed - self.hidden, 0)
        short = self.end + max(SLACK, 1.5 / float(self.rate)) < self.length
        if self.all_read and indexed > came and (short or not self.length):
            return f"cut short: {self._there()}, of {promised} that it promises"
        if self.all_read and short:
            return f"cut short: {self._there()}, of about {self.total} that it promises"
        if self.all_read and indexed > came and "avi" in self.formats:
            return f"damaged: {indexed - came} of {indexed} frames could not be read, left out"
        # A packet in an AVI may say that the picture stays: no frame comes of it.
        if self.all_read and promised > self.decoded and "avi" not in self.formats:
            lost = promised - self.decoded
            return f"damaged: {lost} of {promised} frames could not be decoded and are left out"
        if self.failed:
            return f"damaged: {_count(self.failed, 'piece')} could not be decoded, left out"
        return ""

    def warnings(self, times: bool) -> Iterator[str]:
        """What a user should know; of frames' times too, where those matter."""
        missing = self.missing()
        yield from missing
        span = round((self.until - self.begin) * float(self.rate)) + 1
        # In an AVI each slot is a moment; in others the rate is but an average.
        if "avi" in self.formats and not missing and self.decoded < FEW * span - 1:
            yield (
                f"{self._there()}, where their times and its rate make {span}: the others were not "
                "recorded, or are damaged; times are kept"
            )
        if (
            self.all_read
            and HEADED & self.formats
            and not (any(self.indexed.values()) or self.length)
        ):
            yield (
                "its header does not tell its length, as in recordings by a browser; it may be cut "
                "short"
            )
        if self.marked and not missing:
            what = "packet or frame is" if self.marked == 1 else "packets or frames are"
            yield f"{self.marked} {what} marked as damaged"
        if self.scaled:
            yield f"scaled to the size of the first frame: {_count(self.scaled, 'frame')}"
        if self.placed and times:
            yield (
                f"without a time, or out of order: {_count(self.placed, 'frame')}; placed by the "
                f"frames around, or at {float(self.rate):g} frames/s"
            )
        if self.interlaced:
            yield f"deinterlaced: {_count(self.interlaced, 'frame')}"

    def _there(self) -> str:
        return f"{_count(self.decoded, 'frame')} decoded"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
