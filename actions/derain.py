"""The action `derain`: a user's own pictures and videos, of which no clean version is known.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure. Pictures keep their kind (see media/pictures.py), videos their frames' times and
their sound (see media/video_writer.py). A result folder gets a page to look at them, index.html.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import av
import numpy as np

from engine.derainer import Derainer, Tick
from engine.device import describe
from engine.ranks import Ranks
from media.jobs import Job, plan
from media.pictures import encode_picture, read_picture, require_format
from media.pixels import to_uint8
from media.video import Source
from media.video_writer import Sink, Unwritable
from report import page
from report.table import Row
from settings import Settings, UserError, checkpoint_path
from system.files import require_writable, write_atomically
from system.interrupt import deferred
from system.progress import Progress

DEMO = Path(__file__).resolve().parent.parent / "model" / "demo"
SYNTHETIC = (
    "warning: model/demo was trained on synthetic rain only and can damage real photographs; for "
    "those, run `make weights` and use -m published"
)
SOON = 3.0  # seconds after which a single picture shows its progress


def derain(settings: Settings) -> int:
    """Derain what `-i` names. Returns the exit status: 2 where a file of a folder was bad.

    Ranks share the pictures, and the frames of a video; the first one writes videos and the page.

    Raises:
        UserError: bad input, or results that cannot be written.
        KeyboardInterrupt: see system/interrupt.py. The video in hand ends there, playable, and the
            page shows what was done.
    """
    with Ranks() as ranks:
        return _derain(settings, ranks)


def _derain(settings: Settings, ranks: Ranks) -> int:
    first = ranks.first
    jobs, folder, note, complaints = plan(settings.input, settings.output, page.PICTURES)
    for complaint in complaints:
        _complain(ranks, complaint)
    if note and first:
        print(note)
    derainer = Derainer.by_settings(checkpoint_path(settings), settings, ranks)
    if derainer.path.resolve() == DEMO:
        _complain(ranks, SYNTHETIC)
    if len(jobs) == 1:
        _try(jobs[0])  # bad input costs nothing that is there
    require_writable(folder or jobs[0].target.parent)
    if folder:
        page.require_own_page(folder)
        ranks.exchange(None)  # all have looked before it goes
        if first:
            page.remove_page(folder)
    ranks.exchange(None)  # none writes a picture of the new page before
    if first:
        device = describe(derainer.device, ranks)
        print(f"{derainer.path}, step {derainer.step}, on {device}", flush=True)
    rows: dict[int, Row] = {}
    bad, start = len(complaints), time.monotonic()
    try:
        bad += _derain_pictures(derainer, ranks, jobs, folder, rows)
        bad += _derain_videos(derainer, ranks, jobs, folder, rows)
    finally:
        if first and folder and rows:
            title = f"SPANet: {Path(settings.input).name}, derained by {derainer.path.name}"
            content = page.plain_page([rows[number] for number in sorted(rows)])
            seconds = time.monotonic() - start
            run = page.about(derainer.about(), device, seconds)
            with deferred():
                page.write_page(folder, title, content, run, settings)
    if first:
        where = ""
        if rows:
            look = f"; open {folder / page.PAGE} to look at them" if folder else ""
            where = look or f": {jobs[0].target}"
        print(f"{len(rows)} of {len(jobs)} derained{where}")
    return 2 if bad else 0


def _try(job: Job) -> None:
    if job.is_video:
        Source(job.source).close()
    else:
        require_format(job.target, read_picture(job.source))


def _derain_pictures(
    derainer: Derainer, ranks: Ranks, jobs: list[Job], folder: Path | None, rows: dict[int, Row]
) -> int:
    """Derain the pictures of the jobs, into the rows of the page. Returns how many were bad."""
    numbers = [number for number, job in enumerate(jobs) if not job.is_video]
    alone = len(jobs) == 1

    def work(index: int) -> Row | str:
        number, start = numbers[index], time.monotonic()
        job = jobs[number]
        try:
            picture = read_picture(job.source)
            require_format(job.target, picture)
            with _parts(derainer, picture.colour, shown=alone and ranks.first) as tick:
                output, mask = derainer(picture.colour, str(job.source), tick)
            done = picture.with_colour(output)
            data = encode_picture(job.target, done)
        except UserError as error:
            if alone:
                raise
            return str(error)
        write_atomically(job.target, data)
        if folder:
            page.write_pictures(folder, number, picture.preview(), done.preview(), mask)
        row = _row(number, job, folder, start, picture.colour, done.colour, mask)
        row.note = derainer.tile_note(picture.colour)
        return row

    bad, told = 0, False
    silent = not ranks.first or alone
    with Progress("picture", 0, max(len(numbers), 1), [], silent=silent) as progress:
        for number, found in zip(numbers, ranks.share(len(numbers), work), strict=True):
            if isinstance(found, str):
                bad += 1
                _complain(ranks, found)
            else:
                rows[number] = found
                if found.note and not told and ranks.first:
                    progress.say(found.note)
                told = told or bool(found.note)
            progress.advance(1)
    return bad


@contextmanager
def _parts(derainer: Derainer, image: np.ndarray, shown: bool) -> Iterator[Tick | None]:
    """Progress within one picture, where there is no other and it takes its time."""
    if not shown:
        yield None
        return
    count = derainer.parts(*image.shape[:2])
    with Progress("part", 0, count, [], after=SOON) as progress:
        yield progress.advance


def _complain(ranks: Ranks, message: str) -> None:
    if ranks.first:
        print(f"main.py: {message}", file=sys.stderr)


def _row(
    number: int,
    job: Job,
    folder: Path | None,
    start: float,
    before: np.ndarray,
    after: np.ndarray,
    mask: np.ndarray,
) -> Row:
    file = page.address(job.target.relative_to(folder)) if folder else ""
    row = Row.of(number, job.name, file, before, after, mask)
    row.seconds = time.monotonic() - start
    return row


def _derain_videos(
    derainer: Derainer, ranks: Ranks, jobs: list[Job], folder: Path | None, rows: dict[int, Row]
) -> int:
    bad = 0
    for number, job in enumerate(jobs):
        if not job.is_video:
            continue
        try:
            with closing(Source(job.source)) as source:
                row = _derain_video(derainer, ranks, number, job, source, folder)
            if row:
                rows[number] = row
        except UserError as error:
            # What cannot be written, one rank knows alone; the others would wait for it.
            if len(jobs) == 1 or isinstance(error, Unwritable):
                raise
            bad += 1
            _complain(ranks, str(error))
    return bad


def _derain_video(
    derainer: Derainer, ranks: Ranks, number: int, job: Job, source: Source, folder: Path | None
) -> Row | None:
    """Derain a video; its row, on the first rank, shows the frame in the middle.

    What ends it early, of whatever kind, leaves the frames so far in a file that can be played.
    """
    start = time.monotonic()
    shown: list[np.ndarray] = []
    sink = Sink(job.target, source) if ranks.first else None
    try:
        _derain_frames(derainer, ranks, job, source, sink, shown)
    except BaseException:
        # A file that cannot be written is gone already.
        if sink and sink.written and sink.unfinished.exists():
            with deferred():
                sink.close()
            print(f"\n{job.target}: ends early, holds the first {sink.written} frames")
        elif sink:
            sink.discard()
        raise
    if not sink:
        return None
    if not shown:
        sink.discard()
        raise UserError(f"{job.source}: no frame of it can be read")
    for warning in (*source.warnings(), *sink.warnings()):
        _complain(ranks, f"warning: {warning}")
    with deferred():
        sink.close()
    if folder:
        page.write_pictures(folder, number, *shown)
    row = _row(number, job, folder, start, *shown)
    row.frames = sink.written
    return row


def _derain_frames(
    derainer: Derainer,
    ranks: Ranks,
    job: Job,
    source: Source,
    sink: Sink | None,
    shown: list[np.ndarray],
) -> None:
    """Derain each frame into the sink; shown becomes before, after and mask of a middle one."""
    frames = _frames(source, sink)
    count, done = max(source.count, 1), 0

    def work(index: int) -> np.ndarray:
        before = source.pixels(together[index])
        output, mask = derainer(before, str(job.source))
        after = to_uint8(output)
        if not shown or done + index <= count // 2:
            shown[:] = before, after, mask
        return after

    with Progress("frame", 0, count, [], silent=not ranks.first) as progress:
        while together := list(islice(frames, ranks.world_size)):
            for frame, after in zip(together, ranks.share(len(together), work), strict=True):
                if sink:
                    sink.frame(after, frame)
            note = derainer.tile_note(shown[0]) if shown and ranks.first else ""
            if note:
                progress.say(note)
            done += len(together)
            progress.update(min(done, count) - 1, {})


def _frames(source: Source, sink: Sink | None) -> Iterator[av.VideoFrame]:
    """The frames of a video; the sound between them goes to the sink."""
    for item in source.packets():
        if isinstance(item, av.VideoFrame):
            yield item
        elif sink:
            sink.sound_packet(item)
