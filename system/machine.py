"""What the program may take of the machine: cores, and how the C library handles memory.

psutil knows the machine, but not the limits of a container. It is imported where it is needed, as
-h imports this module.
"""

import contextlib
import ctypes
import math
import os
import platform
import re
from pathlib import Path

SPIN_COUNT = "20000"  # turns of an idle thread: well under a millisecond; libgomp's take several
INFERENCE_BLOCKS = 1 << 28  # bytes of the largest block that is kept, for the next feature map
# Training frees its feature maps in another order than it allocates them. The holes between those
# that remain can be as large as all that activation checkpointing keeps.
LEAN_TRAINING_BLOCKS = 1 << 22
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
# What looking up a function of glibc raises on other systems; TypeError is that of Windows.
_NO_GLIBC_ERRORS = (OSError, AttributeError, TypeError)


def count_cores() -> int:
    """Cores that this process may use: those it is bound to, within its container's quota."""
    import psutil

    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    count = len(affinity()) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or no quota ("max")
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def peak_memory() -> float:
    """The largest resident memory of this process so far, MiB; the current one if not on Linux."""
    if kibibytes := _search("/proc/self/status", r"VmHWM:\s*(\d+) kB"):
        return int(kibibytes) / 2**10
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def processor_name() -> str:
    """The name of the CPU."""
    return _search("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine()


def free_memory() -> int:
    """Bytes that this process can still take, within its container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        files = re.search(r"inactive_file (\d+)", (group / "memory.stat").read_text())
        used = int((group / "memory.current").read_text()) - (int(files[1]) if files else 0)
        free = min(free, max(limit - used, 0))
    return free


def trim_memory() -> None:
    """Return freed memory from the process to the system, if the C library is glibc."""
    with contextlib.suppress(*_NO_GLIBC_ERRORS):
        ctypes.CDLL(None).malloc_trim(0)


def share_cores() -> None:
    """Let OpenMP's waiting threads sleep soon. Call it before torch or Numba is imported.

    By default a waiting thread stays awake for milliseconds. If another program needs its core,
    this delays both. A user's own setting of how threads wait is kept. docs/performance.md has
    figures.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def keep_blocks(size: int) -> None:
    """Keep freed blocks of up to `size` bytes in the process, if the C library is glibc.

    By default glibc returns each large block to the kernel, which then clears every page of the
    next one: up to half the time of a forward pass. Large pages make the rest cheap; for them, call
    this before torch is imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(*_NO_GLIBC_ERRORS):
        set_option = ctypes.CDLL(None).mallopt
        if set_option(_MMAP_THRESHOLD, size):
            set_option(_TRIM_THRESHOLD, min(4 * size, 2**31 - 1))


def _search(path: str, pattern: str) -> str | None:
    """The text of the pattern's group in a file of Linux; None if there is no such text or file."""
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return match[1] if match else None
