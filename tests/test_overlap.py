"""Threads and processes before and behind a loop: order, bounds, and how they end."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from multiprocessing import reduction

import numpy as np
import pytest
from conftest import ROOT

from settings import UserError
from system import machine
from system.overlap import count_threads, map_processes, map_threads, prefetch


def threads() -> int:
    return sum(thread.name.startswith("overlap") for thread in threading.enumerate())


def until(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_one_item_is_made_ahead_and_no_more():
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    stream = prefetch(items())
    assert next(stream) == 0
    assert until(lambda: made == [0, 1])
    time.sleep(0.05)
    assert made == [0, 1]
    assert list(stream) == [1, 2, 3, 4]
    assert threads() == 0


def test_what_making_an_item_raises_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("bad")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="bad"):
        next(stream)
    assert threads() == 0


def endless(closed: list[bool], pause: float = 0):
    try:
        while True:
            time.sleep(pause)
            yield 1
    finally:
        closed.append(True)


def test_closing_ends_the_thread_and_the_items():
    closed = []
    stream = prefetch(endless(closed))
    next(stream)
    stream.close()
    assert closed == [True]
    assert threads() == 0


@pytest.mark.parametrize("count", [1, 3])
def test_results_are_in_order_and_made_beside_the_loop(count):
    here, seen = threading.get_ident(), []

    def finish(number):
        time.sleep(0.02 if number % 2 else 0)
        seen.append(threading.get_ident())
        return number * 10

    def items():
        for number in range(9):
            assert threading.get_ident() == here
            yield number

    assert list(map_threads(items(), finish, count)) == [number * 10 for number in range(9)]
    assert here not in seen
    assert len(set(seen)) <= count
    assert threads() == 0


def test_no_more_waits_than_there_are_threads():
    free, made = threading.Event(), []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    def finish(number):
        free.wait(10)
        return number

    threading.Timer(0.2, lambda: (made.append("free"), free.set())).start()
    assert list(map_threads(items(), finish, 2)) == list(range(10))
    assert made.index("free") == 3  # two are being finished, one was made meanwhile


@pytest.mark.parametrize("where", ["items", "finish"])
def test_what_was_done_before_a_failure_comes_first(where):
    def items():
        yield from range(4)
        if where == "items":
            raise ValueError("bad")
        yield from range(4, 8)

    def finish(number):
        if where == "finish" and number == 4:
            raise ValueError("bad")
        time.sleep(0.02)
        return number

    found = []
    with pytest.raises(ValueError, match="bad"):
        found.extend(map_threads(items(), finish, 2))
    assert found == [0, 1, 2, 3]
    assert threads() == 0


def test_an_interrupt_waits_for_what_is_under_way():
    done = []

    def items():
        yield from range(3)
        raise KeyboardInterrupt

    def finish(number):
        time.sleep(0.1)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        list(map_threads(items(), finish, 1))
    assert done == [0, 1, 2]
    assert threads() == 0


def test_processes_that_share_a_machine_share_its_cores():
    assert 1 <= count_threads(sharing=2) <= count_threads() <= 4
    assert count_threads(sharing=10**6) == 1


def test_what_takes_much_memory_is_finished_alone(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: 800)
    made, finished = [], []

    def items():
        for number in range(4):
            made.append(len(finished))
            yield number

    def finish(number):
        time.sleep(0.02)
        finished.append(number)
        return number

    assert list(map_threads(items(), finish, 2, lambda number: 51)) == [0, 1, 2, 3]
    assert made == [0, 1, 2, 3]  # each was made when those before it were finished


def test_a_second_interrupt_waits_for_what_is_under_way():
    def finish(number):
        time.sleep(0.2)
        return number

    def again():
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    def items():
        yield 1
        threading.Thread(target=again).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(map_threads(items(), finish, 1))
    assert threads() == 0


def test_an_interrupt_of_what_reads_ahead_closes_it():
    closed = []
    stream = prefetch(endless(closed, 0.2))
    next(stream)
    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt), closing(stream):
        time.sleep(0.1)
    assert closed == [True]
    assert threads() == 0


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.01 * (number % 3))
    return number**2, os.getpid()


def test_processes_share_the_work_and_keep_its_order():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = map_processes(items(), slow_square, 2)
    first = next(results)
    assert len(taken) < 8  # and not all, however many there are
    found = [first, *results]
    assert [square for square, _ in found] == [number**2 for number in range(20)]
    assert len({process for _, process in found} - {os.getpid()}) == 2


def refuse(number: int) -> int:
    if number == 3:
        raise UserError("bad")
    return number


def test_what_a_process_raises_comes_in_its_place():
    results = map_processes(range(9), refuse, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="bad"):
        next(results)


def make_arrays(number: int) -> tuple[list[np.ndarray], int]:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) + np.uint8(number)
    return [pixels, pixels[:, ::-1], pixels[:0], pixels.T, pixels.astype(float)], number


@pytest.mark.parametrize("limit", [None, "system", "files"])
def test_arrays_of_a_process_are_those_it_sent(monkeypatch, limit):
    handles = []
    receive = reduction.recv_handle
    monkeypatch.setattr(reduction, "recv_handle", lambda p: handles.append(p) or receive(p))
    if limit == "system":
        monkeypatch.delattr(os, "memfd_create")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if limit == "files":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, former[1]))
        results = list(map_processes(range(5), make_arrays, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert len(handles) == (0 if limit else 5)
    for number, (arrays, same) in enumerate(results):
        assert same == number
        for array, sent in zip(arrays, make_arrays(number)[0], strict=True):
            assert (array.dtype, array.shape) == (sent.dtype, sent.shape)
            assert (array == sent).all()
            array += 1  # it is the receiver's own


def test_a_process_killed_before_it_passes_its_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(reduction, "send_handle", end)
    with pytest.raises(UserError, match="was killed; was there enough memory"):
        list(map_processes(range(3), make_arrays, 2))


def end(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line():
    with pytest.raises(UserError, match="was killed; was there enough memory"):
        list(map_processes(range(3), end, 2))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_while_it_waits_holds_up_no_other(victim):
    def items():
        yield from range(2)
        for process in multiprocessing.active_children()[victim : victim + 1]:
            process.kill()
            process.join()
        yield from range(2, 9)

    with pytest.raises(UserError, match="was killed; was there enough memory"):
        list(map_processes(items(), slow_square, 2))
    assert multiprocessing.active_children() == []


def test_a_bug_in_a_process_comes_with_its_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        list(map_processes([0], (1).__truediv__, 1))
    assert "in _serve_items" in str(caught.value.__cause__)


def test_no_processes_is_this_one():
    assert list(map_processes(range(3), slow_square, 0)) == [(n * n, os.getpid()) for n in range(3)]


class Work:
    """Work that counts how often it is pickled."""

    pickled = 0

    def __getstate__(self) -> dict:
        Work.pickled += 1
        return {}

    def __call__(self, number: int) -> int:
        return number


def test_processes_start_at_once_and_get_their_work_once():
    with closing(map_processes(range(9), Work(), 2)) as results:
        assert len(multiprocessing.active_children()) == 2  # before anything is asked for
        assert list(results) == list(range(9))
    assert Work.pickled <= 2  # not with every item: the list of a training run has 60 MB


@pytest.mark.parametrize("missing", ["pipes", "fork"])
def test_without_processes_this_one_works_alone_after_a_warning(monkeypatch, capsys, missing):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if missing == "pipes":
        monkeypatch.setattr(multiprocessing, "Pipe", refuse)
    else:
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    results = map_processes(iter(range(3)), slow_square, 2)
    assert list(results) == [(n * n, os.getpid()) for n in range(3)]
    assert capsys.readouterr().err == (
        "main.py: no processes can be started (Function not implemented): this one works alone, "
        "which takes longer\n"
    )


INTERRUPTED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import cv2  # here, or each of the processes would
from system.overlap import map_processes
from system.program import report_errors, run_program

def work(number):
    time.sleep(0.02)
    return number

def main():
    for _ in map_processes(range(200), work, 4):
        pass

for trial in range(60):
    ready, first_fork = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.register_at_fork(before=lambda: os.write(first_fork, b"f"))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(run_program(lambda: report_errors("main.py", main)))
    os.read(ready, 1)
    time.sleep(trial / 60 * 0.01)
    os.killpg(child, signal.SIGINT)
    end = time.monotonic() + 10
    while not (status := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.005)
    if not status[0]:
        os.killpg(child, signal.SIGKILL)
        sys.exit("hung")
    print(os.waitstatus_to_exitcode(status[1]))
"""


def test_ctrl_c_at_any_moment_of_the_start_of_processes_ends_it_at_once():
    words = [sys.executable, "-c", INTERRUPTED, str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), set(done.stderr.split())) == (["130"] * 60, {"interrupted"})
