"""What the program may take of the machine: cores, and how the C library handles memory."""

import ctypes
import math
import os
import resource
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt


def cores() -> int:
    """Cores that this process may use: those it is bound to, within its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or no quota ("max")
        pass
    return max(count, 1)


def peak_memory() -> float:
    """MiB that this process has had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def prepare_inference() -> None:
    """Keep freed memory for the next feature map. Call it before torch is imported.

    By default glibc returns every large block to the kernel, which has to clear each page of the
    next one: up to half the time of a forward pass, which frees a map as soon as it has made the
    next. Large pages make the rest cheap.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_blocks(1 << 28)


def prepare_lean_training() -> None:
    """Return freed memory at once, in large pages. Call it before torch is imported.

    Training frees its maps in another order than it made them: glibc's holes between those that
    are left can be as large as all that activation checkpointing keeps.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_blocks(1 << 22)


def keep_blocks(size: int) -> None:
    """Keep freed blocks of up to that many bytes in the process, where glibc manages them."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    if set_option(_MMAP_THRESHOLD, size):
        set_option(_TRIM_THRESHOLD, min(4 * size, 2**31 - 1))
