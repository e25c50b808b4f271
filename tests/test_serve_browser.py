"""The page in a headless browser, end to end with the mock: it plays, follows, appends, interrupts and comes back.

Driven over the browser's own debugging protocol. Skipped where no Chromium is installed; with STREAMCHAR_SHOTS set to
a folder, screenshots are left there.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serving import until

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
client = pytest.importorskip("websockets.sync.client")

from test_serve_app import House  # noqa: E402 - it needs the packages above

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium"), pytest.mark.timeout(400)]
PATIENCE = 120.0


class Page:
    """One tab over the debugging protocol."""

    def __init__(self, folder: Path) -> None:
        assert BROWSER is not None
        self.process = subprocess.Popen(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--mute-audio",
                f"--user-data-dir={folder}", "--autoplay-policy=no-user-gesture-required", "--window-size=1280,860",
                "--disable-dev-shm-usage", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port_file = folder / "DevToolsActivePort"
        until(lambda: port_file.exists() and len(port_file.read_text().splitlines()) > 1, PATIENCE)
        port = port_file.read_text().splitlines()[0]
        until(lambda: self._tabs(port), PATIENCE)
        self._held = contextlib.ExitStack()
        opening = client.connect(self._tabs(port)[0], max_size=1 << 27, proxy=None, ping_interval=None)
        self._socket = self._held.enter_context(opening)
        self._ids = itertools.count(1)

    def _tabs(self, port: str) -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
            return [tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page"]

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def shot(self, name: str) -> None:
        folder = os.environ.get("STREAMCHAR_SHOTS")
        if folder:
            data = self.call("Page.captureScreenshot", format="png")["data"]
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def say(self, text: str) -> None:
        self.run("document.getElementById('text').focus()")
        self.call("Input.insertText", text=text)
        self.press("Enter", 13)

    def close(self) -> None:
        self._held.close()
        self.process.terminate()
        self.process.wait(timeout=30)


LISTEN = """
(() => { const audio = new AudioContext(); const meter = audio.createAnalyser();
  const from = audio.createMediaElementSource(document.getElementById('video'));
  from.connect(meter); meter.connect(audio.destination); window.loudest = 0; window.captions = '';
  const data = new Float32Array(meter.fftSize);
  setInterval(() => { window.captions += document.getElementById('caption').textContent + '|'; }, 50);
  setInterval(() => { meter.getFloatTimeDomainData(data); for (const x of data) window.loudest = Math.max(window.loudest, Math.abs(x)); }, 40);
})()"""  # noqa: E501
TIME = "document.getElementById('video').currentTime"


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path / "vault", speed=20)
    yield made
    made.close()


@pytest.fixture
def page(tmp_path):
    made = Page(tmp_path / "browser")
    yield made
    made.close()


def test_the_page_speaks_follows_appends_and_interrupts(house, page):
    page.call("Page.navigate", url=house.link)
    until(lambda: page.run("document.getElementById('speak') && !document.getElementById('speak').disabled"), PATIENCE)
    until(lambda: page.run("document.getElementById('poster').complete"), PATIENCE)
    page.shot("1-ready")
    page.run(LISTEN)
    page.say("Hello there, how are you today?")
    until(lambda: page.run(f"{TIME} > 1.2"), PATIENCE)
    page.shot("2-speaking")
    page.say("And this was typed while it spoke.")
    until(lambda: page.run("streamchar.times.size") >= 13, PATIENCE)
    last = page.run("streamchar.times.get(12).end")
    until(lambda: page.run(f"{TIME} > {last}"), PATIENCE)
    assert page.run("[...document.querySelectorAll('#words .spoken')].length") == 13
    captions = page.run("window.captions")
    assert "Hello there," in captions and "spoke." in captions, "captions follow"
    assert page.run("window.loudest") > 0.05, "it is not silent"
    assert page.run("document.getElementById('video').buffered.length") == 1, "no gap"
    assert not page.run("document.getElementById('error').textContent.trim().length > 1")
    # interrupt: the words that were not heard are dropped, and it listens on
    page.say("one two three four five six seven eight nine ten " * 3)
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") > 15, PATIENCE)
    page.press("Escape", 27)
    until(lambda: page.run("Boolean(streamchar.interrupted)"), PATIENCE)
    at = page.run(TIME)
    sent = page.run("streamchar.player.end()")
    until(lambda: page.run(f"!streamchar.jumping && {TIME} > {at} + 0.8"), PATIENCE)
    page.shot("3-interrupted")
    assert page.run("document.querySelectorAll('#words .dropped').length") > 5
    assert max(page.run("[...streamchar.times.values()].map(w => w.end)")) <= at + 1.4, "within one chunk"
    assert not page.run("document.getElementById('video').muted")
    until(lambda: page.run(f"{TIME} > {sent} + 0.5"), PATIENCE)  # listening goes on
    assert page.run("streamchar.phase") == "listening"
    size = page.run("streamchar.player.files()[0].size")
    assert size > 20_000, "the take can be kept"


def test_the_page_survives_a_restart_and_fits_a_phone_in_the_dark(house, page):
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.call("Page.navigate", url=house.link)
    until(lambda: page.run("document.getElementById('speak') && !document.getElementById('speak').disabled"), PATIENCE)
    page.say("one two three four five six seven eight nine ten eleven twelve")
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") > 3, PATIENCE)
    for live in list(house.worker.floor.lives.values()):
        house.worker.gone(live)  # the connection breaks
    until(lambda: page.run("streamchar.times.size") == 12, PATIENCE)
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") == 12, PATIENCE)
    page.shot("4-phone")
    assert page.run("streamchar.player.parts.length") == 2, "it was restored"
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert page.run("document.getElementById('error').hidden"), "nothing to complain about"
    times = page.run("[...streamchar.times.values()].map(w => w.start)")
    assert times == sorted(times)
