"""The action `derain`: a user's own pictures and videos, without a ground truth.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure. Pictures keep their kind (see pictures.py), videos their frames' times and their
sound (see transcode.py). A result folder gets a page to look at them, index.html.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

import report
from files import require_writable, write_atomically
from jobs import Job, plan
from metrics import to_uint8
from pictures import encode_picture, read_picture, require_format
from progress import Progress
from session import Session
from settings import UserError
from transcode import Sink, Source, Unwritable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def derain(session: Session) -> int:
    """Derain what `-i` names. Returns the exit status: 2 where a file of a folder was bad.

    Ranks share the pictures, and the frames of a video; the first one writes videos and the page.

    Raises:
        UserError: bad input, or results that cannot be written.
        KeyboardInterrupt: also for SIGTERM. The video in hand ends there, playable, and the page
            shows what was done.
    """
    settings, first = session.settings, session.ranks.first
    jobs, folder, note, complaints = plan(settings.input, settings.output)
    for complaint in complaints:
        _complain(session, complaint)
    if note and first:
        print(note)
    session.load(settings.model, resume=False)
    session.net.eval()
    if len(jobs) == 1:
        _try(jobs[0])  # bad input costs nothing that is there
    require_writable(folder or jobs[0].target.parent)
    if folder:
        report.require_own_page(folder)
        session.ranks.exchange(None)  # all have looked before it goes
        if first:
            report.remove_page(folder)
    session.ranks.exchange(None)  # none writes a picture of the new page before
    rows: dict[int, dict[str, Any]] = {}
    bad, start = len(complaints), time.monotonic()
    with _terminated_as_interrupted():
        try:
            bad += _derain_pictures(session, jobs, folder, rows)
            bad += _derain_videos(session, jobs, folder, rows)
        finally:
            if first and folder and rows:
                _write_page(session, folder, rows, time.monotonic() - start)
    if first:
        where = ""
        if rows:
            look = f"; open {folder / report.PAGE} to look at them" if folder else ""
            where = look or f": {jobs[0].target}"
        print(f"{len(rows)} of {len(jobs)} derained{where}")
    return 2 if bad else 0


def _try(job: Job) -> None:
    if job.is_video:
        Source(job.source).close()
    else:
        require_format(job.target, read_picture(job.source))


def _write_page(
    session: Session, folder: Path, rows: dict[int, dict[str, Any]], seconds: float
) -> None:
    settings = session.settings
    title = f"SPANet: {Path(settings.input).name}, derained by {settings.model}"
    page = report.plain_page([rows[number] for number in sorted(rows)])
    report.write_page(folder, title, page, session.about(seconds), settings)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _derain_pictures(
    session: Session, jobs: list[Job], folder: Path | None, rows: dict[int, dict[str, Any]]
) -> int:
    """Derain the pictures of the jobs, into the rows of the page. Returns how many were bad."""
    numbers = [number for number, job in enumerate(jobs) if not job.is_video]
    first, alone = session.ranks.first, len(jobs) == 1

    def work(index: int) -> dict[str, Any] | str:
        number, start = numbers[index], time.monotonic()
        job = jobs[number]
        try:
            picture = read_picture(job.source)
            require_format(job.target, picture)
            output, mask = session.derain(picture.colour, str(job.source))
            done = picture.with_colour(output)
            data = encode_picture(job.target, done)
        except UserError as error:
            if alone:
                raise
            return str(error)
        write_atomically(job.target, data)
        if folder:
            report.write_pictures(folder, number, picture.preview(), done.preview(), mask)
        row = _row(number, job, folder, picture.colour, start)
        return row | report.figures(picture.colour, done.colour, mask) | {
            "note": session.tile_note(picture.colour)
        }  # fmt: skip

    bad, told = 0, False
    with Progress("picture", 0, max(len(numbers), 1), [], silent=not first or alone) as progress:
        for number, found in zip(numbers, session.ranks.share(len(numbers), work), strict=True):
            if isinstance(found, str):
                bad += 1
                _complain(session, found)
            else:
                rows[number] = found
                if found["note"] and not told and first:
                    print(found["note"])
                told = told or bool(found["note"])
            progress.advance(1)
    return bad


def _complain(session: Session, message: str) -> None:
    if session.ranks.first:
        print(f"main.py: {message}", file=sys.stderr)


def _row(
    number: int, job: Job, folder: Path | None, image: np.ndarray, start: float
) -> dict[str, Any]:
    height, width = image.shape[:2]
    file = report.address(job.target.relative_to(folder)) if folder else ""
    seconds = time.monotonic() - start
    return {"index": number, "name": job.name, "width": width, "height": height, "file": file,
            "seconds": seconds, "frames": 1}  # fmt: skip


def _derain_videos(
    session: Session, jobs: list[Job], folder: Path | None, rows: dict[int, dict[str, Any]]
) -> int:
    bad = 0
    for number, job in enumerate(jobs):
        if not job.is_video:
            continue
        try:
            with closing(Source(job.source)) as source:
                rows[number] = _derain_video(session, number, job, source, folder)
        except UserError as error:
            # What cannot be written, one rank knows alone; the others would wait for it.
            if len(jobs) == 1 or isinstance(error, Unwritable):
                raise
            bad += 1
            _complain(session, str(error))
    return bad


def _derain_video(
    session: Session, number: int, job: Job, source: Source, folder: Path | None
) -> dict[str, Any]:
    """Derain a video; its row of the page shows the frame in the middle.

    What ends it early, of whatever kind, leaves the frames so far in a file that can be played.
    """
    start = time.monotonic()
    shown: list[np.ndarray] = []
    sink = Sink(job.target, source) if session.ranks.first else None
    try:
        _derain_frames(session, job, source, sink, shown)
    except BaseException:
        # A file that cannot be written is gone already.
        if sink and sink.written and sink.scrap.exists():
            _close(sink)
            print(f"\n{job.target}: ends early, holds the first {sink.written} frames")
        elif sink:
            sink.discard()
        raise
    if not sink:
        return {}
    if not shown:
        sink.discard()
        raise UserError(f"{job.source}: no frame of it can be read")
    for warning in (*source.warnings(), *sink.warnings()):
        _complain(session, f"warning: {warning}")
    _close(sink)
    if folder:
        report.write_pictures(folder, number, *shown)
    row = _row(number, job, folder, shown[0], start) | report.figures(*shown)
    return row | {"frames": sink.written}


def _close(sink: Sink) -> None:
    """Finish a file; a second signal must not cut that short."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        sink.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _derain_frames(
    session: Session, job: Job, source: Source, sink: Sink | None, shown: list[np.ndarray]
) -> None:
    """Derain each frame into the sink; shown becomes before, after and mask of a middle one."""
    ranks, frames = session.ranks, _frames(source, sink)
    count, done = max(source.count, 1), 0

    def work(index: int) -> np.ndarray:
        before = source.pixels(together[index])
        output, mask = session.derain(before, str(job.source))
        after = to_uint8(output)
        if not shown or done + index <= count // 2:
            shown[:] = before, after, mask
        return after

    with Progress("frame", 0, count, [], silent=not ranks.first) as progress:
        while together := list(islice(frames, ranks.world_size)):
            for frame, after in zip(together, ranks.share(len(together), work), strict=True):
                if sink:
                    sink.frame(after, frame)
            note = session.tile_note(shown[0]) if shown and ranks.first else ""
            if note:
                print(note)
            done += len(together)
            progress.update(min(done, count) - 1, {})


def _frames(source: Source, sink: Sink | None) -> Iterator[av.VideoFrame]:
    """The frames of a video; the sound between them goes to the sink."""
    for item in source.packets():
        if isinstance(item, av.VideoFrame):
            yield item
        elif sink:
            sink.sound_packet(item)
