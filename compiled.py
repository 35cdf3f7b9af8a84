"""Numba, with the compiled code kept on disk wherever that can be written."""

from collections.abc import Callable

import numba

# OpenMP's pool stays awake for a moment after a launch, as torch's does, and so loses less between
# two scans than Numba's own, which sleeps at once: 15 to 20 % of a forward pass on two cores.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]


def compiled(**options: bool) -> Callable[[Callable], Callable]:
    """A decorator: numba.njit without the interpreter's lock, kept on disk between runs."""

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep the compiled code in can be written
            return numba.njit(nogil=True, **options)(function)

    return decorate


def use_threads(count: int) -> None:
    """Let compiled code run on that many threads, or on as many as there are in its pool."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
