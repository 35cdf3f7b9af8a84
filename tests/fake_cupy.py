"""A stand-in for CuPy whose GPU is irnn.cu compiled by g++: it runs launches and records them."""

import contextlib
import ctypes
import re
import subprocess
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from irnn_cuda import cuda, op

SOURCE = ROOT / "irnn_cuda" / "irnn.cu"
BASELINE = ROOT / "benchmarks" / "rescan.cu"


def build(folder: Path, *flags: str, source: Path = SOURCE) -> Path:
    """Compile the kernels as C++ into a library in that folder; any warning is an error."""
    library = folder / "irnn.so"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += [
        "-shared",
        "-fPIC",
        *flags,
        f"-I{source.parent}",
        f"-I{BASELINE.parent}",
        "-o",
        str(library),
    ]
    command += [str(ROOT / "tests" / "irnn_on_cpu.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return library


def signatures() -> dict[str, list[type]]:
    """Kernel -> the NumPy types its parameters must be passed as, read from the source."""
    found = {}
    text = SOURCE.read_text().replace("\\\n", "")
    # The three kernels of one macro have one signature.
    (backward,) = re.findall(r"KERNEL\(\s*const([^)]*)\)", text)
    text += "".join(f"{name}({backward})" for name in re.findall(r"BACKWARD\((\w+##NAME)", text))
    for name, parameters in re.findall(r"(irnn_\w+)_##NAME\(([^)]*)\)", text):
        kinds = [np.uint64 if "*" in word else np.int32 for word in parameters.split(",")]
        assert all("*" in word or word.split()[0] == "int" for word in parameters.split(","))
        found |= {f"{name}_{str(dtype).removeprefix('torch.')}": kinds for dtype in cuda.ARITHMETIC}
    return found


@dataclass
class Launch:
    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    words: tuple[Any, ...]
    device: Any  # current in CuPy
    torch_device: Any  # current in torch
    stream: Any  # current in CuPy


class FakeCupy(types.ModuleType):
    """Put in CuPy's place by `install`. With no library it only records."""

    def __init__(self, library: Path | None = None) -> None:
        super().__init__("cupy")
        self.binary = ctypes.CDLL(str(library)) if library else None
        self.reversed = False
        self.launches: list[Launch] = []
        self.compiled: list[Any] = []  # the device of each compilation
        self.fetched: set[str] = set()
        self._current = threading.local()
        self._signatures = signatures()
        self.cuda = types.SimpleNamespace(
            Device=lambda index: self._within("device", index),
            Stream=types.SimpleNamespace(from_external=lambda s: self._within("stream", s)),
        )

    def install(self, patch: pytest.MonkeyPatch) -> "FakeCupy":
        patch.setitem(sys.modules, "cupy", self)
        patch.setattr(cuda, "_kernel_cache", {})
        patch.setattr(torch.cuda, "device", lambda device: self._within("torch_device", device))
        patch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
        patch.setattr(op, "_kernels", lambda x: cuda)
        return self

    @contextlib.contextmanager
    def _within(self, kind: str, value: Any):
        before = getattr(self._current, kind, None)
        setattr(self._current, kind, value)
        try:
            yield
        finally:
            setattr(self._current, kind, before)

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:
        assert code == SOURCE.read_text()
        assert all(isinstance(option, str) for option in options)
        return types.SimpleNamespace(
            compile=lambda: self.compiled.append(self._current.device),
            get_function=self._kernel,
        )

    def _kernel(self, name: str) -> Any:
        self.fetched.add(name)
        return lambda grid, block, words: self._run(
            Launch(name, grid, block, words, **vars(self._current))
        )

    def _run(self, launch: Launch) -> None:
        assert [type(word) for word in launch.words] == self._signatures[launch.name], launch.name
        assert all(isinstance(size, int) and size > 0 for size in launch.grid + launch.block)
        self.launches.append(launch)
        if self.binary is None:
            return
        grid = (0, launch.grid[0], launch.grid[1] if len(launch.grid) > 1 else 1)
        self.run(launch.name, grid, launch.block[0], launch.words)

    def run(self, name: str, grid: tuple[int, ...], threads: int, words: tuple[Any, ...]) -> None:
        """Run the compiled kernel on blocks grid[0] to grid[1]-1 in x and grid[2] in y."""
        boxed = [np.array(word) for word in words]
        pointers = (ctypes.c_void_p * len(boxed))(*[word.ctypes.data for word in boxed])
        sizes = (ctypes.c_uint * 3)(*grid)
        assert self.binary is not None
        status = self.binary.launch(name.encode(), sizes, threads, int(self.reversed), pointers)
        assert status == 0, name
