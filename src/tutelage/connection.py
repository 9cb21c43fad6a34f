"""Whether a server answers, known within seconds: libraries that fetch files ask again for minutes, or wait forever."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tutelage.errors import one_line

LIMIT = 10.0
"""Seconds that a server has for its first answer, with its name's lookup and its handshake."""
SILENCE = 60.0
"""Seconds that a server may be silent once it has answered."""
REMEMBERED = 60.0
"""Seconds for which a server that did not answer is not asked again."""
AWAY = {407: "its proxy asks for a password", 502: "", 503: "", 504: ""}
"""HTTP statuses of a server that cannot be asked, and what they mean if their own words do not say it."""
_silent: dict[str, tuple[float, str]] = {}
Ask = Callable[[str, float], int]
"""Returns the HTTP status of a request's answer, given its URL and seconds."""


def head(url: str, timeout: float) -> int:
    """Return the HTTP status that a server answers with, by Python's own client and its proxies."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "tutelage"})  # noqa: S310
    try:
        with contextlib.closing(urllib.request.urlopen(request, timeout=timeout)) as response:  # noqa: S310
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def why_unreachable(url: str, *, ask: Ask = head, limit: float = LIMIT) -> str | None:
    """Return why a server does not answer, in a few words, or ``None`` if it does, be it with a refusal.

    Args:
        url: what to ask for, by http or https.
        ask: makes the request, as the library does that will be called.
        limit: seconds.
    """
    host = urlsplit(url).netloc.rpartition("@")[2]
    since, why = _silent.get(host, (float("-inf"), ""))
    if time.monotonic() - since < REMEMBERED:
        return why
    # In a thread, as the lookup of a name has no time limit.
    answer: queue.Queue[int | Exception] = queue.Queue()
    threading.Thread(target=_asked, args=(ask, url, limit, answer), daemon=True).start()
    try:
        status = answer.get(timeout=limit)
    except queue.Empty:
        status = TimeoutError()
    if isinstance(status, Exception):
        why = _reason(status, host, limit)
    elif status in AWAY:
        why = f"{host} answers {status}, {AWAY[status] or http.client.responses[status]}"
    else:
        why = ""
    if why:
        _silent[host] = time.monotonic(), why
    return why or None


def _asked(ask: Ask, url: str, limit: float, answer: queue.Queue[int | Exception]) -> None:
    try:
        answer.put(ask(url, limit))
    except Exception as error:  # noqa: BLE001  whatever a library raises where a server is away
        answer.put(error)


def _reason(error: BaseException, host: str, limit: float) -> str:
    """Say why there is no answer; the empty text for one that cannot be trusted, of which the library may know more."""
    below: BaseException | None = error
    chain: list[BaseException] = []
    while below is not None and below not in chain:
        chain.append(below)
        reason = getattr(below, "reason", None)  # of urllib's errors
        below = reason if isinstance(reason, BaseException) else below.__cause__ or below.__context__
    for cause in chain:
        if isinstance(cause, ssl.SSLError):
            return ""
        if isinstance(cause, socket.gaierror):
            return f"the name {host} cannot be resolved, as without a network"
        if isinstance(cause, ConnectionRefusedError):
            return f"{host} refuses the connection"
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return f"{host} does not answer within {limit:g} s"
    last = chain[-1]
    if "roxy" in type(error).__name__ or "Tunnel" in str(last):
        return f"the proxy refuses {host}: {one_line(last)}"
    return f"{host}: {one_line(last)}"


@contextlib.contextmanager
def no_endless_waits() -> Iterator[None]:
    """Let no connection that is opened within wait longer than `SILENCE`, for libraries that set no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
