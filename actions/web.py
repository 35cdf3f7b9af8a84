"""The action `web`: a page in the browser that derains pictures and short videos, built by Gradio.

It listens on this machine alone by default, and fetches nothing from elsewhere. Uploads and their
results lie in a temporary folder until their tab of the browser is closed.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from actions.derain import DEMO, DEMO_WARNING
from actions.web_server import Guard, MainThread, check_address, is_unexpected
from engine.checkpoint import checkpoint_path
from engine.derainer import Derainer
from engine.deraining import Derained, derain_picture, derain_video
from engine.device import describe_device, is_out_of_memory
from engine.ranks import Ranks
from media.jobs import Job, plan_jobs
from media.pictures import (
    describe_dropped,
    encode_picture,
    read_picture,
    require_format,
    to_preview,
)
from media.video_reader import VideoReader
from report.visualize import encode_png, heat_map
from settings import Settings, UserError, one_line
from system.files import list_checkpoints, write_atomically

OnProgress = Callable[[int, int, str], object]  # called with what is done, of how many, of what
ORPHAN_SECONDS = 86400  # after which an upload that no tab owns is removed
ORPHAN_CHECK_SECONDS = 3600
IMAGE_HEIGHT = 640  # pixels on the screen, at most
# Gradio's field takes files that are dropped or chosen; with this it also takes pasted ones.
PASTE_SCRIPT = """<script>
document.addEventListener("paste", (event) => {
  const field = document.querySelector("#drop input[type=file]");
  if (!field || !event.clipboardData.files.length) return;
  const transfer = new DataTransfer();
  transfer.items.add(event.clipboardData.files[0]);
  field.files = transfer.files;
  field.dispatchEvent(new Event("change", {bubbles: true}));
});
</script>"""
STYLE = f"#heat img {{width: 100%; max-height: {IMAGE_HEIGHT}px; object-fit: contain}}"
# Gradio's own fonts are incomplete, and the browser would fetch the rest.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def web(settings: Settings) -> int:
    """Show the page until a signal ends it.

    Raises:
        UserError: the checkpoint is bad, or the address cannot be listened on.
        KeyboardInterrupt: see system/interrupt.py. Uploads and results are removed by then.
    """
    host = check_address(settings)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.environ["no_proxy"] = "*"  # Gradio sends a request to its own server
    with Ranks() as ranks, tempfile.TemporaryDirectory(
        prefix="spanet-web-", ignore_cleanup_errors=True
    ) as temporary:  # fmt: skip
        if ranks.is_distributed:
            raise UserError("-a web: runs in one process; expected a start without torchrun")
        folder = Path(temporary).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where it puts uploads
        web_derainer = WebDerainer(settings, ranks)
        derainer = web_derainer.load(settings.model, settings.self_ensemble)  # reports a bad one
        main_thread = MainThread()
        page = WebPage(web_derainer, main_thread, folder).build()
        logging.getLogger("uvicorn.error").addFilter(partial(is_unexpected, temporary))
        _, address, _ = page.launch(
            server_name=host, server_port=settings.port or None, quiet=True,
            prevent_thread_lock=True, share=False, ssr_mode=False, pwa=False, mcp_server=False,
            enable_monitoring=False, run_history=False, footer_links=[], head=PASTE_SCRIPT,
            css=STYLE, theme=THEME, max_file_size=settings.max_upload * 2**20,
            app_kwargs={"middleware": [Middleware(Guard, host=host, folder=folder)]},
        )  # fmt: skip
        device = describe_device(derainer.device, ranks)
        print(f"{derainer.path}, step {derainer.step}, on {device}")
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        try:
            main_thread.run_jobs()
        finally:
            page.close(verbose=False)
    return 0


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
        self, source: Path, folder: Path, model: str, views: int, on_progress: OnProgress
    ) -> tuple[list[Path], Path, str]:
        """Derain a picture or a video into a folder.

        Returns:
            PNG files of before, after and attention (of a video, of the frame in the middle); the
            derained file, byte for byte as `derain` writes it; and what to say of it, in lines.

        Raises:
            UserError: as `derain` raises it.
        """
        start = time.monotonic()
        (job,), *_ = plan_jobs(str(source), f"{folder}{os.sep}")
        derainer = self.load(model, views)
        derain = self._derain_video if job.is_video else self._derain_picture
        output, notes = derain(derainer, job, on_progress)
        height, width = output.rainy.shape[:2]
        weights = f"{model}, {views} views," if views > 1 else model
        seconds = time.monotonic() - start
        lines = [f"{source.name}: {width}x{height} pixels, by {weights} in {seconds:.1f} s", *notes]
        if derainer.path and derainer.path.resolve() == DEMO:
            lines.append(DEMO_WARNING)
        paths = [folder / "previews" / f"{name}.png" for name in ("before", "after", "attention")]
        previews = to_preview(output.rainy), to_preview(output.derained), heat_map(output.mask)
        for path, image in zip(paths, previews, strict=True):
            write_atomically(path, encode_png(image, path.name), durable=False)
        return paths, job.target, "\n".join(filter(None, lines))

    def _derain_picture(
        self, derainer: Derainer, job: Job, on_progress: OnProgress
    ) -> tuple[Derained, list[str]]:
        """The derained picture, and what to say of it."""
        picture = read_picture(job.source)
        require_format(job.target, picture)
        on_progress(0, derainer.count_parts(*picture.colour.shape[:2]), "parts")
        derained, output = derain_picture(
            derainer, picture, str(job.source), lambda *part: on_progress(part[0], part[1], "parts")
        )
        write_atomically(job.target, encode_picture(job.target, derained), durable=False)
        dropped = describe_dropped(job.target, derained)
        return output, [output.note, f"not kept: {dropped}" if dropped else ""]

    def _derain_video(
        self, derainer: Derainer, job: Job, on_progress: OnProgress
    ) -> tuple[Derained, list[str]]:
        """A frame in the middle of the derained video, and what to say of the video."""
        notes: list[str] = []
        with closing(VideoReader(job.source)) as reader:
            notes.append(derainer.compare_tiles(reader.convert_frame(reader.first)))
            output = derain_video(
                derainer, self.ranks, reader, job.target,
                on_frame=lambda done: on_progress(done, max(done, reader.count), "frames"),
                on_warning=lambda line: notes.append(f"warning: {line}"),
            )  # fmt: skip
        assert output is not None  # there is one rank
        return output, [f"{output.frames} frames; the slider shows one in the middle", *notes]


@dataclass(eq=False)
class Tab:
    """A tab of a browser: its uploads, the folder of its results, and the weights and views."""

    uploads: list[Path]
    results: Path
    choice: tuple[str, int]
    note: str


class Unwanted(Exception):
    """Nobody waits for the result: the tab was closed, or something else was chosen in it."""


class WebPage:
    """The page: its layout, and what happens when a file is uploaded or a tab is closed.

    Args:
        folder: where Gradio puts uploads, and results go.
    """

    def __init__(self, derainer: WebDerainer, main_thread: MainThread, folder: Path) -> None:
        self.derainer, self.main_thread, self.folder = derainer, main_thread, folder
        self.results = folder / "results"
        self.results.mkdir()
        self._tabs: dict[str | None, Tab] = {}
        self._lock = threading.Lock()

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        settings = self.derainer.settings
        with gr.Blocks(
            title="SPANet", analytics_enabled=False, fill_width=True,
            delete_cache=(ORPHAN_CHECK_SECONDS, ORPHAN_SECONDS),
        ) as page:  # fmt: skip
            gr.Markdown("# SPANet: remove rain from a picture or a short video")
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    self.drop = gr.File(
                        label="Drop, choose or paste a picture or a video",
                        elem_id="drop",
                        file_count="multiple",
                    )
                    self.text = gr.Textbox(
                        label="Result", lines=3, interactive=False, elem_id="text"
                    )
                    self.download = gr.DownloadButton(
                        "Download", variant="primary", interactive=False, elem_id="download"
                    )
                with gr.Column(scale=3):
                    self.slider = gr.ImageSlider(
                        label="before | after", interactive=False, buttons=["fullscreen"],
                        max_height=IMAGE_HEIGHT, elem_id="slider",
                    )  # fmt: skip
                    with gr.Row():
                        self.model = gr.Dropdown(
                            self.derainer.list_checkpoints(), value=settings.model,
                            label="Weights", info="the files of the model folder",
                            elem_id="weights", filterable=False,
                        )  # fmt: skip
                        self.views = gr.Radio(
                            [1, 2, 4], value=settings.self_ensemble, label="Views",
                            info="the mean over mirrored and turned views: slower, usually better",
                            elem_id="views",
                        )  # fmt: skip
                        show = gr.Checkbox(label="Show the attention map", elem_id="attention")
                    self.heat = gr.Image(
                        label="attention: red where the network sees rain", interactive=False,
                        visible=False, buttons=["fullscreen"], elem_id="heat",
                    )  # fmt: skip
            show.input(lambda on: gr.update(visible=on), show, self.heat, queue=False)
            self._connect_events(page)
        return page

    def _connect_events(self, page: gr.Blocks) -> None:
        choice = [self.model, self.views]
        outputs = [self.slider, self.heat, self.download, self.text]
        # The field is free for the next files at once, and the results of the last one disappear.
        upload_event = self.drop.upload(
            self._receive_upload, [self.drop, *choice], [self.drop, *outputs],
            preprocess=False, queue=False, trigger_mode="multiple",
        )  # fmt: skip
        choose_event = gr.on(
            [self.model.input, self.views.input], self._choose, choice, outputs,
            preprocess=False, queue=False, trigger_mode="multiple",
        )  # fmt: skip
        for event in (upload_event, choose_event):
            event.then(
                self._derain, None, outputs, show_progress_on=self.slider,
                concurrency_id="network", concurrency_limit=1, trigger_mode="multiple",
            )  # fmt: skip
        page.load(
            lambda: gr.update(choices=self.derainer.list_checkpoints()), outputs=self.model,
            queue=False,
        )  # fmt: skip
        page.unload(self._close_tab)

    def _receive_upload(
        self, uploads: list[dict[str, Any]], model: str, views: int, request: gr.Request
    ) -> tuple[Any, ...]:
        paths = [Path(upload["path"]) for upload in uploads]
        # Uploads are there, and results elsewhere, whatever a browser claims.
        if any(path.parent.parent != self.folder or path.parent == self.results for path in paths):
            raise gr.Error("not an upload", print_exception=False)
        others = len(paths) - 1
        note = f"one file at a time: not the other {others} that were dropped" if others else ""
        tab = Tab(paths, Path(tempfile.mkdtemp(dir=self.results)), (model, views), note)
        self._replace_tab(request.session_hash, tab)
        return None, *empty_outputs(note)

    def _choose(self, model: str, views: int, request: gr.Request) -> tuple[Any, ...]:
        tab = self._tabs.get(request.session_hash)
        if tab:
            tab.choice = model, views
        return empty_outputs()

    def _close_tab(self, request: gr.Request) -> None:
        self._replace_tab(request.session_hash, None)

    def _replace_tab(self, session: str | None, tab: Tab | None) -> None:
        """Note the new file of a session, if any, and remove the files of its former one."""
        with self._lock:
            former = self._tabs.pop(session, None)
            if tab:
                self._tabs[session] = tab
            if former:
                shutil.rmtree(former.results, ignore_errors=True)
                # Gradio keeps equal files of several tabs in one folder.
                kept = [path for other in self._tabs.values() for path in other.uploads]
                for path in set(former.uploads) - set(kept):
                    path.unlink(missing_ok=True)
                    if path.parent not in [other.parent for other in kept]:
                        shutil.rmtree(path.parent, ignore_errors=True)

    def _derain(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  by which Gradio recognizes it
    ) -> tuple[Any, ...]:
        """Derain the file of a tab. Returns values for slider, attention, download and text."""
        tab = self._tabs.get(request.session_hash)
        if tab is None:  # nothing uploaded yet, or closed before its turn came
            return empty_outputs()
        choice = tab.choice
        results = tab.results / str(time.monotonic_ns())  # a browser would cache an old name

        def show_progress(done: int, total: int, unit: str) -> None:
            if self._tabs.get(request.session_hash) is not tab or tab.choice != choice:
                raise Unwanted
            progress((done, total), desc=tab.uploads[0].name, unit=unit)

        def hide_folders(text: str) -> str:
            for folder in (tab.uploads[0].parent, results):  # which mean nothing to a visitor
                text = text.replace(f"{folder}{os.sep}", "")
            lines = [*text.removeprefix("-i: ").splitlines(), *filter(None, [tab.note])]
            return "\n".join(map(one_line, lines))

        try:
            (before, after, attention), file, text = self.main_thread.run(
                partial(self.derainer.derain, tab.uploads[0], results, *choice, show_progress)
            )
            download = gr.update(value=file, interactive=True)
            return (before, after), attention, download, hide_folders(text)
        except Unwanted:
            return tuple(gr.skip() for _ in range(4))
        except UserError as error:
            message = str(error.args[0])  # not cut short yet
        except OSError as error:
            message = f"{error.filename or 'input/output'}: {error.strerror or error}"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = "not enough memory; expected a smaller picture"
        finally:
            if self._tabs.get(request.session_hash) is not tab:
                shutil.rmtree(tab.results, ignore_errors=True)
        return empty_outputs(hide_folders(message))


def empty_outputs(text: str = "") -> tuple[Any, ...]:
    """Values for slider, attention, download and text if there is no result."""
    return None, None, gr.update(value=None, interactive=False), text
