"""Which requests the server of `-a web` refuses, and what it leaves of uploads, through HTTP."""

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import cv2
import httpx
import pytest
from web_tab import Server

UPLOAD = "gradio_api/upload"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    pytest.importorskip("gradio", reason="no Gradio: pip install -r requirements-web.txt")
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


def call(client: httpx.Client, name: str, session: str, *data: object) -> httpx.Response:
    """Have the server do what an event of the page does that does not queue."""
    functions = client.get("config").json()["dependencies"]
    number = next(one["id"] for one in functions if one["api_name"] == name)
    event = {"data": data, "fn_index": number, "session_hash": session}
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


def test_files_of_other_servers_are_not_fetched(client, server):
    foreign = "http://192.0.2.1/a.png"
    for path in (f"file={foreign}", "file=https%3A%2F%2F192.0.2.1/a.png", f"proxy={foreign}"):
        assert client.get(f"gradio_api/{path}").status_code == 403
    event = json.dumps({"data": [claim(foreign)], "fn_index": 0, "session_hash": "s"})
    event = event.replace("http", "\\u0068ttp")
    for path in ("queue/join", "run/predict", "call/predict"):
        answer = client.post(f"gradio_api/{path}", content=event)
        assert (answer.status_code, answer.text) == (403, "files of other servers are not fetched")
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
    assert server.uploads() == before
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port)) as connection:
        lines = [f"POST /{UPLOAD} HTTP/1.1", f"Host: {place.netloc}", "Content-Length: 99999"]
        lines += [f"Content-Type: {kind['Content-Type']}", "", ""]
        connection.sendall("\r\n".join(lines).encode() + head % b"files" + bytes(9999))
        wait(lambda: server.uploads() != before)
    wait(lambda: server.uploads() == before)


def test_a_tab_cannot_claim_the_files_of_another(client, server, rainy):
    (path,) = upload(client, cv2.imencode(".png", rainy)[1].tobytes()).json()
    assert call(client, "_receive_upload", "one", [claim(path)], "latest", 1).status_code == 200
    assert "48x36 pixels" in derain(client, "one")
    results = [path for path in server.uploads() if path.name == "after.png"]
    assert results
    for other in [*results, *results[0].parents[:3]]:
        call(client, "_receive_upload", "two", [claim(other)], "latest", 1)
        assert "pixels" not in derain(client, "two")
        call(client, "_close_tab", "two")
        assert all(path.exists() for path in results)
    call(client, "_close_tab", "one")
    assert not any(path.exists() for path in results)


@pytest.mark.parametrize("choice", [("latest", "2"), ("latest", 3), (["latest"], 1), ("no", 1)])
def test_a_wrong_choice_is_a_line(client, server, rainy, choice):
    (path,) = upload(client, cv2.imencode(".png", rainy)[1].tobytes()).json()
    assert call(client, "_receive_upload", "one", [claim(path)], *choice).status_code == 200
    answer = derain(client, "one")
    assert "expected" in answer
    assert "Traceback" not in answer


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
