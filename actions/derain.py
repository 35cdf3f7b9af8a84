"""The action `derain`: a user's own pictures and videos, of which no clean version is known.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure, several of them to one folder. Pictures keep their kind (see media/pictures.py),
videos the times of their frames, their sound and more (see media/video_writer.py). A result folder
gets a page to look at them, index.html.
"""

import contextlib
import math
import os
import shlex
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.deraining import Derained, derain_picture, derain_video
from engine.device import describe_device
from engine.ranks import Ranks
from engine.scoring import warn_of_dead_masks
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
from media.video_writer import VideoWriteError
from report import page
from report.result_folder import open_result_folder
from report.tables import DERAINED, RAINY, Result
from settings import Settings, UserError, as_tuple, first_few, one_line
from system.files import check_still_there, write_atomically
from system.interrupt import defer_signals
from system.overlap import attempt, count_threads, map_threads, prefetch
from system.progress import Progress, warn

DEMO = Path(__file__).resolve().parent.parent / "model" / "demo"
DEMO_WARNING = (
    "warning: model/demo was trained on synthetic rain only and can damage real photographs; for "
    "those, run `make weights` and use -m published"
)
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
        for problem in problems if ranks.first else ():
            warn(problem)
        if note:
            ranks.say(note)
        checkpoint = checkpoint_path(settings)
        derainer = Derainer.from_settings(checkpoint, settings, ranks)
        if ranks.first and checkpoint.resolve() == DEMO:
            warn(DEMO_WARNING)
        if len(jobs) == 1:  # if it is bad, an earlier page stays
            (job,) = jobs
            if job.is_video:
                VideoReader(job.source, settings.start).close()
            else:
                require_format(job.target, read_picture(job.source))
        targets = [job.target for job in jobs]
        current = _find_current(jobs, checkpoint) if settings.skip_existing else set()
        if current:
            ranks.say(f"{len(current)} of {len(jobs)} results are newer than source and weights")
        page_folder = None if settings.no_page else folder
        with open_result_folder(
            folder or targets[0].parent,
            "-o",
            inputs=[checkpoint, *(job.source for job in jobs)],
            outputs=targets,
            page=page_folder is not None,
            lock=folder or targets[0],
            first=ranks.first,
            barrier=ranks.barrier,
        ):
            run = _Run(settings, ranks, derainer, jobs, page_folder, current)
            run.derain_all()
            if ranks.first:
                results = run.results
                check_still_there([targets[number] for number in sorted(results)], "results")
                place = f": {folder or targets[0]}"
                if page_folder:
                    place = f"; open {page_folder / page.PAGE} to look at them"
                derained = f"{len(results.keys() - current)} of {len(jobs)} derained"
                print(f"{derained}{place if results else ''}")
                warn_of_dead_masks(derainer, results.values())
    return 2 if run.bad or problems else 0


@dataclass
class _Run:
    """A run of the action: what it works with, and its results.

    Attributes:
        folder: where the page goes, if there is one.
        current: the numbers of the jobs whose results an earlier run left; the page shows them.
        results: by the number of their job.
        bad: how many jobs failed, or had input with something missing.
    """

    settings: Settings
    ranks: Ranks
    derainer: Derainer
    jobs: list[Job]
    folder: Path | None
    current: set[int]
    results: dict[int, Result] = field(default_factory=dict)
    bad: int = 0

    def derain_all(self) -> None:
        """Derain pictures, then videos. The page shows what was finished, even after an error."""
        derainer, settings, start = self.derainer, self.settings, time.monotonic()
        device = describe_device(derainer.device, self.ranks)
        self.ranks.say(f"{derainer.path}, step {derainer.step}, on {device}")
        try:
            left = [n for n in range(len(self.jobs)) if self.folder or n not in self.current]
            self._derain_pictures([n for n in left if not self.jobs[n].is_video])
            for number in left:
                if self.jobs[number].is_video:
                    self._derain_video(number, self.jobs[number])
        finally:
            if self.ranks.first and self.folder and self.results:
                results = [self.results[number] for number in sorted(self.results)]
                names = first_few(Path(name).name for name in as_tuple(settings.input))
                title = f"SPANet: {names}, derained by {Path(settings.model).name}"
                source = ("model", derainer.describe_weights())
                run = page.describe_run(source, device, time.monotonic() - start)
                with defer_signals():
                    page.write_page(self.folder, title, results, run, settings)

    def _derain_pictures(self, numbers: list[int]) -> None:
        """Derain the pictures: threads read ahead of the network, and write behind it."""
        ranks = self.ranks
        own_numbers = numbers[ranks.rank :: ranks.world_size]
        pictures = prefetch(attempt(self._read_picture, number) for number in own_numbers)
        outputs = (attempt(self._derain_picture, item) for item in pictures)
        own_results = map_threads(outputs, self._write_picture, count_threads(ranks.local_size))
        silent, count = len(self.jobs) == 1 or not ranks.first, len(numbers)
        with (
            closing(pictures),
            closing(own_results),
            Progress("picture", 0, max(count, 1), [], silent=silent) as progress,
        ):
            results = ranks.interleave(own_results, count)
            for number, result in zip(numbers, results, strict=True):
                if isinstance(result, str):
                    self._report_bad(result)
                else:
                    self.results[number] = result
                progress.advance(1)
        for what in {result.dropped: None for result in self.results.values() if result.dropped}:
            names = [result.name for result in self.results.values() if result.dropped == what]
            ranks.say(f"not kept, as the format cannot hold it: {what} of {first_few(names)}")

    def _read_picture(self, number: int) -> tuple[int, Picture]:
        picture = read_picture(self.jobs[number].source)
        require_format(self.jobs[number].target, picture)
        return number, picture

    def _derain_picture(self, item: tuple[int, Picture]) -> tuple[int, Picture, Derained]:
        number, picture = item
        if number in self.current:
            earlier = read_picture(self.jobs[number].target)
            return number, earlier, Derained(picture.colour, earlier.colour, None, math.nan)
        silent, name = len(self.jobs) > 1 or not self.ranks.first, str(self.jobs[number].source)
        count = self.derainer.count_parts(*picture.colour.shape[:2], name=name)
        with Progress("part", 0, count, [], silent=silent, after=PROGRESS_SECONDS) as progress:
            derained, output = derain_picture(
                self.derainer, picture, name, lambda *_: progress.advance(1)
            )
        if output.note:
            self.ranks.say(output.note)
        return number, derained, output

    def _write_picture(self, item: tuple[int, Picture, Derained] | UserError) -> Result | str:
        """Write a picture and what the page shows of it; its result, or why there is none."""
        try:
            if isinstance(item, UserError):
                raise item
            number, picture, output = item
            if number in self.current:
                return self._show_result(number, output)
            data = encode_picture(self.jobs[number].target, picture)
        except UserError as error:
            if len(self.jobs) == 1:
                raise
            return str(error)
        write_atomically(self.jobs[number].target, data)
        result = self._show_result(number, output)
        result.dropped = describe_dropped(self.jobs[number].target, picture)
        return result

    def _derain_video(self, number: int, job: Job) -> None:
        """Derain a video. Its result, on the first rank, shows a frame in the middle."""
        settings, ranks = self.settings, self.ranks

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

        try:
            with (
                closing(VideoReader(job.source, settings.start, settings.frames)) as reader,
                Progress(
                    "frame", 0, max(reader.count, 1), [], silent=not ranks.first, forecast=True
                ) as progress,
            ):
                rainy = reader.convert_frame(reader.first)
                if number in self.current:
                    with closing(VideoReader(job.target)) as earlier:
                        frame, count = earlier.convert_frame(earlier.first), earlier.count
                    output = Derained(rainy, frame, None, math.nan, frames=count)
                    self.results[number] = self._show_result(number, output, reader.start_time)
                    return
                note = self.derainer.compare_tiles(rainy, str(job.source))
                if note and ranks.first:
                    progress.say(note)
                callbacks = show_progress, show_warning, report_early_end
                written = derain_video(self.derainer, ranks, reader, job.target, *callbacks)
                if written:
                    self.results[number] = self._show_result(number, written, reader.start_time)
                    if settings.start or settings.frames:
                        _date_as_part(job)
                self.bad += reader.incomplete
        except UserError as error:
            # Only this rank knows what cannot be written; the others would wait for it.
            if len(self.jobs) == 1 or isinstance(error, VideoWriteError):
                raise
            self._report_bad(str(error))

    def _show_result(self, number: int, output: Derained, begin: float | None = None) -> Result:
        """The result of a job, whose images go to the page; `begin` of a video, in seconds."""
        job, rainy, derained = self.jobs[number], output.rainy, output.derained
        if (rainy.shape, rainy.dtype) != (derained.shape, derained.dtype):
            raise UserError(
                f"{job.target}: is no result of {job.source}; expected none, or its own"
            )
        if self.folder:
            previews = {RAINY: to_preview(rainy), DERAINED: to_preview(derained)}
            page.write_copies(self.folder, number, previews, output.mask)
        files = {RAINY: job.source, DERAINED: job.target}
        result = Result.from_images(number, job.name, files, rainy, derained, output.mask)
        result.seconds, result.frames, result.begin = output.seconds, output.frames, begin
        return result

    def _report_bad(self, message: str) -> None:
        self.bad += 1
        if self.ranks.first:
            warn(message)


def _find_current(jobs: list[Job], checkpoint: Path) -> set[int]:
    """The numbers of the jobs whose results are newer than their sources and the checkpoint."""
    current, weights = set(), checkpoint.stat().st_mtime_ns
    for number, job in enumerate(jobs):
        with contextlib.suppress(OSError):
            if job.target.stat().st_mtime_ns > max(weights, job.source.stat().st_mtime_ns):
                current.add(number)
    return current


def _date_as_part(job: Job) -> None:
    """Give a part of a video the time of its source, so that it never counts as the whole."""
    with contextlib.suppress(OSError):
        os.utime(job.target, ns=(time.time_ns(), job.source.stat().st_mtime_ns))
