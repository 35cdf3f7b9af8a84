"""Progress of a long loop: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

import progressbar

from settings import one_line

LINE_SECONDS = 10.0  # between plain lines
SLOW_SECONDS = 2.0  # after which work counts as slow
FORECAST_STEPS = 10  # steps after which the time that the rest takes is forecast
MARKS = 64  # times that are kept, about, to measure the rate by


def warn(message: str) -> None:
    """Print a warning that does not end the program."""
    print(f"main.py: {one_line(message)}", file=sys.stderr, flush=True)


class SlowNotice:
    """Says how far some work is once it has taken a while, and then every ten seconds.

    Args:
        after: seconds, two by default.
    """

    def __init__(self, say: Callable[[str], object], after: float | None = None) -> None:
        self.say = say
        self.due_time = time.monotonic() + (SLOW_SECONDS if after is None else after)

    def update(self, line: str) -> None:
        """Say the line, if it is time."""
        now = time.monotonic()
        if now >= self.due_time:
            self.due_time = now + LINE_SECONDS
            self.say(line)


@dataclass
class Progress:
    """A context manager around a loop over steps first..last-1: their values, rate and ETA.

    Rate and ETA are those of the last half of the steps that are done, without the first one:
    warming up takes time, and the later steps are most like those to come.
    """

    unit: str  # what a step is called in plain lines, "step" or "image"
    first: int  # a resumed run does not begin at 0
    last: int
    names: list[str]  # of the values shown
    every: int | None = None  # steps between plain lines; None: a line every ten seconds
    silent: bool = False  # show nothing, as on all ranks but one
    after: float = 0.0  # seconds before anything is shown
    forecast: bool = False  # say once, after the first steps, how long the rest takes

    def __enter__(self) -> "Progress":
        shown = sys.stdout.isatty() and not self.silent
        self.bar = build_bar(self.first, self.last, self.names) if shown else None
        self.start, self.done = time.monotonic(), self.first
        self.notice = SlowNotice(self.say, self.after or LINE_SECONDS)
        self.marks: deque[tuple[int, float]] = deque()  # steps done, and when
        if self.bar and not self.after:
            self.bar.start()
        return self

    def advance(self, count: int) -> None:
        """Count so many more steps as done, if there are no values to show."""
        self.update(self.done + count - 1, {})

    def update(self, step: int, values: dict[str, float]) -> None:
        """Count `step` as done, and show the values of the names."""
        self.done, now = step + 1, time.monotonic()
        rate = self._measure_rate(now)
        left = str(timedelta(seconds=round((self.last - self.done) / rate))) if rate else ""
        if self.silent or now - self.start < self.after:
            return
        if self.forecast and step == self.first + FORECAST_STEPS < self.last - 1:
            self.say(f"{rate:.3g} {self.unit}s a second: about {left} left")
        if self.bar:
            if self.bar.start_time is None:
                self.bar.start()
            variables: dict[str, Any] = {name: values[name] for name in self.names}
            self.bar.update(self.done, rate=rate or None, left=left, **variables)
            return
        figures = "".join(f"  {name} {values[name]:.4g}" for name in self.names)
        times = f"  {rate:.3g} {self.unit}s/s  ETA {left}" if rate else ""
        line = f"{self.done}/{self.last} {self.unit}s{figures}{times}"
        if self.every is None:
            self.notice.update(line)
        elif step % self.every == 0 or self.done == self.last:
            self.say(line)

    def _measure_rate(self, now: float) -> float:
        """Steps a second, or 0 if that is not known yet."""
        middle = (self.first + self.done) / 2
        while len(self.marks) > 1 and self.marks[1][0] <= middle:
            self.marks.popleft()
        done, then = self.marks[0] if self.marks else (self.done, now)
        if not self.marks or self.done - self.marks[-1][0] > (self.done - self.first) / MARKS:
            self.marks.append((self.done, now))
        return (self.done - done) / max(now - then, 1e-9)

    def say(self, line: str, file: TextIO | None = None) -> None:
        """Print a line, to standard output if not to file, and not into the bar."""
        if self.bar and self.bar.start_time is not None:
            print("\r\033[K", end="", flush=True)  # the bar is drawn again at the next step
        print(line, file=file or sys.stdout, flush=True)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.bar and self.bar.start_time is not None:
            self.bar.finish(dirty=kind is not None)


def build_bar(first: int, last: int, names: list[str]) -> progressbar.ProgressBar:
    """The bar of a terminal, with the values of the names, the rate and the time left."""
    formats = dict.fromkeys(names, "{name} {formatted_value} ") | {"rate": "{formatted_value}/s "}
    widgets: list = [progressbar.SimpleProgress(format="%(value_s)s/%(max_value_s)s"), " "]
    for name, text in formats.items():
        widgets.append(progressbar.Variable(name, format=text, width=5, precision=3))
    widgets += [progressbar.Bar(), progressbar.Variable("left", format=" ETA {formatted_value}")]
    return progressbar.ProgressBar(min_value=first, max_value=last, widgets=widgets, fd=sys.stdout)
