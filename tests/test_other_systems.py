"""Where fcntl, sched_getaffinity, /proc and glibc are not: as on Windows and macOS."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
from conftest import ROOT, started, write_pairs

from settings import UserError
from system import files, machine

# Run ahead of a program: hides what other systems do not have. psutil and portalocker come first,
# as on Linux they need it themselves.
HIDING = """
import ctypes, os, pathlib, sys
import psutil, portalocker

sys.path.insert(0, sys.argv[1])
sys.modules["fcntl"] = None
del os.sched_getaffinity
read_text, library, hidden = pathlib.Path.read_text, ctypes.CDLL.__init__, []

def hide_text(path, *more, **options):
    if str(path).startswith(("/proc", "/sys")):
        hidden.append(str(path))
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return read_text(path, *more, **options)

def hide_library(self, name, *more, **options):
    if name is None:
        hidden.append("libc")
        raise TypeError("argument of type 'NoneType' is not iterable")
    return library(self, name, *more, **options)

pathlib.Path.read_text, ctypes.CDLL.__init__ = hide_text, hide_library
"""

ACTIONS = """
import main

try:
    main.main(["-h"])
except SystemExit as end:
    assert end.code == 0
assert "torch" not in sys.modules
model = ["--model-dir", sys.argv[1] + "/model", "-m", "demo", "--device", "cpu"]
assert main.main(["-a", "test", "--test-list", sys.argv[2], *model]) == 0
assert main.main(["-a", "derain", "--input", sys.argv[3], "--output", "clean.png", *model]) == 0
assert {"/sys/fs/cgroup/cpu.max", "libc"} <= set(hidden), hidden
"""


def test_help_test_and_derain_without_what_linux_has():
    pairs = write_pairs(Path("data"), [(24, 31)])
    picture = np.full((17, 23, 3), 90, np.uint8)
    cv2.imwrite("rainy.png", picture)
    words = [sys.executable, "-c", HIDING + ACTIONS, str(ROOT), str(pairs), "rainy.png"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    assert cv2.imread("clean.png").shape == picture.shape


MACHINE = """
from system import machine
print(machine.count_cores(), machine.free_memory(), machine.peak_memory(), machine.processor_name())
machine.keep_blocks(machine.INFERENCE_BLOCKS)
machine.trim_memory()
"""


def test_psutil_answers_for_the_machine():
    words = [sys.executable, "-c", HIDING + MACHINE, str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    cores, free, peak, name = done.stdout.split(maxsplit=3)
    assert int(cores) == len(os.sched_getaffinity(0))
    assert 0 < int(free) <= psutil.virtual_memory().total
    assert 1 < float(peak) < 1000
    assert name.strip()


def test_cores_where_psutil_does_not_tell_the_binding(monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace())  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(machine.Path, "read_text", _missing)
    assert machine.count_cores() == 5
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: [0, 2, 3]))
    assert machine.count_cores() == 3


def test_peak_memory_is_the_current_one_elsewhere(monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", _missing)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2 << 20))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert machine.peak_memory() == 2


def _missing(path: Path, *_: object, **__: object) -> str:
    raise FileNotFoundError(2, "No such file or directory", str(path))


# The lock

HOLDER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from system import files

file = files.lock_file(Path("lock"), "taken")
child = os.fork()
if not child:  # as a process that loads data: it has the open file, and outlives its parent
    os.fstat(file.fileno())
    time.sleep(60)
print(child, flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lock():
    words = [sys.executable, "-c", HOLDER, str(ROOT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(words, **pipes, text=True, bufsize=1) as parent:
        child = int(parent.stdout.readline())
        with pytest.raises(UserError) as caught:
            files.lock_file(Path("lock"), "taken")
        assert str(caught.value) == "taken; expected one at a time"
        parent.stdin.close()
        assert parent.wait(30) == 0
        assert psutil.pid_exists(child)
        files.lock_file(Path("lock"), "taken").close()
        assert psutil.Process(child).status() != psutil.STATUS_ZOMBIE  # it lived throughout


def test_the_lock_of_windows_is_the_librarys_own(monkeypatch):
    import portalocker
    from portalocker import portalocker as lockers

    asked = []
    monkeypatch.delattr(lockers, "LockfLocker")
    monkeypatch.setattr(portalocker, "lock", lambda file, flags: asked.append(flags))
    files.lock_file(Path("lock"), "taken").close()
    assert asked == [portalocker.LOCK_EX | portalocker.LOCK_NB]

    def refuse(error: Exception) -> None:
        raise error

    taken = portalocker.AlreadyLocked("Permission denied")
    monkeypatch.setattr(portalocker, "lock", lambda *_: refuse(taken))
    with pytest.raises(UserError, match="taken; expected one at a time"):
        files.lock_file(Path("lock"), "taken")


def test_without_locks_a_warning_is_printed_once_and_nothing_is_left(monkeypatch, capsys):
    from portalocker import LockException
    from portalocker import portalocker as lockers

    class NoLocks:
        def lock(self, *_: object) -> None:
            raise LockException("odd") from OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lockers, "LockfLocker", NoLocks)
    for _ in range(2):
        with files.exclusive(Path("results.csv")):
            assert len(os.listdir()) == 1
    assert os.listdir() == []
    assert capsys.readouterr().err == (
        "main.py: files cannot be locked here (No locks available): start no second run that "
        "writes there\n"
    )
