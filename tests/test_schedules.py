"""Learning rate by schedule and warm-up, the gradient's largest norm, averaged weights."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_train import SMALL, events, weights

from engine import checkpoint
from engine.derainer import Derainer
from engine.training_run import find_changes
from engine.training_step import ema_decay, learning_rate
from settings import Settings, UserError

ALL = ["--ema", 0.9, "--schedule", "cosine", "--warmup-steps", 2, "--grad-clip", 0.5]


def list_rates(steps: int, **settings: object) -> list[float]:
    return [learning_rate(Settings("train", lr=1.0, **settings), step) for step in range(steps)]


def test_the_rate_of_the_recipe_is_what_it_was():
    settings = Settings("train")
    rates = [learning_rate(settings, step) for step in (0, 29998, 29999, 40000)]
    assert rates == [5e-4, 5e-4, 5e-4 * 0.1, 5e-4 * 0.1]


def test_warm_up_and_cosine():
    rates = list_rates(111, schedule="cosine", warmup_steps=10, num_steps=110)
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[109] < 1e-3
    assert rates[110] == 0
    assert list_rates(8, warmup_steps=4, lr_decay_step=6) == [0.25, 0.5, 0.75, 1, 1, 1, 0.1, 0.1]


def test_the_rate_falls_at_each_of_several_steps():
    assert list_rates(7, lr_decay_step=(2, 5), lr_decay=0.5) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    for steps, message in (((), "one value or more"), ((2, -1), "out of range"), ("2", "int")):
        with pytest.raises(UserError, match=rf"--lr-decay-step: .*{message}"):
            Settings("train", lr_decay_step=steps)


def test_what_a_checkpoint_says_of_its_schedule():
    saved = vars(Settings("train"))
    assert not find_changes(saved, Settings("train", num_steps=9))
    cosine = Settings("train", schedule="cosine", num_steps=9)
    assert find_changes(saved, cosine) == ["--schedule is cosine, was step"]
    longer = Settings("train", schedule="cosine", num_steps=10)
    assert find_changes(vars(cosine), longer) == ["--num-steps is 10, was 9"]


def test_the_gradient_is_clipped_and_reported_as_it_was(run, pairs):
    words = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 2]
    for name, clip in (("plain", []), ("clipped", ["--grad-clip", 1e-9])):
        assert run(*words, *clip, "--model-dir", name, "--log-dir", f"log_{name}")[0] == 0
    names = ("plain", "clipped")
    norms = [events(f"log_{name}/train_derain")["optim/grad_norm"][0] for name in names]
    assert norms[0] == norms[1] > 1e-3
    contents = [torch.load(f"{name}/latest", weights_only=True) for name in names]
    plain, clipped = (content["opt"]["state"][0]["exp_avg"].norm() for content in contents)
    assert 0 < clipped < 1e-9 < plain


def test_averages_and_schedules_resume_as_if_never_stopped(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, *ALL, "--val-list", pairs]
    base += ["--val-every", 2]
    assert run(*base, "--num-steps", 5, "--model-dir", "whole", "--log-dir", "lw")[0] == 0
    assert run(*base, "--num-steps", 3)[0] == 0
    longer = [*base, "--num-steps", 5, "--allow-changed-settings"]  # of the cosine
    status, _, err = run(*base, "--num-steps", 5)
    assert (status, "--num-steps is 5, was 3" in err) == (2, True)
    Path("model/latest").unlink()
    assert run(*base, "--num-steps", 5, "--checkpoint-every", 2)[0] == 0
    Path("model/step_2").rename("model/latest")
    assert run(*longer)[0] == 0
    whole, parts = (checkpoint.load(Path(name, "latest")) for name in ("whole", "model"))
    for key, average in whole["ema"].items():
        assert torch.equal(average, parts["ema"][key])
        assert torch.equal(whole["net"][key], parts["net"][key])
    assert not torch.equal(whole["ema"]["conv_in.0.weight"], whole["net"]["conv_in.0.weight"])
    for name in ("logdir", "lw"):
        assert list(events(f"{name}/val_derain")["score/psnr"]) == [2, 4]


def test_the_average_is_that_of_the_weights_after_each_step(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--ema", 0.9]
    expected = None
    for step in range(3):
        assert run(*base, "--num-steps", step + 1)[0] == 0
        content = torch.load("model/latest", weights_only=True)
        weight, average = (content[kind]["conv_out.0.weight"] for kind in ("net", "ema"))
        if expected is not None:
            decay = ema_decay(Settings("train", ema=0.9), step)
            assert decay == (1 + step) / (10 + step)
            expected = expected * decay + weight * (1 - decay)
            assert torch.allclose(average, expected, atol=1e-7)
        expected = average
    assert ema_decay(Settings("train", ema=0.9), 10**6) == 0.9
    assert math.isfinite(expected.sum().item())


def test_averaged_weights_derain_unless_the_last_are_asked_for(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 3]
    assert run(*base, "--ema", 0.9)[0] == 0
    content = torch.load("model/latest", weights_only=True)
    average, last = content["ema"], content["net"]
    for name, state in (("average", average), ("last", last)):
        torch.save({"net": state}, f"model/{name}")
    assert checkpoint.main(["model/latest", "alone"]) == 0
    alone = checkpoint.load(Path("alone"))
    assert "ema" not in alone
    assert all(torch.equal(alone["net"][key], average[key]) for key in average)
    picture = pairs.parent / "rain" / "pair1.png"
    pictures = {}
    for name, words in (
        ("ema", ("-m", "latest")),
        ("no ema", ("-m", "latest", "--no-ema")),
        ("average", ("-m", "average")),
        ("last", ("-m", "last", "--no-ema")),
    ):
        assert run("-a", "derain", *words, "--device", "cpu", "-i", picture, "-o", "o.png")[0] == 0
        pictures[name] = Path("o.png").read_bytes()
    assert pictures["ema"] == pictures["average"] != pictures["last"] == pictures["no ema"]
    for words, averaged in (((), True), (("--no-ema",), False)):
        assert run("-a", "test", "--test-list", pairs, "--device", "cpu", *words)[0] == 0
        assert json.loads(Path("results/summary.json").read_text())["moving_average"] == averaged
    run(*base, "--init-from", "model/latest", "--model-dir", "next", "--num-steps", 1, "--lr", 0)
    first, moving = (weights(path) for path in ("next/latest", "model/average"))
    assert all(torch.equal(a, b) for a, b in zip(first, moving, strict=True))


def test_the_weights_of_another_program_can_be_averaged_too(tmp_path):
    net = torch.load(Path(__file__).parent.parent / "model" / "demo", weights_only=True)["net"]
    torch.save({"params": net, "params_ema": {k: v / 2 for k, v in net.items()}}, tmp_path / "w")
    for ema, factor in ((True, 0.5), (False, 1.0)):
        loaded = Derainer.load(tmp_path / "w", torch.device("cpu"), ema).net.state_dict()
        assert all(torch.equal(loaded[key], net[key] * factor) for key in net)


def test_defaults_keep_no_average(run, pairs):
    assert run("-a", "train", "--train-list", pairs, *SMALL, "--num-steps", 1)[0] == 0
    assert "ema" not in torch.load("model/latest", weights_only=True)
