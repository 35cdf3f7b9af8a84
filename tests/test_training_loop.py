"""What a run of training says, and that a term of the loss is named in one place."""

import re

import pytest
from conftest import write_pairs
from test_train import SMALL, events

from engine import training_step
from settings import Settings


def test_what_a_run_says_before_and_after_its_first_steps(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *SMALL, "--precision", "bf16"]
    status, out, _ = run(*base, "--num-steps", 14, "--log-every", 100)
    assert status == 0
    first, *others = out.splitlines()
    line = r"training on .+, \d+ threads?, bf16: 5 pairs, steps 0 to 13, 14 left"
    assert re.fullmatch(line, first)
    forecasts = [i for i, line in enumerate(others) if "steps a second: about" in line]
    assert len(forecasts) == 1
    assert re.fullmatch(r"[\d.e+-]+ steps a second: about \d+:\d\d:\d\d left", others[forecasts[0]])
    assert out.count("a second: about") == 1
    _, out, _ = run(*base, "--num-steps", 20)  # too short to say more
    assert "steps 14 to 19, 6 left" in out
    assert "a second: about" not in out


def test_the_score_of_validation_is_printed(run, pairs, tmp_path):
    val = write_pairs(tmp_path / "val", [(16, 16)])
    words = ["--val-list", val, "--val-every", 2, "--num-steps", 5]
    _, out, _ = run("-a", "train", "--train-list", pairs, *SMALL, *words)
    line = r"step (\d+): PSNR ([\d.]+)  SSIM ([\d.]+) over the whole images of (.+)"
    scores = re.findall(line, out)
    assert [int(step) for step, *_ in scores] == [2, 4]
    written = events("logdir/val_derain")
    for step, psnr, ssim, _ in scores:
        assert float(psnr) == pytest.approx(written["score/psnr"][int(step)], abs=1e-4)
        assert float(ssim) == pytest.approx(written["score/ssim"][int(step)], abs=1e-4)
    assert scores[0][3] == f"{val}, the best so far"


def test_a_term_of_the_loss_is_named_once(run, pairs, monkeypatch):
    """It is trained on, shown as progress, written to the events, and validated."""

    def bright(found: training_step.LossInputs):
        value = found.output.mean()
        return value, value

    words = ["-a", "train", "--train-list", pairs, *SMALL, "--val-batch-every", 1]
    with monkeypatch.context() as patch:
        patch.setitem(training_step.TERMS, "bright", bright)
        patch.setattr(Settings, "bright_weight", 0.5, raising=False)
        status, out, _ = run(*words, "--num-steps", 2)
    refused, _, err = run(*words, "--num-steps", 3)
    assert (refused, err.count("\n")) == (2, 1)
    assert "the loss is l1 + ssim + mask + off_mask, was l1 + ssim + mask + off_mask + bri" in err
    assert status == 0
    for name in ("train_derain", "val_derain"):
        curves = events(f"logdir/{name}")
        for step in (0, 1):
            parts = [curves[f"loss/{term}"][step] for term in ("l1", "ssim", "mask", "bright")]
            total = parts[0] + 1 - parts[1] + parts[2] + 0.5 * parts[3]
            assert curves["loss/total"][step] == pytest.approx(total, rel=1e-5)
    assert "  bright " in out
