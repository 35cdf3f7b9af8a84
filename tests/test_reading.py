"""Only regular files are read: what is none is refused in one line, and at once."""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, write_pairs

from engine import checkpoint
from media.lists import read_list
from media.pictures import read_image, read_picture
from settings import UserError, one_line
from system.files import lock_file, open_regular, read_bytes

PIPE = Path("pipe")


@pytest.fixture
def pipe() -> Iterator[Path]:
    """A pipe that nobody writes to; a reader that waits at one is ended after half a minute."""

    def end(*_: object) -> None:
        raise TimeoutError("waits for a pipe")

    os.mkfifo(PIPE)
    former = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    yield PIPE
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def test_a_regular_file_is_read():
    Path("a").write_bytes(b"12")
    assert read_bytes("a") == b"12"
    Path("b").symlink_to("a")
    assert read_bytes(Path("b")) == b"12"
    with open_regular("a", "r") as file:
        assert file.read() == "12"


def test_what_is_no_regular_file_is_refused(pipe):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        for path in (pipe, "/dev/zero", "/dev/null", "socket"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                read_bytes(path)
            assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError):
        read_bytes(".")
    with pytest.raises(FileNotFoundError):
        read_bytes("nothing")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_image(path, "list:1"),
        read_picture,
        lambda path: lock_file(path, "taken"),
    ],
)
def test_readers_tell_of_a_pipe(read, pipe):
    path = Path("events.out.tfevents.1.run")
    pipe.rename(path)
    with pytest.raises(UserError, match=rf"{path}.*not a regular file"):
        read(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-a test -m ./pipe --test-list data/list.txt", "pipe: cannot be read"),
        ("-a train --init-from pipe --train-list data/list.txt", "pipe: cannot be read"),
        ("-a derain -m demo -i pipe.png -o out.png", "-i: pipe.png"),
        ("-a derain -m demo -i data -o page", "page/index.html: not a regular file"),
        ("-a clean -i pipe -o clean.png", "pipe: cannot be read"),
        ("-a clean -i /dev/zero -o clean.png", "/dev/zero: cannot be read"),
        ("-a pairs -i rain.mkv -o set", "set/pairs.json: not a regular file"),
    ],
)
def test_no_action_waits_for_a_pipe(run, rain_video, pipe, words, message):
    write_pairs(Path("data"), [(16, 16)])
    Path("page").mkdir()
    Path("set").mkdir()
    for path in ("pipe.png", "page/index.html", "set/pairs.json"):
        os.mkfifo(path)
    words = words.replace("demo", f"{ROOT}/model/demo")
    status, _, err = run(*words.split())
    assert status == 2
    (line,) = [line for line in err.splitlines() if "synthetic rain" not in line]
    assert line.startswith(f"main.py: {message}")
    assert "not a regular file" in line


@pytest.mark.parametrize("action", ["derain", "clean", "pairs"])
def test_a_list_of_videos_is_no_video(run, rain_video, action):
    script = Path("script.mp4")
    script.write_text(f"ffconcat version 1.0\nfile {rain_video.name}\n")
    target = {"derain": "out.mp4", "clean": "out.png", "pairs": "set"}[action]
    model = ("-m", ROOT / "model" / "demo") if action == "derain" else ()
    status, _, err = run("-a", action, *model, "-i", script, "-o", target)
    assert status == 2
    assert err.splitlines()[-1] == (
        "main.py: script.mp4: not a video that can be read: text, or a list of other files"
    )
    assert not Path(target).exists()


@contextmanager
def nobody(tmp_path: Path) -> Iterator[None]:
    """Within it, this process is a user who may not do everything."""
    tmp_path.chmod(0o755)
    former = os.geteuid()
    if former == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(former)


def test_a_folder_that_may_not_be_read_is_not_told_as_empty(run, tmp_path):
    Path("in").mkdir()
    cv2.imwrite("in/a.png", np.zeros((4, 4, 3), np.uint8))
    Path("in").chmod(0)
    with nobody(tmp_path):
        status, _, err = run("-a", "derain", "-i", "in", "-o", "out")
    assert (status, err) == (2, "main.py: in: cannot be read: Permission denied\n")
    Path("in").chmod(0o111)  # its files may be opened by those who know their names
    with nobody(tmp_path), pytest.raises(UserError) as caught:
        checkpoint.load(Path("in/step_4"))
    assert str(caught.value) == (
        "in/step_4: no such checkpoint; in cannot be listed: Permission denied"
    )
    Path("in").chmod(0o755)


def test_a_message_is_one_printable_line_of_bounded_length(run):
    assert one_line("plain — text") == "plain — text"
    escaped = one_line("a\x1b[31m\nb\udcff\x07")
    assert escaped == "a\\x1b[31m\\nb\\udcff\\x07"
    long = one_line("begin" + "\n" * 10**7 + "the end")
    assert len(long) == 300
    assert long.startswith("begin\\n")
    assert long.endswith("the end")
    status, _, err = run("-a", "derain", "-i", "x\x1b[2J\n" * 50_000, "-o", "out")
    assert status == 2
    assert re.fullmatch(r"main\.py: [\x20-\x7e]{280,320}\n", err)


def test_a_name_with_escapes_does_not_reach_the_terminal():
    name = Path("a\x1b]0;title\x07.png")
    name.write_text("no picture")
    with pytest.raises(
        UserError, match=r"list:1: a\\x1b\]0;title\\x07\.png: not an image"
    ) as caught:
        read_image(name, "list:1")
    assert str(caught.value).isprintable()


# They read what the program or the system holds, or what another reader has just read.
FREE = {
    "irnn_cuda/cuda.py",
    "report/page.py",
    "system/machine.py",
    "system/files.py",
    "system/overlap.py",
}
OTHERS = {"av", "os", "Image"}  # whose `open` opens no file by its name, or one that was looked at


@pytest.mark.parametrize("room", ["actions", "engine", "media", "rain", "report", "system"])
def test_no_other_code_opens_files_to_read(room):
    for path in (ROOT / room).glob("*.py"):
        if str(path.relative_to(ROOT)) not in FREE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong = [node.lineno for node in ast.walk(tree) if _reads(node)]
            assert not wrong, f"{path}:{wrong}: expected open_regular or read_bytes"


def _reads(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name != "open":
        return isinstance(called, ast.Attribute) and name in ("read_bytes", "read_text")
    owner = getattr(getattr(called, "value", None), "id", "")
    words = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
    writes = any(word == "a" or set("wx") & set(word) for word in words)
    return owner not in OTHERS and not writes


def test_a_list_is_read_once_from_a_pipe(run, tmp_path):
    """As `--test-list <(grep heavy list.txt)` hands it over."""
    path = write_pairs(tmp_path / "data", [(16, 16)] * 3)
    for action, option in (("check", "--train-list"), ("test", "--test-list")):
        words = [ROOT / "main.py", "-a", action, option]
        words += ["-m", ROOT / "model" / "demo", "--num-workers", "0"] * (action == "test")
        script = " ".join(map(str, words)).replace(option, f"{option} <(sleep 2.5; cat list.txt)")
        script = ["bash", "-c", f"cd {path.parent}; {sys.executable} {script}"]
        done = subprocess.run(script, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert "3 of 3" in done.stdout or "3 images" in done.stdout


@pytest.mark.parametrize(
    ("path", "reason"),
    [("pipe", "a pipe that nobody writes to"), ("/dev/zero", "not a regular file")],
)
def test_a_list_that_has_no_end_or_no_writer_is_refused_within_seconds(pipe, path, reason):
    with pytest.raises(UserError, match=f"^{path}: cannot read the list: {reason}; "):
        read_list(path)


def test_ranks_refuse_a_list_from_a_pipe(pipe, monkeypatch):
    """Each of them would get a part of it, and the others wait for the rest."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^pipe: .*: a pipe, which several ranks cannot share; "):
        read_list("pipe")
