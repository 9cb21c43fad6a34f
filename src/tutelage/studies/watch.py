"""The report of runs that go on, served on this machine and nowhere else."""

from __future__ import annotations

import hashlib
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tutelage.errors import InvalidValueError
from tutelage.report import html
from tutelage.report.live import RUNNING, folders, live, signature
from tutelage.studies import report

HOST = "127.0.0.1"
PORT, TRIED = 8765, 20
"""Where it is served by default, and how many ports are tried from there."""
AGAIN = 0.2
"""Seconds until records are read again that were just being written."""
SHARE = 0.2
"""Share of the time that making pages takes at most."""
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Watched:
    """A folder's report as its records are now; nothing is written.

    Raises:
        FileNotFoundError: if the folder holds no records.
        DamagedError: if they cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._folders = [folder]
        self._until = 0.0
        self.tag, self.page = "", b""
        self._make(signature(self._folders))

    def now(self) -> tuple[str, bytes]:
        """Return the page, and a tag that changes with it; where records cannot be read, the last that could."""
        with self._lock:
            if time.monotonic() >= self._until:
                found = signature(self._folders)
                if _tag(found) != self.tag:
                    try:
                        self._make(found)
                    except Exception:  # noqa: BLE001  of records that are half written, or of another folder by now
                        self._until = time.monotonic() + AGAIN
            return self.tag, self.page

    def _make(self, found: tuple[tuple[str, int, int], ...]) -> None:
        began = time.monotonic()
        subject, page = report.read(self.folder)
        if any(run.damage and run.status == RUNNING for run in subject.runs):  # A line is written before its digest.
            time.sleep(AGAIN)
            found = signature(self._folders)
            subject, page = report.read(self.folder)
        if (known := folders(subject)) != self._folders:
            self._folders = known
            found = signature(known)
        tag = _tag(found)
        self.page = html.render(subject, page, live=live(subject, tag)).encode()
        self.tag = tag
        now = time.monotonic()
        self._until = now + (now - began) * (1 - SHARE) / SHARE


def _tag(found: tuple[tuple[str, int, int], ...]) -> str:
    return hashlib.sha256(repr(found).encode()).hexdigest()[:32]


class Server(ThreadingHTTPServer):
    """Serves one page to this machine.

    Args:
        watched: what is served.
        port: where; ``None`` for the first that is free from `PORT`, 0 for any.

    Raises:
        ValueError: the port cannot be taken.
    """

    def __init__(self, watched: Watched, port: int | None = None) -> None:
        self.watched = watched
        ports = [*range(PORT, PORT + TRIED), 0] if port is None else [port]
        for each in ports:
            try:
                super().__init__((HOST, each), _Handler)
            except OSError as error:
                if each == ports[-1]:
                    got = f"{each} ({error.strerror or error})"
                    instead = "type --port 0 for any that is free"
                    raise InvalidValueError("--port", "a port that is free", got, instead) from error
            else:
                break
        self.url = f"http://{HOST}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without asking anybody for the host's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away."""


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of ``/``, asked for by the names of this machine."""

    server: Server
    server_version, sys_version = "tutelage", ""
    timeout = 30

    def do_GET(self) -> None:
        """Send the page, unless the browser has it."""
        # A name that somebody lets point here would give a page of theirs what is read from this address.
        names = [f"{name}:{self.server.server_port}" for name in ("localhost", HOST, "[::1]")]
        if self.headers.get_all("Host") not in [[name] for name in names]:
            self._answer(HTTPStatus.FORBIDDEN, f"type {self.server.url}")
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "there is one page, /")
        else:
            tag, page = self.server.watched.now()
            if self.headers.get("If-None-Match") == f'"{tag}"':
                self._answer(HTTPStatus.NOT_MODIFIED, tag=tag)
            else:
                self._answer(HTTPStatus.OK, page, tag=tag)

    do_HEAD = do_GET  # noqa: N815  names of the library

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD are answered")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def _answer(self, status: HTTPStatus, body: str | bytes = b"", *, tag: str | None = None) -> None:
        kind = "plain" if isinstance(body, str) else "html"
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if tag is not None:
            self.send_header("ETag", f'"{tag}"')
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Send what holds for every answer too."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of requests."""
