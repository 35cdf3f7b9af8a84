"""The actions on a GPU, against the same on the CPU. Skipped where there is none."""

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import command
from test_train import SMALL, clock, events, weights

from cal_ssim import SSIM
from dataset import Batch, upload_batches
from engine.device import free_memory, is_out_of_memory
from engine.training_run import TrainingRun
from model import SPANet
from settings import Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
GPU = "cuda"
TRAIN = [GPU if word == "cpu" else word for word in SMALL]


def test_training_and_its_resume(run, pairs):
    base = ["-a", "train", "--train-list", pairs, "--log-every", 100]
    assert run(*base, *SMALL, "--num-steps", 6, "--model-dir", "c", "--log-dir", "lc")[0] == 0
    for steps in (3, 6):
        words = [*TRAIN, "--deterministic", "--num-steps", steps]
        status, _, err = run(*base, *words, "--model-dir", "g", "--log-dir", "lg")
        assert (status, err) == (0, "")
    assert clock("g/latest") == 5
    found, expected = (events(f"{name}/train_derain") for name in ("lg", "lc"))
    for name in ("loss/total", "mask/mean"):
        assert list(found[name]) == list(range(6))
        assert found[name] == pytest.approx(expected[name], rel=1e-2)
    for a, b in zip(weights("g/latest"), weights("c/latest"), strict=True):
        assert b.any()
        assert (a.cpu() - b).norm() <= 0.05 * b.norm()


def test_a_deterministic_resume_is_bit_for_bit(run, pairs):
    base = ["-a", "train", "--train-list", pairs, *TRAIN, "--deterministic"]
    for name, parts in (("whole", [6]), ("parts", [2, 6])):
        for steps in parts:
            words = ["--num-steps", steps, "--model-dir", name, "--log-dir", f"l{name}"]
            assert run(*base, *words)[0] == 0
    for a, b in zip(weights("whole/latest"), weights("parts/latest"), strict=True):
        assert torch.equal(a, b)


def test_batches_arrive_as_they_were_loaded():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 2, 4, 32, 40, 3), np.uint8)
    batches = [Batch(*pair, [str(number)]) for number, pair in enumerate(images)]
    uploaded = upload_batches(iter(batches), torch.device(GPU, 0), 3)
    for number, (batch, expected) in enumerate(zip(uploaded, batches, strict=True)):
        assert batch.files == [str(number)]
        tensors = expected.to_device(torch.device("cpu"), 3).tensors
        for a, b in zip(batch.tensors, tensors, strict=True):
            assert torch.equal(a.cpu(), b)


def test_a_save_beside_the_training_holds_its_step(run, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = TrainingRun(Settings("train", device=GPU, ema=0.9))
    before = [p.cpu().clone() for p in training.net.parameters()]
    for name in ("one", "two"):
        training.start_save(name)
        with torch.no_grad():
            for parameter in training.net.parameters():
                parameter.add_(1)
    training.finish_save()
    for shift, name in enumerate(("one", "two")):
        for a, b in zip(weights(f"model/{name}"), before, strict=True):
            assert torch.allclose(a.cpu(), b + shift)


def test_pictures_are_those_of_the_cpu(run, pairs, model):
    for device in ("cpu", GPU):
        options = ["--device", device, "--result-dir", device, "--log-dir", f"log-{device}"]
        status, _, err = run("-a", "test", "--test-list", pairs, *options)
        assert (status, err) == (0, "")
    names = sorted(path.name for path in Path("cpu/derained").iterdir())
    assert len(names) == 5
    for name in names:
        a, b = (cv2.imread(f"{device}/derained/{name}").astype(int) for device in ("cpu", GPU))
        assert np.abs(a - b).max() <= 1
    path = pairs.parent / "rain" / "pair1.png"
    status, out, err = run("-a", "derain", "--device", GPU, "-i", path, "-o", "one.png")
    assert (status, err) == (0, "")
    assert np.array_equal(cv2.imread("one.png"), cv2.imread(f"{GPU}/derained/pair1.png"))
    assert "model/latest, step 4, on " in out


def test_the_loss_is_that_of_the_cpu():
    first, second = torch.rand(2, 2, 3, 40, 30)
    results = []
    for device in ("cpu", GPU):
        ssim, x = SSIM().to(device), first.to(device).requires_grad_()
        value = ssim(x, second.to(device))
        results.append([value.cpu(), torch.autograd.grad(value, x)[0].cpu()])
    for a, b in zip(*results, strict=True):
        assert b.any()
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_memory_that_ran_out_is_known_as_such():
    device = torch.device(GPU, 0)
    free = free_memory(device)
    assert free > 2**28
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever the library calls it
        torch.empty(2 * free, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)
    net = SPANet().to(device)  # and the GPU goes on working
    assert net(torch.rand(1, 3, 8, 8, device=device))[1].isfinite().all()


def test_a_process_that_has_nothing_compiled_yet(pairs, model, tmp_path):
    path = pairs.parent / "rain" / "pair1.png"
    words = command("-a", "derain", "--device", GPU, "-i", path, "-o", "one.png")
    cache = tmp_path / "cache"
    environment = os.environ | {"CUPY_CACHE_DIR": str(cache)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(cache.iterdir())
