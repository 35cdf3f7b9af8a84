"""Files: only regular ones are read, and what is written is whole or not there, whatever happens.

A pipe would keep its reader waiting for ever, and a device may have no end. Needs Python alone:
`make weights` runs before anything is installed.
"""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import select
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from settings import UserError, first_few

TEMP_PREFIX = ".writing-"  # of unfinished files
WRITER = re.compile(r"-([0-9a-f]{8})\.([0-9]+)-[0-9a-f]{16}")  # machine and process, in their names
NOT_REGULAR = "not a regular file"
WRITER_SECONDS = 2.0  # in which somebody must begin to write to a pipe
NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # without it, opening a pipe waits for its other end


class WriteError(UserError):
    """A file cannot be written: nor can those after it, so that a run ends."""


def open_regular(path: str | Path, mode: str = "rb") -> IO:
    """Open a file as `open` does.

    Raises:
        OSError: as `open` does, or path is a pipe, a device or a socket; strerror says so.
    """
    return open(path, mode, opener=_open_without_waiting)


def read_bytes(path: str | Path, allow_pipe: bool = False) -> bytes:
    """All of a file, or what comes through a pipe until its writers close it.

    Raises:
        OSError: see open_regular; or it is a pipe that has no writer, or of which each of several
            ranks would get a part.
    """
    if allow_pipe and Path(path).is_fifo():
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise OSError(errno.EINVAL, "a pipe, which several ranks cannot share", path)
        with open(os.open(path, os.O_RDONLY | NONBLOCK), "rb") as pipe:
            select.select([pipe], [], [], WRITER_SECONDS)
            os.set_blocking(pipe.fileno(), True)
            if data := pipe.read():  # at once, if nobody has the other end
                return data
        raise OSError(errno.EINVAL, "a pipe that nobody writes to", path)
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


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise an OSError as a WriteError that names path: not each OSError names a file."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}") from None


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Put data into path, which holds either its old content or all of the new at any instant.

    Args:
        durable: survive a power failure, which takes a moment for each file.

    Raises:
        WriteError: the file cannot be written; path is as it was, and nothing unfinished is left.
    """
    with translate_write_errors(path):
        temporary = create_temp_beside(path)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    if durable:
        with contextlib.suppress(OSError):  # as on Windows, where a folder cannot be opened
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def create_temp_beside(path: Path, suffix: str = "") -> Path:
    """Create an empty file of a new name beside path, to be written and then renamed to it.

    Args:
        suffix: how the name must end.

    Raises:
        OSError: it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The whole of a long name could be too long with what is added to it.
    writer = f"{digest_host()}.{os.getpid()}-{secrets.token_hex(8)}"
    temporary = path.with_name(f"{TEMP_PREFIX}{path.name[:40]}-{writer}{suffix}")
    temporary.touch(exist_ok=False)
    return temporary


def format_path(path: str | Path) -> str:
    """A path as text, whatever bytes its names are made of."""
    return os.fsencode(path).decode(errors="replace")


def list_checkpoints(folder: Path) -> list[str]:
    """The names of the checkpoints in a folder, which also holds the settings of their run."""
    files = (path for path in folder.glob("[!.]*") if path.suffix != ".toml")
    return sorted(path.name for path in files if path.is_file())


def require_writable(folder: Path) -> None:
    """Create folder if it is missing, and try to write a file in it. Raises UserError."""
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_no_overlap(read: Iterable[Path], written: Iterable[Path], option: str) -> None:
    """Check that no file to be written is one that is read, or written twice, under any name.

    Args:
        option: the option that names what is written, for the message.

    Raises:
        UserError: a file of `written` exists and is one of `read`, or is there twice.
    """
    sources: dict[tuple[int, int], Path] = {}
    for path in read:
        with contextlib.suppress(OSError, ValueError):  # its reader reports a missing file
            status = path.stat()
            sources.setdefault((status.st_dev, status.st_ino), path)
    targets: dict[str, Path] = {}
    for path in written:
        source = None
        with contextlib.suppress(OSError):
            status = path.stat()
            source = sources.get((status.st_dev, status.st_ino))
        other = targets.setdefault(os.path.realpath(path), path)
        if source or other is not path:
            same = source or other
            alias = "" if path == same else f", as {format_path(same)}"
            raise UserError(
                f"{option}: {format_path(path)} is {'an input' if source else 'written twice'}"
                f"{alias}; expected another folder or name"
            )


def check_still_there(written: list[Path], what: str, cure: str = "") -> None:
    """Raise UserError if files that were written have been removed meanwhile.

    Args:
        what: what the files are, for the message.
        cure: what to do about it, for the message.
    """
    missing = [path for path in written if not path.exists()]
    if missing:
        names = first_few(map(format_path, missing), 3)
        raise UserError(
            f"{len(missing)} of {len(written)} {what} were removed since: {names}{cure}"
        )


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let no other run write to path, a file or an existing folder, until this is left.

    Raises:
        UserError: another run writes to it.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    lock_path = path / ".claimed" if path.is_dir() else path.with_name(f".claimed-{digest}")
    for _ in range(100):
        file = lock_file(lock_path, f"{format_path(path)}: another run is writing there")
        # The former owner may have removed the file after this process opened it.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), lock_path.stat()):
                break
        file.close()
    else:
        raise UserError(f"{format_path(lock_path)}: cannot be locked: it is removed repeatedly")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            lock_path.unlink()
        file.close()


def lock_file(path: Path, taken: str) -> IO:
    """Lock path for this process, until the returned file is closed or the process ends.

    Args:
        taken: the message if another process holds the lock.

    Where the file system has no locks, as some network drives, a warning is printed once.

    Raises:
        UserError: another process holds the lock, or the file cannot be created.
    """
    with translate_write_errors(path):
        file = open_regular(path, "a+b")
    import portalocker  # as above
    from portalocker import portalocker as lockers

    # The default is flock, which the processes that load data would inherit, and they can outlive
    # their parent. Locks of lockf and of Windows belong to one process.
    lock = lockers.LockfLocker().lock if hasattr(lockers, "LockfLocker") else portalocker.lock
    try:
        lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.AlreadyLocked:
        file.close()
        raise UserError(f"{taken}; expected one at a time") from None
    except portalocker.LockException as error:
        _warn_of_no_locks(getattr(error.__cause__, "strerror", None) or str(error))
    return file


@functools.cache
def _warn_of_no_locks(reason: str) -> None:
    from system.progress import warn  # not of Python alone

    warn(f"files cannot be locked here ({reason}): start no second run that writes there")


def remove_unfinished(folders: Iterable[Path]) -> None:
    """Remove what processes that are known to be dead left unfinished in these folders."""
    import psutil  # the rest of this file needs Python alone

    for folder in folders:
        for temporary in folder.glob(f"{TEMP_PREFIX}*"):
            writer = WRITER.search(temporary.name)
            if writer and writer[1] == digest_host() and not psutil.pid_exists(int(writer[2])):
                with contextlib.suppress(OSError):
                    temporary.unlink()


@functools.cache
def digest_host() -> str:
    """Stands for the machine, or the container in it, in which numbers of processes are unique."""
    namespace = Path("/proc/self/ns/pid")
    number = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{platform.node()} {number}".encode()).hexdigest()[:8]
