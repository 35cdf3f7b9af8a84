"""Signals that ask to end: of every action, while something is finished, and of a lost terminal."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, command, started, write_pairs
from test_resume import start, until
from test_train import clock
from test_videos import DERAIN, frames, write_video

from system.interrupt import Interrupt, Stopped, defer_signals
from system.program import run_program

# The program with an action that waits, tells how it was ended and takes its time to end.
WAITING = """
import sys, time
sys.path.insert(0, sys.argv[1])
import main
from system import program

def wait(settings):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(0.3)
        print("ended", flush=True)

main.run = wait
sys.exit(program.run_program(lambda: main.main(["-a", "clean"])))
"""


def ended_by(*numbers: int, ignored: int = 0) -> tuple[int, str, str]:
    """Status and words of the waiting program, sent the first signal, then the others.

    One that it was started to ignore comes ahead of them.
    """
    trap = f"trap '' {ignored}; " if ignored else ""
    words = [sys.executable, "-c", WAITING, str(ROOT)]
    with started(
        ["sh", "-c", trap + 'exec "$@"', "sh", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout.readline() == "ready\n"
        if ignored:
            run.send_signal(ignored)
            time.sleep(0.3)
        run.send_signal(numbers[0])
        if len(numbers) > 1:
            assert run.stdout.readline() == "ending\n"
        for number in numbers[1:]:
            run.send_signal(number)
        out, err = run.communicate(timeout=30)
    return run.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_action_ends_in_order(number):
    by = "" if number == signal.SIGINT else f" ({number.name})"
    assert ended_by(number) == (128 + number, "ending\nended\n", f"\ninterrupted{by}\n")


def test_a_second_request_changes_nothing_a_second_ctrl_c_does():
    again = (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)
    assert ended_by(*again) == (143, "ended\n", "\ninterrupted (SIGTERM)\n")
    assert ended_by(signal.SIGINT, *again)[:2] == (130, "ended\n")
    assert ended_by(signal.SIGTERM, signal.SIGINT)[:2] == (130, "")


HANGING = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from system.program import run_program

def main():
    threading.Thread(target=time.sleep, args=[60]).start()  # which Python waits for as it exits
    return 0

run_program(main)
print("ended", flush=True)
"""


def test_a_second_ctrl_c_ends_a_program_that_hangs_as_it_exits():
    words = [sys.executable, "-c", HANGING, str(ROOT)]
    with started(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ended\n"
        for number in (signal.SIGTERM, signal.SIGINT):
            run.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(0.5)
        run.send_signal(signal.SIGINT)
        assert run.wait(10) == -signal.SIGINT


def test_what_nohup_ignores_stays_ignored():
    assert ended_by(signal.SIGTERM, ignored=signal.SIGHUP)[0] == 143


@pytest.fixture
def _heeded():
    """SIGINT as in a terminal: what a script starts in the background ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_heeded")
def test_training_takes_note_and_a_second_ctrl_c_does_not_wait():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_is_finished_is_not_cut_short():
    done = []

    def finish() -> int:
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("finished")
        return 0

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Stopped) as caught:
            run_program(finish)
    finally:
        for number, handler in {**former, signal.SIGHUP: signal.SIG_DFL}.items():
            signal.signal(number, handler)
    assert done == ["finished"]
    assert caught.value.number == signal.SIGTERM


# In their place

SLOW = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
import main
from engine import checkpoint
from system import program

save = checkpoint.write_atomically

def slowly(*arguments):
    print("saving", flush=True)
    time.sleep(1)
    save(*arguments)

checkpoint.write_atomically = slowly
sys.exit(program.run_program(main.main))
"""


def test_signals_while_latest_is_saved_change_neither_outcome_nor_status(pairs):
    """They come to the whole group, so to the processes that load data, which lived on till now."""
    words = map(str, start(pairs, "--latest-every", 1000, "--num-workers", 2))
    with started(
        [sys.executable, "-c", SLOW, str(ROOT), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        saves = (line for line in run.stdout if line == "saving\n")
        next(saves)  # of step 0
        until(Path("model/latest").exists)
        assert clock("model/latest") == 0
        os.killpg(run.pid, signal.SIGTERM)
        next(saves)  # of the step in hand
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.killpg(run.pid, number)
            time.sleep(0.2)
        out, err = run.communicate(timeout=60)
        assert (run.returncode, err) == (143, "")
        done = clock("model/latest")
        assert (
            f"model/latest holds step {done}: {done + 1} of 40001 steps are done (SIGTERM)" in out
        )


def test_a_closed_terminal_keeps_the_video_in_hand_and_the_page(model, tmp_path):
    """A program may not so much as print to a terminal that is gone."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_pairs(tmp_path / "data", [(24, 24)])
    (tmp_path / "data" / "rain" / "pair0.png").rename(folder / "a.png")
    write_video(folder / "long.mp4", frames=2500)
    child, terminal = pty.fork()
    if child == 0:
        words = command(*DERAIN, "-i", "in", "-o", "out")
        os.execv(words[0], words)
    limit = threading.Timer(120, os.kill, (child, signal.SIGKILL))
    limit.start()
    until(lambda: list(Path("out").glob("*long.mp4*")))
    seen = b""
    while b"/2500" not in seen:
        seen += os.read(terminal, 1000)
    time.sleep(1)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    limit.cancel()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert 0 < len(frames("out/long.mp4")[0]) < 2500
    assert {"a.png", "long.mp4", "index.html", "index_files"} == set(os.listdir("out"))
