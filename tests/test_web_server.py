"""Which requests the server of `-a web` refuses, and what it leaves of uploads, through HTTP."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import pytest
from conftest import ROOT, command, finish
from web_tab import DEVICE, MARKS, Server, Tab

httpx = pytest.importorskip("httpx", reason="comes with Gradio")
pytestmark = MARKS
UPLOAD = "gradio_api/upload"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    server = Server(tmp_path_factory.mktemp("web"), "--max-upload", "2")
    yield server
    server.stop()


@pytest.fixture
def client(server) -> httpx.Client:
    with httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client:
        yield client


def upload(
    client: httpx.Client, data: bytes, name: str = "a.png", **headers: str
) -> httpx.Response:
    return client.post(UPLOAD, files={"files": (name, data)}, headers=headers)


def call(
    client: httpx.Client, name: str, session: str, *data: object, **more: object
) -> httpx.Response:
    """Have the server do what an event of the page does that does not queue."""
    functions = client.get("config").json()["dependencies"]
    number = next(one["id"] for one in functions if one["api_name"] == name)
    event = {"data": data, "fn_index": number, "session_hash": session, **more}
    return client.post("gradio_api/run/predict", json=event)


def derain(client: httpx.Client, session: str) -> str:
    """What the server answers to the event that derains the file of a tab."""
    functions = client.get("config").json()["dependencies"]
    number = next(one["id"] for one in functions if one["api_name"] == "_derain")
    event = {"data": [], "fn_index": number, "session_hash": session}
    assert client.post("gradio_api/queue/join", json=event).status_code == 200
    return client.get("gradio_api/queue/data", params={"session_hash": session}).text


def claim(path: object) -> dict[str, object]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_only_requests_of_the_page_itself_are_answered(client, server):
    place = urlsplit(server.address)
    for host in (place.netloc, f"localhost:{place.port}"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert upload(client, b"x", **own).status_code == 200
        answer = client.get("", headers=own)
        assert answer.status_code == 200
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    before = server.uploads()
    for headers in (
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": f"http://{place.hostname}:1"},
        {"Host": f"elsewhere.example:{place.port}"},
        {"Host": "192.0.2.1"},
        {"Host": "[::1"},
    ):
        answer = upload(client, b"y", **headers)
        assert (answer.status_code, answer.text.count("\n")) == (403, 0), headers
        assert client.get("", headers=headers).status_code == 403
    assert server.uploads() == before


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("0.0.0.0", {"Host": "192.0.2.1:7860"}, 200),
        ("0.0.0.0", {"Host": f"{socket.gethostname()}:7860"}, 200),
        ("0.0.0.0", {"Host": "elsewhere.example"}, 403),
        ("[::]", {"Host": "[2001:db8::1]:7860"}, 200),
        ("[::1]", {"Host": "[2001:db8::1]:7860"}, 403),
        ("127.0.0.1", {"Host": "example.org", "Origin": "https://example.org"}, 200),
        ("127.0.0.1", {"Host": "127.0.0.1:7860", "Origin": "https://example.org"}, 200),
        ("127.0.0.1", {"Host": "127.0.0.1:7860", "Origin": "https://elsewhere.example"}, 403),
    ],
)
def test_the_hosts_are_those_of_the_options(tmp_path, host, headers, status):
    from starlette.responses import PlainTextResponse
    from starlette.testclient import TestClient

    from actions.web_server import Guard

    guard = Guard(PlainTextResponse("page"), host, tmp_path, "https://example.org/rain")
    assert TestClient(guard).get("/", headers=headers).status_code == status


def test_files_of_other_servers_are_not_fetched(client, server):
    foreign = "http://192.0.2.1/a.png"
    for path in (f"file={foreign}", "file=https%3A%2F%2F192.0.2.1/a.png", f"proxy={foreign}"):
        assert client.get(f"gradio_api/{path}").status_code == 403
    answer = call(client, "_receive", "s", [claim(foreign)], "latest", 1)
    assert answer.status_code == 500
    event = {"data": [claim(foreign), "latest", 1]}
    number = client.post("gradio_api/call/derain", json=event).json()["event_id"]
    for said in (answer.text, client.get(f"gradio_api/call/derain/{number}").text):
        assert f"{foreign}: files of other servers are not fetched" in said
    assert [place for place in server.record("connect") if "192.0.2.1" in place] == []


def test_an_upload_too_large_leaves_nothing_and_the_next_one_passes(client, server):
    before = server.uploads()
    answer = upload(client, bytes(3 * 2**20))
    assert answer.status_code == 413
    assert answer.text == "File size exceeded maximum allowed size of 2097152 bytes."
    (server.folder / "free.txt").write_text("100000")  # the room on the disk
    answer = upload(client, bytes(2**20))
    (server.folder / "free.txt").unlink()
    assert answer.status_code == 413
    assert "the disk of the server has too little room" in answer.text
    assert server.uploads() == before
    assert upload(client, bytes(2**20)).status_code == 200


def test_a_broken_upload_leaves_nothing(client, server):
    before = server.uploads()
    head = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    client.post(UPLOAD, content=head % b"files" + bytes(9999), headers=kind)  # without an end
    client.post(UPLOAD, content=head % b"other" + b"x\r\n--b--\r\n", headers=kind)
    wait(lambda: server.uploads() == before)
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port)) as connection:
        lines = [f"POST /{UPLOAD} HTTP/1.1", f"Host: {place.netloc}", "Content-Length: 99999"]
        lines += [f"Content-Type: {kind['Content-Type']}", "", ""]
        connection.sendall("\r\n".join(lines).encode() + head % b"files" + bytes(9999))
        wait(lambda: server.uploads() != before)
    wait(lambda: server.uploads() == before)


def test_a_tab_cannot_claim_the_files_of_another(client, server, rainy):
    (path,) = upload(client, cv2.imencode(".png", rainy)[1].tobytes()).json()
    assert call(client, "_receive", "one", [claim(path)], "latest", 1).status_code == 200
    assert "48x36 pixels" in derain(client, "one")
    results = [path for path in server.uploads() if path.name == "after.png"]
    assert results
    for other in [*results, *results[0].parents[:3]]:
        call(client, "_receive", "two", [claim(other)], "latest", 1)
        assert "pixels" not in derain(client, "two")
        call(client, "_close_tab", "two")
        assert all(path.exists() for path in results)
    call(client, "_close_tab", "one")
    assert not any(path.exists() for path in results)


@pytest.mark.parametrize("choice", [("latest", "2"), ("latest", 3), (["latest"], 1), ("no", 1)])
def test_a_wrong_choice_is_a_line(client, server, rainy, choice):
    (path,) = upload(client, cv2.imencode(".png", rainy)[1].tobytes()).json()
    assert call(client, "_receive", "one", [claim(path)], *choice).status_code == 200
    answer = derain(client, "one")
    assert "expected" in answer
    assert "Traceback" not in answer


def test_wrong_data_of_a_call_by_hand_is_a_line(client):
    """And no traceback on the terminal; see Server.stop."""
    wrong = [(), (None, "latest", 1), (5, "latest", 1), ([5], "latest", 1), ([claim("x")], {}, [])]
    for data in wrong:
        answer = call(client, "_receive", "one", *data)
        text = answer.json().get("error", "") if answer.status_code == 500 else ""
        assert (text.count("\n"), bool(text)) == (0, data != wrong[1]), data
    event = {"event_data": {"index": [9, 0], "value": ""}}
    assert call(client, "_select", "one", **event).status_code == 200
    for data, found in (([], "needed: 3, got: 0"), (["x", "latest", 1], "not an upload")):
        number = client.post("gradio_api/call/derain", json={"data": data}).json()["event_id"]
        assert found in client.get(f"gradio_api/call/derain/{number}").text
    assert client.post("gradio_api/call/clean", json={"data": []}).status_code == 500


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_derain_is_the_only_endpoint_and_answers_gradio_client(client, server, rainy):
    import gradio_client

    functions = client.get("config").json()["dependencies"]
    assert [one["api_name"] for one in functions if one["api_visibility"] != "private"] == [
        "derain"
    ]
    assert not [one for one in functions if "lambda" in one["api_name"]]
    cv2.imwrite("a.png", rainy)
    caller = gradio_client.Client(server.address, verbose=False, download_files="got")
    path = caller.predict(gradio_client.handle_file("a.png"), "other", 2, api_name="/derain")
    caller.close()
    assert Path(path).name == "a_derained.png"
    assert Path(path).read_bytes() == derain_here(server, "other", 2)
    (result,) = [path for path in server.uploads() if path.name == "a_derained.png"]
    assert list(result.parent.iterdir()) == [result]  # nothing that only a page would show
    Path("bad.png").write_bytes(b"no picture")
    with pytest.raises(gradio_client.exceptions.AppError, match=r"bad\.png: not an image"):
        caller.predict(gradio_client.handle_file("bad.png"), api_name="/derain")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_commands_for_curl_of_the_documentation_work(server, rainy):
    text = (ROOT / "docs" / "derain.md").read_text()
    lines = text[text.index("    at=http") :].partition("\n\n")[0].replace("\n    ", "\n").strip()
    lines = lines.replace("http://127.0.0.1:7860", server.address.rstrip("/"))
    cv2.imwrite("photo.png", rainy)
    lines = lines.replace("photo.jpg", "photo.png").replace("clean.jpg", "clean.png")
    lines = lines.replace("published", "latest")
    assert finish(["bash", "-ec", lines], env=os.environ | {"no_proxy": "*"}).returncode == 0
    shutil.copy("photo.png", "a.png")
    assert Path("clean.png").read_bytes() == derain_here(server, "latest", 2)


def derain_here(server: Server, model: str, views: int) -> bytes:
    """What the action `derain` makes of a.png."""
    words = ["--model-dir", server.folder / "model", "-m", model, "--self-ensemble", views]
    assert (
        finish(command("-a", "derain", "-i", "a.png", "-o", "b.png", *DEVICE, *words)).returncode
        == 0
    )
    return Path("b.png").read_bytes()


def test_a_proxy_may_serve_the_page_under_a_path(tmp_path, browser, rainy):
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        public = f"http://127.0.0.1:{proxy.server_port}/rain/"
        server = Server(tmp_path, "--root-path", public.rstrip("/"), public=public)
        proxy.upstream = urlsplit(server.own_address).netloc
        context = browser.new_context()
        tab = Tab(context, server)
        cv2.imwrite("a.png", rainy)
        tab.give(Path("a.png"))
        assert tab.download()[0] == "a_derained.png"
        assert len(tab.pictures()) == 2
        assert [url for url in tab.requests if not url.startswith((public, "data:", "blob:"))] == []
        context.close()
        server.stop()
        proxy.shutdown()


def test_a_root_path_without_a_host_is_refused(run):
    status, _, err = run("-a", "web", "--root-path", "/rain")
    assert (status, err) == (2, "main.py: --root-path /rain: expected https://HOST/PATH\n")


def test_ctrl_c_ends_the_program_while_a_tab_is_open(tmp_path):
    """As SIGTERM does at the end of all these tests; see Server.stop."""
    server = Server(tmp_path)
    server.stop(signal.SIGINT)
    assert server.process.returncode == 128 + signal.SIGINT


class Proxy(BaseHTTPRequestHandler):
    """A proxy that serves the page of its `upstream` under /rain/, as servers of the web do."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection(self.server.upstream)
        headers = dict(self.headers) | {"Host": self.server.upstream, "Connection": "close"}
        path = self.path.removeprefix("/rain")
        upstream.request(self.command, path, body, headers)
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while data := answer.read1(65536):
                self.wfile.write(data)
        upstream.close()

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Stay silent."""
