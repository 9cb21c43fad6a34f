"""Chromium, told over a pipe what to open and what to look at (its DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
TALLEST = 16_000
"""Pixels; a taller picture is cut."""

CUT = """(() => {
  // The whole page's column may scroll too, but what is wider is to scroll by itself.
  const scrolls = (e) =>
    e && !e.matches(".content") && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const cut = [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.left < innerWidth && box.right > innerWidth + 1 && e.checkVisibility({ visibilityProperty: true })
      && !scrolls(e);
  });
  return cut.map((e) => `<${e.localName} class="${e.className}"> ${e.textContent.trim().slice(0, 40)}`);
})()"""


class Tab:
    """A page of a browser. It asks nobody for anything: every other host is unknown to it."""

    def __init__(self, reads: BufferedReader, writes: BufferedWriter) -> None:
        self._in, self._out, self._last = reads, writes, 0
        self._waiting = b""
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            read = self._in.read1(1 << 20)
            assert read, "the browser ended"
            self._waiting += read
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._out.write(
            json.dumps({"id": self._last, "method": method, "params": params, **self._session}).encode() + b"\0"
        )
        self._out.flush()
        while (message := self._message()).get("id") != self._last:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def look(self, width: int, height: int = 900, *, dark: bool = False, media: str = "screen") -> None:
        """Set the window's size, and what the reader prefers."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def open(self, page: Path | str) -> None:
        self.events.clear()
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def run(self, script: str) -> Any:
        """The value of a script's last expression, which may be a promise."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def photograph(self, file: Path) -> None:
        """Write the whole page as a picture."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], TALLEST), "scale": 1}
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    def cut(self) -> list[str]:
        """The texts of what begins in the window and ends beyond it, where nothing scrolls."""
        return self.run(CUT)

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and what it asked other hosts for."""
        found = [json.dumps(each["params"]) for each in self.events if each.get("method") == "Runtime.exceptionThrown"]
        found += [each["params"]["entry"]["text"] for each in self.events if each.get("method") == "Log.entryAdded"]
        asked = [
            each["params"]["request"]["url"]
            for each in self.events
            if each.get("method") == "Network.requestWillBeSent"
        ]
        return found + [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a browser of its own, with an empty profile."""
    assert BROWSER, "no chromium, chromium-browser or google-chrome on the path"
    pipes = [os.pipe(), os.pipe()]
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (pipes[0][0], pipes[1][1])]

    def at_3_and_4() -> None:
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command, preexec_fn=at_3_and_4, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (pipes[0][0], pipes[1][1], *theirs):
            os.close(fd)
        try:
            with os.fdopen(pipes[1][0], "rb") as reads, os.fdopen(pipes[0][1], "wb") as writes:
                yield Tab(reads, writes)
        finally:
            process.terminate()
            process.wait(30)
