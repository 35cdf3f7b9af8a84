"""Progress: a bar on a terminal, lines elsewhere, with the values, the rate and the time left."""

import itertools
import os
import pty
import random
import re
import sys
from datetime import timedelta

import pytest
from conftest import ROOT, finish

from system import progress

LOOP = """
from system.progress import Progress
with Progress("step", {first}, 8, ["loss", "lr"], every=4, after={after}) as progress:
    for step in range({first}, 8):
        progress.update(step, {{"loss": 1 / (step + 1), "lr": 0.005}})
"""


def command(first: int, after: float = 0.0) -> list[str]:
    return [sys.executable, "-c", LOOP.format(first=first, after=after)]


def test_lines():
    done = finish(command(0), fresh=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["1/8 steps", "5/8 steps", "8/8 steps"]
    assert lines[1].startswith("5/8 steps  loss 0.2  lr 0.005  ")
    assert lines[1].endswith("steps/s  ETA 0:00:00")


def test_bar():
    ours, its = pty.openpty()
    finish(command(5), fresh=True, cwd=ROOT, stdout=its, stderr=its)
    os.close(its)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "5/8" in text
    assert "0/8" not in text
    assert "8/8" in text
    assert "loss 0.125 lr 0.005" in text
    assert "/s " in text
    assert "ETA 0:00:00" in text


def test_what_is_soon_done_shows_nothing():
    done = finish(command(0, 60.0), fresh=True, cwd=ROOT, text=False)
    assert done.stdout == b""
    ours, its = pty.openpty()
    finish(command(0, 60.0), fresh=True, cwd=ROOT, stdout=its, stderr=its)
    os.write(its, b"end")
    assert os.read(ours, 100) == b"end"
    for handle in (ours, its):
        os.close(handle)


SAYS = """
from system.progress import Progress
with Progress("step", 0, 3, []) as progress:
    progress.update(0, {})
    progress.say("a line of its own")
    progress.update(1, {})
    progress.update(2, {})
"""


def test_a_line_is_not_printed_into_the_bar():
    done = finish([sys.executable, "-c", SAYS], fresh=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["a line of its own"]
    ours, its = pty.openpty()
    finish([sys.executable, "-c", SAYS], fresh=True, cwd=ROOT, stdout=its, stderr=its)
    os.close(its)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    before, after = text.split("a line of its own")
    assert before.endswith("\r\033[K")  # what stood of the bar is wiped
    assert after.startswith("\r\n")
    assert "3/3" in after


# Seconds that each step takes, and how many steps there are in each.
RANDOM = random.Random(0)
SHAPES = {
    "clean: bands of rows, the first with the kernels' compilation": [(90, 60), *[(30, 60)] * 40],
    "train: warming up, then saving every 25": [
        (60 if n == 0 else 12 if n < 40 else 8 if n % 25 == 0 else 4, 1) for n in range(1000)
    ],
    "test: images of changing size": [
        (40 + 3 * RANDOM.choice([1, 2, 4]) if n == 0 else 3 * RANDOM.choice([1, 2, 4]), 1)
        for n in range(300)
    ],
    "slower on the way": [(10 + n / 100, 1) for n in range(1000)],
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_time_left_is_right_from_a_tenth_of_the_way_on(name, monkeypatch, capsys):
    steps, clock, first = SHAPES[name], [1000.0], 7
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    total = sum(count for _, count in steps)
    ends = list(itertools.accumulate(seconds for seconds, _ in steps))
    with progress.Progress("step", first, first + total, [], every=1) as bar:
        for (_, count), end in zip(steps, ends, strict=True):
            clock[0] = 1000 + end
            bar.advance(count)
            line = capsys.readouterr().out
            if end == ends[0]:
                assert "ETA" not in line
                continue
            hours, minutes, rest = map(int, re.search(r"ETA (\d+):(\d+):(\d+)$", line).groups())
            shown = timedelta(hours=hours, minutes=minutes, seconds=rest).total_seconds()
            # The last few of items of changing size may all be large, or small.
            if total / 10 <= bar.done - first <= total * 0.95:
                assert (ends[-1] - end) / 1.5 <= shown <= (ends[-1] - end) * 1.5, line
