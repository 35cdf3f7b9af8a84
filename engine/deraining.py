"""Deraining a user's own pictures and videos: the functions behind `-a derain` and `-a web`.

They print nothing: results are returned, and what happens on the way is handed to callbacks.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from engine.derainer import DerainedImage, Derainer, OnProgress
from engine.ranks import Ranks
from media.pictures import Picture
from media.video_reader import VideoReader
from media.video_writer import VideoWriter
from system.interrupt import defer_signals
from system.overlap import map_threads, prefetch

FrameGroup = tuple[list[av.VideoFrame], np.ndarray | None]  # and the image of this rank
DerainedGroup = tuple[list[av.VideoFrame], list[np.ndarray]]  # frames and their derained images


@dataclass(frozen=True)
class DerainedPicture:
    """A picture before and after.

    Attributes:
        rainy: (H,W,3) uint8 or uint16, BGR.
        picture: the derained picture, of the same kind as the rainy one.
        mask: the attention map, (H,W) float32 in 0..1.
        seconds: that deraining took.
        note: how far tiles are from the whole, see Derainer.compare_tiles.
    """

    rainy: np.ndarray
    picture: Picture
    mask: np.ndarray
    seconds: float
    note: str

    @property
    def derained(self) -> np.ndarray:
        """(H,W,3) uint8 or uint16, BGR."""
        return self.picture.colour


@dataclass(frozen=True)
class DerainedVideo:
    """A frame in the middle of a video before and after.

    Attributes:
        rainy, derained: (H,W,3) uint8 BGR.
        mask: the attention map, (H,W) float32 in 0..1.
        seconds: that deraining all frames took.
        frames: the number of frames that were written.
    """

    rainy: np.ndarray
    derained: np.ndarray
    mask: np.ndarray
    seconds: float
    frames: int


def derain_picture(
    derainer: Derainer, picture: Picture, name: str, on_progress: OnProgress = lambda *_: None
) -> DerainedPicture:
    """Derain a picture of any kind; depth, grey, transparency, profile and EXIF data stay.

    Args:
        name: what a message calls it.
        on_progress: see Derainer.derain.

    Raises:
        UserError: see Derainer.derain.
    """
    start = time.monotonic()
    output = derainer.derain(picture.colour, name, on_progress)
    if picture.plain:  # rounded on the device: a quarter of the bytes to fetch
        derained = replace(picture, colour=output.uint8_image)
    else:
        derained = picture.with_colour(output.float_image)
    mask, seconds = output.mask, time.monotonic() - start
    note = derainer.compare_tiles(picture.colour)
    return DerainedPicture(picture.colour, derained, mask, seconds, note)


def derain_video(
    derainer: Derainer,
    ranks: Ranks,
    reader: VideoReader,
    target: Path,
    on_frame: Callable[[int], object] = lambda _: None,
    on_warning: Callable[[str], object] = lambda _: None,
    on_early_end: Callable[[int], object] | None = None,
) -> DerainedVideo | None:
    """Derain the frames that a reader was opened for into a new video; the sound is copied.

    Ranks share the frames, and the first one writes them.

    Args:
        on_frame: called after each frame with the number of frames done.
        on_warning: on the first rank, called with a line for all that is lost or guessed: before
            the first frame with what is known then, after the last with the rest.
        on_early_end: on the first rank, called with the number of frames if an error or a signal
            ends the video early. The file then holds these frames. None removes the file.

    Returns:
        What was written, on the first rank; None on the others.

    Raises:
        UserError: a frame cannot be derained, see Derainer.derain, or written (VideoWriteError).
    """
    start = time.monotonic()
    writer = VideoWriter(target, reader) if ranks.first else None
    try:
        for line in (*reader.notes, *writer.notes) if writer else ():
            on_warning(line)
        middle = _derain_frames(derainer, ranks, reader, writer, on_frame)
    except BaseException:
        # A file that cannot be written is gone already.
        if writer and on_early_end and writer.frame_count and writer.temp_path.exists():
            with defer_signals():
                writer.close()
            on_early_end(writer.frame_count)
        elif writer:
            writer.discard()
        raise
    if not (writer and middle):
        return None
    with defer_signals():
        writer.close()
    for line in (*reader.list_warnings(), *writer.warnings):
        on_warning(line)
    rainy, output = middle
    seconds = time.monotonic() - start
    return DerainedVideo(rainy, output.uint8_image, output.mask, seconds, writer.frame_count)


def _derain_frames(
    derainer: Derainer,
    ranks: Ranks,
    reader: VideoReader,
    writer: VideoWriter | None,
    on_frame: Callable[[int], object],
) -> tuple[np.ndarray, DerainedImage] | None:
    """Derain each frame into the writer.

    One thread decodes frames ahead of the network, and another one encodes them behind it.

    Returns:
        A frame in the middle, of those that this rank had, (H,W,3) uint8 BGR, and its output.
    """
    middle: tuple[np.ndarray, DerainedImage] | None = None
    frame_count = 0  # of the groups that are done

    def derain_own(image: np.ndarray | None, _: int) -> np.ndarray:
        nonlocal middle
        assert image is not None  # the rank has a frame of this group
        output = derainer.derain(image, str(reader.path))
        if not middle or frame_count + ranks.rank <= reader.count // 2:
            middle = image, output  # which stays on the device until it is shown
        return output.uint8_image

    def derain_groups() -> Iterator[av.Packet | DerainedGroup]:
        nonlocal frame_count
        for item in groups:
            if isinstance(item, av.Packet):
                yield item
                continue
            frames, own_frame = item
            images = ranks.map_over_ranks(len(frames), partial(derain_own, own_frame))
            yield frames, list(images)
            frame_count += len(frames)

    def write(item: av.Packet | DerainedGroup) -> int:
        if isinstance(item, av.Packet):
            if writer:
                writer.write_packet(item)
            return 0
        for frame, image in zip(*item, strict=True):
            if writer:
                writer.write_frame(image, frame)
        return len(item[0])

    groups = prefetch(_group_frames(reader, ranks))
    with closing(groups), closing(map_threads(derain_groups(), write, threads=1)) as counts:
        done = 0
        for count in counts:
            for _ in range(count):
                done += 1
                on_frame(done)
    return middle


def _group_frames(reader: VideoReader, ranks: Ranks) -> Iterator[av.Packet | FrameGroup]:
    """The frames of a video in groups of one for each rank, with the sound between them.

    The image of this rank is (H,W,3) uint8 BGR; the last group can be too short to have one.
    """
    group: list[av.VideoFrame] = []

    def own_image() -> np.ndarray | None:
        return reader.convert_frame(group[ranks.rank]) if ranks.rank < len(group) else None

    for item in reader.items:
        if isinstance(item, av.Packet):
            yield item
            continue
        group.append(item)
        if len(group) == ranks.world_size:
            yield group, own_image()
            group = []
    if group:
        yield group, own_image()
