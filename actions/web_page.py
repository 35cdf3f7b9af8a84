"""What one sees of the action `web`: the page, its tabs, and what they leave behind."""

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from actions.web import Bench, MainThread
from engine.device import is_out_of_memory
from settings import UserError, one_line

A_DAY = 86400  # seconds after which what no tab has claimed is removed, looked for every hour
HEIGHT = 640  # pixels on the screen that a picture takes at most
NOTHING = None, None, gr.update(value=None, interactive=False)  # in the place of results
# Gradio's field takes what is dropped and what is chosen; this gives it what is pasted.
PASTE = """<script>
document.addEventListener("paste", (event) => {
  const field = document.querySelector("#drop input[type=file]");
  if (!field || !event.clipboardData.files.length) return;
  const one = new DataTransfer();
  one.items.add(event.clipboardData.files[0]);
  field.files = one.files;
  field.dispatchEvent(new Event("change", {bubbles: true}));
});
</script>"""


STYLE = f"#heat img {{width: 100%; max-height: {HEIGHT}px; object-fit: contain}}"
# Gradio's own are not whole, and would be fetched.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


@dataclass(eq=False)
class _Tab:
    """What a tab of a browser has uploaded, and the folder of what came of it."""

    upload: Path
    results: Path | None = None


class _Tabs:
    """The tabs that are open. What belongs to one goes when it is left, or when more comes."""

    def __init__(self) -> None:
        self._open: dict[str, _Tab] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> _Tab | None:
        return self._open.get(name)

    def take(self, name: str, upload: Path) -> None:
        """Note what a tab has uploaded, in the place of what it had before."""
        with self._lock:
            former = self._open.pop(name, None)
            self._open[name] = _Tab(upload)
            self._remove(former)

    def settle(self, name: str, tab: _Tab, results: Path) -> None:
        """Note the folder of what came of an upload, or remove it where nobody waits for it."""
        with self._lock:
            if self._open.get(name) is tab:
                results, tab.results = tab.results, results
        if results:
            shutil.rmtree(results, ignore_errors=True)

    def leave(self, name: str) -> None:
        """Remove the files of a tab."""
        with self._lock:
            self._remove(self._open.pop(name, None))

    def _remove(self, tab: _Tab | None) -> None:
        """Remove what is of no other tab. Gradio keeps equal files in one folder."""
        if tab is None:
            return
        others = [other.upload for other in self._open.values()]
        if tab.upload.parent not in [other.parent for other in others]:
            shutil.rmtree(tab.upload.parent, ignore_errors=True)
        elif tab.upload not in others:
            tab.upload.unlink(missing_ok=True)
        if tab.results:
            shutil.rmtree(tab.results, ignore_errors=True)


class _Left(Exception):
    """Nobody waits for the result: the tab was left, or has another file."""


def build_page(bench: Bench, main_thread: MainThread, folder: Path) -> gr.Blocks:
    """The page, ready to be launched. What comes of uploads goes to new folders in `folder`."""
    tabs = _Tabs()

    def take(upload: dict[str, Any], request: gr.Request) -> None:
        path = Path(str(upload["path"])).resolve() if isinstance(upload, dict) else folder
        if path.parent.parent == folder:  # what was uploaded is there, whatever a browser claims
            tabs.take(request.session_hash, path)

    def work(
        model: str,
        views: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  by which Gradio knows it
    ) -> tuple[Any, ...]:
        tab = tabs.get(request.session_hash)
        if tab is None:  # nothing uploaded yet, or left before its turn came
            return *NOTHING, ""
        results = None

        def tell(done: int, count: int, unit: str) -> None:
            if tabs.get(request.session_hash) is not tab:
                raise _Left
            progress((done, count), desc=tab.upload.name, unit=unit)

        def plain(text: str) -> str:
            for place in filter(None, (tab.upload.parent, results)):  # mean nothing to a visitor
                text = text.replace(f"{place}{os.sep}", "")
            return "\n".join(map(one_line, text.removeprefix("-i: ").splitlines()))

        try:
            results = Path(tempfile.mkdtemp(dir=folder))
            job = partial(bench.derain, tab.upload, results, model, views, tell)
            found = main_thread.do(job)
            button = {"value": found.file, "interactive": True}
            shown = (found.before, found.after), found.attention, gr.update(**button)
            return *shown, plain(found.said)
        except _Left:
            return tuple(gr.skip() for _ in range(4))
        except UserError as error:
            message = str(error.args[0])
        except OSError as error:
            message = f"{error.filename or 'input/output'}: {error.strerror or error}"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = "not enough memory; expected a smaller picture"
        finally:
            if results:
                tabs.settle(request.session_hash, tab, results)
        return *NOTHING, plain(message)

    def leave(request: gr.Request) -> None:
        tabs.leave(request.session_hash)

    def choices() -> dict[str, Any]:
        return gr.update(choices=bench.checkpoints())

    settings = bench.settings
    with gr.Blocks(
        title="SPANet", analytics_enabled=False, fill_width=True, delete_cache=(3600, A_DAY)
    ) as page:
        gr.Markdown("# SPANet: remove rain from a picture or a short video")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                drop = gr.File(label="Drop, choose or paste a picture or a video", elem_id="drop")
                said = gr.Textbox(label="Result", lines=3, interactive=False, elem_id="said")
                download = gr.DownloadButton(
                    "Download", variant="primary", interactive=False, elem_id="download"
                )
            with gr.Column(scale=3):
                slider = gr.ImageSlider(
                    label="before | after", interactive=False, buttons=["fullscreen"],
                    max_height=HEIGHT, elem_id="slider",
                )  # fmt: skip
                with gr.Row():
                    model = gr.Dropdown(
                        bench.checkpoints(), value=settings.model, label="Weights",
                        info="the files of the model folder", elem_id="weights", filterable=False,
                    )  # fmt: skip
                    views = gr.Radio(
                        [1, 2, 4], value=settings.self_ensemble, label="Views", elem_id="views",
                        info="the mean over mirrored and turned views: slower, usually better",
                    )  # fmt: skip
                    attention = gr.Checkbox(label="Show the attention map", elem_id="attention")
                heat = gr.Image(
                    label="attention: red where the network sees rain", interactive=False,
                    visible=False, buttons=["fullscreen"], elem_id="heat",
                )  # fmt: skip
        how = {
            "fn": work, "inputs": [model, views], "outputs": [slider, heat, download, said],
            "show_progress_on": slider, "concurrency_id": "network", "concurrency_limit": 1,
            "trigger_mode": "multiple",
        }  # fmt: skip
        taken = drop.upload(take, drop, queue=False, preprocess=False, trigger_mode="multiple")
        # The field is for the next file at once; what there was of the last one is gone.
        cleared = taken.then(
            lambda: (None, *NOTHING, ""), outputs=[drop, *how["outputs"]], queue=False
        )
        cleared.then(**how)
        gr.on([model.input, views.input], **how)
        attention.input(lambda on: gr.update(visible=on), attention, heat, queue=False)
        page.load(choices, outputs=model, queue=False)
        page.unload(leave)
    return page
