"""Headless Chromium for tests of pages, driven over its devtools pipe, without any package."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """Path of a Chromium or Chrome on this machine, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    return None


class Chromium:
    """One browser process with one page; use as a context manager.

    Attributes:
      requests: addresses the page has asked for, data: addresses left out.
      errors: console errors and warnings, uncaught exceptions, blocked content.
    """

    def __init__(self, profile: pathlib.Path):
        """Start the browser with an empty profile directory."""
        # The browser reads commands from descriptor 3 and writes replies to 4; the shell moves our
        # pipes there.
        move = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'
        command = [find(), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["sh", "-c", move, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._read = self._process.stdout.fileno()
        self._buffer, self._next_id, self._session = b"", 0, None
        self._events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.errors: list[str] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(info["targetId"] for info in pages if info["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *unused):
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close")
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Run one devtools method and return its result; events that arrive meanwhile are kept."""
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while True:
            reply = self._message(timeout=60)
            if reply.get("id") == self._next_id:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self._event(reply)

    def _message(self, timeout: float) -> dict[str, Any]:
        """The next message of the browser."""
        deadline = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError(
                    f"Chromium is silent or gone (exit status {self._process.poll()})"
                )
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _event(self, event: dict[str, Any]):
        """Remember requests, errors, and the event itself."""
        method, params = event.get("method", ""), event.get("params", {})
        self._events.append(event)
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", details).get("description", str(details)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(
                str([arg.get("value", arg.get("description")) for arg in params["args"]])
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])

    def open(self, path: pathlib.Path):
        """Load a local file and wait until it is complete."""
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._event(self._message(timeout=60))
        self._events.clear()

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; promises are awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def window(self, width: int, height: int = 800, *, mobile: bool = False, scale: float = 1.0):
        """Set the size of the window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )
        self.evaluate("new Promise(done => setTimeout(done, 250))")

    def media(self, *, scheme: str = "light", kind: str = ""):
        """Emulate a colour scheme and a media type ("print" or "" for the screen)."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[feature])

    def _middle(self, selector: str, x: float, y: float) -> tuple[float, float]:
        """A point inside an element that is scrolled into sight, x and y as shares of its size."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def point(self, selector: str, x: float = 0.5, y: float = 0.5):
        """Move the pointer onto an element."""
        px, py = self._middle(selector, x, y)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=px, y=py)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5):
        """Click an element with the mouse."""
        px, py = self._middle(selector, x, y)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=px, y=py, button="left", clickCount=1
            )

    def screenshot(self, *, full: bool = True) -> bytes:
        """PNG of the whole page, or of the window."""
        reply = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        return base64.b64decode(reply["data"])

    def pdf(self) -> bytes:
        """The page as printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])
