"""The action `derain`: a user's own pictures and videos, of which no clean version is known.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure. Pictures keep their kind (see media/pictures.py), videos the times of their
frames, their sound and more (see media/video_writer.py). A result folder gets a page to look at
them, index.html.
"""

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.deraining import DerainedPicture, DerainedVideo, derain_picture, derain_video
from engine.device import describe_device
from engine.ranks import Ranks
from media.jobs import Job, plan_jobs
from media.pictures import Picture, encode_picture, read_picture, require_format, to_preview
from media.video_reader import VideoReader
from media.video_writer import VideoWriteError
from report import copies, page
from report.result_folder import open_result_folder
from report.tables import DERAINED, RAINY, Result
from settings import Settings, UserError, one_line
from system.files import check_still_there, write_atomically
from system.interrupt import defer_signals
from system.overlap import count_threads, map_threads, prefetch
from system.progress import Progress, warn

T = TypeVar("T")
U = TypeVar("U")
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
        if (settings.start or settings.frames) and not any(job.is_video for job in jobs):
            raise UserError(f"--start and --frames: are for videos; {settings.input} is none")
        for problem in problems if ranks.first else ():
            warn(problem)
        if note:
            ranks.say(note)
        checkpoint = checkpoint_path(settings)
        derainer = Derainer.from_settings(checkpoint, settings, ranks)
        if ranks.first and checkpoint.resolve() == DEMO:
            warn(DEMO_WARNING)
        if len(jobs) == 1:  # if it is bad, an earlier page stays
            _check_input(jobs[0], settings.start if folder else 0)
        targets = [job.target for job in jobs]
        with open_result_folder(
            folder or targets[0].parent,
            "-o",
            inputs=[checkpoint, *(job.source for job in jobs)],
            outputs=targets,
            page=folder is not None,
            lock=folder or targets[0],
            first=ranks.first,
            barrier=lambda: ranks.all_gather(None),
        ):
            run = _Run(settings, ranks, derainer, jobs, folder)
            run.derain_all(f"SPANet: {Path(settings.input).name}, derained by {checkpoint.name}")
            if ranks.first:
                results = run.results
                check_still_there([jobs[number].target for number in sorted(results)], "results")
                page_note = f"; open {folder / page.PAGE} to look at them" if folder else ""
                place = page_note or f": {targets[0]}"
                print(f"{len(results)} of {len(jobs)} derained{place if results else ''}")
            ranks.all_gather(None)  # a rank that leaves with status 2 would end the others
    return 2 if run.bad or problems else 0


def _check_input(job: Job, start: int) -> None:
    """Read the input of a job, from its first frame on. Raises UserError if that fails."""
    if job.is_video:
        VideoReader(job.source, start).close()
    else:
        require_format(job.target, read_picture(job.source))


@dataclass
class _Run:
    """A run of the action: what it works with, and its results.

    Attributes:
        folder: where the page goes; None if the result is one file.
        results: by the number of their job.
        bad: how many jobs failed, or had input with something missing.
    """

    settings: Settings
    ranks: Ranks
    derainer: Derainer
    jobs: list[Job]
    folder: Path | None
    results: dict[int, Result] = field(default_factory=dict)
    bad: int = 0

    def derain_all(self, title: str) -> None:
        """Derain pictures, then videos. The page shows what was finished, even after an error."""
        derainer, start = self.derainer, time.monotonic()
        device = describe_device(derainer.device, self.ranks)
        self.ranks.say(f"{derainer.path}, step {derainer.step}, on {device}")
        try:
            self._derain_pictures()
            self._derain_videos()
        finally:
            if self.ranks.first and self.folder and self.results:
                results = [self.results[number] for number in sorted(self.results)]
                source = ("model", derainer.describe_weights())
                run = page.describe_run(source, device, time.monotonic() - start)
                with defer_signals():
                    page.write_page(self.folder, title, results, run, self.settings)

    def _derain_pictures(self) -> None:
        """Derain the pictures: threads read ahead of the network, and write behind it."""
        ranks = self.ranks
        numbers = [number for number, job in enumerate(self.jobs) if not job.is_video]
        own_numbers = numbers[ranks.rank :: ranks.world_size]
        pictures = prefetch(_attempt(self._read_picture, number) for number in own_numbers)
        outputs = (_attempt(self._derain_picture, picture) for picture in pictures)
        own_results = map_threads(outputs, self._write_picture, count_threads(ranks.local_size))
        silent = len(self.jobs) == 1 or not ranks.first
        with (
            closing(pictures),
            closing(own_results),
            Progress("picture", 0, max(len(numbers), 1), [], silent=silent) as progress,
        ):
            results = ranks.map_over_ranks(len(numbers), lambda _: next(own_results))
            for number, result in zip(numbers, results, strict=True):
                if isinstance(result, str):
                    self._report_bad(result)
                else:
                    has_note = any(other.note for other in self.results.values())
                    if result.note and not has_note and ranks.first:
                        progress.say(result.note)
                    self.results[number] = result
                progress.advance(1)

    def _read_picture(self, number: int) -> tuple[int, Picture]:
        picture = read_picture(self.jobs[number].source)
        require_format(self.jobs[number].target, picture)
        return number, picture

    def _derain_picture(self, item: tuple[int, Picture]) -> tuple[int, DerainedPicture]:
        (number, picture), silent = item, len(self.jobs) > 1 or not self.ranks.first
        count, name = self.derainer.count_parts(*picture.colour.shape[:2]), self.jobs[number].source
        with Progress("part", 0, count, [], silent=silent, after=PROGRESS_SECONDS) as progress:
            return number, derain_picture(
                self.derainer, picture, str(name), lambda *_: progress.advance(1)
            )

    def _write_picture(self, item: tuple[int, DerainedPicture] | UserError) -> Result | str:
        """Write a picture and what the page shows of it; its result, or why there is none."""
        try:
            if isinstance(item, UserError):
                raise item
            number, output = item
            data = encode_picture(self.jobs[number].target, output.picture)
        except UserError as error:
            if len(self.jobs) == 1:
                raise
            return str(error)
        write_atomically(self.jobs[number].target, data)
        result = self._make_result(number, output)
        result.note = output.note
        return result

    def _derain_videos(self) -> None:
        for number, job in enumerate(self.jobs):
            if not job.is_video:
                continue
            try:
                settings = self.settings
                with closing(VideoReader(job.source, settings.start, settings.frames)) as reader:
                    self._derain_video(number, job, reader)
                    self.bad += reader.incomplete
            except UserError as error:
                # Only this rank knows what cannot be written; the others would wait for it.
                if len(self.jobs) == 1 or isinstance(error, VideoWriteError):
                    raise
                self._report_bad(str(error))

    def _derain_video(self, number: int, job: Job, reader: VideoReader) -> None:
        """Derain a video. Its result, on the first rank, shows a frame in the middle."""
        silent, count = not self.ranks.first, max(reader.count, 1)

        def show_progress(done: int) -> None:
            progress.update(min(done, count) - 1, {})  # a file can hold more than it says

        def show_warning(line: str) -> None:
            progress.say(f"main.py: warning: {one_line(line)}", sys.stderr)

        def report_early_end(written: int) -> None:
            line = f"{job.target}: ends early, holds the first {written} frames"
            if options := self._remaining_options(job, reader, written):
                line += f"; to go on from there, add {options} and give -o another name"
            print(f"\n{line}")

        with Progress("frame", 0, count, [], silent=silent, forecast=True) as progress:
            note = self.derainer.compare_tiles(reader.convert_frame(reader.first))
            if note and self.ranks.first:
                progress.say(note)
            callbacks = show_progress, show_warning, report_early_end
            video = derain_video(self.derainer, self.ranks, reader, job.target, *callbacks)
        if video:
            result = self._make_result(number, video)
            result.frames, result.begin = video.frames, reader.start_time
            self.results[number] = result

    def _remaining_options(self, job: Job, reader: VideoReader, written: int) -> str:
        """The options that derain the rest of a video; empty if there is none."""
        if reader.frames and reader.frames <= written:
            return ""
        source = f"-i {shlex.quote(str(job.source))} " if self.folder else ""
        frames = f" --frames {reader.frames - written}" if reader.frames else ""
        return f"{source}--start {reader.start + written}{frames}"

    def _make_result(self, number: int, output: DerainedPicture | DerainedVideo) -> Result:
        """The result of a job; the page gets copies of its images."""
        job, rainy, derained = self.jobs[number], output.rainy, output.derained
        if self.folder:
            previews = {RAINY: to_preview(rainy), DERAINED: to_preview(derained)}
            copies.write_copies(self.folder, number, previews, output.mask)
        files = {RAINY: job.source, DERAINED: job.target}
        result = Result.from_images(number, job.name, files, rainy, derained, output.mask)
        result.seconds = output.seconds
        return result

    def _report_bad(self, message: str) -> None:
        self.bad += 1
        if self.ranks.first:
            warn(message)


def _attempt(step: Callable[[T], U], item: T | UserError) -> U | UserError:
    """step(item), or the UserError that it raises, or that an earlier step left for the item."""
    if isinstance(item, UserError):
        return item
    try:
        return step(item)
    except UserError as error:
        return error
