"""Opening files to read: regular ones alone.

A pipe would keep its reader waiting for ever, and a device may have no end. Needs Python alone, as
files.py does.
"""

import errno
import os
import stat
from pathlib import Path
from typing import IO

NOT_REGULAR = "not a regular file"
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # without it, opening a pipe waits for its other end


def open_regular(path: str | Path, mode: str = "rb", encoding: str | None = None) -> IO:
    """Open a file as `open` does.

    Raises:
        OSError: as `open` does, or path is a pipe, a device or a socket; strerror says so.
    """
    return open(path, mode, encoding=encoding, opener=_open_without_waiting)


def read_bytes(path: str | Path) -> bytes:
    """All of a file. Raises OSError, see open_regular."""
    with open_regular(path) as file:
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise OSError(errno.EINVAL, NOT_REGULAR, path) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` itself refuses folders
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, NOT_REGULAR, path)
