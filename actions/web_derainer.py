"""What runs behind the page of `-a web`: files are derained as by `derain`."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from actions.derain import DEMO, DEMO_WARNING
from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer, OnProgress
from engine.deraining import Comparison, derain_picture, derain_video
from engine.device import is_out_of_memory
from engine.ranks import Ranks
from media.image_file import image_size
from media.jobs import VIDEOS, Job, plan_jobs
from media.pictures import (
    describe_dropped,
    encode_picture,
    read_picture,
    require_format,
    to_preview,
)
from media.video_reader import VideoReader
from report.visualize import encode_png, overlay_mask
from settings import Settings, UserError, one_line
from system.files import list_checkpoints, write_atomically

WAITING, NEXT, DERAINING = "waiting", "next", "deraining"
DERAINED, FAILED, CANCELLED = "derained", "failed", "cancelled"
PICTURES = "before", "after", "overlay"  # which are shown, as PNG files


class Unwanted(Exception):
    """Nobody waits for the result: cancelled, its tab closed, or other settings chosen."""


@dataclass(eq=False)
class Entry:
    """A file that was given, and what came of it.

    Attributes:
        source: the upload.
        folder: of its results, and of the pictures to show.
        text: what to say of it, in lines.
        share: of the work that is done.
        seconds: what that took, since `start`.
        result: the derained file; None if there is none yet.
        begin: where in the file a video begins, seconds.
    """

    source: Path
    folder: Path
    state: str = WAITING
    text: str = ""
    share: float = 0.0
    seconds: float = 0.0
    start: float = 0.0
    result: Path | None = None
    begin: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is work to do, or in progress."""
        return self.state in (WAITING, NEXT, DERAINING)

    @cached_property
    def pixels(self) -> int:
        """How many there are, in all frames; 0 if its header does not say."""
        if not self.is_video:
            return math.prod(image_size(self.source) or [0])
        try:
            with closing(VideoReader(self.source, quick=True)) as reader:
                return reader.width * reader.height * reader.count
        except (UserError, OSError):  # which deraining reports
            return 0

    def save(self, name: str, image: np.ndarray) -> None:
        """Save a picture to show, (H,W,3) uint8 BGR."""
        path = self.folder / f"{name}.png"
        write_atomically(path, encode_png(image, path.name), durable=False)

    def list_pictures(self, attention: bool) -> tuple[Path, Path] | None:
        """The pictures to show before and after; equal ones if it is not derained yet.

        attention: with the attention map over the picture before.
        """
        before, after, overlay = (self.folder / f"{name}.png" for name in PICTURES)
        if not before.exists():
            if self.is_video:
                return None
            try:
                self.save("before", to_preview(read_picture(self.source).colour))
            except (UserError, OSError):  # which deraining reports
                return None
        if not after.exists():
            return before, before
        return overlay if attention else before, after

    @property
    def is_video(self) -> bool:
        """Whether its name is that of a video."""
        return self.source.suffix.lower() in VIDEOS

    def format_film(self) -> str:
        """A video before and after, or as far as it is there, in HTML."""
        files = [path for path in (self.source, self.result) if path and self.is_video]
        films = [
            f'<video src="gradio_api/file={escape(quote(str(path)))}" data-begin="{self.begin}" '
            f"playsinline {'controls' if path == files[-1] else 'muted'}></video>"
            for path in files
        ]
        return "".join(films)


def list_remaining(entries: list[Entry]) -> Iterator[str]:
    """How long until each file is derained, by the pace of those before it; empty without one."""
    begun = [entry for entry in entries if entry.state in (DERAINING, DERAINED)]
    pixels = sum(entry.share * entry.pixels for entry in begun)
    pace = sum(entry.seconds for entry in begun) / pixels if pixels else 0.0
    seconds = 0.0
    for entry in entries:
        if entry.is_open and pace:
            seconds += pace * entry.pixels * (1 - entry.share)
            yield f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        else:
            yield ""


@dataclass(frozen=True)
class WebDerainer:
    """Derains the files of the page by the settings of the action."""

    settings: Settings
    ranks: Ranks

    def list_checkpoints(self) -> list[str]:
        """The checkpoints to choose from: the one of -m, and the files of the model folder."""
        names = list_checkpoints(Path(self.settings.model_dir))
        return list(dict.fromkeys([self.settings.model, *names]))

    def load(self, model: str, views: int) -> Derainer:
        """Load a checkpoint as it is now; one in training changes. Raises UserError."""
        if model not in self.list_checkpoints():
            raise UserError(f"{model}: no such checkpoint; expected one of the model folder")
        settings = replace(self.settings, model=model, self_ensemble=views)
        return Derainer.from_settings(checkpoint_path(settings), settings, self.ranks)

    def derain(
        self, entry: Entry, model: str, views: int, is_wanted: Callable[[], bool] | None = None
    ) -> None:
        """Derain a file into its folder, or note what is wrong with it.

        The derained file is, byte for byte, as `derain` writes it.

        Args:
            is_wanted: whether a page still waits for it; otherwise it is left unfinished. None: no
                page does, and there are no pictures to show.
        """

        def record_progress(done: int, total: int) -> None:
            if is_wanted and not is_wanted():
                raise Unwanted
            entry.share, entry.seconds = done / total, time.monotonic() - entry.start

        entry.state, entry.start, state = DERAINING, time.monotonic(), FAILED
        try:
            text = self._derain(entry, model, views, record_progress, is_wanted is not None)
            state = DERAINED
        except Unwanted:
            return
        except UserError as error:
            text = str(error.args[0])  # not cut short yet
        except OSError as error:
            text = f"{error.filename or 'input/output'}: {error.strerror or error}"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            text = "not enough memory; expected a smaller picture"
        for folder in (entry.source.parent, entry.folder):  # which mean nothing to a visitor
            text = text.replace(f"{folder}{os.sep}", "")
        entry.text = "\n".join(map(one_line, text.removeprefix("-i: ").splitlines()))
        entry.state = state

    def _derain(
        self, entry: Entry, model: str, views: int, on_progress: OnProgress, is_shown: bool
    ) -> str:
        """Derain a file into its folder; returns what to say of it, in lines."""
        source = entry.source
        (job,), *_ = plan_jobs(str(source), f"{entry.folder}{os.sep}")
        job = replace(job, target=entry.folder / f"{source.stem}_derained{job.target.suffix}")
        derainer = self.load(model, views)
        derain = self._derain_video if job.is_video else self._derain_picture
        comparison, notes = derain(derainer, job, entry, on_progress)
        height, width = comparison.rainy.shape[:2]
        weights = f"{model}, {views} views," if views > 1 else model
        entry.seconds = time.monotonic() - entry.start
        size = f"{width}x{height} pixels"
        lines = [f"{source.name}: {size}, by {weights} in {entry.seconds:.1f} s", *notes]
        if derainer.path and derainer.path.resolve() == DEMO:
            lines.append(DEMO_WARNING)
        if is_shown:
            before, after = to_preview(comparison.rainy), to_preview(comparison.derained)
            assert comparison.mask is not None  # it was derained here
            images = before, after, overlay_mask(before, comparison.mask)
            for name, image in zip(PICTURES, images, strict=True):
                entry.save(name, image)
        entry.result = job.target
        return "\n".join(filter(None, lines))

    def _derain_picture(
        self, derainer: Derainer, job: Job, entry: Entry, on_progress: OnProgress
    ) -> tuple[Comparison, list[str]]:
        """The derained picture, and what to say of it."""
        picture = read_picture(job.source)
        require_format(job.target, picture)
        name = str(job.source)
        entry.pixels = math.prod(picture.colour.shape[:2])
        on_progress(0, derainer.count_parts(*picture.colour.shape[:2], name=name))
        derained, comparison = derain_picture(derainer, picture, name, on_progress)
        write_atomically(job.target, encode_picture(job.target, derained), durable=False)
        dropped = describe_dropped(job.target, derained)
        return comparison, [comparison.note, f"not kept: {dropped}" if dropped else ""]

    def _derain_video(
        self, derainer: Derainer, job: Job, entry: Entry, on_progress: OnProgress
    ) -> tuple[Comparison, list[str]]:
        """A frame in the middle of the derained video, and what to say of the video."""
        notes: list[str] = []
        with closing(VideoReader(job.source)) as reader:
            entry.begin = reader.start_time
            first = reader.convert_frame(reader.first)
            notes.append(derainer.compare_tiles(first, str(job.source)))
            comparison = derain_video(
                derainer, self.ranks, reader, job.target,
                on_frame=lambda done: on_progress(done, max(done, reader.count)),
                on_warning=lambda line: notes.append(f"warning: {line}"),
            )  # fmt: skip
        assert comparison is not None  # there is one rank
        shown = f"{comparison.frames} frames; the attention map is that of one in the middle"
        return comparison, [shown, *notes]
