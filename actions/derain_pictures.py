"""Pictures of the action `derain`: read ahead of the network, written behind it."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.derainer import Derained, Derainer, Tick
from engine.ranks import Ranks
from media.jobs import Job
from media.pictures import Picture, encode_picture, read_picture, require_format
from report import page
from report.copies import write_pictures
from report.table import Row
from settings import UserError
from system.files import write_atomically
from system.overlap import count_threads, map_threads, prefetch
from system.progress import Progress, warn

SOON = 3.0  # seconds after which a single picture shows its progress


@dataclass
class _Worked:
    """A picture that was derained, and what its results are made from.

    Attributes:
        mask: (H,W) float32 in 0..1, where it is to be shown.
    """

    number: int
    before: Picture
    after: Picture
    mask: np.ndarray | None
    seconds: float
    note: str


def derain_pictures(
    derainer: Derainer, ranks: Ranks, jobs: list[Job], folder: Path | None, rows: dict[int, Row]
) -> int:
    """Derain the pictures of the jobs, into the rows of the page. Returns how many were bad."""
    numbers = [number for number, job in enumerate(jobs) if not job.is_video]
    alone = len(jobs) == 1

    def read(number: int) -> Picture | UserError:
        try:
            picture = read_picture(jobs[number].source)
            require_format(jobs[number].target, picture)
        except UserError as error:
            return error
        return picture

    def worked(pictures: Iterator[Picture | UserError]) -> Iterator[_Worked | UserError]:
        for number, picture in zip(own, pictures, strict=True):
            if isinstance(picture, UserError):
                yield picture
                continue
            start = time.monotonic()
            try:
                with _parts(derainer, picture.colour, shown=alone and ranks.first) as tick:
                    found = derainer.derained(picture.colour, str(jobs[number].source), tick)
            except UserError as error:
                yield error
                continue
            mask = found.mask if folder else None
            after, seconds = finished(picture, found), time.monotonic() - start
            note = derainer.tile_note(picture.colour)
            yield _Worked(number, picture, after, mask, seconds, note)

    def finish(done: _Worked | UserError) -> Row | str:
        try:
            if isinstance(done, UserError):
                raise done
            job = jobs[done.number]
            data = encode_picture(job.target, done.after)
        except UserError as error:
            if alone:
                raise
            return str(error)
        write_atomically(job.target, data)
        if done.mask is not None:
            shown = {"before": done.before.preview(), "after": done.after.preview()}
            write_pictures(folder, done.number, shown, done.mask)
        files = page.files_of(folder, before=job.source, after=job.target) if folder else {}
        images = done.before.colour, done.after.colour, done.mask
        row = Row.of(done.number, job.name, files, *images)
        row.seconds, row.note = done.seconds, done.note
        return row

    bad, told = 0, False
    silent = not ranks.first or alone
    own = numbers[ranks.rank :: ranks.world_size]
    pictures = prefetch(map(read, own))
    with (
        closing(pictures),
        closing(map_threads(worked(pictures), finish, count_threads(ranks.local_size))) as results,
        Progress("picture", 0, max(len(numbers), 1), [], silent=silent) as progress,
    ):
        shared = ranks.map_over_ranks(len(numbers), lambda _: next(results))
        for number, found in zip(numbers, shared, strict=True):
            if isinstance(found, str):
                bad += 1
                if ranks.first:
                    warn(found)
            else:
                rows[number] = found
                if found.note and not told and ranks.first:
                    progress.say(found.note)
                told = told or bool(found.note)
            progress.advance(1)
    return bad


def finished(picture: Picture, found: Derained) -> Picture:
    """A picture with the colours that the network made of it."""
    if picture.plain:
        return replace(
            picture, colour=found.uint8_image
        )  # made whole on the device: a quarter to fetch
    return picture.with_colour(found.float_image)


@contextmanager
def _parts(derainer: Derainer, image: np.ndarray, shown: bool) -> Iterator[Tick | None]:
    """Progress within one picture, where there is no other and it takes its time."""
    if not shown:
        yield None
        return
    count = derainer.parts(*image.shape[:2])
    with Progress("part", 0, count, [], after=SOON) as progress:
        yield progress.advance
