"""What a run leaves behind when it is killed, refused or hung up on: nothing in anybody's way."""

import contextlib
import os
import signal
import subprocess

import psutil
import pytest
from conftest import command, write_pairs
from soak import left_of
from test_resume import until

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
    run = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    try:
        until(lambda: len(psutil.Process(run.pid).children()) == workers)
        run.stdout.readline()
        run.kill()
        # Its output ends, too: what reads it, as tee, would otherwise wait for ever.
        run.communicate(timeout=10)
        assert left_of(run.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
