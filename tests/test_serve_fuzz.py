"""Random conversations as they come over the wire, garbage included: nothing crashes, every refusal is typed, and the
session is free afterwards. A thousand with STREAMCHAR_LONG=1."""

from __future__ import annotations

import asyncio
import json
import os
import typing
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import until, worker
from starlette.websockets import WebSocketState

from streamchar.serve.conversation import converse
from streamchar.serve.machine import LEGAL
from streamchar.serve.protocol import MESSAGES, Code, Error, parse_event

CODES = typing.get_args(Code)
EXAMPLES = 1000 if os.environ.get("STREAMCHAR_LONG") else 40


class Wire:
    """A WebSocket whose client says its lines, waits a little before each, and is gone."""

    def __init__(self, lines: list[tuple[str | bytes, float]]) -> None:
        self.lines = list(lines)
        self.client = SimpleNamespace(host="127.0.0.1")
        self.application_state = WebSocketState.CONNECTED
        self.events, self.size = [], 0

    async def receive(self) -> dict[str, typing.Any]:
        if not self.lines:
            return {"type": "websocket.disconnect", "code": 1006}
        line, pause = self.lines.pop(0)
        await asyncio.sleep(pause)
        return {"type": "websocket.receive", "text" if isinstance(line, str) else "bytes": line}

    async def send_text(self, text: str) -> None:
        self.events.append(parse_event(text))

    async def send_bytes(self, data: bytes) -> None:
        assert self.events, "pieces come after ready"
        self.size += len(data)

    async def close(self, code: int) -> None:
        self.application_state = WebSocketState.DISCONNECTED


def message(kind: str, **fields: typing.Any) -> str:
    return json.dumps({"type": kind, **fields})


numbers = st.one_of(st.integers(-5, 5), st.sampled_from([2**53, 2**53 + 1, -1e9, 1e308, 0.5]))
texts = st.sampled_from(["hello", "one two three", "...", "", "\x00", "\ud800", "x" * 6000, "ü" * 9, "a\u202eb"])
start = st.builds(
    lambda **fields: message("start", **fields),
    text=texts, character=numbers, voice=numbers, seed=numbers, prompt=texts,
    picture=st.sampled_from(["", "", "!!", "aGVsbG8="]), recording=st.sampled_from(["", "", "AAAA"]),
)  # fmt: skip
line = st.one_of(
    st.just(message("start", text="hello there")),
    start,
    st.builds(lambda text, id: message("say", text=text, id=id), texts, numbers),
    st.builds(lambda at: message("interrupt", at=at), numbers),
    st.builds(lambda at: message("playhead", at=at), numbers),
    st.sampled_from([message(kind) for kind in MESSAGES]),
    st.builds(lambda frames: message("restore", session="0" * 32, frames=frames), numbers),
    st.sampled_from(["", "{", "[]", '{"type": 3}', '{"type": "x"}', "[" * 5000, "y" * 70_000, b"\x00\xff", b""]),
    st.text(max_size=20),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = worker(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(line, st.sampled_from([0.0, 0.0, 0.002, 0.02])), max_size=14), st.booleans())
@pytest.mark.timeout(3600)
def test_any_conversation_ends_well(engine, lines, begun):
    wire = Wire([(message("start", text="hello there"), 0.0)] * begun + lines)
    asyncio.run(asyncio.wait_for(converse(wire, engine), 300))  # type: ignore[arg-type]
    for event in wire.events:
        if isinstance(event, Error):
            assert event.code in CODES and event.code != "internal" and event.message
            assert event.code != "illegal" or event.legal in LEGAL.values()
    until(lambda: engine.sessions == 0)
    assert not engine.floor.failure and engine.floor.metrics.failed.value == 0
