"""A real process that is killed or ended in mid-speech, and its client that goes on. Long: STREAMCHAR_LONG=1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from streamchar.client import connect
from streamchar.serve.protocol import Idle, Spoken

pytestmark = [
    pytest.mark.skipif(not os.environ.get("STREAMCHAR_LONG"), reason="STREAMCHAR_LONG is not set"),
    pytest.mark.timeout(1500),
]
TEXT = " ".join(f"word{i}" for i in range(24))


def serve(folder) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "streamchar", "serve", "--mock", "--mock-speed", "20", "--port", "0"]
    process = subprocess.Popen([*command, "--snapshots", str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        return process, process.stdout.readline().split()[2 + 1]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_a_client_goes_on_after_the_server_ended(tmp_path, how, code):
    process, link = serve(tmp_path)
    seen, hit = {}, False
    with connect(link, timeout=60) as session:
        session.start(text=TEXT)
        for item in session:
            if isinstance(item, Spoken):
                seen[item.index] = item
            if len(seen) >= 7 and not hit:
                hit = True
                process.send_signal(how)
        name, frames = session.session, session.frames
    assert process.wait(300) == code
    process, link = serve(tmp_path)
    again = {}
    with connect(link, timeout=60) as session:
        session.restore(name, frames)
        for item in session:
            if isinstance(item, Spoken):
                again[item.index] = item
            if isinstance(item, Idle):
                break
    process.terminate()
    assert process.wait(300) == 0
    assert sorted({**seen, **again}) == list(range(24))
    assert all(again[index] == seen[index] for index in again.keys() & seen.keys())
    if how == signal.SIGTERM:
        assert not again.keys() & seen.keys(), "each word once"
