"""Progress: a bar on a terminal, lines elsewhere, with the values, the rate and the time left."""

import os
import pty
import sys

from conftest import ROOT, finish

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
    assert "ETA" in text


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
