"""What the program may take of the machine: cores, and how the C library handles memory."""

import contextlib
import ctypes
import math
import os
import platform
import re
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
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) / 2**10
    # Elsewhere than on Linux, where this would begin with the peak of the parent process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def processor() -> str:
    """The name of the CPU."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.machine()


def free_memory() -> int:
    """Bytes that this process can still take, within its container's limit; huge if unknown."""
    free = 2**62
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 2**10 if found else free
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        files = re.search(r"inactive_file (\d+)", (group / "memory.stat").read_text())
        used = int((group / "memory.current").read_text()) - (int(files[1]) if files else 0)
        free = min(free, max(limit - used, 0))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        pass
    return free


def return_memory() -> None:
    """Give freed blocks that were kept in the process back to the system, where glibc can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
