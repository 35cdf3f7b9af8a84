"""The folder that a run writes its results to. Needs no torch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from report.page import PAGE, find_copies
from settings import UserError
from system.files import (
    check_no_overlap,
    exclusive,
    open_regular,
    remove_unfinished,
    require_writable,
)

MARK = b'<meta name="generator" content="SPANet">'  # identifies a page of this program


@contextmanager
def open_result_folder(
    folder: Path, option: str, *, inputs: Iterable[Path], outputs: Iterable[Path],
    stale: Iterable[str] = (), page: bool = True, lock: Path | None = None, first: bool = True,
    barrier: Callable[[], object] = lambda: None,
) -> Iterator[None]:  # fmt: skip
    """Be the only run that writes to a folder, and remove what an earlier run left there.

    Args:
        option: the one that names the folder, for messages.
        inputs: files that the run reads.
        outputs: files that it writes, besides the page and `stale`. Those of an earlier run stay;
            what killed runs left unfinished beside them goes.
        stale: names of the files in the folder that an earlier run's results are removed with.
        page: whether the run writes a page there.
        lock: what the run has for itself, if not the folder.
        first: whether this rank writes the shared files.
        barrier: waits for the other ranks.

    Raises:
        UserError: an output is an input, the page there is not ours, the folder cannot be written
            to, or another run writes to it.
    """
    outputs, stale_files = list(outputs), [folder / name for name in stale]
    if page:
        stale_files += [folder / PAGE, *find_copies(folder)]
    check_no_overlap(inputs, [*outputs, *stale_files], option)
    head = read_head(folder / PAGE) if page else None
    if head is not None and MARK not in head:
        raise UserError(f"{folder / PAGE}: is not a page of results; expected a folder without one")
    require_writable(folder)
    with exclusive(lock or folder) if first else nullcontext():
        barrier()  # every rank has checked the old page before it is removed
        if first:
            remove_unfinished({path.parent for path in outputs})
            for path in stale_files:
                path.unlink(missing_ok=True)
        barrier()  # no rank writes before the old files are removed
        yield


def read_head(path: Path) -> bytes | None:
    """The first bytes of a file, or None if there is none. Raises OSError."""
    try:
        with open_regular(path) as file:
            return file.read(4096)
    except (FileNotFoundError, NotADirectoryError):
        return None
