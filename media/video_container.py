"""The file of a video: how it is opened, which stream is taken, and whether all of it was read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from settings import UserError, format_count
from system.files import open_regular

# FFmpeg's formats whose files name others to play, wherever those lie, or reach for the network;
# and text, which it would draw.
REFUSED_FORMATS = {
    "adf", "bin", "concat", "dash", "hls", "idf", "imf", "image2", "rtsp", "sap", "sdp", "tty",
    "vobsub", "xbin",
}  # fmt: skip
# Formats whose header states the duration. In others FFmpeg only estimates it.
DURATION_FORMATS = {"asf", "avi", "flv", "ivf", "matroska", "mov", "mxf", "webm"}
COVER = Disposition.attached_pic | Disposition.timed_thumbnails
COPIED_TYPES = {"audio": "sound", "subtitle": "subtitles"}  # of streams that are not decoded
UNREADABLE = "not a video that can be read"
NO_FRAME = f"{UNREADABLE}: no frame in it"
UNKNOWN_CODEC = "a codec that FFmpeg does not know"
DURATION_TOLERANCE = 0.05  # seconds that a file may end early; or one and a half frames
RECORDED_SHARE = 0.98  # of an AVI's slots: a warning if fewer hold a frame
# Errors are reported in one line of our own. With any level but None, FFmpeg's threads would wait
# for Python's lock to log an error, for ever if the thread that holds the lock waits for them.
av.logging.set_level(None)


def ffmpeg_address(path: Path) -> str:
    """A path as FFmpeg takes it: without the prefix, a colon in a name would end a protocol."""
    return f"file:{path}"


def open_container(path: Path) -> InputContainer:
    """Raises UserError unless path is a regular file that holds streams of its own."""
    formats = ",".join(av.formats_available - REFUSED_FORMATS)
    try:
        open_regular(path).close()
        return av.open(
            ffmpeg_address(path), options={"format_whitelist": formats}, metadata_errors="replace"
        )
    except av.error.ArgumentError:  # raised for a format that is not in the list
        raise UserError(f"{path}: {UNREADABLE}: text, or a list of other files") from None
    except (av.error.FFmpegError, ValueError):
        raise UserError(f"{path}: {NO_FRAME}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def choose_stream(path: Path, container: InputContainer) -> VideoStream:
    """The video that a player would show: the default one, else the largest; never a cover.

    Raises:
        UserError: there is none.
    """
    videos = [stream for stream in container.streams.video if not is_cover(stream)]
    decodable = [stream for stream in videos if stream.codec_context is not None]
    if not decodable:
        reason = "only a cover picture" if container.streams.video else "no frame in it"
        raise UserError(f"{path}: {UNREADABLE}: {f'of {UNKNOWN_CODEC}' if videos else reason}")
    default = [stream for stream in decodable if stream.disposition & Disposition.default]
    return max(default or decodable, key=lambda stream: stream.width * stream.height)


def is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & COVER)


def describe_stream(stream: Stream) -> str:
    """What a stream holds: `h264, 64x48`, `aac`."""
    context = stream.codec_context
    if context is None:
        if stream.type in ("audio", "subtitle", "video"):
            return UNKNOWN_CODEC
        return getattr(stream, "name", None) or stream.type
    size = f", {stream.width}x{stream.height}" if isinstance(stream, VideoStream) else ""
    return f"{context.codec.canonical_name}{size}"


class VideoIntegrity:
    """Compares what header and index of a file promise with what was read of it.

    Attributes:
        rate: frames per second.
        total: frames, as the file states or by its duration and rate; 0 if neither is known.
        indexed: packets in the index of an MP4 or AVI, by stream index; empty for other formats.
        duration: seconds that the header states, 0 if it does not.
        packets: demuxed so far, by stream index.
        counts: `decoded`, `scaled`, `deinterlaced` frames; `retimed` frames, whose timestamp is
            invented; `hidden` packets, which an edit list leaves out; `corrupt` packets and frames,
            as FFmpeg marks them; `failed` attempts to demux or decode.
        end_time: how far the file was read, seconds.
        frame_times: of the first frame and the last one, seconds.
        all_read: whether the file was read to its end.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, copied: Sequence[Stream]
    ) -> None:
        self.stream, self.formats = stream, set(container.format.name.split(","))
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        duration = float(container.duration or 0) / av.time_base
        self.total = stream.frames or round(duration * self.rate)
        self.indexed: dict[int, int] = {}
        if self.formats & {"avi", "mov"}:
            # Counted now, as the index grows while fragments are read. An entry without bytes
            # brings no packet.
            for each in (stream, *copied):
                self.indexed[each.index] = sum(entry.size > 0 for entry in each.index_entries)
        # In an AVI, each frame takes up a slot, dropped or not.
        self._has_slots = "avi" in self.formats and bool(stream.frames)
        # In an MP4, an edit list may make the duration longer than what is there.
        states_duration = self.formats & DURATION_FORMATS and "mov" not in self.formats
        self.duration = duration if states_duration else 0.0
        if self._has_slots:
            self.duration = float(stream.frames / self.rate)
        self.packets: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.end_time = 0.0
        self.frame_times: tuple[float, float] | None = None
        self.all_read = False

    def count_packet(self, packet: av.Packet) -> None:
        """Count a packet of any stream."""
        self.packets[packet.stream.index] += 1
        if packet.stream is self.stream:
            self.counts["hidden"] += packet.is_discard
            self.counts["corrupt"] += packet.is_corrupt
        elif self._has_slots:
            return
        timestamps = [each for each in (packet.pts, packet.dts) if each is not None]
        if timestamps:
            end = (max(timestamps) + (packet.duration or 0)) * packet.time_base
            self.end_time = max(self.end_time, float(end))

    def count_frame(self, frame: av.VideoFrame) -> None:
        """Count a decoded frame."""
        self.counts["decoded"] += 1
        time = float(frame.time)
        self.frame_times = (self.frame_times[0] if self.frame_times else time, time)

    def describe_missing(self) -> Iterator[str]:
        """What was promised and not read, a line each."""
        indexed = self.indexed.get(self.stream.index, 0)
        unread = max(indexed - self.packets[self.stream.index], 0)
        promised = max(indexed - self.counts["hidden"], 0)
        decoded = self.counts["decoded"]
        # A packet in an AVI may repeat the last picture: no frame comes of it.
        lost = unread if "avi" in self.formats else promised - decoded
        tolerance = max(DURATION_TOLERANCE, 1.5 / float(self.rate))
        ends_early = self.end_time + tolerance < self.duration
        if self.all_read and (ends_early or (unread and not self.duration)):
            total = promised if unread else f"about {self.total}"
            frames = format_count(decoded, "frame")
            yield f"cut short: {frames} decoded, of {total} that it promises"
        elif self.all_read and lost > 0:
            yield f"damaged: {lost} of {promised} frames could not be decoded, left out"
        elif self.counts["failed"]:
            failed = format_count(self.counts["failed"], "piece")
            yield f"damaged: {failed} could not be decoded, left out"
        for index, promised in self.indexed.items() if self.all_read else ():
            lost = promised - self.packets[index]
            if lost > 0 and index != self.stream.index:
                kind = COPIED_TYPES[self.stream.container.streams[index].type]
                yield f"stream {index} ({kind}): {lost} of {promised} packets are missing"

    def describe_losses(self, timestamps: bool = True) -> Iterator[str]:
        """What a user should know of damage and repair, a line each.

        Args:
            timestamps: also of timestamps that were invented.
        """
        missing = list(self.describe_missing())
        yield from missing
        counts = {key: format_count(count, "frame") for key, count in self.counts.items() if count}
        first, last = self.frame_times or (0.0, 0.0)
        slots = round((last - first) * float(self.rate)) + 1
        # In other formats than AVI the rate is but an average.
        few = "avi" in self.formats and self.counts["decoded"] < RECORDED_SHARE * slots - 1
        if few and not missing:
            yield (
                f"{counts['decoded']} decoded; their timestamps and its rate make {slots}: the "
                "others were not recorded, or are damaged; timestamps are kept"
            )
        has_length = any(self.indexed.values()) or self.duration
        if self.all_read and self.formats & DURATION_FORMATS and not has_length:
            yield "its header has no duration, as in recordings by a browser; it may be cut short"
        if "corrupt" in counts and not missing:
            yield f"marked as damaged: {format_count(self.counts['corrupt'], 'piece')}"
        if "scaled" in counts:
            yield f"scaled to the size of the first frame: {counts['scaled']}"
        if "retimed" in counts and timestamps:
            yield (
                f"timestamp missing or out of order: {counts['retimed']}; "
                f"placed between their neighbours, or at {float(self.rate):g} frames/s"
            )
        if "deinterlaced" in counts:
            yield f"deinterlaced: {counts['deinterlaced']}"
