"""Work before and behind a loop: what feeds it and what finishes its results.

It is done in threads, or where Python has to do much of it, in processes. The loop itself stays in
its own thread, and all is in order. What is held is bounded.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import TypeVar

from settings import UserError
from system import machine
from system.interrupt import defer_signals, leave_signals_to_parent

T, U = TypeVar("T"), TypeVar("U")
SHARE = 1 / 8  # of the free memory
MOST_THREADS = 4  # that finish results: more would hold more, and few loops are that quick


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items, of which one is made in a thread while the one before it is used.

    What making an item raises, asking for that item raises. Close it to end the thread; the items'
    own `close`, where there is one, is called too.
    """
    done = object()
    with _closing(items), _pool(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item


def count_threads(sharing: int = 1) -> int:
    """Threads for `behind`, where as many processes of this machine do the same."""
    return max(1, min(MOST_THREADS, machine.count_cores() // sharing))


def map_threads(
    items: Iterable[T],
    finish: Callable[[T], U],
    threads: int,
    needed: Callable[[T], int] = lambda _: 0,
) -> Iterator[U]:
    """finish(item) of each item in turn, in threads, while the next items are made.

    Where making an item or finishing one raises, the results of those before it come first.

    Args:
        threads: how many, and so how many items wait at most. With one, items are finished one
            after the other, in order.
        needed: bytes that finishing an item takes. Where several would take more than a SHARE of
            what is free, the next item is made when all are finished.
    """
    source = iter(items)
    with _closing(source), _pool(threads) as pool:
        yield from _finished(source, finish, pool, threads, needed)


def map_processes(items: Iterable[T], work: Callable[[T], U], processes: int) -> Iterator[U]:
    """work(item) of each item in turn, in that many processes.

    Args:
        work: a function of a module. What it takes and returns goes through pipes: let an item be
            worth the way.

    Raises:
        UserError: a process was killed.
    """
    pool = ProcessPoolExecutor(processes, initializer=leave_signals_to_parent)
    try:
        yield from _finished(iter(items), work, pool, 2 * processes)
    except BrokenProcessPool:
        raise UserError(
            "a process that reads images was killed; was there enough memory?"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(
    source: Iterator[T],
    finish: Callable[[T], U],
    pool: Executor,
    most: int,
    needed: Callable[[T], int] = lambda _: 0,
) -> Iterator[U]:
    """finish(item) of each item in turn, in the pool, in which at most that many wait."""
    waiting: deque[Future[U]] = deque()
    failure = None
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        waiting.append(pool.submit(finish, item))
        alone = needed(item) * most > machine.free_memory() * SHARE
        del item
        while waiting and (alone or len(waiting) > most or waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure:
        raise failure


@contextmanager
def _closing(items: Iterator) -> Iterator[None]:
    close = getattr(items, "close", None)
    if close is None:
        yield
        return
    with closing(items):
        yield


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are ended when it is left; what has not begun by then never does."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="overlap")
    try:
        yield pool
    finally:
        # What is under way must not go on beside what its owner does next, such as closing a file.
        with defer_signals():
            pool.shutdown(wait=True, cancel_futures=True)
