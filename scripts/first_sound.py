"""How long a person waits: from pressing the button in a browser to the first sound and picture of the shipped model.

    python scripts/first_sound.py --runs 3

starts `streamchar serve` (or uses `--link`) and a headless Chromium, types a text, presses Speak as a mouse does, and
prints one JSON object: for each run the seconds from the press to each step on the way, on the page's own clock.
`playing` is the video element's first moving picture, `sound` the first audible sample that came out of it. Each run
reloads the page. Exit code 1 if the median of either is beyond `--within`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from tab import Tab, browser, until

from streamchar.errors import ConfigError, InputError, StreamCharError

AUDIBLE = 0.02
"""Of full scale; listening is silent to the last bit."""

MARKS = """
window.marks = {};
window.mark = (name) => { if (window.marks[name] === undefined) window.marks[name] = performance.now(); };
const Plain = window.WebSocket;
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given); mark("connecting");
    this.addEventListener("open", () => mark("connected"));
    this.addEventListener("message", (message) => {
      if (typeof message.data !== "string") return mark("piece");
      const event = JSON.parse(message.data);
      return mark(event.type === "chunk" ? event.kind : event.type);
    });
  }
};"""
LISTEN = """
(() => { const video = document.getElementById("video"); const audio = new AudioContext();
  const meter = audio.createAnalyser(); meter.fftSize = 1024;
  audio.createMediaElementSource(video).connect(meter); meter.connect(audio.destination);
  const data = new Float32Array(meter.fftSize);
  video.addEventListener("playing", () => mark("playing"));
  video.addEventListener("timeupdate", () => { if (video.currentTime > 0) mark("moving"); });
  setInterval(() => { meter.getFloatTimeDomainData(data);
    if (data.some((x) => Math.abs(x) > AUDIBLE)) mark("sound"); }, 10);
  document.getElementById("speak").addEventListener("click", () => mark("press"), { capture: true });
})()""".replace("AUDIBLE", str(AUDIBLE))
STEPS = ("connected", "ready", "listening", "speech", "piece", "playing", "moving", "sound")


@contextlib.contextmanager
def server(model: str, folder: Path) -> Iterator[str]:
    """A server of its own; its link. Raises `ConfigError` if it does not start."""
    command = [sys.executable, "-m", "streamchar", "serve", "--model", model, "--port", "0", "--snapshots", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            if len(words) < 4:
                raise ConfigError("`streamchar serve` ended before it served; its own message is above")
            yield words[3]
        finally:
            process.terminate()


def warmed(link: str) -> Callable[[], bool]:
    def asked() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(urljoin(link, "readyz"), timeout=60) as answer:
            return answer.status == 200
        return False

    return asked


def press_once(tab: Tab, link: str, text: str) -> dict[str, float]:
    """Seconds from the press to each step."""
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=link)
    until(lambda: tab.run("Boolean(document.getElementById('speak') && !document.getElementById('speak').disabled)"),
          "the page to load")  # fmt: skip
    until(lambda: tab.run("document.getElementById('poster').complete"), "the character's picture")
    tab.run(LISTEN)
    tab.type("text", text)
    time.sleep(1.0)  # the page is at rest
    tab.click("speak")
    until(lambda: tab.run("marks.sound !== undefined || !document.getElementById('error').hidden"), "a sound")
    marks = tab.run("marks")
    if "sound" not in marks:
        raise ConfigError(f"the page says: {tab.run('document.getElementById(`error`).textContent').strip()}")
    tab.run("document.getElementById('end').click()")
    return {name: round((marks[name] - marks["press"]) / 1000, 3) for name in STEPS if name in marks}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        link = given.link or held.enter_context(server(given.model, folder / "live"))
        until(warmed(link), "the server to be warm")
        tab = held.enter_context(browser(folder / "browser"))
        tab.call("Page.enable")
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=MARKS)
        runs = [press_once(tab, link, given.text) for _ in range(given.runs)]
    medians = {name: statistics.median(run[name] for run in runs) for name in ("playing", "sound")}
    return {"text": given.text, "cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "runs": runs,
            "median": medians}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--text", default="Hello there, how are you today?")
    parser.add_argument("--model", default="toon", help="for the server that is started")
    parser.add_argument("--link", help="a running server's link; else one is started")
    parser.add_argument("--within", type=float, default=1.5, help="seconds that a person may wait")
    given = parser.parse_args()
    try:
        if given.runs < 1:
            raise InputError(f"--runs must be at least 1, got {given.runs}")
        figures = measure(given)
    except StreamCharError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=1))
    return int(max(figures["median"].values()) > given.within)


if __name__ == "__main__":
    sys.exit(main())
