"""How every program of this project runs: its signals, its output, and its errors in one line.

Needs Python alone: `make weights` runs before anything is installed.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from settings import UserError, one_line
from system.interrupt import Stopped, set_handlers

REPEAT_SECONDS = 10.0  # within which another SIGTERM or SIGHUP belongs to the first
# What writing to a pipe without a reader, or to a closed terminal, raises; EINVAL on Windows.
CLOSED_ERRNOS = (errno.EPIPE, errno.EIO) if os.name != "nt" else (errno.EPIPE, errno.EINVAL)


def run_program(main: Callable[[], int]) -> int:
    """Run main() as the whole program, in which signals raise Stopped. Returns its exit status.

    Once the status is known, only a second SIGINT ends the process sooner.
    """
    stop_time, interrupted = -REPEAT_SECONDS, False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stop_time, interrupted
        interrupted = interrupted or number == signal.SIGINT
        # Ignore repeated SIGTERM and SIGHUP: they come from schedulers and from torchrun, and would
        # cut short what is finished on the way out. A second Ctrl-C comes from a person.
        now = time.monotonic()
        if number == signal.SIGINT or now - stop_time >= REPEAT_SECONDS:
            stop_time = now
            raise Stopped(number)

    survive_closed_output()
    set_handlers(stop)
    try:
        return main()
    finally:
        set_handlers(_ignore_once)
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore_once(number: int, _: FrameType | None) -> None:
    """Ignore a signal, but let the next SIGINT end the process, should it hang while it exits."""
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def report_errors(name: str, main: Callable[[], int | None]) -> int:
    """Run main(), and print what a user can mend as one line that begins with the program's name.

    Returns the exit status: that of main() (0 for None), 2 for such an error, and 128 + its number
    for a signal.
    """
    try:
        return main() or 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'input/output'}: {error.strerror or error}"
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        suffix = "" if number == signal.SIGINT else f" ({signal.Signals(number).name})"
        print(f"\ninterrupted{suffix}", file=sys.stderr)
        return 128 + number
    rank = os.environ.get("RANK", "0")
    prefix = name if rank == "0" else f"{name}, rank {rank}"
    print(f"{prefix}: {one_line(message)}", file=sys.stderr)
    return 2


class _ResilientStream(io.TextIOWrapper):
    """A stream of text that discards what is written once its reader has gone."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.fileno())
            super().flush()  # what is buffered would fail again
        if error.errno not in CLOSED_ERRNOS:
            raise error  # such as a full disk


def survive_closed_output() -> None:
    """Let this program finish its files though nobody reads its output any more.

    `| head -1` closes its end of the pipe, and a lost connection closes the terminal. Characters
    that the output's encoding lacks are escaped.
    """
    # A closed handle would be given to the next file, which would get all prints.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stdout = _wrap_stream(sys.stdout, 1)
    # media/image_file.py silences handle 2 while a decoder works; messages take their own handle.
    sys.stderr = _wrap_stream(sys.stderr, os.dup(2))


def _wrap_stream(stream: object, handle: int) -> _ResilientStream:
    return _ResilientStream(
        open(handle, "wb", closefd=False),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=handle != 1 or os.isatty(handle),
    )
