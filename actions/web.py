"""The action `web`: a page in the browser that derains pictures and short videos, built by Gradio.

It listens on this machine alone by default, and fetches nothing from elsewhere. Uploads and their
results lie in a temporary folder until their tab of the browser is closed.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any
from zipfile import ZipFile

import gradio as gr
from gradio import processing_utils
from starlette.middleware import Middleware

from actions.web_derainer import CANCELLED, NEXT, WAITING, Entry, WebDerainer, list_remaining
from actions.web_server import Guard, MainThread, check_address, is_unexpected
from engine.device import describe_device
from engine.ranks import Ranks
from settings import Settings, UserError
from system.files import read_bytes

ORPHAN_SECONDS = 86400  # after which a file that no tab owns is removed
ORPHAN_CHECK_SECONDS = 3600
TABLE_SECONDS = 0.5  # between updates of the table of files
RESULTS = "results"  # the folder within that of the uploads
QUALITIES = [("fast", 1), ("better: takes 2 times as long", 2), ("best: takes 4 times as long", 4)]
DESCRIPTIONS = {"published": "for real rain", "demo": "has seen synthetic rain only"}
HERE = Path(__file__).resolve().parent
# Gradio's own fonts are incomplete, and the browser would fetch the rest.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


async def refuse_address(url: str, cache_dir: str) -> str:
    """What Gradio does to fetch a file that a request names by an address."""
    raise gr.Error(f"{url}: files of other servers are not fetched", print_exception=False)


def web(settings: Settings) -> int:
    """Show the page until a signal ends it.

    Raises:
        UserError: the checkpoint is bad, or the address cannot be listened on.
        KeyboardInterrupt: see system/interrupt.py. Uploads and results are removed by then.
    """
    host = check_address(settings)
    # Without a proxy, as Gradio sends a request to its own server.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "no_proxy": "*"}
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
        processing_utils.async_ssrf_protected_download = refuse_address
        guard = Middleware(Guard, host=host, folder=folder, public=settings.root_path)
        page = WebPage(web_derainer, main_thread, folder).build()
        logging.getLogger("uvicorn.error").addFilter(partial(is_unexpected, temporary))
        script = read_bytes(HERE / "web.js").decode()
        _, address, _ = page.launch(
            server_name=host, server_port=settings.port or None, quiet=True,
            prevent_thread_lock=True, share=False, ssr_mode=False, pwa=False, mcp_server=False,
            enable_monitoring=False, run_history=False, footer_links=[], theme=THEME,
            css_paths=HERE / "web.css", head=f"<script>{script}</script>",
            root_path=settings.root_path, max_file_size=settings.max_upload * 2**20,
            app_kwargs={"middleware": [guard]},
        )  # fmt: skip
        device = describe_device(derainer.device, ranks)
        print(f"{derainer.path}, step {derainer.step}, on {device}")
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        try:
            main_thread.run_jobs()
        finally:
            logging.getLogger("uvicorn.error").disabled = True
            page.server.force_exit = True  # do not wait for the tabs, and do not complain of them
            page.close(verbose=False)
    return 0


@dataclass(eq=False)
class Tab:
    """A tab of a browser: the folder of its results, the chosen weights and views, its files."""

    folder: Path
    choice: tuple[str, int] = ("", 1)
    attention: bool = False
    entries: list[Entry] = field(default_factory=list)
    shown: int = 0  # the entry in view
    archive: Path | None = None  # all results, as ZIP

    def create_entry(self, source: Path) -> Entry:
        """An entry for a file, which is yet to be listed."""
        return Entry(source, self.folder / token_hex(8))

    def write_archive(self) -> None:
        """Put all results into one file, if there are several and no others to wait for."""
        results = [entry.result for entry in self.entries if entry.result]
        if len(results) < 2 or self.archive or any(entry.is_open for entry in self.entries):
            return
        path = self.folder / token_hex(8) / "derained.zip"
        path.parent.mkdir()
        with ZipFile(path, "w") as archive:
            for number, result in enumerate(results, 1):
                is_new = result.name not in archive.namelist()
                archive.write(result, result.name if is_new else f"{number}/{result.name}")
        self.archive = path


class Blocks(gr.Blocks):
    """Takes wrong data in a call by hand as a line, where Gradio prints a traceback."""

    async def preprocess_data(self, *arguments: Any, **options: Any) -> list[Any]:
        """See Gradio. Raises gr.Error: too few values, or one that the field cannot hold."""
        try:
            return await super().preprocess_data(*arguments, **options)
        except Exception as error:
            raise gr.Error(str(error).partition("\n")[0], print_exception=False) from None


class WebPage:
    """The page: its layout, and what happens when a file is uploaded or a tab is closed.

    Args:
        folder: where Gradio puts uploads, and results go.
    """

    def __init__(self, derainer: WebDerainer, main_thread: MainThread, folder: Path) -> None:
        self.derainer, self.main_thread, self.folder = derainer, main_thread, folder
        (folder / RESULTS).mkdir()
        self._tabs: dict[str | None, Tab] = {}

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        settings = self.derainer.settings
        with Blocks(
            title="SPANet", analytics_enabled=False, fill_width=True,
            delete_cache=(ORPHAN_CHECK_SECONDS, ORPHAN_SECONDS),
        ) as page:  # fmt: skip
            gr.Markdown("# Remove rain from pictures and short videos")
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    self.film = gr.HTML(visible=False, elem_id="film")
                    self.slider = gr.ImageSlider(
                        show_label=False, interactive=False, buttons=["fullscreen"],
                        visible=False, elem_id="slider",
                    )  # fmt: skip
                    with gr.Row(elem_id="buttons"):
                        self.download = gr.DownloadButton(
                            "Download", variant="primary", interactive=False, elem_id="download"
                        )
                        self.archive = gr.DownloadButton(
                            "All as ZIP", interactive=False, elem_id="archive"
                        )
                        self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                    self.text = gr.Textbox(
                        label="Result: rainy on the left, derained on the right", lines=2,
                        interactive=False, elem_id="text",
                    )  # fmt: skip
                with gr.Column(scale=1, min_width=320):
                    self.drop = gr.File(
                        label="Drop, choose or paste pictures and videos", elem_id="drop",
                        file_count="multiple", height=150,
                    )  # fmt: skip
                    self.table = gr.Dataframe(
                        headers=["file", "state", "remaining"], interactive=False, max_height=220,
                        visible=False, elem_id="queue", column_widths=["44%", "26%", "30%"],
                        buttons=[],
                    )  # fmt: skip
                    self.model = gr.Dropdown(
                        self.list_models(), value=settings.model, label="Weights",
                        elem_id="weights", filterable=False,
                    )  # fmt: skip
                    self.views = gr.Radio(
                        QUALITIES, value=settings.self_ensemble, label="Quality", elem_id="views"
                    )
                    self.attention = gr.Checkbox(
                        label="Show where the network sees rain", elem_id="attention"
                    )
            self._connect_events(page)
            gr.api(self.derain_file, api_name="derain", concurrency_limit=None)
        return page

    def list_models(self) -> list[tuple[str, str]]:
        """The checkpoints, with what is known of them."""
        names = self.derainer.list_checkpoints()
        return [(": ".join(filter(None, [name, DESCRIPTIONS.get(name)])), name) for name in names]

    def _connect_events(self, page: gr.Blocks) -> None:
        choice = [self.model, self.views]
        buttons = [self.download, self.archive, self.cancel]
        view = [self.table, self.film, self.slider, *buttons, self.text]
        silent: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "trigger_mode": "multiple",
        }
        connect = partial(gr.on, preprocess=False, queue=False, **silent)
        # The field is free for the next files at once.
        receive = connect(self.drop.upload, self._receive, [self.drop, *choice], [self.drop, *view])
        choose = connect([self.model.input, self.views.input], self._choose, choice, view)
        for event in (receive, choose):
            event.then(self._derain, None, view, concurrency_limit=None, **silent)
        connect(self.attention.input, self._show_attention, self.attention, view)
        connect(self.table.select, self._select, None, view)
        connect(self.cancel.click, self._cancel, None, view)
        connect(page.load, self._update_models, None, self.model)
        page.unload(self._close_tab)

    def _update_models(self) -> Any:
        return gr.update(choices=self.list_models())

    def _find_tab(self, request: gr.Request) -> Tab:
        """The tab that a request comes from, which may be new."""
        tab = Tab(self.folder / RESULTS / token_hex(8))
        return self._tabs.setdefault(request.session_hash, tab)

    def _receive(
        self, uploads: list[dict[str, Any]], model: str, views: int, request: gr.Request
    ) -> list[Any]:
        paths = [self._find_upload(upload) for upload in uploads or []]
        tab = self._find_tab(request)
        tab.choice, tab.shown, tab.archive = (model, views), len(tab.entries), None
        tab.entries = [*tab.entries, *map(tab.create_entry, paths)]
        return [None, *self._show(tab)]

    def _find_upload(self, upload: Any) -> Path:
        """The path of an upload. Raises gr.Error: it is none, whatever a request says."""
        path = Path(str(upload.get("path"))).resolve() if isinstance(upload, dict) else self.folder
        if path.parent.parent != self.folder or path.parent.name == RESULTS:
            raise gr.Error("file: not an upload", print_exception=False)
        return path

    def _choose(self, model: str, views: int, request: gr.Request) -> list[Any]:
        tab = self._find_tab(request)
        former, tab.choice, tab.archive = tab.entries, (model, views), None
        tab.entries = [tab.create_entry(entry.source) for entry in former]
        for entry in former:
            shutil.rmtree(entry.folder, ignore_errors=True)
        return self._show(tab)

    def _show_attention(self, attention: bool, request: gr.Request) -> list[Any]:
        tab = self._find_tab(request)
        tab.attention = attention
        return self._show(tab)

    def _select(self, event: gr.SelectData, request: gr.Request) -> list[Any]:
        tab = self._find_tab(request)
        tab.shown = event.index[0]
        return self._show(tab)

    def _cancel(self, request: gr.Request) -> list[Any]:
        tab = self._find_tab(request)
        tab.entries = [
            replace(entry, state=CANCELLED) if entry.is_open else entry for entry in tab.entries
        ]
        tab.write_archive()
        return self._show(tab)

    def _close_tab(self, request: gr.Request) -> None:
        tab = self._tabs.pop(request.session_hash, None)
        if tab:
            entries, tab.entries = tab.entries, []
            shutil.rmtree(tab.folder, ignore_errors=True)
            # Gradio keeps equal files of several tabs in one folder.
            kept = {entry.source for other in [*self._tabs.values()] for entry in other.entries}
            for source in {entry.source for entry in entries} - kept:
                with suppress(OSError):
                    source.unlink(missing_ok=True)
                    source.parent.rmdir()

    def _show(self, tab: Tab) -> list[Any]:
        """Values for table, film, slider, download, archive, cancel and text."""
        entries = tab.entries
        if not 0 <= tab.shown < len(entries):
            return [gr.skip()] * 7
        entry = entries[tab.shown]
        pictures, film = entry.list_pictures(tab.attention), entry.format_film()
        return [
            list_rows(entries),
            gr.update(value=film, visible=bool(film)),
            gr.update(value=pictures, visible=pictures is not None),
            gr.update(value=entry.result, interactive=entry.result is not None),
            gr.update(value=tab.archive, interactive=tab.archive is not None),
            gr.update(interactive=any(entry.is_open for entry in entries)),
            entry.text,
        ]

    def _derain(self, request: gr.Request) -> Iterator[list[Any]]:
        """Derain the files of a tab that wait."""
        tab = self._find_tab(request)
        while entry := next((e for e in tab.entries if e.state == WAITING), None):
            entry.state = NEXT
            is_wanted = partial(lambda entry: entry in tab.entries, entry)
            future = self.main_thread.submit(
                partial(self.derainer.derain, entry, *tab.choice, is_wanted)
            )
            while not wait([future], TABLE_SECONDS).done:
                yield [list_rows(tab.entries), *[gr.skip()] * 6]
            future.result()  # raises what nobody expects
            if entry not in tab.entries:
                shutil.rmtree(entry.folder, ignore_errors=True)
            tab.write_archive()
            yield self._show(tab)

    def derain_file(self, file: dict, model: str = "", views: int = 1) -> dict:
        """Remove the rain from a picture or a video.

        Args:
            file: the upload.
            model: the checkpoint, a file of the model folder; the one of -m by default.
            views: 1, 2 or 4, of which the mean is taken.

        Returns:
            The derained file, as `derain` writes it.
        """
        entry = Entry(self._find_upload(file), self.folder / RESULTS / token_hex(8))
        model = model or self.derainer.settings.model
        self.main_thread.submit(partial(self.derainer.derain, entry, model, views)).result()
        if entry.result is None:
            raise gr.Error(entry.text, print_exception=False)
        return gr.FileData(path=str(entry.result)).model_dump()


def list_rows(entries: list[Entry]) -> Any:
    """The table of files."""
    remaining = list_remaining(entries)
    rows = [[entry.source.name, entry.state, next(remaining)] for entry in entries]
    return gr.update(value=rows, visible=bool(rows))
