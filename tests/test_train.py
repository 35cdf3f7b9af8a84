"""Training: golden losses and gradients, cadence, resume, interruption, non-finite losses."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, command, finish, golden, last_of_each, started, write_pairs
from soak import read_events
from test_model import recipe_weights

import dataset
from actions import train
from cal_ssim import SSIM
from dataset import to_float
from engine import training_step
from engine.events import LAYOUT
from engine.ranks import Ranks
from engine.training_run import TrainingRun
from engine.training_step import train_one_step
from irnn_cuda import convolution
from model import SPANet
from settings import Settings, UserError

SMALL = ["--device", "cpu", "--patch-size", 16, "--batch-size", 2, "--num-workers", 0]


# The recipe against golden arrays


def assert_golden_steps(net: SPANet, arrays, tensors) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=1.0)  # train_one_step sets the rate
    ssim, settings = SSIM(), Settings("train", lr=5e-3)
    for step, expected in enumerate(arrays["losses_l1_mask_ssim_total"]):
        losses = train_one_step(net, optimiser, ssim, settings, 0, tensors)
        found = [losses[name].item() for name in ("l1", "mask", "ssim", "loss")]
        # A float32 SSIM near zero carries the rounding of values near one.
        assert found == pytest.approx(expected, rel=1e-5 if step == 0 else 2e-3, abs=1e-7)
        if step == 0:
            gradients = {
                name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
            }
    for key in arrays:
        if key.startswith("grad/"):
            expected = torch.from_numpy(arrays[key])
            error = (gradients[key.removeprefix("grad/")] - expected).norm()
            assert error <= 1e-3 * expected.norm(), key
    names = [str(name) for name in arrays["grad_norm_names"]]
    assert names == list(gradients)
    norms = [gradients[name].norm().item() for name in names]
    assert norms == pytest.approx(arrays["grad_norms"], rel=1e-3)


@pytest.mark.parametrize("min_row_pixels", [1, 128])  # both ways of a convolution on a CPU
def test_golden_steps(monkeypatch, min_row_pixels):
    monkeypatch.setattr(convolution, "MIN_ROW_PIXELS", min_row_pixels)
    arrays = golden("network")
    tensors = [torch.from_numpy(arrays[key]) for key in ("input", "target", "mask_label")]
    assert_golden_steps(recipe_weights(SPANet()), arrays, tensors)


@pytest.mark.parametrize("min_row_pixels", [1, 1 << 20])
def test_golden_steps_of_the_released_weights(shared, monkeypatch, min_row_pixels):
    monkeypatch.setattr(convolution, "MIN_ROW_PIXELS", min_row_pixels)
    arrays = dict(np.load(shared / "golden" / "train_steps.npz"))
    net = SPANet()
    content = torch.load(shared / "released" / "latest", map_location="cpu", weights_only=True)
    net.load_state_dict(content["net"])
    rainy, clean = (torch.from_numpy(arrays[f"{kind}_bgr"]) for kind in ("rainy", "clean"))
    label = dataset.mask_label(rainy, clean)
    assert np.array_equal(label.numpy(), arrays["mask_label"])
    images = [to_float(image) for image in (rainy, clean)]
    assert_golden_steps(net, arrays, (*images, label))


def test_learning_rate_is_a_function_of_the_step_alone():
    settings = Settings("train")
    steps = (0, 29_998, 29_999, 30_000, 40_000)
    rates = [training_step.learning_rate(settings, step) for step in steps]
    assert rates == pytest.approx([5e-4, 5e-4, 5e-5, 5e-5, 5e-5])


# A run


def events(folder: str) -> dict[str, dict[int, object]]:
    """Tag -> step -> value (scalars) or image bytes, as readers show the files of a folder."""
    return {tag: dict(items) for tag, items in read_events(Path(folder)).items() if items}


def weights(path: str) -> list[torch.Tensor]:
    return list(torch.load(path, weights_only=True)["net"].values())


def clock(path: str) -> int:
    return torch.load(path, weights_only=True)["clock"]


def test_every_cadence(run, pairs):
    status, out, err = run(
        *("-a", "train", "-m", "latest", "--train-list", pairs, *SMALL, "--num-steps", 9),
        *("--val-batch-every", 2, "--latest-every", 3, "--picture-every", 4),
        *("--checkpoint-every", 5, "--log-every", 4, "--lr-decay-step", 6),
    )
    assert (status, err) == (0, "")
    assert sorted(os.listdir("model")) == ["latest", "settings.toml", "step_5"]
    assert (clock("model/latest"), clock("model/step_5")) == (8, 5)
    training, validation = events("logdir/train_derain"), events("logdir/val_derain")
    watched = {"mask/mean", "mask/std", "optim/lr", "optim/grad_norm"}
    watched |= {"speed/images_per_second", "speed/memory_MiB"}
    record = {"_hparams_/experiment", "_hparams_/session_start_info", LAYOUT}
    losses = {f"loss/{term}" for term in ("total", "l1", "ssim", "mask", "off_mask")}
    pictures = {f"pictures/{number}" for number in (1, 2, 3, 4)}
    assert set(training) == losses | watched | record
    assert set(validation) == losses | pictures
    assert list(training["loss/total"]) == list(range(9))
    assert list(validation["loss/total"]) == [0, 2, 4, 6, 8]
    assert [list(validation[picture]) for picture in sorted(pictures)] == [[0, 4, 8]] * 4
    assert training["optim/lr"][5] == pytest.approx(5e-4)
    assert training["optim/lr"][6] == pytest.approx(5e-5)
    for step in range(9):
        l1, ssim, mask = (training[f"loss/{term}"][step] for term in ("l1", "ssim", "mask"))
        assert training["loss/total"][step] == pytest.approx(l1 + 1 - ssim + mask, rel=1e-5)
    assert out.count("/9 steps  loss") == 3  # steps 0, 4 and 8
    assert "ETA" in out


def test_the_weight_off_the_mask_is_of_training_and_of_validation(run, pairs):
    words = "-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 2, "--val-batch-every", 1
    assert run(*words, "--off-mask-weight", 2)[0] == 0
    for folder in ("logdir/train_derain", "logdir/val_derain"):
        curves = events(folder)
        for step in range(2):
            terms = ("l1", "ssim", "mask", "off_mask")
            l1, ssim, mask, off = (curves[f"loss/{term}"][step] for term in terms)
            assert 0.005 < off < l1
            total = l1 + 1 - ssim + mask + 2 * off
            assert curves["loss/total"][step] == pytest.approx(total, rel=1e-5)
    status, _, err = run(*words, "--num-steps", 3)
    assert (status, err.count("\n")) == (2, 1)
    assert "--off-mask-weight is 0.0, was 2" in err


def test_a_run_in_two_parts_ends_as_one_run(run, pairs):
    base = ["-a", "train", "-m", "latest", "--train-list", pairs, *SMALL]
    run(*base, "--num-steps", 7, "--model-dir", "whole", "--log-dir", "log_whole")
    parts = [*base, "--model-dir", "parts", "--log-dir", "log_parts", "--num-steps"]
    assert run(*parts, 3)[0] == 0
    assert clock("parts/latest") == 2
    status, out, _ = run(*parts, 7, "--num-workers", 2)
    assert status == 0
    assert "steps 3 to 6" in out
    whole, parted = weights("whole/latest"), weights("parts/latest")
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))
    assert (
        events("log_whole/train_derain")["loss/l1"] == events("log_parts/train_derain")["loss/l1"]
    )
    status, out, _ = run(*parts, 7)
    assert status == 0
    assert "nothing to do" in out


def test_training_from_another_checkpoint_never_overwrites_latest(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 3]
    run(*base, "--checkpoint-every", 1)
    Path("model/latest").rename("kept")
    Path("model/step_2").unlink()
    assert run(*base, "-m", "step_1")[0] == 0
    assert clock("model/latest") == 2
    before = Path("model/latest").read_bytes()
    status, _, err = run(*base, "-m", "step_1")
    assert status == 2
    assert "model/latest is there and would be overwritten" in err
    assert Path("model/latest").read_bytes() == before
    status, _, err = run(*base, "-m", "lates")
    assert status == 2
    assert "model/lates: no such checkpoint; model holds latest" in err


def test_released_checkpoint_goes_on_at_its_next_step(run, shared, tmp_path):
    Path("model").mkdir()
    Path("model/latest").write_bytes((shared / "released" / "latest").read_bytes())
    defaults = Settings("train")
    status, _, err = run(
        *("-a", "train", "-m", "latest", "--train-list", shared / "rain" / "spa_train_pseudo.txt"),
        *(*SMALL, "--num-steps", 40005, "--crop", "native"),
    )
    assert (status, err) == (0, "")
    rates = events("logdir/train_derain")["optim/lr"]
    assert list(rates) == [40001, 40002, 40003, 40004]
    assert list(rates.values()) == pytest.approx([5e-5] * 4)
    # The published run's own schedule, which its optimiser still shows.
    published = torch.load(shared / "released" / "latest", map_location="cpu", weights_only=True)
    (group,) = published["opt"]["param_groups"]
    assert (published["clock"], group["initial_lr"]) == (
        40000,
        training_step.learning_rate(defaults, 0),
    )
    assert group["lr"] == pytest.approx(training_step.learning_rate(defaults, 40000))
    content = torch.load("model/latest", weights_only=True)
    assert content["clock"] == 40004
    steps = {int(state["step"]) for state in content["opt"]["state"].values()}
    assert steps == {40005, 40001}  # the six tensors of the direction attention stay
    assert len(content["opt"]["state"]) == 79


def test_ctrl_c_saves_latest_and_ends_cleanly(pairs):
    arguments = ("-a", "train", "--train-list", pairs, *SMALL, "--latest-every", 10_000)
    with started(
        command(*arguments, "--num-workers", 2, "--log-every", 1),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("3/"):
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err == ""
        assert "(SIGINT)" in out
        done = clock("model/latest")
        assert done >= 2
        assert f"holds step {done}: {done + 1} of 40001 steps are done" in out


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_leaves_latest(run, pairs, monkeypatch, what):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--latest-every", 1]
    run(*base, "--num-steps", 2)
    good = Path("model/latest").read_bytes()
    original = training_step.compute_losses

    def broken(*arguments):
        losses, mask, output = original(*arguments)
        if what == "loss":
            losses["loss"] = losses["loss"] * math.nan
        else:  # finite itself, its gradient is 0/0
            losses["loss"] = losses["loss"] + (losses["l1"] * 0).sqrt()
        return losses, mask, output

    monkeypatch.setattr(training_step, "compute_losses", broken)
    status, _, err = run(*base, "--num-steps", 5)
    assert status == 2
    assert err.count("\n") == 1
    assert f"step 2: the {'loss' if what == 'loss' else 'norm of the gradient'} is nan" in err
    assert "pair" in err
    assert ".png" in err
    assert Path("model/latest").read_bytes() == good


def test_a_step_that_is_not_finite_changes_nothing():
    net, ssim = SPANet(), SSIM()
    optimiser = torch.optim.Adam(net.parameters())
    before = [p.clone() for p in net.parameters()]
    image = torch.full((1, 3, 8, 8), math.nan)
    tensors = image, image, torch.zeros(1, 8, 8)
    values = train_one_step(net, optimiser, ssim, Settings("train"), 0, tensors)
    with pytest.raises(training_step.NotFinite):
        training_step.StepMetrics(values, Ranks()).read()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not optimiser.state


def test_an_unforeseen_error_ends_the_workers_too(pairs):
    """They ignore a signal to the group, and must not for that outlive the main process."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import main\n"
        "from engine import training_step\n"
        "def broken(*_): raise RuntimeError('unforeseen')\n"
        "training_step.compute_losses = broken\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    arguments = last_of_each(["-a", "train", "--train-list", pairs, *SMALL, "--num-workers", 2])
    done = finish([sys.executable, "-c", program, str(ROOT), *arguments])
    assert "RuntimeError: unforeseen" in done.stderr
    assert done.returncode == 1


def test_val_list_replaces_the_training_list(run, pairs, tmp_path):
    other = write_pairs(tmp_path / "other", [(20, 20)], seed=9)
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1]
    run(*base, "--log-dir", "a", "--model-dir", "ma")
    run(*base, "--log-dir", "b", "--model-dir", "mb", "--val-list", other)
    assert events("a/train_derain")["loss/total"] == events("b/train_derain")["loss/total"]
    assert events("a/val_derain")["loss/total"] != events("b/val_derain")["loss/total"]


def test_the_loss_falls(run, pairs):
    run("-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 40, "--lr", 0.002)
    losses = list(events("logdir/train_derain")["loss/total"].values())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_bad_image_stops_the_run_and_leaves_a_checkpoint_that_loads(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps"]
    run(*base, 3)
    # In a process of its own: workers left alone would keep it from ending.
    with started(
        command(*base, 1000, "--num-workers", 2, "--log-every", 1),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        next(line for line in process.stdout if line.startswith("5/"))
        (pairs.parent / "rain" / "pair3.png").write_bytes(b"gone")
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2
        assert err.count("\n") == 1
        assert "list.txt:4: " in err
        assert "pair3.png: not an image" in err
        resumed = TrainingRun(Settings("train", device="cpu", allow_changed_settings=True))
        resumed.resume(Path("model/latest"))
        assert resumed.step >= 2


def test_checkpoint_of_weights_alone_cannot_be_resumed(run, pairs):
    run("-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1)
    content = torch.load("model/latest", weights_only=True)
    del content["opt"]
    torch.save(content, "model/latest")
    with pytest.raises(UserError, match="only weights"):
        train.train(
            Settings("train", device="cpu", train_list=str(pairs), patch_size=16, batch_size=2)
        )
