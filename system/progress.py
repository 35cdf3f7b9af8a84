"""Progress of a long loop: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
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


class Progress:
    """A context manager around a loop over steps first..last-1: their values, rate and ETA.

    Args:
        unit: what a step is called in plain lines, "step" or "image".
        first, last: the range of steps; a resumed run does not begin at 0.
        names: names of the values shown.
        every: steps between plain lines, the last one apart; None: a line every ten seconds.
        silent: show nothing, as on all ranks but one.
        after: seconds before anything is shown.
        forecast: say once, when the first steps were timed, how long the remaining ones will take.
    """

    def __init__(
        self,
        unit: str,
        first: int,
        last: int,
        names: list[str],
        every: int | None = None,
        silent: bool = False,
        after: float = 0.0,
        forecast: bool = False,
    ) -> None:
        self.unit, self.first, self.last, self.names, self.every = unit, first, last, names, every
        self.silent, self.after, self.forecast = silent, after, forecast and not silent
        self.bar = build_bar(first, last, names) if sys.stdout.isatty() and not silent else None

    def __enter__(self) -> "Progress":
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
        done = step + 1
        now = time.monotonic()
        if self.forecast and step == self.first + FORECAST_STEPS:
            self.warmed_up = now
        elif self.forecast and step == self.first + 2 * FORECAST_STEPS < self.last - 1:
            rate = FORECAST_STEPS / (now - self.warmed_up)
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

    def value(name: str, template: str) -> progressbar.Variable:
        return progressbar.Variable(name, format=template, width=5, precision=3)

    widgets: list = [progressbar.SimpleProgress(format="%(value_s)s/%(max_value_s)s"), " "]
    for name in names:
        widgets += [value(name, "{name} {formatted_value} ")]
    widgets += [value("rate", "{formatted_value}/s "), progressbar.Bar(), " "]
    widgets += [progressbar.AdaptiveETA(format="ETA %(eta)s")]
    return progressbar.ProgressBar(min_value=first, max_value=last, widgets=widgets, fd=sys.stdout)
