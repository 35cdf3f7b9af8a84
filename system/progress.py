"""Progress of a long loop: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

import progressbar

from settings import one_line

LINE_SECONDS = 10.0  # between plain lines
SLOW_SECONDS = 2.0  # after which work counts as slow
FORECAST_STEPS = 5  # steps that are timed to forecast the rest, after as many to warm up


def warn(message: str) -> None:
    """Print a warning that does not end the program."""
    print(f"main.py: {one_line(message)}", file=sys.stderr, flush=True)


class SlowNotice:
    """Says how far some work is once it has taken two seconds, and then every ten seconds."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self.due_time = say, time.monotonic() + SLOW_SECONDS

    def update(self, line: str) -> None:
        """Say the line, if it is time."""
        now = time.monotonic()
        if now >= self.due_time:
            self.due_time = now + LINE_SECONDS
            self.say(line)


@dataclass
class Progress:
    """A context manager around a loop over steps first..last-1: their values, rate and ETA."""

    unit: str  # what a step is called in plain lines, "step" or "image"
    first: int  # a resumed run does not begin at 0
    last: int
    names: list[str]  # of the values shown
    every: int | None = None  # steps between plain lines; None: a line every ten seconds
    silent: bool = False  # show nothing, as on all ranks but one
    after: float = 0.0  # seconds before anything is shown
    forecast: bool = False  # say once, from the time of the first steps, how long the rest takes

    def __enter__(self) -> "Progress":
        shown = sys.stdout.isatty() and not self.silent
        self.bar = build_bar(self.first, self.last, self.names) if shown else None
        self.start = self.line_time = time.monotonic()
        self.done = self.first
        if self.bar and not self.after:
            self.bar.start()
        return self

    def advance(self, count: int) -> None:
        """Count so many more steps as done, if there are no values to show."""
        self.done += count
        self.update(self.done - 1, {})

    def update(self, step: int, values: dict[str, float]) -> None:
        """Count `step` as done, and show the values of the names."""
        done, now = step + 1, time.monotonic()
        if step == self.first + FORECAST_STEPS:
            self.warm_time = now
        elif self.forecast and step == self.first + 2 * FORECAST_STEPS < self.last - 1:
            rate = FORECAST_STEPS / (now - self.warm_time)
            left = timedelta(seconds=round((self.last - done) / rate))
            self.say(f"{rate:.3g} {self.unit}s a second: about {left} left")
        if now - self.start < self.after:
            return
        rate = (done - self.first) / max(now - self.start, 1e-9)
        if self.bar:
            if self.bar.start_time is None:
                self.bar.start()
            variables: dict[str, Any] = {name: values[name] for name in self.names}
            self.bar.update(done, rate=rate, **variables)
        elif self._is_due(step, now):
            left = timedelta(seconds=round((self.last - done) / rate))
            figures = "".join(f"  {name} {values[name]:.4g}" for name in self.names)
            counter = f"{done}/{self.last} {self.unit}s"
            print(f"{counter}{figures}  {rate:.3g} {self.unit}s/s  ETA {left}", flush=True)

    def say(self, line: str, file: TextIO | None = None) -> None:
        """Print a line, to standard output if not to file, and not into the bar."""
        if self.bar and self.bar.start_time is not None:
            print("\r\033[K", end="", flush=True)  # the bar is drawn again at the next step
        print(line, file=file or sys.stdout, flush=True)

    def _is_due(self, step: int, now: float) -> bool:
        if self.silent:
            return False
        if self.every is not None:
            return step % self.every == 0 or step + 1 == self.last
        if now - self.line_time < LINE_SECONDS:
            return False
        self.line_time = now
        return True

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.bar and self.bar.start_time is not None:
            self.bar.finish(dirty=kind is not None)


def build_bar(first: int, last: int, names: list[str]) -> progressbar.ProgressBar:
    """The bar of a terminal, with the values of the names and the rate."""

    formats = dict.fromkeys(names, "{name} {formatted_value} ") | {"rate": "{formatted_value}/s "}
    widgets: list = [progressbar.SimpleProgress(format="%(value_s)s/%(max_value_s)s"), " "]
    for name, text in formats.items():
        widgets.append(progressbar.Variable(name, format=text, width=5, precision=3))
    widgets += [progressbar.Bar(), " ", progressbar.AdaptiveETA(format="ETA %(eta)s")]
    return progressbar.ProgressBar(min_value=first, max_value=last, widgets=widgets, fd=sys.stdout)
