"""The action `web`: a page in the browser that derains pictures and short videos, made by Gradio.

It listens on this machine alone unless told otherwise, and fetches nothing from elsewhere. What is
uploaded, and what comes of it, lies in a temporary folder until its tab is left. web_page.py is
what one sees; here is what it works with.
"""

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

import numpy as np

from actions.derain import DEMO, SYNTHETIC
from actions.derain_pictures import finished
from actions.derain_videos import derain_videos
from engine.checkpoint import checkpoint_path
from engine.derainer import Derained, Derainer
from engine.device import describe_device
from engine.ranks import Ranks
from media.jobs import Job, plan_jobs
from media.pictures import encode_picture, read_picture, require_format
from media.video_reader import VideoReader
from report.visualize import encode_png, heat_map
from settings import Settings, UserError
from system.files import write_atomically

T = TypeVar("T")
Tell = Callable[[int, int, str], object]  # of progress: how many are done, of how many, of what


def web(settings: Settings) -> int:
    """Show the page until a signal ends it.

    Raises:
        UserError: Gradio is missing, the checkpoint is bad, or the address cannot be listened on.
        KeyboardInterrupt: see system/interrupt.py. What was uploaded is gone by then.
    """
    host = _require_address(settings)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.environ["no_proxy"] = "*"  # Gradio asks its own server whether it is there
    with Ranks() as ranks, tempfile.TemporaryDirectory(
        prefix="spanet-web-", ignore_cleanup_errors=True
    ) as folder:  # fmt: skip
        if ranks.is_distributed:
            raise UserError("-a web: runs in one process; expected a start without torchrun")
        os.environ["GRADIO_TEMP_DIR"] = folder  # where it puts what is uploaded
        try:
            from actions.web_page import PASTE, STYLE, THEME, build_page
        except ImportError as error:
            raise UserError(
                f"-a web: needs Gradio ({error}); expected `pip install -r requirements-web.txt`"
            ) from None
        bench = Bench(settings, ranks)
        derainer = bench.derainer(settings.model, settings.self_ensemble)  # bad ones are told now
        main_thread = MainThread()
        page = build_page(bench, main_thread, Path(folder).resolve())
        logging.getLogger("uvicorn.error").addFilter(Expected(folder))
        _, address, _ = page.launch(
            server_name=host, server_port=settings.port or None, quiet=True,
            prevent_thread_lock=True, share=False, ssr_mode=False, pwa=False, mcp_server=False,
            enable_monitoring=False, run_history=False, footer_links=[], head=PASTE, css=STYLE,
            theme=THEME,
        )  # fmt: skip
        device = describe_device(derainer.device, ranks)
        print(f"{derainer.path}, step {derainer.step}, on {device}")
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        try:
            main_thread.work()
        finally:
            page.close(verbose=False)
    return 0


class MainThread:
    """Where the network works, as in `derain`: in another thread, torch may not have as many
    threads, and results would differ in their last bits."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future, Context, Callable[[], Any]]] = SimpleQueue()

    def do(self, job: Callable[[], T]) -> T:
        """Have a job done, from any other thread, and wait for it."""
        future: Future = Future()
        self._jobs.put((future, copy_context(), job))
        return future.result()

    def work(self) -> NoReturn:
        """Do one job after the other, until a signal raises KeyboardInterrupt."""
        while True:
            future, context, job = self._jobs.get()
            try:
                future.set_result(context.run(job))
            except Exception as error:
                future.set_exception(error)
            except BaseException:
                future.set_exception(UserError("the program was ended"))  # who waits could not end
                raise


@dataclass(frozen=True)
class Expected:
    """A filter of the server's log: a tab that was left while a file was sent is no news."""

    folder: str

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        gone = isinstance(error, FileNotFoundError | RuntimeError) and self.folder in str(error)
        return not gone and type(error).__name__ != "ClientDisconnect"


def _require_address(settings: Settings) -> str:
    """--host as an address of the web has it: an IPv6 one in brackets.

    Raises:
        UserError: nobody can listen there; Gradio would try a hundred ports before it says so.
    """
    host = settings.host.strip("[]")
    six = ":" in host
    try:
        family = socket.AF_INET6 if six else socket.AF_INET
        socket.create_server((host, settings.port), family=family).close()
    except (OSError, TypeError) as error:  # the latter: what cannot be a name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {settings.host}, --port {settings.port}: cannot be listened on: {reason}; "
            "expected an address of this machine and a free port"
        ) from None
    return f"[{host}]" if six else host


@dataclass(frozen=True)
class Result:
    """What the page shows of a file that was derained.

    Attributes:
        before, after, attention: PNG files; of a video, of the frame in the middle.
        file: the derained file in the kind of its source, byte for byte as `derain` writes it.
        said: what there is to say of it, in lines.
    """

    before: Path
    after: Path
    attention: Path
    file: Path
    said: str


@dataclass(frozen=True)
class Bench:
    """Where the page has its files derained, by the settings of the action."""

    settings: Settings
    ranks: Ranks

    def checkpoints(self) -> list[str]:
        """What there is to choose from: what -m names, and the files of the model folder."""
        folder = Path(self.settings.model_dir)
        found = sorted(path.name for path in folder.glob("[!.]*") if path.is_file())
        return list(dict.fromkeys([self.settings.model, *found]))

    def derainer(self, model: str, views: int) -> Derainer:
        """A derainer of a checkpoint as it is now: one in training changes. Raises UserError."""
        if model not in self.checkpoints():
            raise UserError(f"{model}: no such checkpoint; expected one of the model folder")
        settings = replace(self.settings, model=model, self_ensemble=views)
        return Derainer.by_settings(checkpoint_path(settings), settings, self.ranks)

    def derain(self, source: Path, folder: Path, model: str, views: int, tell: Tell) -> Result:
        """Derain a picture or a video into a folder.

        Raises:
            UserError: as `derain` raises it.
        """
        start = time.monotonic()
        (job,), *_ = plan_jobs(str(source), f"{folder}{os.sep}")
        derainer = self.derainer(model, views)
        if job.is_video:
            (before, after, mask), notes = self._derain_video(derainer, job, tell)
        else:
            (before, after, mask), notes = self._derain_picture(derainer, job, tell)
        shown = {"before": before, "after": after, "attention": heat_map(mask)}
        places = {name: folder / "shown" / f"{name}.png" for name in shown}
        for name, image in shown.items():
            write_atomically(places[name], encode_png(image, name), durable=False)
        size, seconds = f"{before.shape[1]}x{before.shape[0]}", time.monotonic() - start
        by = f"{model}, {views} views," if views > 1 else model
        notes.insert(0, f"{source.name}: {size} pixels, by {by} in {seconds:.1f} s")
        if derainer.path.resolve() == DEMO:
            notes.append(SYNTHETIC)
        return Result(**places, file=job.target, said="\n".join(notes))

    def _derain_picture(
        self, derainer: Derainer, job: Job, tell: Tell
    ) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """Before, after and mask, and what there is to say of it."""
        picture, done = read_picture(job.source), 0
        require_format(job.target, picture)
        parts = derainer.parts(*picture.colour.shape[:2])

        def tick(count: int) -> None:
            nonlocal done
            done += count
            tell(done, parts, "parts")

        tell(0, parts, "parts")
        found = derainer.derained(picture.colour, str(job.source), tick)
        after = finished(picture, found)
        note = derainer.tile_note(picture.colour)
        write_atomically(job.target, encode_picture(job.target, after), durable=False)
        return (picture.preview(), after.preview(), found.mask), [note] * bool(note)

    def _derain_video(
        self, derainer: Derainer, job: Job, tell: Tell
    ) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """The same of a frame in the middle."""
        with contextlib.closing(VideoReader(job.source)) as source:
            watched = _Watched(derainer, source.count, tell)
        lines: list[str] = []
        derain_videos(
            self.settings, watched, self.ranks, [job], None, {}, tell=lines.append, keep=False
        )
        notes = [f"{watched.done} frames; shown is one in the middle"]
        notes += [note for note in (watched.note,) if note]
        before, found = watched.middle
        shown = before, found.uint8_image, found.mask
        return shown, notes + lines


class _Watched:
    """A derainer for derain_videos, which tells of each frame and keeps one in the middle."""

    def __init__(self, derainer: Derainer, count: int, tell: Tell) -> None:
        self._derainer, self._count, self._tell = derainer, count, tell
        self.done, self.note = 0, ""
        self.middle: tuple[np.ndarray, Derained] | None = None

    def derained(self, image: np.ndarray, name: str) -> Derained:
        found = self._derainer.derained(image, name)
        if not self.middle or self.done <= self._count // 2:
            self.middle = image, found
        self.done += 1
        self._tell(self.done, max(self.done, self._count), "frames")
        return found

    def tile_note(self, image: np.ndarray) -> str:
        note = self._derainer.tile_note(image)
        self.note = self.note or note
        return note
