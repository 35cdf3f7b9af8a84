"""Work beside a loop: loading its next items and finishing its results, in threads or processes.

The order of the items is kept, and the number of those that wait is bounded.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, TypeVar

from settings import UserError
from system import machine
from system.interrupt import defer_signals, leave_signals_to_parent
from system.progress import warn

T = TypeVar("T")
U = TypeVar("U")
MEMORY_SHARE = 1 / 8  # of the free memory, for items that are finished at the same time
_work: Callable  # of this process, if it is one of map_processes
MAX_THREADS = 4  # that finish results: more would hold more, and few loops are that quick


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """The items; a thread loads the next one while one is used.

    An exception of an item is raised when that item is asked for. Closing this iterator ends the
    thread and closes the items, if they can be closed.
    """
    end: Any = object()
    with _close_at_end(items), _start_threads(1) as pool:
        future = pool.submit(next, items, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, items, end)
            yield item


def count_threads(sharing: int = 1) -> int:
    """Threads for map_threads, if `sharing` processes of this machine do the same."""
    return max(1, min(MAX_THREADS, machine.count_cores() // sharing))


def map_threads(
    items: Iterable[T],
    finish: Callable[[T], U],
    threads: int,
    needed: Callable[[T], int] = lambda _: 0,
) -> Generator[U, None, None]:
    """finish(item) of each item in order, in threads, while the next items are loaded.

    If an item or finish raises, the results before it come first.

    Args:
        threads: the number of threads, and of items that wait at most.
        needed: bytes that finishing an item takes. If that of all threads is more than MEMORY_SHARE
            of what is free, the next item is loaded when the others are finished.
    """
    source = iter(items)
    with _close_at_end(source), _start_threads(threads) as pool:
        yield from _map_pool(source, finish, pool, threads, needed)


def map_processes(
    items: Iterable[T], work: Callable[[T], U], processes: int
) -> Generator[U, None, None]:
    """work(item) of each item in order, in that many processes; 0 is this process itself.

    Where no processes can be started, as without semaphores, this one works alone after a warning.

    Args:
        work: picklable; a process gets it once. Items are pickled: batch small ones.

    Raises:
        UserError: a process was killed.
    """
    results = _iterate_results(items, work, processes)
    next(results)  # starts them: forking them later, beside running thread pools, is not safe
    return results


def _iterate_results(
    items: Iterable[T], work: Callable[[T], U], processes: int
) -> Generator[Any, None, None]:
    pool = None
    try:
        # An exception between a fork and the end of the start would leave the pool half started.
        with defer_signals():
            pool = _start_processes(processes, work) if processes else None
        yield
        results = _map_pool(iter(items), _call_work, pool, 2 * processes) if pool else None
        yield from results or map(work, items)
    except BrokenProcessPool:
        raise UserError("a process that loads data was killed; was there enough memory?") from None
    finally:
        if pool:
            _shut_down(pool)


def _start_processes(count: int, work: Callable) -> ProcessPoolExecutor | None:
    """A pool of processes for _call_work, or None, after a warning, if they cannot be started."""
    others = multiprocessing.active_children()
    try:
        pool = ProcessPoolExecutor(count, initializer=_start_worker, initargs=(work,))
        pool.submit(int)  # starts them
        return pool
    except (OSError, NotImplementedError) as error:
        for process in multiprocessing.active_children():  # those that did start
            if process not in others:
                process.kill()
        reason = getattr(error, "strerror", None) or error
        warn(f"no processes can be started ({reason}): this one works alone, which takes longer")
        return None


def _start_worker(work: Callable) -> None:
    """Prepare a process for _call_work: to be pickled with every item, work may be too large."""
    import cv2

    global _work
    leave_signals_to_parent()
    cv2.setNumThreads(0)  # the cores have a process each
    _work = work


def _call_work(item: Any) -> Any:
    return _work(item)


def _map_pool(
    source: Iterator[T],
    finish: Callable[[T], U],
    pool: Executor,
    limit: int,
    needed: Callable[[T], int] = lambda _: 0,
) -> Iterator[U]:
    """finish(item) of each item in order, in a pool in which at most `limit` items wait."""
    pending: deque[Future[U]] = deque()
    failure = None
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        with defer_signals():  # it may start a thread or a process
            pending.append(pool.submit(finish, item))
        is_large = needed(item) * limit > machine.free_memory() * MEMORY_SHARE
        del item
        while pending and (is_large or len(pending) > limit or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
    if failure:
        raise failure


def _close_at_end(items: Any) -> AbstractContextManager:
    """A context that closes the items when it is left, if they can be closed."""
    return closing(items) if hasattr(items, "close") else nullcontext()


@contextmanager
def _start_threads(count: int) -> Iterator[Executor]:
    """A pool of threads, which ends when this is left."""
    pool = ThreadPoolExecutor(count, "overlap")
    try:
        yield pool
    finally:
        _shut_down(pool)


def _shut_down(pool: Executor) -> None:
    """End a pool; work that has not begun is dropped."""
    # Work in progress must end before the caller goes on, for example to close a file.
    with defer_signals():
        pool.shutdown(wait=True, cancel_futures=True)
