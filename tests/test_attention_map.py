"""The attention map in training: alive at the defaults, reported when it died, its figures."""

import math
import sys

import pytest
import torch
from conftest import ROOT, finish, write_pairs
from forked import FORKING
from test_model import recipe_weights
from test_train import events

from cal_ssim import SSIM
from engine.training_loop import DeadMaskDetector
from engine.training_step import train_one_step
from model import SPANet, is_dead_mask
from settings import Settings

SPARSE = {"sizes": [(28, 28)] * 5, "density": 1}  # rain on 5 % of the pixels


def test_the_attention_map_lives_at_the_defaults(run, tmp_path):
    pairs = write_pairs(tmp_path / "sparse", **SPARSE)
    base = ["--device", "cpu", "--patch-size", 24, "--batch-size", 2, "--num-workers", 0]
    status, _, err = run("-a", "train", "--train-list", pairs, *base, "--num-steps", 24)
    assert (status, err) == (0, "")
    curves = events("logdir/train_derain")
    assert curves["mask/std"][23] > 1e-4
    assert 0 < curves["mask/mean"][23] < 1


def test_an_attention_map_that_died_is_reported_once(run, tmp_path):
    pairs = write_pairs(tmp_path / "sparse", **SPARSE)
    base = ["--device", "cpu", "--patch-size", 24, "--batch-size", 2, "--num-workers", 0]
    base += ["--lr", 2e-2, "--num-steps", 26, "--accumulate-steps", 2]
    status, _, err = run("-a", "train", "--train-list", pairs, *base)
    assert status == 0
    curves = events("logdir/train_derain")
    masks = zip(curves["mask/mean"].values(), curves["mask/std"].values(), strict=True)
    dead = [mean < 1e-3 and deviation < 1e-3 for mean, deviation in masks]
    first = next(i for i in range(20, 27) if all(dead[i - 20 : i])) - 1
    assert err.count("\n") == 1
    assert f"warning: step {first}: the attention map has had one value everywhere" in err
    assert "lower --lr (now 0.02) or another --seed (now 2019)" in err


def test_mean_and_deviation_of_the_mask_are_those_of_the_whole_batch():
    image, label = torch.rand(4, 3, 8, 8), torch.zeros(4, 8, 8)
    net = recipe_weights(SPANet())
    mask = net(image)[0].detach().double()
    for parts in (1, 2, 4):
        optimiser = torch.optim.Adam(net.parameters())
        settings = Settings("train", lr=0.0, accumulate_steps=parts)
        tensors = (image, image, label)
        values = train_one_step(net, optimiser, SSIM(), settings, 0, tensors)
        assert values["mask/mean"] == pytest.approx(mask.mean().item(), rel=1e-6)
        assert values["mask/square"] == pytest.approx(mask.square().mean().item(), rel=1e-6)


def test_a_short_calm_of_the_mask_is_not_death():
    detector = DeadMaskDetector(Settings("train"))

    def update(masks: list[tuple[float, float]]) -> list[bool]:
        return [bool(detector.update(0, *mask)) for mask in masks]

    dead, alive = (1e-8, 3e-6), (0.02, 1e-2)
    assert not any(update([dead] * 19 + [alive] + [dead] * 19 + [alive]))
    assert update([dead] * 40).index(True) == 19
    assert not any(update([alive] + [dead] * 40))  # once a run


@pytest.mark.parametrize(
    ("mean", "deviation", "dead"),
    [
        (1e-8, 4e-8, True),  # as at 5e-3: the deviation swings round 1e-6
        (1e-8, 3e-6, True),
        (1 - 1e-4, 5e-4, True),
        (0.5, 1e-7, True),  # the ReLU before the sigmoid is 0 everywhere
        (0.5, 1e-4, False),  # as it begins
        (5e-4, 2e-3, False),  # little rain is found
    ],
)
def test_an_attention_map_is_dead_where_it_is_saturated(mean, deviation, dead):
    assert is_dead_mask(mean, deviation) == dead


def test_the_benchmark_of_the_recipe_prints_its_table(tmp_path):
    pairs = write_pairs(tmp_path / "sparse", **SPARSE)
    options = ["--list", str(pairs), "-o", "runs", "--batch-size", "2", "--patch-size", "24"]
    recipe = str(ROOT / "benchmarks" / "recipe.py")
    program = [sys.executable, "-c", FORKING, recipe, *options, "--steps", "1"]
    done = finish(program)
    assert (done.returncode, done.stderr) == (0, "")
    table = [line.rsplit(maxsplit=5) for line in done.stdout.splitlines()[-3:]]
    names = ["defaults", "lr 5e-3", "biases from -1 to 1"]
    assert [row[:2] for row in table] == [[name, "1"] for name in names]
    assert all(math.isfinite(float(cell)) for row in table for cell in row[2:])
    assert len({row[2] for row in table}) == 3  # three runs, three losses
