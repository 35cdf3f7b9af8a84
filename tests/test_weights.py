"""`make weights`: the published weights are all there, or nothing is and one line says why."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from settings import UserError
from system import weights

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
TARGET = Path("model/published")
EXPECTED = f"expected {len(DATA)} bytes with SHA-256 {DIGEST}"


class Answers(BaseHTTPRequestHandler):
    """What servers do: the path of the address chooses."""

    def do_GET(self) -> None:
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.path == "/silent":
            time.sleep(2)
            return
        self.send_response(200)
        if self.path == "/cut":
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(DATA)
            except OSError:
                self.server.hung_up.set()
            return
        self.wfile.write(DATA if self.path == "/good" else DATA[:1000])
        if self.path == "/interrupted":
            self.wfile.flush()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.hung_up = threading.Event()
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(url: str) -> None:
    weights.fetch(url, TARGET, len(DATA), DIGEST)


def refusal(url: str) -> str:
    """The one line that fetch raises, having left no file behind."""
    with pytest.raises(UserError) as caught:
        fetch(url)
    message = str(caught.value)
    assert "\n" not in message
    assert list(Path("model").glob("*")) == []
    return message


def start(url: str) -> subprocess.CompletedProcess[str]:
    """The program in a process that has Python's own library alone, not even a site-packages."""
    words = [sys.executable, "-S", "-m", "system.weights", url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)


def test_fetched_once(server, tmp_path, capsys):
    fetch(f"{server.address}/good")
    assert TARGET.read_bytes() == DATA
    assert capsys.readouterr().out.splitlines() == [
        f"Downloading {server.address}/good to model/published",
        f"model/published: {len(DATA)} bytes with the expected SHA-256",
    ]
    fetch(f"{server.address}/gone")
    assert "is there already" in capsys.readouterr().out
    assert [path.name for path in Path("model").iterdir()] == ["published"]
    file = tmp_path / "latest"
    file.write_bytes(DATA)
    TARGET.unlink()
    fetch(file.as_uri())
    assert TARGET.read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("gone", "HTTP Error 404: Not Found"),
        ("short", "gives another file, of 1000 bytes"),
        ("cut", "gives another file, of 1000 bytes"),
        ("endless", f"gives another file, of {len(DATA)} bytes or more"),
        ("silent", "timed out"),
    ],
)
def test_an_answer_that_is_not_the_file_is_one_line(server, monkeypatch, answer, reason):
    monkeypatch.setattr(weights, "TIMEOUT_SECONDS", 0.3)
    url = f"{server.address}/{answer}"
    assert refusal(url).startswith(f"{url}: {reason}; {EXPECTED}")
    if answer == "endless":
        assert server.hung_up.wait(10)


def test_an_address_that_gives_nothing_is_one_line(tmp_path):
    with socket.socket() as taken:  # bound and not listening: nobody can
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        assert refusal(url).startswith(
            f"{url}: urlopen error [Errno 111] Connection refused; {EXPECTED}; without a network"
        )
    for url, reason in (
        ("/tmp/latest", "unknown url type: '/tmp/latest'"),
        ("http://", "no host given"),
        ("http://127.0.0.1:1/caf\xe9", "'ascii' codec can't encode"),
        ("file:///no/such/file", "No such file or directory"),
        ("a\nb", "unknown url type"),
    ):
        message = refusal(url)
        assert reason in message
        assert EXPECTED in message
    other = tmp_path / "other"
    other.write_bytes(DATA[::-1])
    assert f"gives another file, of {len(DATA)} bytes; " in refusal(other.as_uri())


def test_a_file_in_the_way_is_kept(server):
    TARGET.parent.mkdir()
    for content in (b"mine", DATA[::-1]):
        TARGET.write_bytes(content)
        with pytest.raises(UserError, match="another file is there; "):
            fetch(f"{server.address}/good")
        assert TARGET.read_bytes() == content
    TARGET.unlink()
    TARGET.mkdir()
    with pytest.raises(IsADirectoryError, match="model/published"):
        fetch(f"{server.address}/good")
    TARGET.rmdir()
    TARGET.parent.rmdir()
    TARGET.parent.write_text("")
    with pytest.raises(UserError, match="model: cannot be written: File exists"):
        fetch(f"{server.address}/good")


def test_an_interrupted_download_leaves_nothing(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["weights", f"{server.address}/interrupted"])
    assert weights.main() == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert list(Path("model").iterdir()) == []


def test_the_program_needs_python_alone(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"x")
    done = start(other.as_uri())
    assert done.returncode == 2
    assert done.stderr == (
        f"weights: {other.as_uri()}: gives another file, of 1 bytes; "
        f"expected 3450077 bytes with SHA-256 {weights.DIGEST}\n"
    )
    assert not TARGET.exists()


def test_make_weights_fetches_the_released_file(shared):
    url = (shared / "released" / "latest").as_uri()
    words = ["make", "-f", str(ROOT / "Makefile"), "weights", f"WEIGHTS_URL={url}"]
    words.append(f"PYTHON={sys.executable}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert TARGET.read_bytes() == (shared / "released" / "latest").read_bytes()
    again = start("file:///no/such/file")
    assert (again.returncode, again.stderr) == (0, "")
    assert "is there already" in again.stdout


def test_the_published_weights_stay_out_of_the_repository():
    words = ["git", "check-ignore", "-q", "--no-index"]
    found = subprocess.run([*words, "model/published"], cwd=ROOT, capture_output=True, timeout=60)
    if found.returncode == 128:
        pytest.skip("not a git repository")
    assert found.returncode == 0
    assert subprocess.run([*words, "model/demo"], cwd=ROOT, timeout=60).returncode == 1
