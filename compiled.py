"""Numba, with the compiled code kept on disk wherever that can be written."""

from collections.abc import Callable

import numba


def compiled(**options: bool) -> Callable[[Callable], Callable]:
    """A decorator: numba.njit without the interpreter's lock, kept on disk between runs."""

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no folder to keep the compiled code in can be written
            return numba.njit(nogil=True, **options)(function)

    return decorate
