"""Event files: cut at a resume, made anew where they vanish, told where they cannot be written."""

import re
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import command, started
from soak import steps_of_events
from test_resume import has_a_step, start, until
from test_train import clock, events

from engine.events import EventFile, forget_after
from settings import UserError


def test_events_that_cannot_be_written_are_one_line():
    file = EventFile(Path("log/a"), "run")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, former[1]))  # as on a full disk
    try:
        with pytest.raises(UserError) as caught:
            file.scalars({f"loss{number}": 1.0 for number in range(100)}, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert str(caught.value) == "log/a: events cannot be written: File too large"
    file.close()


def test_events_after_the_clock_are_forgotten():
    folder = Path("log")
    for first, name in ((0, "mine"), (3, "mine"), (3, "other")):  # a resume, another run
        file = EventFile(folder, name)
        for step in range(first, first + 3):
            file.scalars({"loss": step}, step)
        file.close()
    steps = lambda: steps_of_events(folder)["loss"]  # noqa: E731
    forget_after(folder, "mine", 5)
    assert steps() == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    last = sorted(folder.glob("*.mine"))[-1]
    last.write_bytes(last.read_bytes()[:-5])  # killed within a write
    forget_after(folder, "mine", 5)
    assert steps() == [0, 1, 2, 3, 4, 3, 4, 5]
    forget_after(folder, "mine", 1)
    assert steps() == [0, 1, 3, 4, 5]
    forget_after(Path("nowhere"), "mine", 1)


def test_an_event_folder_that_is_removed_is_made_anew(capsys):
    file = EventFile(Path("log/a"), "run")
    file.scalars({"loss": 1.0}, 0)
    file.path.unlink()
    file.path.parent.rmdir()
    file.scalars({"loss": 2.0}, 1)
    assert events("log/a")["loss"] == {1: 2.0}
    assert "was removed, and its events are lost; going on in a new file" in capsys.readouterr().err


def test_the_record_of_a_run_and_what_is_watched(run, pairs):
    run(*start(pairs, "--num-steps", 2))
    run(*start(pairs, "--num-steps", 3))
    found = steps_of_events(Path("logdir/train_derain"))
    assert found["_hparams_/experiment"] == found["_hparams_/session_start_info"] == [0]
    watched = ["optim/grad_norm", "speed/images_per_second", "speed/memory_MiB"]
    for tag in ("loss/total", "optim/lr", *watched):
        assert found[tag] == [0, 1, 2]
    curves = events("logdir/train_derain")
    norm, speed, memory = (list(curves[tag].values()) for tag in watched)
    assert all(0 < value < 1e4 for value in norm + speed)
    assert all(100 < value < 1e5 for value in memory)


def test_runs_that_begin_at_once_in_one_log_folder_have_a_file_each():
    def begin(number: int) -> Path:
        file = EventFile(Path("log/a"), f"run{number}")
        file.scalars({"loss": number}, 0)
        file.close()
        return file.path

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(begin, range(160)))
    for number, path in enumerate(paths):
        assert path.suffix == f".run{number}"
        assert path.stat().st_size > 60
    assert sorted(paths) == sorted(Path("log/a").glob("events*"))


def test_a_log_folder_that_becomes_a_file_is_one_line(pairs):
    """Whatever the run has done by then is kept."""
    words = command(*start(pairs, "--num-steps", 1000))
    with started(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        until(has_a_step)
        run.send_signal(signal.SIGSTOP)  # else it could make the folder anew in between
        Path("logdir").rename("former")
        Path("logdir").write_text("no folder")
        run.send_signal(signal.SIGCONT)
        _, err = run.communicate(timeout=60)
        removed, refused = err.splitlines()
        assert "was removed, and its events are lost; going on in a new file" in removed
        assert re.fullmatch(
            r"main.py: logdir/(train|val)_derain: events cannot be written: .+", refused
        )
        assert run.returncode == 2
        assert clock("model/latest") >= 0
