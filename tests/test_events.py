"""Event files: what readers show after a resume, and files that vanish or cannot be written."""

import re
import resource
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import command, started
from soak import steps_of_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter
from test_resume import has_a_step, start, until
from test_train import clock, events

from engine.events import EventFile
from settings import UserError


def test_events_that_cannot_be_written_are_one_line():
    file = EventFile(Path("log/a"))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, former[1]))  # as on a full disk
    try:
        with pytest.raises(UserError) as caught:
            file.scalars({f"loss{number}": 1.0 for number in range(100)}, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert str(caught.value) == "log/a: events cannot be written: File too large"
    file.close()


def test_readers_drop_what_a_killed_run_wrote_after_its_checkpoint(monkeypatch):
    """Even where the clock was set back between the starts."""
    folder, size = Path("log"), {"scalars": 0, "images": 0}
    image = np.zeros((2, 2, 3), np.uint8)
    with SummaryWriter(str(folder)) as writer:  # an older program's file, in the same folder
        for step in range(3):
            writer.add_scalar("loss", -1.0, step)
    for first, last, now in ((0, 5, 2e9), (3, 7, 1e9), (6, 9, 100.0), (6, 8, 3e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        file = EventFile(folder, purge_step=first)
        for step in range(first, last + 1):
            file.scalars({"loss": first + step / 10}, step)
            file.image("picture", image, step)
        file.close()
        file.path.write_bytes(file.path.read_bytes()[:-5])  # killed within a write
        reader = EventAccumulator(str(folder), size_guidance=size)
        reader.Reload()
        shown = [(event.step, round(event.value, 1)) for event in reader.Scalars("loss")]
        assert [step for step, _ in shown] == list(range(last + 1))
        assert [event.step for event in reader.Images("picture")] == list(range(last))
        assert [value for _, value in shown[first:]] == pytest.approx(
            [first + step / 10 for step in range(first, last + 1)]
        )


def test_an_event_folder_that_is_removed_is_made_anew(capsys):
    file = EventFile(Path("log/a"))
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
        file = EventFile(Path("log/a"))
        file.scalars({"loss": number}, 0)
        file.close()
        return file.path

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(begin, range(160)))
    assert all(path.stat().st_size > 60 for path in paths)
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
        assert re.fullmatch(r"main.py: logdir/(train|val)_derain: Not a directory", refused)
        assert run.returncode == 2
        assert clock("model/latest") >= 0
