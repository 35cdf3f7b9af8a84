"""Work beside a loop: loading its next items and finishing its results, in threads or processes.

The order of the items is kept, and the number of those that wait is bounded.
"""

import mmap
import multiprocessing
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import partial
from itertools import accumulate
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

from settings import UserError
from system import machine
from system.interrupt import defer_signals, leave_signals_to_parent
from system.progress import warn

T = TypeVar("T")
U = TypeVar("U")
MEMORY_SHARE = 1 / 8  # of the free memory, for items that are finished at the same time
MAX_THREADS = 4  # that finish results: more would hold more, and few loops are that quick


def attempt(work: Callable[[T], U], item: T | UserError) -> U | UserError:
    """work(item), or the UserError that it raises, or that an earlier step left for the item."""
    try:
        return item if isinstance(item, UserError) else work(item)
    except UserError as error:
        return error


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

    Where no processes can be started, this one works alone after a warning.

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
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        # An exception between a fork and the end of the start would lose a process.
        with defer_signals():
            _start_processes(workers, processes, work)
        yield
        if not workers:
            yield from map(work, items)
            return
        idle: SimpleQueue[Connection] = SimpleQueue()
        for _, pipe in workers:
            idle.put(pipe)
        with _start_threads(len(workers)) as pool:  # each waits for the answer of a process
            call = partial(_call_process, idle)
            yield from _map_pool(iter(items), call, pool, 2 * len(workers))
    finally:
        with defer_signals():
            _end_processes(workers)


def _start_processes(
    workers: list[tuple[BaseProcess, Connection]], count: int, work: Callable
) -> None:
    """Append processes and their pipes, or none, after a warning, if they cannot be started.

    A queue that they share, as in concurrent.futures, stays locked if one is killed while it reads:
    the others would wait for ever.
    """
    try:
        for _ in range(count):
            pipe, end = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_serve_items, args=(end, work))
            process.start()
            workers.append((process, pipe))
            end.close()  # only the process has it: its death closes the pipe
    except OSError as error:
        _end_processes(workers)
        workers.clear()
        reason = error.strerror or error
        warn(f"no processes can be started ({reason}): this one works alone, which takes longer")


def _end_processes(workers: list[tuple[BaseProcess, Connection]]) -> None:
    for process, pipe in workers:
        with suppress(ConnectionError):  # it was killed
            pipe.send(None)
        process.join()
        pipe.close()


def _serve_items(pipe: Connection, work: Callable) -> None:
    """In a process of map_processes: answer each item with its result or exception, until None."""
    import cv2

    leave_signals_to_parent()
    cv2.setNumThreads(0)  # the cores have a process each
    while (item := pipe.recv()) is not None:
        try:
            _send_result(pipe, work(*item))
        except Exception as error:
            pipe.send((pickle.dumps(error), traceback.format_exc(), []))


def _send_result(pipe: Connection, result: Any) -> None:
    """Arrays pass through shared memory without a name: nothing is left of it if one is killed.

    It is memory of the processes, so /dev/shm, which is small in containers, does not limit it. In
    a pipe, the two processes would take turns for every 200 KiB.
    """
    arrays: list[pickle.PickleBuffer] = []
    data = pickle.dumps(result, 5, buffer_callback=arrays.append)
    sizes = [array.raw().nbytes for array in arrays]
    if not any(sizes):
        pipe.send((data, "", sizes))
        return
    with ExitStack() as stack:
        try:
            memory = stack.enter_context(open(os.memfd_create("result"), "wb", buffering=0))
            if sum(memory.write(array.raw()) for array in arrays) < sum(sizes):
                raise OSError
        except (AttributeError, OSError):  # not Linux; or the limit of files, which holds here too
            pipe.send((pickle.dumps(result), "", []))
            return
        pipe.send((data, "", sizes))
        reduction.send_handle(pipe, memory.fileno(), os.getppid())


def _receive_result(pipe: Connection) -> tuple[Any, str]:
    """The result of an item, or its exception and the traceback of that."""
    data, trace, sizes = pipe.recv()
    shared = memoryview(b"")
    if any(sizes):
        with open(reduction.recv_handle(pipe), "rb") as memory:
            shared = memoryview(mmap.mmap(memory.fileno(), sum(sizes), access=mmap.ACCESS_COPY))
    ends = accumulate(sizes)
    arrays = [shared[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return pickle.loads(data, buffers=arrays), trace


def _call_process(idle: "SimpleQueue[Connection]", item: Any) -> Any:
    """The result of an item by the next idle process."""
    pipe = idle.get()
    try:
        pipe.send((item,))
        result, trace = _receive_result(pipe)
    except (EOFError, ConnectionError):
        raise UserError("a process that loads data was killed; was there enough memory?") from None
    finally:
        idle.put(pipe)
    if trace:
        raise result from RuntimeError(trace)
    return result


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
        with defer_signals():  # it may start a thread
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
    """A pool of threads, which ends when this is left; work that has not begun is dropped."""
    pool = ThreadPoolExecutor(count, "overlap")
    try:
        yield pool
    finally:
        # Work in progress must end before the caller goes on, for example to close a file.
        with defer_signals():
            pool.shutdown(wait=True, cancel_futures=True)
