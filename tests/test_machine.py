"""Cores, threads and the C library's memory."""

import ast
import ctypes
import os
import re
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import ROOT

from engine.device import prepare_device
from engine.ranks import Ranks
from settings import Settings
from system import machine


def quota(monkeypatch, text: str | None) -> None:
    def read_text(_):
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(machine.Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("max 100000", 6), ("250000 100000", 3), ("1000 100000", 1), ("900000 100000", 6), (None, 6)],
)
def test_cores_heed_binding_and_quota(monkeypatch, text, count):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: list(range(6)), raising=False)
    quota(monkeypatch, text)
    assert machine.count_cores() == count


def test_threads_of_a_run(monkeypatch):
    before = torch.get_num_threads()
    try:
        prepare_device(Settings(action="train", num_threads=3), Ranks())
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(machine, "count_cores", lambda: 2)
        prepare_device(Settings(action="train"), Ranks())
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(machine, "count_cores", lambda: 8)
        prepare_device(Settings(action="train"), Ranks())
        assert torch.get_num_threads() == 2  # torch's own choice, which OMP_NUM_THREADS bounds
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_blocks_are_kept_or_returned():
    """A freed block of 64 MiB stays with the process, or leaves it."""
    program = """
import sys
from system import machine
machine.keep_blocks(getattr(machine, sys.argv[1]))
import ctypes, re
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p])
block = libc.malloc(1 << 26)
ctypes.memset(block, 1, 1 << 26)
libc.free(block)
print(int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) >> 10)
"""

    def megabytes(name: str) -> int:
        command = [sys.executable, "-c", program, name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
        return int(done.stdout)

    assert megabytes("INFERENCE_BLOCKS") > 64
    assert megabytes("LEAN_TRAINING_BLOCKS") < 64


def test_the_pool_of_compiled_code_has_no_more_threads_than_torch():
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from irnn_cuda import irnn\n"
        "irnn(torch.rand(1, 2, 3, 3), torch.rand(4, 2), torch.rand(4, 2))\n"
        "import numba; print(numba.config.NUMBA_NUM_THREADS, numba.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_NUM_THREADS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, check=True, env=environment, timeout=120
    )
    assert done.stdout.split() == [b"1", b"1"]


# Threads that wait

PROGRAMS = [
    *(ROOT / name for name in ("main.py", "hubconf.py", "tests/conftest.py")),
    *(path for path in sorted(ROOT.glob("benchmarks/*.py")) if "__main__" in path.read_text()),
]
LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
import hubconf, torch
from irnn_cuda import irnn
irnn(torch.ones(1, 1, 2, 2), *torch.ones(2, 4, 1))  # makes the pools
"""


def named(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_says_how_threads_wait_before_it_loads_them(path):
    body = ast.parse(path.read_text()).body
    said = [
        i
        for i, node in enumerate(body)
        if "machine" in (line := ast.unparse(node)) and line.endswith(".share_cores()")
    ]
    light = sys.stdlib_module_names | {"settings", "system"}
    heavy = [i for i, node in enumerate(body) if named(node) - light]
    assert said[0] < min(heavy, default=len(body))


def test_how_threads_wait_is_the_users_to_say(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    machine.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    machine.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "77"


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux alone")
def test_the_pools_of_torch_and_numba_soon_sleep():
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(ROOT)],
        env=own | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    # Every OpenMP that is loaded says what it has found.
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {machine.SPIN_COUNT}
