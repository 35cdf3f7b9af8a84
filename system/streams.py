"""Standard output and standard error that do not end a run when their reader goes away.

`| head -1` closes its end of the pipe, a lost connection takes the terminal along: what was asked
for is written to files, and is finished all the same. Nor may a name that the reader's encoding
does not know end it.
"""

import contextlib
import errno
import io
import os
import sys

# The reader of a pipe, and a terminal; of a pipe on Windows.
GONE = (errno.EPIPE, errno.EIO) if os.name != "nt" else (errno.EPIPE, errno.EINVAL)


class _Lasting(io.TextIOWrapper):
    """A stream of text that turns to nothing when nobody reads it any more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.fileno())
            super().flush()  # what waits in it would fail again
        if error.errno not in GONE:
            raise error  # such as a full disk


def make_lasting() -> None:
    """Put such streams in the place of this process's own.

    Messages take a handle of their own: what decoders of pictures print to number 2 is silenced
    while they work (media/image_file.py), and a message in that moment would be lost with it.
    """
    for number in (1, 2):
        _require_open(number)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, os.dup(2))


def _require_open(number: int) -> None:
    """Have a handle lead nowhere where it is closed: the next file would get it, and all prints."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def _lasting(stream: io.TextIOWrapper | None, handle: int) -> _Lasting:
    return _Lasting(
        open(handle, "wb", closefd=False),  # for as long as the process lives
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=handle != 1 or os.isatty(handle),
    )
