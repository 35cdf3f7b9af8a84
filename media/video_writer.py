"""A derained video in the making: size, times, colours, sound and what is told of it stay."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace

from media.container import SORTS, describe_stream, ffmpeg_address
from media.video import ACCURATE, VideoReader
from settings import UserError
from system.files import create_temp_beside

# Encoder and its options by the suffix of the file to write: good enough to be looked at closely.
# By default x264 lets its choices depend on how fast the frames come; as it is here, the same
# frames make the same file.
STEADY = "lookahead-threads=1:sync-lookahead=0"
X264 = ("libx264", {"crf": "14", "preset": "medium", "x264-params": STEADY})
ENCODERS = {
    ".mp4": X264,
    ".m4v": X264,
    ".mov": X264,
    ".mkv": X264,
    ".webm": ("libvpx-vp9", {"crf": "15", "b": "0", "row-mt": "1", "cpu-used": "4"}),
}
CONTAINERS = {".mkv": "matroska", ".m4v": "mp4"}  # where the suffix is not the name
LOSSLESS = {"ffv1", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "png", "lagarith", "magicyuv"}
RGB, BT709, BT2020 = 0, 1, 9  # FFmpeg's numbers of colour spaces
# Older PyAV does not convert to the last.
UNKNOWN = {RGB} if hasattr(Colorspace, "BT2020") else {RGB, BT2020}
# What is told of the file or its coding, which are new, of turning, which is done, and of
# transparency, which players would look for.
OUTDATED = {
    "alpha_mode", "bps", "compatible_brands", "duration", "encoder", "major_brand", "minor_version",
    "number_of_bytes", "number_of_frames", "rotate", "software", "vendor_id",
}  # fmt: skip
# What an MP4 has its own places for. Other keys need those of QuickTime, which fewer programs read.
PLACES = {
    "album", "artist", "comment", "copyright", "creation_time", "date", "description", "genre",
    "location", "location-eng", "title",
}  # fmt: skip

# What frames carry beside their pixels, and the frames that are written do not.
CARRIED = {
    Type.A53_CC: "closed captions",
    Type.CONTENT_LIGHT_LEVEL: "light levels",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.MASTERING_DISPLAY_METADATA: "mastering display",
    Type.SPHERICAL: "projection of a sphere",
    Type.STEREO3D: "arrangement of two views",
}


class Unwritable(UserError):
    """A video file that cannot be written."""


class VideoWriter:
    """A video file in the making: frames in, in order. close() makes it playable, whenever.

    Attributes:
        written: frames so far.

    Raises:
        Unwritable: from every method, where it cannot be written; what there was of it is gone.
    """

    def __init__(self, path: Path, source: VideoReader) -> None:
        self.path, self.source, self.written = path, source, 0
        self._kind = CONTAINERS.get(path.suffix.lower(), path.suffix.lower()[1:])
        self._silent: dict[int, int] = {}  # packets left out, by stream
        self._heard: dict[int, int] = {}  # the time of a stream's last packet
        self._lost: list[str] = []  # names of what was told of the source
        with self._told():
            self.unfinished = create_temp_beside(path, path.suffix)
            try:
                self._open()
            except BaseException:  # a signal too: nobody holds the file yet, who would remove it
                self.discard()
                raise

    def _open(self) -> None:
        source = self.source
        name, options = ENCODERS[self.path.suffix.lower()]
        if source.stream.codec_context.name in LOSSLESS and self._kind == "matroska":
            name, options = "ffv1", {}
        told = self._told_of(source.container.metadata)
        places = (
            {} if {key.lower() for key in told} <= PLACES else {"movflags": "use_metadata_tags"}
        )
        self.container = av.open(
            ffmpeg_address(self.unfinished),
            "w",
            format=self._kind,
            container_options=places if self._kind in ("mp4", "mov") else {},
        )
        self.container.metadata.update(told)
        self._chapters = source.container.chapters()
        if not source.start and not source.frames:
            self.container.set_chapters(self._chapters)
        self.stream = self.container.add_stream(name, rate=source.rate, options=options)
        self.stream.metadata.update(self._told_of(source.stream.metadata))
        self.stream.width, self.stream.height = source.width, source.height
        # Half as much colour as light needs even sides.
        even = source.width % 2 == 0 == source.height % 2
        lossy = "yuv420p" if even else "yuv444p"
        self.stream.pix_fmt = "bgr0" if name == "ffv1" else lossy
        context, first = self.stream.codec_context, source.first
        context.time_base = source.stream.time_base
        context.flags |= Flags.frame_duration  # nothing else says when the last frame ends
        context.color_range, context.colorspace = first.color_range, self._colours(first)
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        shape = source.stream.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if source.orientation.swapped else shape
        self.copies = {one.index: self._copy(one) for one in source.copied if self._holds(one)}
        self.container.start_encoding()

    def _holds(self, stream: av.stream.Stream) -> bool:
        """Whether this kind of file can hold a stream: not every kind holds every codec."""
        trial = av.open(io.BytesIO(), "w", format=self._kind)
        try:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
        except (av.error.FFmpegError, ValueError):
            return False
        finally:
            with contextlib.suppress(av.error.FFmpegError, ValueError):
                trial.close()
        return True

    def _copy(self, stream: av.stream.Stream) -> av.stream.Stream:
        copy = self.container.add_stream_from_template(stream)
        copy.metadata.update(self._told_of(stream.metadata))
        copy.disposition = stream.disposition
        return copy

    def _told_of(self, metadata: dict[str, str]) -> dict[str, str]:
        """What stays true of the video when it is coded anew."""
        return {
            key: text
            for key, text in metadata.items()
            if key.lower().removesuffix("-eng") not in OUTDATED
            and not key.startswith("_STATISTICS")
            and (key, text) != ("language", "und")
            and not (self.source.start and key.lower() == "timecode")  # that of the first frame
        }

    @staticmethod
    def _colours(frame: av.VideoFrame) -> int:
        return BT709 if frame.colorspace in UNKNOWN else frame.colorspace

    def packet(self, packet: av.Packet) -> None:
        """Add a packet of one of the source's copied streams, if this file holds it."""
        index = packet.stream.index
        if index not in self.copies:
            return
        # Joined files begin their times anew, which no container takes. Subtitles may share one.
        last = self._heard.get(index, packet.dts - 1)
        if packet.dts < last or (packet.dts == last and packet.stream.type != "subtitle"):
            self._silent[index] = self._silent.get(index, 0) + 1
            return
        self._heard[index] = packet.dts
        packet.stream = self.copies[index]
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
        if like.duration:
            frame.duration = like.duration
        with self._told():
            self.container.mux(self.stream.encode(frame))
        self.written += 1

    def notes(self) -> list[str]:
        """What of the source has no place in this file, a line each; known at once."""
        source, found, others = self.source, [], []
        told = source.container.metadata | source.stream.metadata
        timed = "timecode" in map(str.lower, told)
        for one in source.container.streams:
            if one.type in SORTS:
                if one.index not in self.copies:
                    reason = f": {self.path.suffix} files cannot hold it"
                    found.append(
                        f"stream {one.index} ({SORTS[one.type]}, {describe_stream(one)}) is left "
                        "out"
                        f"{reason if one in source.copied else ''}"
                    )
            elif timed and "timecode" in one.metadata:
                continue  # of which the video tells
            elif one.type != "video" and not self._is_chapters(one):
                others.append(f"{one.index} ({describe_stream(one)})")
        if others:
            word = "stream" if len(others) == 1 else "streams"
            found.append(f"left out, as neither picture nor sound: {word} {', '.join(others)}")
        carried = [name for kind, name in CARRIED.items() if source.first.side_data.get(kind)]
        if carried:
            found.append(f"left out of what its frames carry: {', '.join(carried)}")
        if self._chapters and (source.start or source.frames):
            found.append("its chapters are left out: they are those of the whole video")
        if timed and source.start:
            found.append("its timecode is left out: it is that of the first frame")
        return [f"{source.path}: {note}" for note in found]

    def _is_chapters(self, stream: av.stream.Stream) -> bool:
        """Whether it holds the names of chapters, as MP4s have them."""
        return bool(self._chapters) and stream.type == "data" and stream.name == "bin_data"

    def warnings(self) -> list[str]:
        """What was lost on the way, a line each; all of it is known when the file is closed."""
        found = [
            f"stream {index}: {count} packets whose times do not rise are left out"
            for index, count in self._silent.items()
        ]
        if self._lost:
            found.append(f"{self.path.suffix} files have no place for its {', '.join(self._lost)}")
        return [f"{self.source.path}: {line}" for line in found]

    def close(self) -> None:
        """Finish the file, with as many frames as there are, and give it its name."""
        with self._told():
            self._flush()
            self.container.close()
            self._lost = list(self._forgotten())
            self.unfinished.replace(self.path)

    def _flush(self) -> None:
        packets = self.stream.encode(None)
        if packets and self._kind in ("mp4", "mov"):
            # These are as long as the packet that is last in the file says.
            packets[-1].duration = max(packets, key=lambda packet: packet.pts).duration
        self.container.mux(packets)

    def _forgotten(self) -> Iterator[str]:
        """Names of what is told of the source, and not of the file that was written."""
        source = self.source
        with av.open(ffmpeg_address(self.unfinished), metadata_errors="replace") as written:
            after = written.metadata | written.streams.video[0].metadata
        keys = {key.lower() for key in after}
        for key, text in self._told_of(source.container.metadata | source.stream.metadata).items():
            if key.lower() not in keys and text not in after.values():
                yield key

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
