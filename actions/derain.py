"""The action `derain`: a user's own pictures and videos, of which no clean version is known.

What `-i` names goes to `-o`: a picture or a video to a file or a folder, a folder to a folder of
the same structure. Pictures keep their kind (see media/pictures.py), videos the times of their
frames, their sound and more (see media/video_writer.py). A result folder gets a page to look at
them, index.html.
"""

import time
from pathlib import Path

from actions.derain_pictures import derain_pictures
from actions.derain_videos import derain_videos
from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.device import describe_device
from engine.ranks import Ranks
from media.jobs import Job, plan_jobs
from media.pictures import read_picture, require_format
from media.video_reader import VideoReader
from report import copies, page
from report.result_folder import open_result_folder
from report.table import Row
from settings import Settings, UserError
from system.files import check_still_there
from system.interrupt import defer_signals
from system.progress import warn

DEMO = Path(__file__).resolve().parent.parent / "model" / "demo"
SYNTHETIC = (
    "warning: model/demo was trained on synthetic rain only and can damage real photographs; for "
    "those, run `make weights` and use -m published"
)


def derain(settings: Settings) -> int:
    """Derain what `-i` names. Returns the exit status: 2 where a file of a folder was bad.

    Ranks share the pictures, and the frames of a video; the first one writes videos and the page.

    Raises:
        UserError: bad input, or results that cannot be written.
        KeyboardInterrupt: see system/interrupt.py. The video in hand ends there, playable, and the
            page shows what was finished before.
    """
    with Ranks() as ranks:
        return _derain(settings, ranks)


def _derain(settings: Settings, ranks: Ranks) -> int:
    first = ranks.first
    jobs, folder, note, complaints = plan_jobs(settings.input, settings.output, copies.FOLDER)
    if (settings.start or settings.frames) and not any(job.is_video for job in jobs):
        raise UserError(f"--start and --frames: are for videos; {settings.input} is none")
    for complaint in complaints if first else ():
        warn(complaint)
    if note and first:
        print(note)
    derainer = Derainer.by_settings(checkpoint_path(settings), settings, ranks)
    if first and derainer.path.resolve() == DEMO:
        warn(SYNTHETIC)
    if len(jobs) == 1:
        _try(jobs[0], settings.start if folder else 0)  # bad input costs nothing that is there
    targets = [job.target for job in jobs]
    with open_result_folder(
        folder or targets[0].parent,
        "-o",
        inputs=[derainer.path, *(job.source for job in jobs)],
        outputs=targets,
        page=folder is not None,
        lock=folder or targets[0],
        first=first,
        barrier=lambda: ranks.all_gather(None),
    ):
        return _derain_jobs(settings, ranks, derainer, jobs, folder, len(complaints))


def _derain_jobs(
    settings: Settings,
    ranks: Ranks,
    derainer: Derainer,
    jobs: list[Job],
    folder: Path | None,
    bad: int,
) -> int:
    first = ranks.first
    if first:
        device = describe_device(derainer.device, ranks)
        print(f"{derainer.path}, step {derainer.step}, on {device}", flush=True)
    rows: dict[int, Row] = {}
    start = time.monotonic()
    try:
        bad += derain_pictures(derainer, ranks, jobs, folder, rows)
        bad += derain_videos(settings, derainer, ranks, jobs, folder, rows)
    finally:
        if first and folder and rows:
            title = f"SPANet: {Path(settings.input).name}, derained by {derainer.path.name}"
            content = page.plain_page([rows[number] for number in sorted(rows)])
            seconds = time.monotonic() - start
            run = page.about(derainer.about(), device, seconds)
            with defer_signals():
                page.write_page(folder, title, content, run, settings)
    if first:
        where = ""
        if rows:
            look = f"; open {folder / page.PAGE} to look at them" if folder else ""
            where = look or f": {jobs[0].target}"
        check_still_there([jobs[number].target for number in sorted(rows)], "results")
        print(f"{len(rows)} of {len(jobs)} derained{where}")
    ranks.all_gather(None)  # one that leaves with status 2 has the others ended
    return 2 if bad else 0


def _try(job: Job, start: int) -> None:
    if job.is_video:
        VideoReader(job.source, start).close()
    else:
        require_format(job.target, read_picture(job.source))
