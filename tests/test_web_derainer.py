"""What runs behind the page of `-a web`, without a browser."""

import logging
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import pytest
from conftest import write_rain
from web_tab import DEVICE, MARKS

from actions.web_derainer import Entry, WebDerainer, list_remaining
from engine import derainer
from engine.ranks import Ranks
from settings import Settings, UserError

pytestmark = MARKS


@pytest.fixture
def web_derainer(model) -> WebDerainer:
    with Ranks() as ranks:
        yield WebDerainer(Settings("web", device="cpu"), ranks)


def test_a_picture_too_large_is_refused_as_derain_refuses_it(web_derainer, run, rainy, monkeypatch):
    cv2.imwrite("large.png", rainy)
    monkeypatch.setattr(derainer, "free_memory", lambda *_: 2**20)
    status, _, err = run("-a", "derain", "-i", "large.png", "-o", "x.png", *DEVICE)
    assert status == 2
    entry = Entry(Path("large.png"), Path("out"))
    web_derainer.derain(entry, "latest", 1)
    assert (entry.state, f"main.py: {entry.text}\n") == ("failed", err)
    assert "48x36 pixels need about" in err


def test_only_checkpoints_of_the_folder_are_taken(web_derainer):
    Path("secret").write_text("")
    with pytest.raises(UserError, match="no such checkpoint"):
        web_derainer.load("../secret", 1)


def test_progress_is_reported_to_its_end(web_derainer, rainy):
    cv2.imwrite("a.png", rainy)
    write_rain(Path("a.mkv"), 5)
    for name, first, count in (("a.png", 0, 8), ("a.mkv", 1, 5)):
        entry, shares = Entry(Path(name), Path("out")), []
        note = partial(lambda entry, shares: not shares.append(entry.share), entry, shares)
        web_derainer.derain(entry, "latest", 2, note)
        assert [*shares[1:], entry.share] == [done / count for done in range(first, count + 1)]
        assert entry.state == "derained"


def test_the_remaining_time_follows_from_the_pace_of_what_is_done(rainy):
    for name, size in (("small.png", (40, 30)), ("large.png", (80, 60))):
        cv2.imwrite(name, cv2.resize(rainy, size))
    write_rain(Path("film.mkv"), 5, size=(48, 40))
    Path("bad.png").write_bytes(b"no picture")
    names = ["small.png", "bad.png", "large.png", "small.png", "film.mkv", "large.png"]
    entries = [Entry(Path(name), Path("out")) for name in names]
    assert list(list_remaining(entries)) == [""] * 6  # nothing is known yet
    entries[0].state, entries[0].share, entries[0].seconds = "deraining", 0.25, 3.0
    assert list(list_remaining(entries)) == ["9 s", "9 s", "57 s", "69 s", "3 min", "4 min"]
    entries[0].state, entries[0].share, entries[0].seconds = "derained", 1.0, 6.0
    entries[1].state, entries[1].seconds = "failed", 99.0
    entries[3].state = "cancelled"
    assert list(list_remaining(entries)) == ["", "", "24 s", "", "72 s", "96 s"]


def test_a_job_that_a_signal_cuts_short_keeps_nobody_waiting():
    from actions.web_server import MainThread

    def cut() -> None:
        raise KeyboardInterrupt

    main_thread = MainThread()
    with ThreadPoolExecutor(1) as pool:
        done, failed, ended = (
            pool.submit(lambda job: main_thread.submit(job).result(), job)
            for job in (lambda: 3, lambda: 1 / 0, cut)
        )
        with pytest.raises(KeyboardInterrupt):
            main_thread.run_jobs()
        assert done.result(10) == 3
        with pytest.raises(ZeroDivisionError):
            failed.result(10)
        assert ended.result(10) is None


def test_the_log_is_silent_of_files_that_went_alone(tmp_path, caplog):
    from actions.web_server import is_unexpected

    log = logging.getLogger("a server's")
    log.addFilter(partial(is_unexpected, str(tmp_path)))
    for path in (tmp_path / "gone.png", Path("other.png")):
        try:
            path.read_bytes()
        except FileNotFoundError:
            log.exception("Exception in ASGI application")
    (record,) = caplog.records
    assert "other.png" in str(record.exc_info[1])


def test_gradio_is_missing(run, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "actions.web", raising=False)
    status, _, err = run("-a", "web", *DEVICE)
    assert (status, err.count("\n")) == (2, 1)
    assert "expected `pip install -r requirements-web.txt`" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "::bad", "ü" * 70])
def test_an_address_that_cannot_be_listened_on_is_one_line(run, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run("-a", "web", *DEVICE, "--host", host, "--port", port)
    assert (status, err.count("\n")) == (2, 1)
    assert f"--host {host}, --port {port}: cannot be listened on: " in err


def test_a_bad_checkpoint_is_reported_at_the_start(run):
    status, _, err = run("-a", "web", "-m", "none", *DEVICE)
    assert (status, "no such checkpoint" in err) == (2, True)
