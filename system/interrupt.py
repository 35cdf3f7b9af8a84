"""Signals that ask the program to end, and what each part of it does with them: all in one place.

SIGINT is Ctrl-C, SIGTERM the word of schedulers and of torchrun, and SIGHUP that of a terminal that
was closed or a connection that was lost. The program as a whole raises Stopped, so that whatever is
in hand is finished or removed on the way out; training takes note and finishes its step; what must
not be cut short defers them; and processes that load data leave them to their parent.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

HUP = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = [number for number in (signal.SIGINT, signal.SIGTERM, HUP) if number]
SAME = 10.0  # seconds within which another SIGTERM or SIGHUP is part of the first request


class Stopped(KeyboardInterrupt):
    """The signal of that number asks the program to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_program(main: Callable[[], int]) -> int:
    """main() as the whole of a program, in which signals raise Stopped. Returns its exit status.

    Once that is known, no signal changes it any more.
    """
    stopped = -SAME

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        # torchrun passes on what its ranks received already, and others ask several times: what is
        # finished on the way out is not cut short for that. A person who insists is heard.
        now = time.monotonic()
        if number == signal.SIGINT or now - stopped >= SAME:
            stopped = now
            raise Stopped(number)

    _handle(stop)
    try:
        return main()
    finally:
        _handle(signal.SIG_IGN)


class Interrupt:
    """Within it, the first signal only sets `signal`; a second SIGINT acts at once.

    A second one of the others is none of a person's: see program.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        self._former = _handle(self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, self._former[signal.SIGINT])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Have a signal act after what is done within, which it would otherwise cut short."""
    interrupt = Interrupt()
    try:
        with interrupt:
            yield
    finally:
        if interrupt.signal:
            signal.raise_signal(interrupt.signal)


def leave_signals_to_parent() -> None:
    """Have this process, which multiprocessing started, end by its parent's word or end alone.

    A signal to the whole process group, however often it comes, is for the parent, which may still
    need what this process loads. However the parent ends, even killed, this process does too: what
    it waits for would never come.
    """
    import multiprocessing  # here, as this module is part of every start, -h among them

    _handle(signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)  # without a word to pipes that nobody reads

    threading.Thread(target=wait, daemon=True).start()


def _handle(handler: Any) -> dict[int, Any]:
    """Set the handler of all signals in question; returns the former ones."""
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python handles signals in the main thread alone
    numbers = [number for number in ENDING if number != HUP or not _ignored(number)]
    return {number: signal.signal(number, handler) for number in numbers}


def _ignored(number: int) -> bool:
    """Whether nobody wants to hear of a signal: nohup's way, from before the start."""
    return signal.getsignal(number) is signal.SIG_IGN
