"""Signals that ask the program to end, and what each part of it does with them.

SIGINT is Ctrl-C; schedulers and torchrun send SIGTERM; a closed terminal or a lost connection sends
SIGHUP. The program as a whole raises Stopped (system/program.py), so that what is in hand is
finished or removed on the way out. Training finishes its step first. Work that must not be cut
short defers signals. Processes that load data leave them to their parent.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOP_SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, SIGHUP) if number]


class Stopped(KeyboardInterrupt):
    """The signal of that number asks the program to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupt:
    """Within it, the first signal only sets `signal`, and a second SIGINT acts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        self._former = set_handlers(self._record)
        return self

    def _record(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, self._former[signal.SIGINT])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Let the work within finish before a signal acts."""
    interrupt = Interrupt()
    try:
        with interrupt:
            yield
    finally:
        if interrupt.signal:
            signal.raise_signal(interrupt.signal)


def leave_signals_to_parent() -> None:
    """Let this process of multiprocessing ignore signals, and end when its parent ends.

    A signal to the whole process group is for the parent, which may still need what this process
    loads. If the parent is killed, what this process waits for would never come.
    """
    import multiprocessing  # slow, and -h imports this module

    set_handlers(signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)  # without flushing into pipes that nobody reads

    threading.Thread(target=exit_with_parent, daemon=True).start()


def set_handlers(handler: Any) -> dict[int, Any]:
    """Set the handler of all these signals; returns the former ones.

    SIGHUP stays ignored if it is, as under nohup. Outside the main thread nothing is done: Python
    handles signals in that thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if SIGHUP and former[SIGHUP] is signal.SIG_IGN:
        del former[SIGHUP]
    for number in former:
        signal.signal(number, handler)
    return former
