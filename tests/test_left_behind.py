"""What a run leaves behind when it is killed, refused or hung up on: nothing in anybody's way."""

import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import command, started, write_pairs
from soak import left_of, steps_of_events
from test_resume import start, until
from test_train import clock

from engine import training_loop
from engine.events import EventFile

# Batches too large for a pipe: the processes that load them wait until somebody reads.
LARGE = ["--device", "cpu", "--patch-size", 128, "--batch-size", 4, "--num-workers", 2]


@pytest.mark.parametrize("action", ["train", "test"])
def test_what_loads_data_ends_with_its_parent(model, tmp_path, action):
    pairs = write_pairs(tmp_path / "data", [(160, 160)] * 40, density=1)
    words, workers = {
        "train": (["--train-list", pairs, *LARGE, "--model-dir", "new"], 3),
        "test": (["-m", "latest", "--test-list", pairs, "--device", "cpu", "--num-workers", 2], 2),
    }[action]
    words = command("-a", action, *words)
    with started(words, stdout=subprocess.PIPE) as run:
        until(lambda: len(psutil.Process(run.pid).children()) == workers)
        run.stdout.readline()
        run.kill()
        # Its output ends, too: what reads it, as tee, would otherwise wait for ever.
        run.communicate(timeout=10)
        assert left_of(run.pid) == []


# A start that was refused


def refused(run, *words: object) -> str:
    status, _, err = run(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert not Path("model/latest").exists()
    assert not list(Path().glob("logdir/*/events*"))
    return err


@pytest.fixture
def unlike_any_start(run, pairs):
    """A start that no other recipe's `latest` lets pass."""

    def call(*words: object) -> None:
        recipe = ["--lr", 0.002, "--seed", 7, "--num-steps", 1]
        assert run(*start(pairs, *recipe, *words))[::2] == (0, "")
        assert clock("model/latest") == 0

    return call


def test_a_start_refused_for_an_image_binds_nobody(run, pairs, unlike_any_start):
    bad = pairs.parent / "rain" / "pair3.png"
    good = bad.read_bytes()
    bad.write_bytes(b"gone")
    assert "pair3.png: not an image" in refused(run, *start(pairs, "--batch-size", 5))
    bad.write_bytes(good)
    unlike_any_start()


def test_a_start_refused_for_want_of_memory_binds_nobody(run, pairs, unlike_any_start, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "train_one_step", broken)
        assert "not enough memory" in refused(run, *start(pairs))
    unlike_any_start()


def test_a_start_refused_for_its_log_folder_binds_nobody(run, pairs, unlike_any_start):
    Path("logdir").write_text("no folder")
    assert "logdir/train_derain: Not a directory" in refused(run, *start(pairs))
    Path("logdir").unlink()
    unlike_any_start()


def test_a_start_from_another_checkpoint_that_is_refused_can_be_mended(run, pairs):
    run(*start(pairs, "--num-steps", 2))
    Path("model/latest").rename("model/mine")
    Path("logdir").rename("former")
    words = start(pairs, "-m", "mine", "--num-steps")
    assert "nothing to do" in run(*words, 1)[1]
    Path("logdir").write_text("no folder")
    refused(run, *words, 3)
    Path("logdir").unlink()
    assert run(*words, 3)[0] == 0
    assert clock("model/latest") == 2


def test_a_start_that_was_killed_binds_nobody(run, pairs):
    """Its events are not shown any more, and might be of another run."""
    file = EventFile(Path("logdir/train_derain"), purge_step=0)
    file.scalars({"loss/total": 1.0}, 0)
    file.close()
    status, _, err = run(*start(pairs, "--lr", 0.002, "--num-steps", 1))
    assert status == 0
    assert "logdir/train_derain holds the events of another run" in err
    assert steps_of_events(Path("logdir/train_derain"))["loss/total"] == [0]
