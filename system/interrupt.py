"""Signals that ask a run to end, taken note of where it can end well."""

import multiprocessing
import os
import signal
import threading
from types import FrameType


class Interrupt:
    """Within it, the first SIGINT or SIGTERM only sets `signal`; a second SIGINT acts at once.

    A second SIGTERM is none of a person's: torchrun passes on what its ranks received already.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, self._former[signal.SIGINT])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Have this process, which multiprocessing started, end as soon as its parent has ended.

    However that ended: what a killed parent's loading processes wait for is never told to them.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)  # without a word to pipes that nobody reads

    threading.Thread(target=wait, daemon=True).start()
