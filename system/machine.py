"""What the program may take of the machine: cores, and how the C library handles memory.

Linux is asked for itself, and its containers for their limits; psutil answers elsewhere. It is
imported where it is needed, as this module is part of every start, -h among them.
"""

import contextlib
import ctypes
import math
import os
import platform
import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

SPINS = "20000"  # turns of an idle thread, well under a millisecond; libgomp's own are milliseconds
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
# What the look-up of a function of glibc raises elsewhere; TypeError is Windows, where the program
# itself is not a library of functions.
_NO_GLIBC = (OSError, AttributeError, TypeError)


def count_cores() -> int:
    """Cores that this process may use: those it is bound to, within its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        import psutil

        process = psutil.Process()
        bound = process.cpu_affinity() if hasattr(process, "cpu_affinity") else []  # not on macOS
        count = len(bound) or os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or no quota ("max")
        pass
    return max(count, 1)


def peak_memory() -> float:
    """MiB that this process has had resident at most; now, where the system does not tell."""
    found = _search("/proc/self/status", r"VmHWM:\s*(\d+) kB")
    if found:
        return int(found) / 2**10
    if resource:  # on Linux this would begin with the peak of the parent process
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    import psutil

    taken = psutil.Process().memory_info()
    return getattr(taken, "peak_wset", taken.rss) / 2**20


def processor_name() -> str:
    """The name of the CPU."""
    return _search("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine()


def free_memory() -> int:
    """Bytes that this process can still take, within its container's limit; huge if unknown."""
    found = _search("/proc/meminfo", r"MemAvailable:\s*(\d+) kB")
    free = int(found) * 2**10 if found else _available()
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        files = re.search(r"inactive_file (\d+)", (group / "memory.stat").read_text())
        used = int((group / "memory.current").read_text()) - (int(files[1]) if files else 0)
        free = min(free, max(limit - used, 0))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        pass
    return free


def trim_memory() -> None:
    """Give freed blocks that were kept in the process back to the system, where glibc can."""
    with contextlib.suppress(*_NO_GLIBC):
        ctypes.CDLL(None).malloc_trim(0)


def share_cores() -> None:
    """Have OpenMP's threads soon sleep where they wait. Call it before torch or Numba is imported.

    By default each stays awake for milliseconds, in case there is more to do. If another program
    needs that core, this holds up both. A user's own setting of how threads wait is kept. See
    docs/performance.md for what it costs and gains.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


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
    except _NO_GLIBC:
        return
    if set_option(_MMAP_THRESHOLD, size):
        set_option(_TRIM_THRESHOLD, min(4 * size, 2**31 - 1))


def _available() -> int:
    """Bytes of memory that psutil finds free for a new process; huge where it cannot tell."""
    import psutil

    try:
        return psutil.virtual_memory().available
    except (OSError, psutil.Error):
        return 2**62


def _search(path: str, pattern: str) -> str | None:
    """What the pattern's group finds in a file that Linux keeps of itself, if both are there."""
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return found[1] if found else None
