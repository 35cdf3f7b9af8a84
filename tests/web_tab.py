"""A server of `-a web` in a process of its own, and a tab of a browser that shows its page."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import forked
import numpy as np
import pytest
from conftest import ROOT

MARKS = [
    pytest.mark.skipif(
        find_spec("gradio") is None, reason="no Gradio: pip install -r requirements-web.txt"
    ),
    pytest.mark.xdist_group("browser"),  # so that one process alone imports Gradio, for seconds
]

# The server, with a record of what it connects to, and of how many jobs run at once at most.
SERVER = """
import json, shutil, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import main
from actions import web
from system import program
from gradio.http_server import Server
record, lock, running, most = open("record.txt", "a", buffering=1), threading.Lock(), 0, 0
def watch(event, arguments):
    if event == "socket.connect":
        print(json.dumps(["connect", str(arguments[1])]), file=record)
    elif event == "socket.getaddrinfo":
        print(json.dumps(["look up", str(arguments[0])]), file=record)
sys.addaudithook(watch)
disk_usage = shutil.disk_usage
def limited(folder):
    free = Path("free.txt")
    usage = disk_usage(folder)
    return usage._replace(free=int(free.read_text())) if free.exists() else usage
shutil.disk_usage = limited
derain = web.WebDerainer.derain
def counted(*arguments):
    global running
    with lock:
        running += 1
        print(json.dumps(["running", running]), file=record)
    try:
        return derain(*arguments)
    finally:
        time.sleep(0.3)
        with lock:
            running -= 1
web.WebDerainer.derain = counted
def close(server):  # of Gradio, which would wait for the tabs for five seconds and then go on
    server.should_exit = True
    server.thread.join()
Server.close = close
sys.exit(program.run_program(main.main))
"""
DEVICE = ["--device", "cpu"]


class Server:
    """A server in a folder of its own, with two checkpoints and a file that is none."""

    def __init__(self, folder: Path, *options: str, public: str = "") -> None:
        self.folder, self.temporary = folder, folder / "temporary"
        self.temporary.mkdir()
        (folder / "model").mkdir()
        for name in ("latest", "other"):
            shutil.copy(ROOT / "model" / "demo", folder / "model" / name)
        (folder / "model" / "broken").write_text("nothing")
        words = [sys.executable, "-c", SERVER, str(ROOT), "-a", "web", *DEVICE, *options]
        forked.preload("actions.web")
        self.process = forked.Forked(
            words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(self.temporary), "http_proxy": "http://127.0.0.1:9"},
        )  # fmt: skip
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        found, lines = None, []
        # Other lines may come before: one, if another server took the port at the same moment.
        while not found and (line := self.process.stdout.readline()):
            lines.append(line)
            found = re.match(r"open (http://127\.0\.0\.1:\d+/) in a browser", line)
        watchdog.cancel()
        assert found, lines
        self.own_address, self.address = found[1], public or found[1]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal while a tab is open, which does not hold it up."""
        import httpx  # which comes with Gradio

        with (
            httpx.Client(base_url=self.own_address, trust_env=False, timeout=60) as client,
            client.stream("GET", "gradio_api/heartbeat/one") as beat,
        ):
            assert next(beat.iter_text()) == "data: ALIVE\n\n"
            self.process.send_signal(number)
            try:
                said, _ = self.process.communicate(timeout=120)
            finally:
                self.process.kill()
        assert self.process.returncode == 128 + number
        assert "Traceback" not in said, said
        assert self.uploads() == []

    def uploads(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def record(self, kind: str) -> list:
        lines = map(json.loads, (self.folder / "record.txt").read_text().splitlines())
        return [value for name, value in lines if name == kind]


class Tab:
    """The page in a tab, and what it asked for."""

    def __init__(self, context, server: Server) -> None:
        self.server, self.requests, self.context = server, [], context
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open()

    def open(self) -> None:
        self.page.goto(self.server.address)
        self.page.wait_for_selector("#drop input[type=file]", state="attached")

    @property
    def text(self) -> str:
        return self.page.input_value("#text textarea")

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, self.text
            self.page.wait_for_timeout(50)

    def give(self, path: Path, word: str = "pixels") -> None:
        """Upload a file, and wait until the page says that word of it."""
        self.page.set_input_files("#drop input[type=file]", path)
        self.until(lambda: path.name in self.text and word in self.text)

    def download(self, button: str = "#download") -> tuple[str, bytes]:
        self.page.wait_for_selector(f"{button}:not([disabled])")
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def rows(self) -> list[list[str]]:
        """The table of files: their names, states and remaining times."""
        return self.page.eval_on_selector_all(
            "#queue .virtual-row",
            "rows => rows.map(row => row.innerText.split('\\n').map(cell => cell.trim()))",
        )

    def select(self, name: str) -> None:
        self.page.click(f"#queue [role=gridcell]:has-text('{name}')")

    def pictures(self) -> list[np.ndarray]:
        """What the slider shows, before and after."""
        urls = self.page.eval_on_selector_all("#slider img", "all => all.map(one => one.src)")
        bodies = [self.context.request.get(url).body() for url in urls]
        return [cv2.imdecode(np.frombuffer(body, np.uint8), 1) for body in bodies]

    def slider(self) -> np.ndarray:
        self.page.wait_for_timeout(300)  # it glides
        shot = self.page.locator("#slider").screenshot()
        return cv2.imdecode(np.frombuffer(shot, np.uint8), 1).astype(int)
