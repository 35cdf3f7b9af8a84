"""The action `derain`: a user's own pictures and videos, without a ground truth.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure. Pictures keep their kind (see pictures.py), videos their frames' times and their
sound (see transcode.py). A result folder gets a page to look at them, index.html.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

import report
from files import require_writable
from metrics import to_uint8
from pictures import FORMATS, Picture, read_picture, require_format, write_picture
from progress import Progress
from session import Session
from settings import UserError
from transcode import ENCODERS, Sink, Source

OTHER_VIDEOS = {".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv"}
VIDEOS = set(ENCODERS) | OTHER_VIDEOS  # those of the second kind are written as Matroska


@dataclass(frozen=True)
class Job:
    """One file to derain; its name is the path within the folder of input."""

    source: Path
    target: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEOS


def derain(session: Session) -> int:
    """Derain what `-i` names. Returns the exit status: 2 where a file of a folder was bad.

    Ranks share the pictures, and the frames of a video; the first one writes videos and the page.

    Raises:
        UserError: bad input, or results that cannot be written.
        KeyboardInterrupt: also for SIGTERM. The video in hand ends there, playable.
    """
    settings, first = session.settings, session.ranks.first
    jobs, folder, passed_over = plan(settings.input, settings.output)
    session.load(settings.model, resume=False)
    session.net.eval()
    require_writable(folder or jobs[0].target.parent)
    if first and folder:
        report.remove_page(folder)
    if first and passed_over:
        files = (
            "1 file of another kind" if passed_over == 1 else f"{passed_over} files of other kinds"
        )
        print(f"{files} passed over")
    session.ranks.exchange(None)  # none writes a picture of the new page before
    start = time.monotonic()
    with _terminated_as_interrupted():
        rows, bad = _derain_pictures(session, jobs, folder)
        for number, job in enumerate(jobs):
            if not job.is_video:
                continue
            try:
                source = Source(job.source)
            except UserError as error:
                if len(jobs) == 1:
                    raise
                bad += 1
                if first:
                    print(f"main.py: {error}", file=sys.stderr)
                continue
            with closing(source):
                rows[number] = _derain_video(session, number, job, source, folder)
    if not first:
        return 0
    done = [rows[number] for number in sorted(rows)]
    if folder:
        seconds = time.monotonic() - start
        title = f"SPANet: {Path(settings.input).name}, derained by {settings.model}"
        report.write_page(folder, title, report.plain_page(done), session.about(seconds), settings)
        print(f"{len(done)} of {len(jobs)} derained; open {folder / report.PAGE} to look at them")
    else:
        print(f"{jobs[0].target}: derained")
    return 2 if bad else 0


def plan(source_name: str, target_name: str) -> tuple[list[Job], Path | None, int]:
    """The files to derain, the folder of results, if there is one, and how many were passed over.

    Raises:
        UserError: nothing to derain, or a result would overwrite what it is made from.
    """
    if not source_name:
        raise UserError("-i: expected a picture, a video or a folder of them")
    if not target_name:
        raise UserError("-o: expected a file or a folder to write")
    source, target = Path(source_name), Path(target_name)
    known = set(FORMATS) | VIDEOS
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise UserError(f"-o: {target} is a file; expected a folder, as {source} is one")
        if target.exists() and target.samefile(source):
            raise UserError(f"-o: {target} is the input; expected another folder")
        files = list(_walk(source, target))
        found = [file for file in files if file.suffix.lower() in known]
        if not found:
            raise UserError(
                f"{source}: none of its {len(files)} files is a picture or a video; expected "
                f"{', '.join(sorted(known))}"
            )
        names = [file.relative_to(source) for file in found]
        targets = [target / _video_name(name) for name in names]
        named = zip(found, targets, names, strict=True)
        jobs = [Job(file, where, str(name)) for file, where, name in named]
        return jobs, target, len(files) - len(found)
    if not source.is_file():
        raise UserError(f"-i: {source}: no such file or folder")
    suffix = source.suffix.lower()
    if suffix not in known:
        raise UserError(f"-i: {source}: expected one of {', '.join(sorted(known))}")
    folder = None
    if target.is_dir() or target.suffix.lower() not in known:
        folder, target = target, target / _video_name(Path(source.name))
    if target.exists() and target.samefile(source):
        raise UserError(f"-o: {target} is the input; expected another name")
    writable = ENCODERS if suffix in VIDEOS else FORMATS
    if target.suffix.lower() not in writable:
        raise UserError(f"-o: {target}: expected one of {', '.join(writable)}, as {source} is")
    return [Job(source, target, source.name)], folder, 0


def _walk(source: Path, target: Path) -> Iterator[Path]:
    """Files under source in order, without hidden ones and without those under target."""
    for here, folders, files in os.walk(source):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and not (target.exists() and (Path(here) / name).samefile(target))
        )
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def _video_name(path: Path) -> Path:
    return path.with_name(path.name + ".mkv") if path.suffix.lower() in OTHER_VIDEOS else path


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
    session: Session, jobs: list[Job], folder: Path | None
) -> tuple[dict[int, dict[str, Any]], int]:
    """Rows of the page by the number of the job, and how many pictures were bad."""
    numbers = [number for number, job in enumerate(jobs) if not job.is_video]
    first, alone = session.ranks.first, len(jobs) == 1

    def work(index: int) -> dict[str, Any] | str:
        number, start = numbers[index], time.monotonic()
        job = jobs[number]
        try:
            picture = read_picture(job.source)
            require_format(job.target, picture)
            _tell_of_tiles(session, index, picture)
            output, mask = session.derain(picture.colour, str(job.source))
        except UserError as error:
            if alone:
                raise
            return str(error)
        done = picture.with_colour(output)
        write_picture(job.target, done)
        if folder:
            report.write_pictures(folder, number, picture.preview(), done.preview(), mask)
        found = report.figures(picture.colour, done.colour, mask)
        return _row(number, job, folder, picture.colour, start) | found

    rows, bad = {}, 0
    with Progress("picture", 0, max(len(numbers), 1), [], silent=not first or alone) as progress:
        for number, found in zip(numbers, session.ranks.share(len(numbers), work), strict=True):
            if isinstance(found, str):
                bad += 1
                if first:
                    print(f"main.py: {found}", file=sys.stderr)
            else:
                rows[number] = found
            progress.advance(1)
    return rows, bad


def _row(
    number: int, job: Job, folder: Path | None, image: np.ndarray, start: float
) -> dict[str, Any]:
    height, width = image.shape[:2]
    file = job.target.relative_to(folder).as_posix() if folder else ""
    seconds = time.monotonic() - start
    return {"index": number, "name": job.name, "width": width, "height": height, "file": file,
            "seconds": seconds, "frames": 1}  # fmt: skip


def _tell_of_tiles(session: Session, index: int, picture: Picture) -> None:
    """Say once what tiles cost: a sample in tiles of half the side against the same whole."""
    tile = session.settings.tile
    if index or not tile or max(picture.colour.shape[:2]) <= tile:
        return
    top, left = (max(0, (side - tile) // 2) for side in picture.colour.shape[:2])
    sample = picture.colour[top : top + tile, left : left + tile]
    psnr = session.tile_error(sample)
    height, width = sample.shape[:2]
    print(
        f"tiles are an approximation: a sample of {width}x{height} pixels in tiles of {tile // 2} "
        f"is {psnr:.1f} dB from the same whole"
    )


def _derain_video(
    session: Session, number: int, job: Job, source: Source, folder: Path | None
) -> dict[str, Any]:
    """Derain a video; its row of the page shows the frame in the middle."""
    ranks, first = session.ranks, session.ranks.first
    sink = Sink(job.target, source) if first else None
    count, start, done, shown = max(source.count, 1), time.monotonic(), 0, None
    frames = _frames(source, sink)
    try:
        with Progress("frame", 0, count, [], silent=not first) as progress:
            while together := list(islice(frames, ranks.world_size)):

                def work(index: int, together: list = together, done: int = done) -> np.ndarray:
                    nonlocal shown
                    before = source.pixels(together[index])
                    output, mask = session.derain(before, str(job.source))
                    after = to_uint8(output)
                    if shown is None or done + index <= count // 2:
                        shown = before, after, mask
                    return after

                for frame, after in zip(together, ranks.share(len(together), work), strict=True):
                    if sink:
                        sink.frame(after, frame)
                done += len(together)
                progress.update(min(done, count) - 1, {})
        if sink:
            sink.close()
    except KeyboardInterrupt:
        if sink and sink.written:
            sink.close()
            print(f"\n{job.target}: interrupted, holds the first {sink.written} frames")
        elif sink:
            sink.discard()
        raise
    except BaseException:
        if sink:
            sink.discard()
        raise
    if not first or shown is None:
        return {}
    for warning in (*source.warnings(), *sink.warnings()):
        print(f"main.py: warning: {warning}", file=sys.stderr)
    if folder:
        report.write_pictures(folder, number, *shown)
    found = report.figures(*shown)
    return _row(number, job, folder, shown[0], start) | found | {"frames": sink.written}


def _frames(source: Source, sink: Sink | None) -> Iterator[av.VideoFrame]:
    """The frames of a video; the sound between them goes to the sink."""
    for item in source.packets():
        if isinstance(item, av.VideoFrame):
            yield item
        elif sink:
            sink.sound_packet(item)
