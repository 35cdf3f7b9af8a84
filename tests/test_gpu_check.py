"""make gpu-check, tried on a CPU with small numbers; and what it says without a GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, finish
from forked import FORKING

SMALL = ["--device", "cpu", "--steps", "2", "--profile-steps", "1", "--batch-size", "2",
         "--patch-size", "32", "--frames", "2", "--clip", "64", "48", "--groups"]  # fmt: skip


def check(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FORKING, str(ROOT / "benchmarks" / "gpu_check.py"), *options]
    return finish(command)


def test_every_part_has_its_line_in_the_table():
    done = check(*SMALL)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    head, rule, *lines = Path("gpu-check.md").read_text().splitlines()
    assert (head, rule) == ("| what | figure |", "|---|---|")
    table = dict(line.strip("| ").split(" | ") for line in lines)
    assert list(table) == [
        "processor", "versions", "tests of the GPU",
        "step, fp32, ours", "step, fp32, recomputed", "step, bf16, ours", "step, bf16, recomputed",
        "training, fp32, 2 workers", "training, fp32, 8 workers", "deraining a clip of 64x48",
    ]  # fmt: skip
    assert torch.__version__ in table["versions"]
    assert re.search(r"\d+ (passed|skipped)", table["tests of the GPU"])
    for name in [name for name in table if name.startswith("step")]:
        assert re.fullmatch(r"[\d.]+ ms, [\d.]+ ms of work: \d+%", table[name])
    rates = [float(table[name].split()[0]) for name in table if name.startswith("training")]
    assert all(rate > 0 for rate in rates)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = check()
    assert done.returncode == 2
    assert done.stderr == "gpu_check.py: torch finds no GPU on this machine; nothing was run\n"
    assert not Path("gpu-check.md").exists()
