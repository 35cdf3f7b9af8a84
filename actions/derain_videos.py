"""Videos of the action `derain`: decoded ahead of the network, encoded behind it."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import av
import numpy as np

from engine.derainer import Derained, Derainer
from engine.ranks import Ranks
from media.jobs import Job
from media.video_reader import VideoReader
from media.video_writer import VideoWriteError, VideoWriter
from report import page
from report.copies import write_pictures
from report.table import Row
from settings import Settings, UserError
from system.interrupt import defer_signals
from system.overlap import map_threads, prefetch
from system.progress import SLOW_SECONDS, Progress, warn

Tell = Callable[[str], object]
PACE = 3  # frames after which it is told how long all will take; the first takes longer


def derain_videos(
    settings: Settings,
    derainer: Derainer,
    ranks: Ranks,
    jobs: list[Job],
    folder: Path | None,
    rows: dict[int, Row],
    tell: Tell = warn,
    keep: bool = True,
) -> int:
    """Derain the videos of the jobs, into the rows of the page. Returns how many were bad, or
    came with something missing.

    Args:
        tell: what takes the warnings.
        keep: of a video that is ended early, keep the frames so far.
    """
    bad = 0
    for number, job in enumerate(jobs):
        if not job.is_video:
            continue
        try:
            with closing(VideoReader(job.source, settings.start, settings.frames)) as source:
                row = _derain_video(derainer, ranks, number, job, source, folder, tell, keep)
                bad += source.incomplete
            if row:
                rows[number] = row
        except UserError as error:
            # What cannot be written, one rank knows alone; the others would wait for it.
            if len(jobs) == 1 or isinstance(error, VideoWriteError):
                raise
            bad += 1
            if ranks.first:
                tell(str(error))
    return bad


def _derain_video(
    derainer: Derainer,
    ranks: Ranks,
    number: int,
    job: Job,
    source: VideoReader,
    folder: Path | None,
    tell: Tell,
    keep: bool,
) -> Row | None:
    """Derain a video; its row, on the first rank, shows the frame in the middle.

    What ends it early, of whatever kind, leaves the frames so far in a file that can be played,
    where they are to be kept.
    """
    start = time.monotonic()
    sink = VideoWriter(job.target, source) if ranks.first else None
    try:
        for note in (*source.notes, *sink.notes) if sink else ():
            tell(f"warning: {note}")
        shown = _derain_frames(derainer, ranks, job, source, sink)
    except BaseException:
        # A file that cannot be written is gone already.
        if keep and sink and sink.frame_count and sink.temp_path.exists():
            with defer_signals():
                sink.close()
            print(f"\n{job.target}: ends early, holds the first {sink.frame_count} frames", end="")
            rest = _rest(job, source, sink.frame_count, alone=folder is None)
            print(f"; to go on from there, add {rest} and give -o another name" if rest else "")
        elif sink:
            sink.discard()
        raise
    if not sink:
        return None
    with defer_signals():
        sink.close()
    for warning in (*source.list_warnings(), *sink.warnings):
        tell(f"warning: {warning}")
    if folder:
        before, after, mask = shown
        write_pictures(folder, number, {"before": before, "after": after}, mask)
    files = page.files_of(folder, before=job.source, after=job.target) if folder else {}
    row = Row.of(number, job.name, files, *shown)
    row.seconds, row.frames = time.monotonic() - start, sink.frame_count
    row.begin = source.start_time
    return row


def _rest(job: Job, source: VideoReader, written: int, alone: bool) -> str:
    """The options that derain what is left of a video; empty where nothing is."""
    if source.frames and source.frames <= written:
        return ""
    file = "" if alone else f"-i {shlex.quote(str(job.source))} "
    frames = f" --frames {source.frames - written}" if source.frames else ""
    return f"{file}--start {source.start + written}{frames}"


@dataclass
class _Round:
    """A frame for each rank, or fewer at the end; this rank's own as pixels, (H,W,3) uint8 BGR."""

    frames: list[av.VideoFrame]
    own: np.ndarray | None


def _derain_frames(
    derainer: Derainer, ranks: Ranks, job: Job, source: VideoReader, sink: VideoWriter | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Derain each frame into the sink. Returns before, after and mask of a frame in the middle,
    on each rank that had one.

    Frames are decoded ahead of the network and encoded behind it, each by a thread.
    """
    count, done = max(source.count, 1), 0
    middle: tuple[np.ndarray, Derained] | None = None

    def work(round_: _Round) -> np.ndarray:
        nonlocal middle
        found = derainer.derained(round_.own, str(job.source))
        if not middle or done + ranks.rank <= count // 2:
            middle = round_.own, found  # its mask stays where it is until it is shown
        note = derainer.tile_note(round_.own) if ranks.first else ""
        if note:
            progress.say(note)
        return found.uint8_image

    def worked() -> Iterator[av.Packet | tuple[list[av.VideoFrame], list[np.ndarray]]]:
        nonlocal done
        for item in rounds:
            if isinstance(item, _Round):
                shared = ranks.map_over_ranks(len(item.frames), lambda _, item=item: work(item))
                yield item.frames, list(shared)
                done += len(item.frames)
            else:
                yield item

    def finish(item: av.Packet | tuple[list[av.VideoFrame], list[np.ndarray]]) -> int:
        if isinstance(item, av.Packet):
            sink.write_packet(item)
            return 0
        frames, images = item
        for frame, image in zip(frames, images, strict=True):
            if sink:
                sink.write_frame(image, frame)
        return len(frames)

    rounds = prefetch(_rounds(source, ranks, sound=sink is not None))
    with (
        closing(rounds),
        closing(map_threads(worked(), finish, threads=1)) as finished,
        Progress("frame", 0, count, [], silent=not ranks.first) as progress,
    ):
        written = 0
        pace = _Pace(job.name, source.count)
        for frames in filter(None, finished):
            written += frames
            progress.update(min(written, count) - 1, {})
            told = pace.tell(written)
            if told and ranks.first:
                progress.say(told)
    return (middle[0], middle[1].uint8_image, middle[1].mask) if middle else None


class _Pace:
    """Says after the first frames how long all of them will take; count is 0 if not known."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count, self.told = name, count, False
        self.first: tuple[int, float] | None = None  # frames at once, and when they were done

    def tell(self, written: int) -> str:
        """A line when so many are written, once; empty before, and where it is but a moment."""
        now = time.monotonic()
        if not self.first:
            self.first = written, now
        frames = written - self.first[0]
        if self.told or not (self.count and frames) or written < PACE:
            return ""
        self.told = True
        whole = self.count * (now - self.first[1]) / frames
        if whole < SLOW_SECONDS:
            return ""
        return f"{self.name}: {self.count} frames take about {timedelta(seconds=round(whole))}"


def _rounds(source: VideoReader, ranks: Ranks, sound: bool) -> Iterator[_Round | av.Packet]:
    """The frames of a video, as many together as there are ranks, and the sound between them."""
    together: list[av.VideoFrame] = []
    for item in source.items:
        if isinstance(item, av.VideoFrame):
            together.append(item)
        elif sound:
            yield item
        if len(together) == ranks.world_size:
            yield _Round(together, source.convert_frame(together[ranks.rank]))
            together = []
    if together:
        own = together[ranks.rank] if ranks.rank < len(together) else None
        yield _Round(together, None if own is None else source.convert_frame(own))
