"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import os
import tempfile
from pathlib import Path

from settings import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Put data into path, which holds either its old content or all of the new at any instant.

    Raises:
        UserError: the file cannot be written; path is as it was, and no scrap is left.
    """
    scrap = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scrap = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scrap, 0o666 & ~_umask())
        os.replace(scrap, path)
    except OSError as error:
        if scrap is not None:
            with contextlib.suppress(OSError):
                os.unlink(scrap)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        if scrap is not None:
            with contextlib.suppress(OSError):
                os.unlink(scrap)
        raise
    _sync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Make folder where it is missing, and try a file in it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename in folder last through a power loss, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
