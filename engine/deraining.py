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
DerainedGroup = list[tuple[av.VideoFrame, np.ndarray]]  # frames and their derained images


@dataclass(frozen=True)
class Comparison:
    """What to show of a picture, or of a frame in the middle of a video, before and after.

    Attributes:
        rainy, derained: (H,W,3) uint8 or, of a picture, uint16, BGR.
        mask: the attention map, (H,W) float32 in 0..1; None if an earlier run derained.
        seconds: that it took: of a picture, the network (see DerainedImage); of a video, all frames
            and the writing of the file.
        note: how far tiles are from the whole, see Derainer.compare_tiles.
        frames: the number of frames that were written.
    """

    rainy: np.ndarray
    derained: np.ndarray
    mask: np.ndarray | None
    seconds: float
    note: str = ""
    frames: int = 1


def derain_picture(
    derainer: Derainer, picture: Picture, name: str, on_progress: OnProgress = lambda *_: None
) -> tuple[Picture, Comparison]:
    """Derain a picture of any kind; depth, grey, transparency, profile and EXIF data stay.

    Args:
        name: what a message calls it.
        on_progress: see Derainer.derain.

    Returns:
        The derained picture, of the same kind as the rainy one, and what to show of it.

    Raises:
        UserError: see Derainer.derain.
    """
    output = derainer.derain(picture.colour, name, on_progress)
    if picture.plain:  # has 8-bit colours: rounded on the device, they are quicker to fetch
        derained = replace(picture, colour=output.uint8_image)
    else:
        derained = picture.with_colour(output.float_image)
    note = derainer.compare_tiles(picture.colour, name)
    return derained, Comparison(picture.colour, derained.colour, output.mask, output.seconds, note)


def derain_video(
    derainer: Derainer,
    ranks: Ranks,
    reader: VideoReader,
    target: Path,
    on_frame: Callable[[int], object] = lambda _: None,
    on_warning: Callable[[str], object] = lambda _: None,
    on_early_end: Callable[[int], object] | None = None,
) -> Comparison | None:
    """Derain the frames that a reader was opened for into a new video; the sound is copied.

    Ranks share the frames, and the first one writes them.

    Args:
        on_frame: called after each frame, one of each rank, with the number of frames done.
        on_warning: on the first rank, called with a line for all that is lost or guessed: before
            the first frame with what is known then, after the last with the rest.
        on_early_end: on the first rank, called with the number of frames if an error or a signal
            ends the video early. The file then holds these frames. None removes the file.

    Returns:
        What was written, on the first rank; None on the others.

    Raises:
        UserError: a frame cannot be derained, see Derainer.derain, or written (WriteError).
    """
    start = time.monotonic()
    writer: VideoWriter | None = None

    def open_writer() -> None:
        nonlocal writer
        if ranks.is_first:
            writer = VideoWriter(target, reader)

    try:
        list(ranks.gather_results(open_writer))  # all learn if the first cannot
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
    seconds = time.monotonic() - start
    for line in (*reader.list_warnings(), *writer.warnings):
        on_warning(line)
    rainy, output = middle
    return Comparison(rainy, output.uint8_image, output.mask, seconds, frames=writer.frame_count)


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
    derained_count = written_count = 0  # frames

    def derain_frame(image: np.ndarray | None) -> np.ndarray | None:
        nonlocal middle
        if image is None:  # the last group has no frame for this rank
            return None
        output = derainer.derain(image, str(reader.path))
        if not middle or derained_count + ranks.rank <= reader.count // 2:
            middle = image, output  # which stays on the device until it is shown
        return output.uint8_image

    def derain_group(item: av.Packet | FrameGroup) -> av.Packet | DerainedGroup:
        nonlocal derained_count
        if isinstance(item, av.Packet):
            return item
        frames, own_image = item
        images = list(ranks.gather_results(partial(derain_frame, own_image)))
        derained_count += len(frames)
        return list(zip(frames, images, strict=False))

    def write(item: av.Packet | DerainedGroup) -> int:
        if isinstance(item, av.Packet):
            if writer:
                writer.write_packet(item)
            return 0
        for frame, image in item:
            if writer:
                writer.write_frame(image, frame)
        return len(item)

    groups = prefetch(_group_frames(reader, ranks))
    with closing(groups), closing(map_threads(map(derain_group, groups), write, 1)) as counts:
        for count in counts:
            written_count += count
            if count:
                on_frame(written_count)
    return middle


def _group_frames(reader: VideoReader, ranks: Ranks) -> Iterator[av.Packet | FrameGroup]:
    """The frames of a video in groups of one for each rank, with the sound between them.

    The image of this rank is (H,W,3) uint8 BGR; the last group can be too short to have one.
    """
    group: list[av.VideoFrame] = []
    own_image = None
    for item in reader.items:
        if isinstance(item, av.Packet):
            yield item
            continue
        if len(group) == ranks.rank:
            own_image = reader.convert_frame(item)
        group.append(item)
        if len(group) == ranks.world_size:
            yield group, own_image
            group, own_image = [], None
    if group:
        yield group, own_image
