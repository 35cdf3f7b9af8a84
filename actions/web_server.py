"""The server behind the page of `-a web`: where it listens, and which requests it refuses."""

import logging
import re
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gradio.route_utils import FnIndexInferError
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from settings import Settings, UserError

PORT = re.compile(r":\d*$")  # at the end of a host
ADDRESS = re.compile(r"[\d.]+|\[[\da-f:.]+\]")  # of a machine, which needs no name


def check_address(settings: Settings) -> str:
    """--host as it stands in an address of the web: IPv6 in brackets.

    Raises:
        UserError: it cannot be listened on, or --root-path is no address. Gradio would try a
            hundred ports before it says so.
    """
    if settings.root_path and not re.match("https?://.", settings.root_path):
        raise UserError(f"--root-path {settings.root_path}: expected https://HOST/PATH")
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, settings.port), family=family).close()
    except (OSError, TypeError) as error:  # TypeError: it cannot be a name at all
        reason = getattr(error, "strerror", None) or error
        options = f"--host {settings.host}, --port {settings.port}"
        raise UserError(f"{options}: cannot be listened on: {reason}") from None
    return f"[{host}]" if family == socket.AF_INET6 else host


def is_unexpected(folder: str, record: logging.LogRecord) -> bool:
    """Whether the server's log shows a record.

    Not if a tab was closed during an upload, or a call by hand names an endpoint that there is not.
    """
    error = record.exc_info[1] if record.exc_info else None
    is_closed = isinstance(error, FileNotFoundError | RuntimeError) and folder in str(error)
    return not (is_closed or isinstance(error, FnIndexInferError))


class Guard:
    """Middleware that refuses what the page never asks for, and cleans up after broken uploads.

    Another site, open in the same browser, could send requests here, or show the page in a frame.
    It could also give a name of its own the address of this machine; the browser then takes both
    for one site. And Gradio would fetch any address that a request names.

    Args:
        host: what check_address returns.
        folder: where Gradio writes an upload, as a file, until it is complete.
        public: the address of the page if a proxy serves it, or nothing.
    """

    def __init__(self, app: ASGIApp, host: str, folder: Path, public: str) -> None:
        self.app, self.folder = app, folder
        self.public_host = urlsplit(public).netloc.lower()
        names = [host.lower(), re.sub(PORT, "", self.public_host)]
        self.hosts = {"localhost", "127.0.0.1", "[::1]", *filter(None, names)}
        self.is_open = host in ("0.0.0.0", "[::]")
        if self.is_open:
            self.hosts |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self._upload_count = 0  # of those in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Frame-Options"] = "DENY"
                headers["Content-Security-Policy"] = "frame-ancestors 'none'"
            await send(message)

        fault = self._find_fault(scope)
        if fault:
            await PlainTextResponse(fault, 403)(scope, receive, send_unframed)
        elif scope["path"].rstrip("/").endswith("/upload"):
            await self._take_upload(scope, receive, send_unframed)
        else:
            await self.app(scope, receive, send_unframed)

    def _find_fault(self, scope: Scope) -> str:
        """Why a request is refused, or nothing."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = re.sub(PORT, "", host)
        if name not in self.hosts and not (self.is_open and ADDRESS.fullmatch(name)):
            return f"this server does not listen on {name}"
        origin = headers.get("origin", f"http://{host}").lower().partition("://")[2]
        if origin not in (host, self.public_host) or not origin:
            return "requests of other sites are refused"
        if "://" in scope["path"] or "/proxy=" in scope["path"]:
            return "files of other servers are not fetched"
        return ""

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have Gradio receive an upload, unless it breaks off or takes too much of the disk."""
        size = 0

        async def receive_part() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # After this exception Gradio removes its file, after others it does not.
            if message["type"] == "http.disconnect":
                raise MultiPartException("the upload broke off")
            if shutil.disk_usage(self.folder).free < size:  # as much again is for the result
                raise MultiPartException("the upload has more than the maximum allowed size: "
                    "the disk of the server has too little room")  # fmt: skip
            return message

        self._upload_count += 1
        try:
            await self.app(scope, receive_part, send)
        finally:
            self._upload_count -= 1
            if not self._upload_count:  # what lies there now is no part of an upload
                for path in self.folder.iterdir():
                    if path.is_file():
                        path.unlink()


class MainThread:
    """Runs jobs of other threads in the main thread, as `derain` does.

    In another thread torch may use another number of threads, and results would differ in their
    last bits.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future, Callable[[], Any]]] = SimpleQueue()

    def submit(self, job: Callable[[], Any]) -> Future:
        """Have a job run, from any other thread."""
        future: Future = Future()
        self._jobs.put((future, job))
        return future

    def run_jobs(self) -> NoReturn:
        """Run one job after the other, until a signal raises KeyboardInterrupt."""
        while True:
            future, job = self._jobs.get()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)
            except BaseException:
                future.set_result(None)  # or its thread waits
                raise
