"""Programs of Python that start at once: forked from a process that has imported torch already.

Starting a program takes two seconds of imports, which few tests are about. start_server() forks a
process that waits, before anything has run there; Forked is a Popen whose program is forked from
it. It differs from one that is started in what it has imported, and in its command line in /proc.
Threads of OpenMP would not survive a fork: the server never starts any.
"""

import atexit
import ctypes
import faulthandler
import importlib
import io
import logging
import multiprocessing.util
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl: adopt orphans of one's descendants
_server: socket.socket | None = None


def start_server() -> None:
    """Fork the process that the programs come from; without Linux they are started as ever."""
    global _server
    if sys.platform != "linux":
        return
    _server, own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            _serve(own)
        finally:
            os._exit(0)
    own.close()


def _serve(own: socket.socket) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.dup2(own.fileno(), 3)
    os.closerange(4, 1 << 16)
    own.detach()
    link = socket.socket(fileno=3)
    _forget_pytest()
    while True:
        words, handles, _, _ = socket.recv_fds(link, 1 << 20, 3)
        if not words:
            return
        request = pickle.loads(words)
        if isinstance(request, str):
            importlib.import_module(request)
            link.send(b"imported")
            continue
        read, write = os.pipe()
        middle = os.fork()
        if middle == 0:  # which ends at once, so that the program becomes a child of the test
            middle, child = os.getpid(), os.fork()
            if child == 0:
                while os.getppid() == middle:  # a program may ask for its parent
                    time.sleep(0.001)
                _run(handles, *request)
            os.write(write, b"%d" % child)
            os._exit(0)
        os.waitpid(middle, 0)
        link.send(os.read(read, 20))
        for handle in (read, write, *handles):
            os.close(handle)


def preload(module: str) -> None:
    """Import a module once for all programs that are started after this."""
    if _server is not None:
        _server.send(pickle.dumps(module))
        assert _server.recv(20) == b"imported"


def _forget_pytest() -> None:
    faulthandler.disable()
    logging.getLogger().handlers.clear()
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    sys.unraisablehook, sys.excepthook = sys.__unraisablehook__, sys.__excepthook__
    threading.excepthook = threading.__excepthook__
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(
    handles: list[int], words: list[str], folder: str, environment: dict, session: bool
) -> None:
    status = 1
    try:
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
        os.closerange(3, 1 << 16)
        if session:
            os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        files = [io.FileIO(number, mode, closefd=False) for number, mode in enumerate("rww")]
        sys.stdin = io.TextIOWrapper(io.BufferedReader(files[0]), "utf-8")
        out, err = map(io.BufferedWriter, files[1:])
        sys.stdout = io.TextIOWrapper(out, "utf-8", line_buffering=os.isatty(1))
        sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", line_buffering=True)
        try:
            _execute(words)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status & 255)


def _execute(words: list[str]) -> None:
    """As `python`: with a file, -c or -m, and -u before it."""
    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        words = words[1:]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        program = types.ModuleType("__main__")
        sys.modules["__main__"] = program
        exec(compile(words[1], "<string>", "exec"), program.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


# Ahead of a program that starts others: they are forked from it in turn.
FORKING = """
import runpy, subprocess, sys
import forked
forked.start_server()
subprocess.Popen = forked.Forked
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Forked(subprocess.Popen):
    """A program of Python, [sys.executable, ...], forked from the server."""

    def _execute_child(self, args: Any, *options: Any) -> None:
        words = [os.fspath(word) for word in args]
        if _server is None or words.pop(0) != sys.executable or words[:2] == ["-m", "pytest"]:
            super()._execute_child(args, *options)
            return
        folder, environment, session = options[4], options[5], options[20]
        pipes = options[9], options[12], options[14]  # of stdin, stdout, stderr; -1: this process's
        handles = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        request = (words, folder or os.getcwd(), dict(environment or os.environ), session)
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(_server, [pickle.dumps(request)], handles)
            self.pid = int(_server.recv(20))
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self._child_created = True
        self._close_pipe_fds(*options[9:15])
