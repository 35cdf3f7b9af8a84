"""The file of a video: opened so that it leads to no other, and the stream of it that is taken."""

from collections.abc import Iterator
from pathlib import Path

import av
from av.stream import Disposition

from settings import UserError
from system.reading import open_regular

# FFmpeg's formats whose files name others to play, wherever those lie, or reach for the network.
SCRIPTS = {"concat", "dash", "hls", "imf", "image2", "rtsp", "sap", "sdp", "vobsub"}
COVER = Disposition.attached_pic | Disposition.timed_thumbnails
NOTHING = "not a video that can be read"
SORTS = {"audio": "sound", "subtitle": "subtitles"}  # of streams that are copied
UNKNOWN = "a codec that FFmpeg does not know"
# What it would print, we tell in one line. Any level but None makes its threads wait for Python's
# lock to report an error, for ever where the thread that holds the lock waits for them.
av.logging.set_level(None)


def ffmpeg_address(path: Path) -> str:
    """A path as FFmpeg takes it."""
    return f"file:{path}"  # a colon in a name would else end a protocol


def open_container(path: Path) -> av.container.InputContainer:
    """Raises UserError unless path is a regular file that holds streams of its own."""
    formats = ",".join(av.formats_available - SCRIPTS)
    try:
        open_regular(path).close()
        return av.open(
            ffmpeg_address(path), options={"format_whitelist": formats}, metadata_errors="replace"
        )
    except av.error.ArgumentError:  # said of a format that is not among those
        raise UserError(f"{path}: {NOTHING}: a list of other files; expected a video") from None
    except (av.error.FFmpegError, ValueError):
        raise UserError(f"{path}: {NOTHING}: no frame in it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def best_stream(path: Path, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The video that a player would show: the default one, else the largest; never a cover.

    Raises:
        UserError: there is none.
    """
    there = [one for one in container.streams.video if not is_cover(one)]
    known = [one for one in there if one.codec_context is not None]
    if not known:
        reason = "no frame in it"
        if there:
            reason = f"of {UNKNOWN}"
        elif container.streams.video:
            reason = "only a cover picture"
        raise UserError(f"{path}: {NOTHING}: {reason}")
    return max(
        known,
        key=lambda one: (
            bool(one.disposition & Disposition.default),
            one.codec_context.width * one.codec_context.height,
            -one.index,
        ),
    )


def is_cover(stream: av.video.stream.VideoStream) -> bool:
    return bool(stream.disposition & COVER)


def find_dropped_streams(
    container: av.container.InputContainer, taken: av.video.stream.VideoStream
) -> Iterator[str]:
    """A line for each other video, and for each cover."""
    for stream in container.streams.video:
        if stream is not taken:
            kind = "cover picture" if is_cover(stream) else "another video"
            yield (
                f"stream {stream.index} ({kind}, {describe_stream(stream)}) is left out; stream "
                f"{taken.index} ({describe_stream(taken)}) is taken"
            )


def describe_stream(stream: av.stream.Stream) -> str:
    """What a stream holds: `h264, 64x48`, `aac`."""
    context = stream.codec_context
    if context is None:
        if stream.type in ("audio", "subtitle", "video"):
            return UNKNOWN
        return getattr(stream, "name", None) or stream.type
    size = f", {context.width}x{context.height}" if stream.type == "video" else ""
    return f"{context.codec.canonical_name}{size}"
