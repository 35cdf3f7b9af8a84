"""Numba, with the compiled code kept on disk if that can be written.

OpenMP's pool stays awake for a moment after a launch, as torch's does, and so loses less time
between two scans than Numba's own, which sleeps at once. It must then have no more threads, idle
ones included, than there are cores for it: see limit_pool.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable)


def limit_pool(count: int) -> None:
    """Limit the threads of Numba's pool, if Numba is not imported yet and no user has set it."""
    if "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", str(count))


def use_threads(count: int) -> None:
    """Let compiled code run on that many threads, or on as many as its pool has."""
    import numba

    config: Any = numba.config  # which its types do not know
    numba.set_num_threads(min(count, config.NUMBA_NUM_THREADS))


def compiled(**options: Any) -> Callable[[F], F]:
    """A decorator: numba.njit without the interpreter's lock, kept on disk between runs."""
    import numba

    config: Any = numba.config
    config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]

    def decorate(function: F) -> F:
        # Numba imports the module of what it kept on disk, by the name that it had then. hubconf.py
        # gives our modules other names, so each name has files of its own.
        function.__qualname__ = f"{function.__module__}.{function.__name__}"
        try:
            kernel = numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder for the compiled code can be written
            return numba.njit(nogil=True, **options)(function)
        save = kernel._cache.save_overload

        def save_if_possible(*arguments: Any) -> None:
            with suppress(OSError):  # the disk is full
                save(*arguments)

        kernel._cache.save_overload = save_if_possible
        return kernel

    return decorate
