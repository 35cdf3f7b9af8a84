"""Opening files to read: regular ones alone.

A pipe would keep its reader waiting for ever, and a device may have no end. Needs Python alone, as
files.py does.
"""

import errno
import os
import stat
import time
from pathlib import Path
from typing import IO

NOT_REGULAR = "not a regular file"
WRITER_SECONDS = 2.0  # in which somebody must begin to write to a pipe
POLL_SECONDS = 0.01
PIPE_BYTES = 1 << 16  # read at a time
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # without it, opening a pipe waits for its other end


def open_regular(path: str | Path, mode: str = "rb", encoding: str | None = None) -> IO:
    """Open a file as `open` does.

    Raises:
        OSError: as `open` does, or path is a pipe, a device or a socket; strerror says so.
    """
    return open(path, mode, encoding=encoding, opener=_open_without_waiting)


def read_bytes(path: str | Path, allow_pipe: bool = False) -> bytes:
    """All of a file, or what comes through a pipe. Raises OSError, see open_regular."""
    if allow_pipe and Path(path).is_fifo():
        return _read_pipe(str(path))
    with open_regular(path) as file:
        return file.read()


def _read_pipe(path: str) -> bytes:
    """What comes through a pipe until its writers close it.

    Raises:
        OSError: there is no writer, or this is one of several ranks, each of which would get a
            part.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise OSError(errno.EINVAL, "a pipe, which several ranks cannot share", path)
    handle, data, start = os.open(path, os.O_RDONLY | NONBLOCK), bytearray(), time.monotonic()
    try:
        while True:
            try:
                part = os.read(handle, PIPE_BYTES)
            except BlockingIOError:  # a writer is there, and has no more yet
                time.sleep(POLL_SECONDS)
                continue
            data += part
            if not part and (data or time.monotonic() - start > WRITER_SECONDS):
                break
            if not part:
                time.sleep(POLL_SECONDS)
    finally:
        os.close(handle)
    if not data:
        raise OSError(errno.EINVAL, "a pipe that nobody writes to", path)
    return bytes(data)


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
