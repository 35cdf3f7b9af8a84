"""Writes a derained video: size, timestamps, colours, sound and metadata stay as they were."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from media.video_container import COPIED_TYPES, describe_stream, ffmpeg_address
from media.video_reader import ACCURATE, VideoReader
from settings import UserError, format_count
from system.files import WriteError, create_temp_beside

# Encoder, its options and what it can hold, by the suffix of the file to write: good enough to be
# looked at closely. By default x264 lets its choices depend on how fast the frames come; with a
# lookahead of one thread, the same frames make the same file.
X264_PARAMS = "lookahead-threads=1:sync-lookahead=0"
X264_OPTIONS = {"crf": "14", "preset": "medium", "x264-params": X264_PARAMS}
VP9_OPTIONS = {"crf": "15", "b": "0", "row-mt": "1", "cpu-used": "4"}
X264 = ("libx264", X264_OPTIONS, "sides of at most 16384 pixels and usual rates")
VP9 = ("libvpx-vp9", VP9_OPTIONS, "sides of at most 65535 pixels and usual rates")
FFV1: tuple[str, dict[str, str], str] = ("ffv1", {}, "sides of at least 2 pixels")
ENCODERS = {".mp4": X264, ".m4v": X264, ".mov": X264, ".mkv": X264, ".webm": VP9}
CONTAINERS = {".mkv": "matroska", ".m4v": "mp4"}  # if the suffix is not FFmpeg's name
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
LOSSLESS = {"ffv1", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "png", "lagarith", "magicyuv"}
RGB, BT709, BT2020 = 0, 1, 9  # FFmpeg's numbers of colour spaces
# Older PyAV does not convert to the last.
UNSUPPORTED_COLORSPACES = {RGB} if hasattr(Colorspace, "BT2020") else {RGB, BT2020}
# Metadata of the file or its coding, which are new, of turning, which is done, and of transparency,
# which players would look for.
OUTDATED_KEYS = {
    "alpha_mode", "bps", "compatible_brands", "duration", "encoder", "major_brand", "minor_version",
    "number_of_bytes", "number_of_frames", "rotate", "software", "vendor_id",
}  # fmt: skip
# Keys that MP4 defines. Others are written as QuickTime's, which fewer programs read.
MP4_KEYS = {
    "album", "artist", "comment", "copyright", "creation_time", "date", "description", "genre",
    "location", "location-eng", "title",
}  # fmt: skip
# Side data of frames that is not written.
DROPPED_SIDE_DATA = {
    Type.A53_CC: "closed captions",
    Type.CONTENT_LIGHT_LEVEL: "light levels",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.MASTERING_DISPLAY_METADATA: "mastering display",
    Type.SPHERICAL: "projection of a sphere",
    Type.STEREO3D: "arrangement of two views",
}


def choose_pixel_format(source: VideoReader) -> str:
    """The pixel format that keeps the resolution of a video's colours, for x264 and VP9."""
    pixels = source.first.format
    is_halved = [pixels.chroma_width(8) < 8, pixels.chroma_height(8) < 8]
    if source.orientation.transposed:
        is_halved.reverse()
    if source.width % 2 or source.height % 2:  # which halves need to be even
        return "yuv444p"
    if all(is_halved) or len(pixels.components) < 3:
        return "yuv420p"
    return "yuv422p" if is_halved[0] else "yuv444p"


class VideoWriter:
    """Encodes frames, in order, into a file that is named `path` when it is closed.

    Attributes:
        frame_count: frames written so far.
        temp_path: the file while it is written.
        notes: what of the source this kind of file does not keep, a line each.
        warnings: what was lost while it was written, a line each; complete when it is closed.

    Raises:
        UserError: this kind of file cannot hold such frames; tried before anything is written.
        WriteError: from every method, if the file cannot be written; it is removed.
    """

    def __init__(self, path: Path, source: VideoReader) -> None:
        self.path, self.source, self.frame_count = path, source, 0
        self._dropped_packets: Counter[int] = Counter()  # by the index of their stream
        self._last_dts: dict[int, int] = {}
        self.warnings: list[str] = []
        self._cleanup = contextlib.ExitStack()
        try:
            with self._translate_errors():
                self._open()
        except BaseException:  # a signal too, as nobody else could discard it yet
            self.discard()
            raise
        self.notes = [f"{source.path}: {note}" for note in self._describe_dropped_content()]

    def _open(self) -> None:
        source = self.source
        self._require_fit()
        self.temp_path = create_temp_beside(self.path, self.path.suffix)
        self._cleanup.callback(self.temp_path.unlink, missing_ok=True)
        metadata = self._filter_metadata(source.container.metadata)
        needs_quicktime_keys = not {key.lower() for key in metadata} <= MP4_KEYS
        options = {"movflags": "use_metadata_tags"} if needs_quicktime_keys else {}
        address, suffix = ffmpeg_address(self.temp_path), self.path.suffix
        self.container = self._open_container(address, suffix, **options)
        self._cleanup.callback(self.container.close)
        self.container.metadata.update(metadata)
        self._chapters = source.container.chapters()
        if not source.start and not source.frames:
            self.container.set_chapters(self._chapters)
        self.stream = self._add_video_stream(self.container, suffix)
        self.copies: dict[int, av.stream.Stream] = {}
        for each in source.copied:
            self._copy_stream(each)
        self.container.start_encoding()

    def _add_video_stream(self, container: OutputContainer, suffix: str) -> VideoStream:
        """Add the stream of the derained frames, as files of this suffix hold them."""
        source, first = self.source, self.source.first
        encoder, options, _ = self._choose_encoder(suffix)
        stream = container.add_stream(encoder, rate=source.rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.metadata.update(self._filter_metadata(source.stream.metadata))
        stream.width, stream.height = source.width, source.height
        stream.pix_fmt = "bgr0" if encoder == "ffv1" else choose_pixel_format(source)
        context = stream.codec_context
        context.time_base = source.stream.time_base or 1 / source.rate
        context.flags |= Flags.frame_duration  # nothing else says when the last frame ends
        context.color_range = first.color_range
        is_supported = first.colorspace not in UNSUPPORTED_COLORSPACES
        context.colorspace = first.colorspace if is_supported else BT709
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        aspect = source.stream.sample_aspect_ratio
        if aspect:
            context.sample_aspect_ratio = 1 / aspect if source.orientation.transposed else aspect
        return stream

    def _choose_encoder(self, suffix: str) -> tuple[str, dict[str, str], str]:
        if self.source.stream.codec_context.name in LOSSLESS and suffix.lower() == ".mkv":
            return FFV1
        return ENCODERS[suffix.lower()]

    def _open_container(self, file: Any, suffix: str, **options: str) -> OutputContainer:
        """Open a file to write of the kind that a suffix names; the options are those of MP4."""
        name = CONTAINERS.get(suffix.lower(), suffix.lower()[1:])
        # Edit lists count in this unit, and would hide frames that are shown for less.
        options["movie_timescale"] = str(max(1000, round(self.source.rate)))
        own_options = options if suffix.lower() in MP4_SUFFIXES else {}
        return av.open(file, "w", format=name, container_options=own_options)

    def _require_fit(self) -> None:
        """Raise UserError if this kind of file cannot hold frames of the source's size and rate."""
        source, suffix = self.source, self.path.suffix
        if self._fits(suffix):
            return
        encoder, _, limit = self._choose_encoder(suffix)
        expected = " or ".join(filter(self._fits, ENCODERS)) or "another size or rate"
        raise UserError(
            f"{self.path}: cannot be written: {suffix} holds no {source.width}x{source.height} "
            f"pixels at {float(source.rate):g} frames/s ({encoder}: {limit}); expected "
            f"{expected}"
        )

    def _fits(self, suffix: str) -> bool:
        """Whether a file of this suffix holds the source's frames: three are written and read."""
        source, file = self.source, io.BytesIO()
        image = np.zeros((source.height, source.width, 3), np.uint8)
        with contextlib.suppress(av.error.FFmpegError, ValueError, NotImplementedError):
            with self._open_container(file, suffix) as trial:
                stream = self._add_video_stream(trial, suffix)
                for index in range(3):
                    frame = av.VideoFrame.from_ndarray(image, format="bgr24")
                    frame.pts, frame.time_base = index * source.frame_ticks, source.stream.time_base
                    trial.mux(stream.encode(frame))
                trial.mux(stream.encode(None))
            file.seek(0)
            with av.open(file) as written:
                return len(list(written.decode(video=0))) == 3
        return False

    def _copy_stream(self, stream: av.stream.Stream) -> None:
        """Add a copy of a stream, if this kind of file can hold it."""
        try:
            with self._open_container(io.BytesIO(), self.path.suffix) as trial:
                trial.add_stream_from_template(stream)
                trial.start_encoding()
        except (av.error.FFmpegError, ValueError):
            return
        copy = self.copies[stream.index] = self.container.add_stream_from_template(stream)
        copy.metadata.update(self._filter_metadata(stream.metadata))
        copy.disposition = stream.disposition

    def _filter_metadata(self, metadata: dict[str, str]) -> dict[str, str]:
        """The metadata that stays true when the video is encoded anew."""
        return {
            key: text
            for key, text in metadata.items()
            if key.lower().removesuffix("-eng") not in OUTDATED_KEYS
            and not key.startswith("_STATISTICS")
            and (key, text) != ("language", "und")
            and not (self.source.start and key.lower() == "timecode")  # that of the first frame
        }

    def _describe_dropped_content(self) -> Iterator[str]:
        source, others = self.source, []
        metadata = source.container.metadata | source.stream.metadata
        has_timecode = "timecode" in map(str.lower, metadata)
        for stream in source.container.streams:
            content = describe_stream(stream)
            # MP4s keep chapter names and the video's timecode in data streams.
            is_chapters = self._chapters and stream.type == "data" and stream.name == "bin_data"
            is_timecode = has_timecode and "timecode" in stream.metadata
            if stream.index in self.copies or stream.type == "video":
                continue
            if kind := COPIED_TYPES.get(stream.type):
                suffix = self.path.suffix
                reason = f": {suffix} files cannot hold it" if stream in source.copied else ""
                yield f"stream {stream.index} ({kind}, {content}) is left out{reason}"
            elif not is_chapters and not is_timecode:
                others.append(f"{stream.index} ({content})")
        if others:
            yield f"left out, as neither picture nor sound: stream {', '.join(others)}"
        side_data: Mapping[Any, object] = source.first.side_data
        dropped = [name for kind, name in DROPPED_SIDE_DATA.items() if side_data.get(kind)]
        if dropped:
            yield f"left out of what its frames carry: {', '.join(dropped)}"
        if self._chapters and (source.start or source.frames):
            yield "its chapters are left out: they are those of the whole video"
        if has_timecode and source.start:
            yield "its timecode is left out: it is that of the first frame"

    def write_packet(self, packet: av.Packet) -> None:
        """Add a packet of one of the source's copied streams, if this file holds it."""
        index, dts = packet.stream.index, packet.dts or 0
        if index not in self.copies:
            return
        # Joined files begin their timestamps anew, which no container takes. Subtitles may share
        # one.
        last = self._last_dts.get(index, dts - 1)
        if dts < last or (dts == last and packet.stream.type != "subtitle"):
            self._dropped_packets[index] += 1
            return
        self._last_dts[index] = dts
        packet.stream = self.copies[index]
        with self._translate_errors():
            self.container.mux(packet)

    def write_frame(self, image: np.ndarray, source_frame: av.VideoFrame) -> None:
        """Add (H,W,3) uint8 BGR at the timestamp of the frame that it was derained from."""
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        context = self.stream.codec_context
        if context.pix_fmt != "bgr0":
            frame = frame.reformat(
                format=context.pix_fmt,
                dst_colorspace=context.colorspace,
                dst_color_range=context.color_range or ColorRange.MPEG,
                interpolation=ACCURATE,
            )
        frame.pts, frame.time_base = source_frame.pts, source_frame.time_base
        frame.duration = source_frame.duration
        with self._translate_errors():
            self.container.mux(self.stream.encode(frame))
        self.frame_count += 1

    def close(self) -> None:
        """Finish the file, which holds the frames so far, and rename it to its path."""
        source = self.source
        with self._translate_errors():
            packets = self.stream.encode(None)
            if packets and self.path.suffix.lower() in MP4_SUFFIXES:
                # The packet that is last in the file decides how long the last frame is shown.
                packets[-1].duration = max(packets, key=lambda packet: packet.pts or 0).duration
            self.container.mux(packets)
            self.container.close()
            with av.open(ffmpeg_address(self.temp_path), metadata_errors="replace") as file:
                written = file.metadata | file.streams.video[0].metadata
            self.temp_path.replace(self.path)
        for index, count in self._dropped_packets.items():
            lost_packets = f"{format_count(count, 'packet')} left out, as timestamps do not rise"
            self.warnings.append(f"{source.path}: stream {index}: {lost_packets}")
        keys, texts = {key.lower() for key in written}, set(written.values())
        wanted = self._filter_metadata(source.container.metadata | source.stream.metadata)
        lost = [key for key in wanted if key.lower() not in keys and wanted[key] not in texts]
        if lost:
            place = f"{self.path.suffix} files have no place for its {', '.join(lost)}"
            self.warnings.append(f"{source.path}: {place}")

    def discard(self) -> None:
        """Remove the unfinished file."""
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._cleanup.close()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Discard the file, and raise WriteError, if it cannot be written."""
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.discard()
            reason = getattr(error, "strerror", None) or error
            raise WriteError(f"{self.path}: cannot be written: {reason}") from None
