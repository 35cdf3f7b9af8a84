"""The action `derain`: a user's own pictures and videos, of which no clean version is known.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure, several of them to one folder. Pictures keep their kind (see media/pictures.py),
videos the times of their frames, their sound and more (see media/video_writer.py). A result folder
gets a page to look at them, index.html.

Each file is a job (media/jobs.py). If there is a page, results that are up to date are read first,
and shown beside their sources. Then a picture is read in a thread (media/pictures.py), derained by
`derain_picture` (engine/deraining.py), and encoded and written in other threads. Last come the
videos, each derained by `derain_video`. Both give a `Comparison`, before and after, of which
`_show_result` here writes the copies that the page shows, and returns the `Result`; the page is
written from all results in the end (report/page.py).
"""

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.deraining import Comparison, derain_picture, derain_video
from engine.device import describe_device
from engine.pairs import warn_of_dead_masks
from engine.ranks import Ranks
from media.jobs import Job, plan_jobs
from media.pictures import (
    Picture,
    describe_dropped,
    encode_picture,
    read_picture,
    require_format,
    to_preview,
)
from media.video_reader import VideoReader
from report import page
from report.result_folder import open_result_folder
from report.tables import DERAINED, RAINY, Result
from settings import Settings, UserError, as_tuple, first_few, one_line
from system.files import WriteError, check_still_there, write_atomically
from system.interrupt import defer_signals
from system.overlap import attempt, count_threads, map_threads, prefetch
from system.progress import Progress, warn

DEMO = Path(__file__).resolve().parent.parent / "model" / "demo"
DEMO_WARNING = (
    "warning: model/demo was trained on synthetic rain only and can damage real photographs; for "
    "those, run `make weights` and use -m published"
)
DerainedPicture = tuple[int, Picture, Comparison]  # and the number of its job
PROGRESS_SECONDS = 3.0  # after which a single picture shows its progress


def derain(settings: Settings) -> int:
    """Derain what `-i` names. Returns the exit status: 2 if a file of a folder was bad.

    Ranks share the pictures, and the frames of a video; the first one writes videos and the page.

    Raises:
        UserError: bad input, or results that cannot be written.
        KeyboardInterrupt: see system/interrupt.py. The current video ends there and can be played;
            the page shows what was finished before.
    """
    with Ranks() as ranks:
        jobs, folder, note, problems = plan_jobs(settings.input, settings.output)
        source_names = first_few(as_tuple(settings.input))
        if (settings.start or settings.frames) and not any(job.is_video for job in jobs):
            raise UserError(f"--start and --frames: are for videos; {source_names} is none")
        for problem in problems if ranks.is_first else ():
            warn(problem)
        if note:
            ranks.say(note)
        checkpoint = checkpoint_path(settings)
        derainer = Derainer.from_settings(checkpoint, settings, ranks)
        if ranks.is_first and checkpoint.resolve() == DEMO:
            warn(DEMO_WARNING)
        if len(jobs) == 1:  # a bad input is reported before an earlier page is removed
            (job,) = jobs
            if job.is_video:
                VideoReader(job.source, settings.start).close()
            else:
                require_format(job.target, read_picture(job.source))
        targets = [job.target for job in jobs]
        up_to_date = _find_up_to_date(jobs, checkpoint) if settings.skip_existing else set()
        if up_to_date:
            ranks.say(f"{len(up_to_date)} of {len(jobs)} results are newer than source and weights")
        page_folder = None if settings.no_page else folder
        with open_result_folder(
            folder or targets[0].parent,
            "-o",
            inputs=[checkpoint, *(job.source for job in jobs)],
            outputs=targets,
            page=page_folder is not None,
            lock=folder or targets[0],
            first=ranks.is_first,
            barrier=ranks.barrier,
        ):
            run = _Run(settings, ranks, derainer, jobs, page_folder, up_to_date)
            run.derain_all()
            if ranks.is_first:
                results = run.results
                check_still_there([targets[number] for number in sorted(results)], "results")
                place = f": {folder or targets[0]}"
                if page_folder:
                    place = f"; open {page_folder / page.PAGE} to look at them"
                count = len(results.keys() - up_to_date)
                print(f"{count} of {len(jobs)} derained{place if results else ''}")
                warn_of_dead_masks(derainer, results.values())
    return 2 if run.incomplete or problems else 0


@dataclass
class _Run:
    """A run of the action: what it works with, and its results.

    Attributes:
        page_folder: where the page goes, if there is one.
        up_to_date: the numbers of the jobs whose results an earlier run left; the page shows them.
        results: by the number of their job.
        incomplete: whether a job failed, or something of its source was missing.
    """

    settings: Settings
    ranks: Ranks
    derainer: Derainer
    jobs: list[Job]
    page_folder: Path | None
    up_to_date: set[int]
    results: dict[int, Result] = field(default_factory=dict)
    incomplete: bool = False

    def derain_all(self) -> None:
        """Show earlier results, derain pictures, then videos.

        The page shows what was finished, even after an error.
        """
        derainer, settings, start = self.derainer, self.settings, time.monotonic()
        device = describe_device(derainer.device, self.ranks)
        self.ranks.say(f"{derainer.path}, step {derainer.step}, on {device}")
        try:
            if self.page_folder:
                self._process_jobs(sorted(self.up_to_date), iter, self._show_earlier_result)
            outdated = [n for n in range(len(self.jobs)) if n not in self.up_to_date]
            pictures = [n for n in outdated if not self.jobs[n].is_video]
            self._process_jobs(pictures, self._derain_pictures, self._write_picture)
            lossy = [result for result in self.results.values() if result.dropped]
            for dropped in dict.fromkeys(result.dropped for result in lossy):
                names = first_few(result.name for result in lossy if result.dropped == dropped)
                self.ranks.say(f"not kept, as the format cannot hold it: {dropped} of {names}")
            for number in outdated:
                if self.jobs[number].is_video:
                    self._keep_result(number, attempt(self._derain_video, number))
        finally:
            if self.ranks.is_first and self.page_folder and self.results:
                results = [self.results[number] for number in sorted(self.results)]
                names = first_few(Path(name).name for name in as_tuple(settings.input))
                title = f"SPANet: {names}, derained by {Path(settings.model).name}"
                source = ("model", derainer.describe_weights())
                run = page.describe_run(source, device, time.monotonic() - start)
                with defer_signals():
                    page.write_page(self.page_folder, title, results, run, settings)

    def _process_jobs(self, numbers: list[int], prepare: Callable, finish: Callable) -> None:
        """Process jobs, which the ranks share.

        Args:
            prepare: called with the numbers of this rank's jobs; yields an item for each of them,
                or what is wrong with it.
            finish: called with each item, in threads; returns the Result, or raises a UserError.
        """
        ranks, count = self.ranks, len(numbers)
        items = prepare(numbers[ranks.rank :: ranks.world_size])
        own_results = map_threads(items, partial(attempt, finish), count_threads(ranks.local_size))
        silent = not numbers or len(self.jobs) == 1 or not ranks.is_first
        with closing(own_results), Progress("picture", 0, count, [], silent=silent) as progress:
            for number, result in zip(numbers, ranks.interleave(own_results, count), strict=True):
                self._keep_result(number, result)
                progress.advance(1)

    def _show_earlier_result(self, number: int) -> Result:
        """The result that an earlier run left for a job. Raises UserError if it is of another."""
        job, settings, frames, begin = self.jobs[number], self.settings, 1, None
        if job.is_video:
            with (
                closing(VideoReader(job.source, settings.start, settings.frames)) as source,
                closing(VideoReader(job.target)) as target,
            ):
                rainy, derained = (video.convert_frame(video.first) for video in (source, target))
                frames, begin = target.count, source.start_time
        else:
            rainy, derained = (read_picture(path).colour for path in (job.source, job.target))
        if (rainy.shape, rainy.dtype) != (derained.shape, derained.dtype):
            raise UserError(
                f"{job.target}: is no result of {job.source}; expected none, or its own"
            )
        comparison = Comparison(rainy, derained, None, math.nan, frames=frames)
        return self._show_result(number, comparison, begin)

    def _derain_pictures(self, numbers: list[int]) -> Iterator[DerainedPicture | UserError]:
        """Derain pictures, and read the next ones ahead of the network."""
        with closing(prefetch(attempt(self._read_picture, n) for n in numbers)) as pictures:
            yield from (attempt(self._derain_picture, picture) for picture in pictures)

    def _read_picture(self, number: int) -> tuple[int, Picture]:
        picture = read_picture(self.jobs[number].source)
        require_format(self.jobs[number].target, picture)
        return number, picture

    def _derain_picture(self, item: tuple[int, Picture]) -> DerainedPicture:
        number, picture = item
        silent, name = len(self.jobs) > 1 or not self.ranks.is_first, str(self.jobs[number].source)
        count = self.derainer.count_parts(*picture.colour.shape[:2], name=name)
        with Progress("part", 0, count, [], silent=silent, after=PROGRESS_SECONDS) as progress:
            derained, comparison = derain_picture(
                self.derainer, picture, name, lambda *_: progress.advance(1)
            )
        if comparison.note:
            self.ranks.say(comparison.note)
        return number, derained, comparison

    def _write_picture(self, item: DerainedPicture) -> Result:
        """Write a derained picture, and what the page shows of it."""
        number, derained, comparison = item
        target = self.jobs[number].target
        write_atomically(target, encode_picture(target, derained))
        result = self._show_result(number, comparison)
        result.dropped = describe_dropped(target, derained)
        return result

    def _derain_video(self, number: int) -> Result | None:
        """Derain a video. Its result, on the first rank, shows a frame in the middle."""
        job, settings, ranks = self.jobs[number], self.settings, self.ranks

        def show_progress(done: int) -> None:
            progress.update(min(done, progress.last) - 1, {})  # a file can hold more than it says

        def show_warning(line: str) -> None:
            progress.say(f"main.py: warning: {one_line(line)}", sys.stderr)

        def report_early_end(written: int) -> None:
            line = f"{job.target}: ends early, holds the first {written} frames"
            if not reader.frames or written < reader.frames:
                source = f"-i {shlex.quote(str(job.source))} " if len(self.jobs) > 1 else ""
                frames = f" --frames {reader.frames - written}" if reader.frames else ""
                line += f"; to go on from there, add {source}--start {reader.start + written}"
                line += f"{frames} and give -o another name"
            print(f"\n{line}")
            _date_as_part(job)

        with (
            closing(VideoReader(job.source, settings.start, settings.frames)) as reader,
            Progress(
                "frame", 0, max(reader.count, 1), [], silent=not ranks.is_first, forecast=True
            ) as progress,
        ):
            note = self.derainer.compare_tiles(reader.convert_frame(reader.first), str(job.source))
            if note and ranks.is_first:
                progress.say(note)
            callbacks = show_progress, show_warning, report_early_end
            comparison = derain_video(self.derainer, ranks, reader, job.target, *callbacks)
            self.incomplete |= reader.incomplete
            if not comparison:
                return None
            if settings.start or settings.frames:
                _date_as_part(job)
            return self._show_result(number, comparison, reader.start_time)

    def _show_result(
        self, number: int, comparison: Comparison, begin: float | None = None
    ) -> Result:
        """The result of a job, whose images go to the page; `begin` of a video, in seconds."""
        job, rainy, derained = self.jobs[number], comparison.rainy, comparison.derained
        if self.page_folder:
            previews = {RAINY: to_preview(rainy), DERAINED: to_preview(derained)}
            page.write_copies(self.page_folder, number, previews, comparison.mask)
        files = {RAINY: job.source, DERAINED: job.target}
        result = Result.from_images(number, job.name, files, rainy, derained, comparison.mask)
        result.seconds, result.frames, result.begin = comparison.seconds, comparison.frames, begin
        return result

    def _keep_result(self, number: int, result: Result | UserError | None) -> None:
        """Keep the result of a job, or report why there is none; raise that if it is the only job.

        What cannot be written is raised too. Of a video, only one rank knows it, and the others
        would wait for it.
        """
        if isinstance(result, UserError):
            if len(self.jobs) == 1 or isinstance(result, WriteError):
                raise result
            self.incomplete = True
            if self.ranks.is_first:
                warn(str(result))
        elif result:
            self.results[number] = result


def _find_up_to_date(jobs: list[Job], checkpoint: Path) -> set[int]:
    """The numbers of the jobs whose results are newer than their sources and the checkpoint."""
    up_to_date, weights = set(), checkpoint.stat().st_mtime_ns
    for number, job in enumerate(jobs):
        with suppress(OSError):
            if job.target.stat().st_mtime_ns > max(weights, job.source.stat().st_mtime_ns):
                up_to_date.add(number)
    return up_to_date


def _date_as_part(job: Job) -> None:
    """Give a part of a video the time of its source, so that it never counts as the whole."""
    with suppress(OSError):
        os.utime(job.target, ns=(time.time_ns(), job.source.stat().st_mtime_ns))
