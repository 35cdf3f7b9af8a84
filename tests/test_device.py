"""The device of a run: what a GPU lacks is one line with its cure, shown here without one."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, finish
from fake_cupy import SOURCE

from engine import device
from engine.derainer import Derainer
from engine.ranks import Ranks
from engine.training_run import TrainingRun
from settings import Settings, UserError


@pytest.fixture
def one_gpu(monkeypatch):
    """As if there were a GPU, with CuPy; its name by rank is asked for and no more."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device, "require_cupy", lambda: None)


@pytest.mark.parametrize("hip", [None, "6.3"])
def test_the_kernels_are_tried_before_any_work(monkeypatch, one_gpu, hip):
    monkeypatch.setattr(torch.version, "hip", hip)
    tried = []
    monkeypatch.setattr(device, "_run_irnn", tried.append)
    for name in ("cuda", "auto"):
        assert device.choose_device(name, "fp32") == torch.device("cuda", 0)
    assert tried == [torch.device("cuda", 0)] * 2
    with pytest.raises(UserError, match="no GPU 1 on this machine, it has 1"):
        device.choose_device("cuda", "fp32", local_rank=1)
    assert device.choose_device("cpu", "fp32") == torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "reason", "cure"),
    [
        (RuntimeError("Failed to find CUDA headers. Please\ninstall"), "Failed to find", "pip"),
        (OSError("libnvrtc.so.13: cannot open shared object file"), "libnvrtc.so.13", "pip"),
        (RuntimeError("CUDA driver version is insufficient"), "CUDA driver", "NVIDIA driver"),
        (AssertionError(), "AssertionError", "pip"),
        (ValueError("x" * 5000), "x" * 150, "pip"),
    ],
)
def test_what_the_kernels_lack_is_one_line(monkeypatch, one_gpu, error, reason, cure):
    def fail(_):
        raise error

    monkeypatch.setattr(device, "_run_irnn", fail)
    with pytest.raises(UserError) as caught:
        device.choose_device("cuda", "fp32")
    message = str(caught.value)
    assert message.startswith(f"--device: the IRNN does not run on GPU 0: {reason}")
    assert cure in message
    assert message.endswith("or choose --device cpu")
    assert "\n" not in message
    assert len(message) <= 300


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),  # torch.AcceleratorError
        RuntimeError("cudaErrorMemoryAllocation: out of memory"),  # CuPy's runtime
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),  # CuPy's driver
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_known(error):
    assert device.is_out_of_memory(error)
    assert not device.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NCCL error: remote process exited or there was a network error", "another rank was lost"),
        ("Timed out waiting 1800000ms for recv", "another rank was lost"),
        (
            "NCCL error in: init.cpp:77, invalid usage\nLast error:\nDuplicate GPU detected : "
            "rank 0 and rank 1 both on CUDA device 1000",
            "NCCL cannot go on: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device "
            "1000",
        ),
        (
            "NCCL error: unhandled system error\nError while creating shared memory segment "
            "/dev/shm/nccl-a (size 9637888)",
            "NCCL cannot go on: Error while creating shared memory segment /dev/shm/nccl-a (size "
            "9637888)",
        ),
    ],
)
def test_what_nccl_says_is_told_apart_from_a_lost_rank(monkeypatch, text, reason):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as caught, Ranks().translate_dist_errors():
        raise RuntimeError(text)
    assert str(caught.value).endswith(reason)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=text[:9]), Ranks().translate_dist_errors():
        raise RuntimeError(text)


# Compiled by what requirements-cuda.txt installs, without a toolkit on the machine.

ASSEMBLE = """
import sys, torch
from irnn_cuda import require_cupy
cupy = require_cupy()
from cupy._core import core
from cupy.cuda import nvrtc
options = core.assemble_cupy_compiler_options(("-std=c++17",))
program = nvrtc.createProgram(open(sys.argv[1]).read(), "irnn.cu", [], [])
nvrtc.compileProgram(program, [*options, "--gpu-architecture=sm_90"])
print(len(nvrtc.getCUBIN(program)), *[o.removeprefix("-I") for o in options if o.startswith("-I")])
"""


def run_python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CUDA")}
    return finish([sys.executable, "-c", program, *arguments], cwd=ROOT, env=kept | environment)


def test_the_wheels_compile_the_kernels_without_a_toolkit():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    done = run_python(ASSEMBLE, str(SOURCE), PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr[-2000:]
    size, *folders = done.stdout.split()
    assert int(size) > 10_000
    # Every header comes from the environment, so that a toolkit on this machine hides nothing.
    packages = Path(sysconfig.get_paths()["purelib"]).resolve()
    assert folders
    assert all(packages in Path(folder).resolve().parents for folder in folders), folders


CACHE = "import os; from irnn_cuda import require_cupy; require_cupy(); "
CACHE += "print(os.environ.get('CUPY_CACHE_DIR', ''))"


def test_a_home_that_cannot_be_written_does_not_stop_cupy(tmp_path):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    done = run_python(CACHE, HOME="/proc/nowhere", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).parent == tmp_path
    done = run_python(CACHE, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "\n")
    done = run_python(CACHE, CUPY_CACHE_DIR="/proc/nowhere", TMPDIR=str(tmp_path))
    assert Path(done.stdout.strip()).parent == tmp_path


def test_a_gpu_has_more_loading_processes_by_default(monkeypatch):
    ranks = Ranks()
    for cores, share, on_gpu in ((1, 1, 2), (3, 1, 3), (64, 1, 4), (8, 4, 2)):
        monkeypatch.setattr(device.machine, "count_cores", lambda cores=cores: cores)
        ranks.local_size = share
        for place, expected in (("cpu", 2), ("cuda", on_gpu)):
            assert device.count_workers(Settings("train"), torch.device(place), ranks) == expected
    chosen = Settings("train", num_workers=0)
    assert device.count_workers(chosen, torch.device("cuda"), ranks) == 0


def test_training_chooses_among_cudnns_ways_and_deraining_leaves_them(monkeypatch):
    seen = []
    cudnn = torch.backends.cudnn

    class Net(torch.nn.Module):
        def forward(self, image):
            seen.append((cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32))
            return image[:, :1], image

    for name in ("benchmark", "deterministic", "allow_tf32"):
        monkeypatch.setattr(cudnn, name, getattr(cudnn, name))  # put back after the test
    for deterministic in (False, True):
        run = TrainingRun(Settings("train", device="cpu", deterministic=deterministic))
        assert (cudnn.benchmark, cudnn.deterministic) == (not deterministic, deterministic)
        cudnn.allow_tf32 = True
        Derainer(Net(), run.device).derain(np.zeros((4, 4, 3), np.uint8))
        assert seen.pop() == (False, deterministic, False)
        assert (cudnn.benchmark, cudnn.allow_tf32) == (not deterministic, True)
