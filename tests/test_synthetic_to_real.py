"""benchmarks/synthetic_to_real.py on small patches: its table, and what its rows leave out."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import main
from benchmarks import synthetic_to_real
from rain.synthetic_rain import KINDS


def test_each_row_is_trained_once_and_compared_with_its_start(pairs, capsys, monkeypatch):
    started = []

    def call_main(command: list[str], **_) -> SimpleNamespace:
        started.append(command[command.index("-a") + 1])
        return SimpleNamespace(returncode=main.main(command[2:]))

    rows = {
        name: synthetic_to_real.ROWS[name] for name in ("--off-mask-weight 0", "rain at one scale")
    }
    monkeypatch.setattr(synthetic_to_real, "ROWS", rows)
    runner = SimpleNamespace(run=call_main, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(synthetic_to_real, "subprocess", runner)
    words = ["synthetic_to_real.py", str(pairs), "-o", "rows", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--patch-size", "16"])
    tables = []
    for _ in range(2):
        assert synthetic_to_real.main() == 0
        out = capsys.readouterr().out
        lines = [line for line in out.splitlines() if line.startswith("|")]
        tables.append([line.strip("| ").split(" | ") for line in lines])
    assert tables[0] == tables[1]
    assert started == ["test", "train", "test", "train", "test"] * 2
    assert out.count("nothing to do") == 2
    head, _, (name, psnr), *gains = tables[0]
    assert (head, name) == (["change", "list"], "none: demo")
    assert 10 < float(psnr.removesuffix(" dB")) < 60
    assert [row[0] for row in gains] == list(rows)
    assert all(abs(float(row[1])) < 10 for row in gains)


@pytest.mark.parametrize("name", ["", "near", "arc", "veil"])
def test_a_look_that_is_left_out_is_not_drawn(name):
    kinds = synthetic_to_real.leave_out(name)["KINDS"]
    assert len(kinds) == len(KINDS) - 1
    assert sum(share for share, _ in kinds) == pytest.approx(1)
    assert all(name not in looks for _, looks in kinds)
    assert ({} in [looks for _, looks in kinds]) == (name != "")


def test_at_one_scale_rain_is_neither_nearer_nor_farther(monkeypatch):
    calls, sample = [], synthetic_to_real.SAMPLE_LOOK
    monkeypatch.setattr(
        synthetic_to_real, "SAMPLE_LOOK", lambda *words: calls.append(words) or sample(*words)
    )
    for seed in range(5):
        synthetic_to_real.draw_at_one_scale(np.random.default_rng(seed))
    assert calls
    assert all(len(words) == 2 for words in calls)  # look and rng, without a scale
