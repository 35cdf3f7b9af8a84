"""Timing: calls in alternation in one process, and rates of the machine to compare them with."""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], object]
SIDE = 2048  # of the matrices whose product measures the rate of arithmetic


def time_calls(
    calls: dict[str, Call],
    duration: float,
    device: str,
    preparations: dict[str, Call] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call, in alternation.

    Args:
        duration: seconds of the whole measurement; each call runs at least five times.
        preparations: what runs before each call of that name, outside its time.
        clock: what the time is read from, in seconds.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    preparations = preparations or {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = None
    while end is None or min(map(len, times.values())) < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            preparations.get(name, synchronize)()
            synchronize()
            start = clock()
            call()
            synchronize()
            if end is not None:  # the first turn compiles and warms up
                times[name].append(clock() - start)
        end = end or time.perf_counter() + duration
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def check_close(name: str, output: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    """Exit unless the output is the expected one: the time of a wrong result is worth nothing."""
    error = (output - expected).abs().max() / expected.abs().max()
    if not error < tolerance:
        sys.exit(f"bench.py: {name}: ours and the baseline differ by {error:.1e}, relative")


def build_matrix_product(device: str) -> Call:
    """A float32 product of 2048x2048 matrices, which measures the machine's rate of arithmetic."""
    a, b = torch.rand(2, SIDE, SIDE, device=device)
    return lambda: a @ b


def measure_copy_rate(device: str, duration: float) -> float:
    """Bytes a second that the device reads and writes when it copies 256 MiB."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    times = time_calls({"copy": lambda: target.copy_(source)}, duration, device)
    return 2 * source.numel() * source.element_size() / times["copy"]


def parse_size(case: str) -> tuple[int, int]:
    """Height and width of a case forwardHxW."""
    height, width = case.removeprefix("forward").split("x")
    return int(height), int(width)
