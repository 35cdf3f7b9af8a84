"""A fused optimiser, as on a GPU, here on the CPU: the next step begins before the last is read."""

import math
import re
import signal
from pathlib import Path

import pytest
import torch
from test_train import SMALL, clock, events, weights

from cal_ssim import SSIM
from engine import training_loop, training_step
from engine.ranks import Ranks
from engine.training_run import TrainingRun
from model import SPANet
from settings import Settings
from system.files import format_path

QUIET = ["--val-batch-every", 100, "--latest-every", 100, "--picture-every", 100]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every run goes on as on a GPU; what happened, in order: "launch 0", "read 0", ..."""
    plain, happened, names = torch.optim.Adam, [], {}
    launch, launch_validation = training_loop.launch_step, training_loop.launch_validation
    read = training_step.StepMetrics.read

    def record_launch(run, net, step, *others):
        happened.append(f"launch {step}")
        pending = launch(run, net, step, *others)
        names[id(pending.metrics)] = f"read {step}"
        return pending

    def record_validation(run, step, batch):
        happened.append(f"validate {step}")
        metrics = launch_validation(run, step, batch)
        names[id(metrics)] = f"read validation {step}"
        return metrics

    def record_read(measured):
        happened.append(names.get(id(measured), "read"))
        return read(measured)

    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **b: plain(*a, **(b | {"fused": True})))
    monkeypatch.setattr(TrainingRun, "max_pending_steps", 1)
    monkeypatch.setattr(training_loop, "launch_step", record_launch)
    monkeypatch.setattr(training_loop, "launch_validation", record_validation)
    monkeypatch.setattr(training_step.StepMetrics, "read", record_read)
    return happened


def test_a_step_is_read_when_the_next_is_under_way(run, pairs, fused):
    words = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET, "--log-every", 1]
    status, out, err = run(*words, "--num-steps", 5)
    assert (status, err) == (0, "")
    # Step 0 has cadences of its own and the last step ends the run: both are read at once.
    expected = ["launch 0", "validate 0", "read 0", "read validation 0", "launch 1", "launch 2"]
    expected += ["read 1", "launch 3", "read 2", "launch 4", "read 3", "read 4"]
    assert fused == expected
    assert clock("model/latest") == 4
    assert list(events("logdir/train_derain")["loss/total"]) == [0, 1, 2, 3, 4]
    assert re.findall(r"^(\d)/5 steps", out, re.MULTILINE) == ["1", "2", "3", "4", "5"]


def test_where_something_is_due_a_step_is_read_at_once(run, pairs, fused):
    words = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET, "--latest-every", 2]
    assert run(*words, "--num-steps", 4)[0] == 0
    expected = ["launch 1", "launch 2", "read 1", "read 2", "launch 3", "read 3"]
    assert fused[4:] == expected


def test_a_validation_batch_is_read_with_its_step(run, pairs, fused):
    words = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET, "--val-batch-every", 2]
    assert run(*words, "--num-steps", 4)[0] == 0
    expected = ["launch 1", "launch 2", "validate 2", "read 1", "launch 3", "read 2"]
    assert fused[4:] == [*expected, "read validation 2", "read 3"]


def test_the_results_are_those_of_reading_at_once(run, pairs, fused):
    base = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET, "--num-steps", 6]
    base += ["--val-batch-every", 2, "--ema", 0.9]
    assert run(*base, "--model-dir", "ahead", "--log-dir", "la")[0] == 0
    assert run(*base, "--model-dir", "once", "--log-dir", "lo", "--latest-every", 1)[0] == 0
    for a, b in zip(weights("ahead/latest"), weights("once/latest"), strict=True):
        assert torch.equal(a, b)
    ahead, once = (events(f"{name}/train_derain") for name in ("la", "lo"))
    assert all(ahead[name] == once[name] for name in ("loss/total", "loss/l1", "mask/std"))
    ahead, once = (events(f"{name}/val_derain")["loss/total"] for name in ("la", "lo"))
    assert ahead == once
    assert list(ahead) == [0, 2, 4]


def test_a_signal_ends_with_the_step_that_is_under_way(run, pairs, fused, monkeypatch):
    base = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET]
    launch = training_loop.launch_step

    def interrupted(run, net, step, *others):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return launch(run, net, step, *others)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "launch_step", interrupted)
        status, out, _ = run(*base, "--num-steps", 8)
    assert status == 128 + signal.SIGTERM
    assert "holds step 3: 4 of 8 steps are done" in out
    assert fused[-4:] == ["read 1", "launch 3", "read 2", "read 3"]
    assert run(*base, "--num-steps", 8)[0] == 0
    assert run(*base, "--num-steps", 8, "--model-dir", "whole", "--log-dir", "lw")[0] == 0
    for a, b in zip(weights("model/latest"), weights("whole/latest"), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_names_its_own_step(run, pairs, fused, monkeypatch):
    base = ["-a", "train", "--train-list", pairs, *SMALL, *QUIET]
    run(*base, "--num-steps", 2)
    good = Path("model/latest").read_bytes()
    original, calls = training_step.compute_losses, []

    def broken(*arguments):
        losses, mask, output = original(*arguments)
        calls.append(1)
        if len(calls) == 2:
            losses["loss"] = losses["loss"] * math.nan
        return losses, mask, output

    batches = {}
    launch = training_loop.launch_step

    def noted(run, net, step, batch, interrupt):
        batches[step] = batch.files
        return launch(run, net, step, batch, interrupt)

    monkeypatch.setattr(training_loop, "launch_step", noted)
    monkeypatch.setattr(training_step, "compute_losses", broken)
    status, _, err = run(*base, "--num-steps", 9)
    assert status == 2
    assert "step 3: the loss is nan" in err
    assert all(format_path(Path(file)) in err for file in batches[3])
    assert 4 in batches  # it was under way
    assert Path("model/latest").read_bytes() == good


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_nor_do_those_after_it(parts):
    net, ssim, settings = SPANet(), SSIM(), Settings("train", lr=1e-3, accumulate_steps=parts)
    optimiser = torch.optim.Adam(net.parameters(), fused=True)
    images = torch.rand(2, 3, 8, 8)
    good, bad = (images, images.flip(0), torch.zeros(2, 8, 8)), images.clone()
    bad[-1, 0, 0, 0] = math.nan

    def step(tensors):
        values = training_step.train_one_step(net, optimiser, ssim, settings, 0, tensors)
        return training_step.StepMetrics(values, Ranks())

    step(good).read()
    before = [p.clone() for p in net.parameters()]
    moments = [state["exp_avg"].clone() for state in optimiser.state.values()]
    measured = step((bad, *good[1:]))
    assert step(good).read()["loss"] > 0
    with pytest.raises(training_step.NotFinite, match="the loss is nan"):
        measured.read()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    after = [state["exp_avg"] for state in optimiser.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert all(state["step"].item() == 1 for state in optimiser.state.values())
