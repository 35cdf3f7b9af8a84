"""CUDA's own compilers take irnn.cu: no warning, no local memory, no register spilled."""

import re
import shutil
import subprocess

import pytest
from fake_cupy import SOURCE

from irnn_cuda import cuda

ARCHITECTURES = ["sm_75", "sm_100"]  # the oldest and the newest
STRICT = [
    "--warn-on-spills", "--warn-on-local-memory-usage", "--warning-as-error", "--verbose"
]  # fmt: skip


def assert_lean(log: str) -> None:
    """Every kernel in the assembler's report, and none of them with a stack or a spill."""
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    assert len(found) == len(cuda._KERNEL_NAMES) == 5 * len(cuda.ARITHMETIC), log
    assert set(found) == {("0", "0", "0")}, log


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_it(architecture):
    nvrtc = pytest.importorskip("cupy", reason="CuPy is not installed").cuda.nvrtc
    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        pytest.skip(f"NVRTC cannot be loaded: {error}")
    program = nvrtc.createProgram(SOURCE.read_text(), "irnn.cu", [], [])
    options = ["-std=c++17", f"--gpu-architecture={architecture}"]
    options += ["-ftz=true", "--device-as-default-execution-space"]  # as CuPy adds them
    options += [f"--ptxas-options={option}" for option in STRICT]
    try:
        nvrtc.compileProgram(program, options)
        status = ""
    except nvrtc.NVRTCError as error:
        status = str(error)
    log = nvrtc.getProgramLog(program)
    assert not status, log
    assert "warning" not in log.lower(), log
    assert_lean(log)
    assert nvrtc.getCUBIN(program)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_it(architecture, tmp_path):
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-Werror", "all-warnings", "-cubin"]
    command += ["-Xptxas", ",".join(STRICT), "-o", str(tmp_path / "irnn.cubin"), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_lean(done.stdout + done.stderr)
