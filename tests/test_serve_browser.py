"""The page in a headless browser, end to end with the mock: it plays, follows, appends, interrupts and comes back.

Driven over the browser's own debugging protocol. Skipped where no Chromium is installed; with STREAMCHAR_SHOTS set to
a folder, screenshots are left there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serving import until

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets.sync.client")

from tab import Tab, browser, installed
from test_serve_app import House

pytestmark = [pytest.mark.skipif(installed() is None, reason="no Chromium"), pytest.mark.timeout(400)]
PATIENCE = 120.0


def shoot(page: Tab, name: str) -> None:
    folder = os.environ.get("STREAMCHAR_SHOTS")
    if folder:
        (Path(folder) / f"{name}.png").write_bytes(page.shot())


def say(page: Tab, text: str) -> None:
    page.type("text", text)
    page.key("Enter", 13)


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
    with browser(tmp_path / "browser") as tab:
        yield tab


def test_the_page_speaks_follows_appends_and_interrupts(house, page):
    page.call("Page.navigate", url=house.link)
    until(lambda: page.run("document.getElementById('speak') && !document.getElementById('speak').disabled"), PATIENCE)
    until(lambda: page.run("document.getElementById('poster').complete"), PATIENCE)
    shoot(page, "1-ready")
    page.run(LISTEN)
    say(page, "Hello there, how are you today?")
    until(lambda: page.run(f"{TIME} > 1.2"), PATIENCE)
    shoot(page, "2-speaking")
    say(page, "And this was typed while it spoke.")
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
    say(page, "one two three four five six seven eight nine ten " * 3)
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") > 15, PATIENCE)
    page.key("Escape", 27)
    until(lambda: page.run("Boolean(streamchar.interrupted)"), PATIENCE)
    at = page.run(TIME)
    sent = page.run("streamchar.player.end()")
    until(lambda: page.run(f"!streamchar.jumping && {TIME} > {at} + 0.8"), PATIENCE)
    shoot(page, "3-interrupted")
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
    say(page, "one two three four five six seven eight nine ten eleven twelve")
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") > 3, PATIENCE)
    for live in list(house.worker.floor.lives.values()):
        house.worker.gone(live)  # the connection breaks
    until(lambda: page.run("streamchar.times.size") == 12, PATIENCE)
    until(lambda: page.run("document.querySelectorAll('#words .spoken').length") == 12, PATIENCE)
    shoot(page, "4-phone")
    assert page.run("streamchar.player.parts.length") == 2, "it was restored"
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert page.run("document.getElementById('error').hidden"), "nothing to complain about"
    times = page.run("[...streamchar.times.values()].map(w => w.start)")
    assert times == sorted(times)
