"""Files that are whole or not there, whatever happens while they are written.

Needs Python alone: `make weights` runs before anything is installed.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from settings import UserError
from system.reading import open_regular

UNFINISHED = ".writing-"  # how the name of an unfinished file begins


def write_atomically(path: Path, data: bytes, lasting: bool = True) -> None:
    """Put data into path, which holds either its old content or all of the new at any instant.

    Args:
        lasting: outlast a power failure, which takes a moment a file.

    Raises:
        UserError: the file cannot be written; path is as it was, and nothing unfinished is left.
    """
    unfinished = None
    try:
        unfinished = create_temp_beside(path)
        with open(unfinished, "wb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        raise
    if lasting:
        _sync_folder(path.parent)


def create_temp_beside(path: Path, suffix: str = "") -> Path:
    """Make an empty file beside path, in which its content can be written before it is renamed.

    Its name is its own: no other process comes upon it, nor is anything there overwritten.

    Args:
        suffix: how the name must end.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Not the whole of a long name: with more to it, it could be too long.
        name = f"{UNFINISHED}{path.name[:40]}-{secrets.token_hex(8)}{suffix}"
        with contextlib.suppress(FileExistsError), open(path.with_name(name), "xb"):
            return path.with_name(name)


def format_path(path: Path) -> str:
    """A path as text, whatever bytes its names are made of."""
    return os.fsencode(path).decode(errors="replace")


def require_writable(folder: Path) -> None:
    """Make folder where it is missing, and try a file in it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror}") from None


def check_no_overlap(read: Iterable[Path], written: Iterable[Path], option: str) -> None:
    """Refuse to write, or to remove, what is read, also where a link or another spelling names it.

    Args:
        option: which one names what is written, for the message.

    Raises:
        UserError: one of `written` is there and is one of `read`.
    """
    files: dict[tuple[int, int], Path] = {}
    for path in read:
        with contextlib.suppress(OSError, ValueError):  # what is not there is told by its reader
            found = path.stat()
            files.setdefault((found.st_dev, found.st_ino), path)
    for path in written:
        with contextlib.suppress(OSError):
            found = path.stat()
            if source := files.get((found.st_dev, found.st_ino)):
                same = "" if path == source else f", as {format_path(source)}"
                raise UserError(
                    f"{option}: {format_path(path)} is an input{same}; expected another folder "
                    "or name"
                )


def check_still_there(written: list[Path], what: str, cure: str = "") -> None:
    """Raise UserError where files that were written are gone: what is told as done is there.

    Args:
        what: what they are, and how to mend it, for the message.
    """
    gone = [path for path in written if not path.exists()]
    if gone:
        names = ", ".join(map(format_path, gone[:3])) + (", ..." if len(gone) > 3 else "")
        raise UserError(f"{len(gone)} of {len(written)} {what} were removed since: {names}{cure}")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Be the only run that writes path, a file or a folder that is there, while this process lives.

    Raises:
        UserError: another one writes it.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    place = path / ".claimed" if path.is_dir() else path.with_name(f".claimed-{digest}")
    for _ in range(100):
        file = lock_file(place, f"{format_path(path)}: another run is writing there")
        # Whoever had it before may have removed it between its being opened and being locked.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), place.stat()):
                break
        file.close()
    else:
        raise UserError(f"{format_path(place)}: cannot be locked: it is removed again and again")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            place.unlink()
        file.close()


def lock_file(path: Path, taken: str) -> BinaryIO:
    """Lock path for this process, until the returned file is closed or the process ends, somehow.

    Args:
        taken: what a message says where another process holds it.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        file = open_regular(path, "a+b")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    import portalocker  # here, as all else in this file needs Python alone
    from portalocker import portalocker as lockers

    # Not its default, flock, where there is a choice: the processes that load data would inherit
    # that lock, and can outlive their parent. lockf's, and that of Windows, are a process's own.
    take = lockers.LockfLocker().lock if hasattr(lockers, "LockfLocker") else portalocker.lock
    try:
        take(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException as error:
        file.close()
        if isinstance(error, portalocker.AlreadyLocked):
            raise UserError(f"{taken}; expected one at a time") from None
        reason = getattr(error.__cause__, "strerror", None) or error
        raise UserError(f"{path}: cannot be locked: {reason}") from None
    return file


def remove_unfinished_of(targets: Iterable[Path]) -> None:
    """Remove what a killed process left unfinished of files that are written now."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name[:40])
    for folder, own in names.items():
        for unfinished in folder.glob(f"{UNFINISHED}*-*"):
            if unfinished.name[len(UNFINISHED) :].rpartition("-")[0] in own:
                with contextlib.suppress(OSError):
                    unfinished.unlink()


def remove_unfinished(folder: Path, names: str) -> None:
    """Remove what a killed process left unfinished in folder, of files whose name fits `names`."""
    for unfinished in folder.glob(f"{UNFINISHED}{names}-*"):
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in folder last through a power loss, where the system can."""
    with contextlib.suppress(OSError):  # as on Windows, where a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
