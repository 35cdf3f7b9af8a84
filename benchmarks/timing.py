"""Measuring: calls by turns in one process, and the machine's own rates to hold them against."""

import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Call = Callable[[], object]
SIDE = 2048  # of the matrices whose product is the measure of arithmetic


def alternate(
    calls: dict[str, Call],
    seconds: float,
    device: str,
    before: dict[str, Call] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call, by turns: at least five of each, for about that long.

    before holds what is done ahead of each call of that name, outside its time, which is that of
    the clock.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    before = before or {}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = None
    while end is None or min(map(len, taken.values())) < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            before.get(name, wait)()
            wait()
            start = clock()
            call()
            wait()
            if end is not None:  # the first turn compiles and warms up
                taken[name].append(clock() - start)
        end = end or time.perf_counter() + seconds
    return {name: statistics.median(times) for name, times in taken.items()}


def agree(name: str, found: Tensor, expected: Tensor, bound: float = 1e-3) -> None:
    """Exit unless found is expected: a time for something else would be worth nothing."""
    error = (found - expected).abs().max() / expected.abs().max()
    if not error < bound:
        sys.exit(f"bench.py: {name}: ours and the baseline differ by {error:.1e}, relative")


def matrix_product(device: str) -> Call:
    """A float32 product of 2048x2048 matrices; its rate is that of the machine's arithmetic."""
    a, b = torch.rand(2, SIDE, SIDE, device=device)
    return lambda: a @ b


def copy_rate(device: str, seconds: float) -> float:
    """Bytes a second that the device reads and writes when it copies 256 MiB."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    taken = alternate({"copy": lambda: target.copy_(source)}, seconds, device)
    return 2 * source.numel() * source.element_size() / taken["copy"]


def resident(field: str, process: int | str = "self") -> float:
    """MiB of a process, this one if none is named: VmRSS now, VmHWM at most."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) / 2**10
