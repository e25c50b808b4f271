"""One tab of a headless Chromium, driven over the browser's own debugging protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamchar.errors import ConfigError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 300.0


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for it. Raises `ConfigError`."""
    limit = time.monotonic() + seconds
    while not (got := true()):
        if time.monotonic() > limit:
            raise ConfigError(f"expected {what} within {seconds:g} s; is the machine busy with something else?")
        time.sleep(0.05)
    return got


class Tab:
    """One tab of a headless Chromium, over its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._ids = socket, itertools.count(1)

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                if "error" in answer:
                    raise ConfigError(f"the browser refuses {method}: {answer['error'].get('message')}")
                return answer["result"]

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise ConfigError(f"the page fails: {result['exceptionDetails'].get('text')}")
        return result["result"].get("value")

    def shot(self) -> bytes:
        """What the tab shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def type(self, name: str, text: str) -> None:
        """Text into an element, as from a keyboard."""
        self.run(f"document.getElementById('{name}').focus()")
        self.call("Input.insertText", text=text)

    def key(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def click(self, name: str) -> None:
        """Click on an element's middle."""
        box = self.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
                       f"(document.getElementById('{name}').getBoundingClientRect())")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)


def installed() -> str | None:
    """The browser's program, if there is one."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A tab of a fresh browser. Raises `ConfigError` if there is none."""
    from websockets.sync.client import connect

    program = installed()
    if program is None:
        raise ConfigError(f"this needs one of {', '.join(BROWSERS)} on the PATH, found none; install Chromium")
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--mute-audio",
        f"--user-data-dir={folder}", "--window-size=1280,860", "--disable-dev-shm-usage",
        "--autoplay-policy=no-user-gesture-required", "about:blank",
    ]  # fmt: skip
    told = folder / "DevToolsActivePort"

    def page() -> str | None:
        if not told.exists() or len(told.read_text().splitlines()) < 2:
            return None
        with urllib.request.urlopen(f"http://127.0.0.1:{told.read_text().splitlines()[0]}/json", timeout=60) as answer:
            return next((tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page"), None)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = until(page, "the browser to start")
            with connect(address, max_size=1 << 27, proxy=None, ping_interval=None) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
