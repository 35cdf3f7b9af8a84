"""Numba, with the compiled code kept on disk wherever that can be written.

OpenMP's pool stays awake for a moment after a launch, as torch's does, and so loses less between
two scans than Numba's own, which sleeps at once. It must then have no more threads than there are
cores for it, idle ones included: see limit_pool.
"""

import os
import sys
from collections.abc import Callable


def limit_pool(count: int) -> None:
    """Let Numba's pool have that many threads, where it is not made yet and nobody has said."""
    if "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", str(count))


def use_threads(count: int) -> None:
    """Let compiled code run on that many threads, or on as many as there are in its pool."""
    import numba

    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def compiled(**options: bool) -> Callable[[Callable], Callable]:
    """A decorator: numba.njit without the interpreter's lock, kept on disk between runs."""
    import numba

    numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep the compiled code in can be written
            return numba.njit(nogil=True, **options)(function)

    return decorate
