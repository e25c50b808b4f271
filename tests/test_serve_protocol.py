"""The protocol and the session machine: round trips, every refusal typed, and a thousand random conversations."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamchar.serve.machine import LEGAL, Machine
from streamchar.serve.protocol import (
    EVENTS,
    MESSAGES,
    ProtocolError,
    Said,
    Say,
    Start,
    dump,
    parse_event,
    parse_message,
)

EXAMPLES = {
    "start": {}, "say": {"text": "hello"}, "restore": {"session": "0" * 32}, "playhead": {"at": 1.5},
    "interrupt": {"at": 2}, "pause": {}, "resume": {}, "snapshot": {}, "stop": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_messages_survive_the_wire(kind):
    message = MESSAGES[kind](**EXAMPLES[kind])
    assert parse_message(dump(message)) == message


def test_events_survive_the_wire():
    event = Said(id=3, first=7, words=("a", "ü"))
    assert parse_event(dump(event)) == event
    assert len(EVENTS) == 14


@pytest.mark.parametrize(
    ("text", "code", "about"),
    [
        ("{", "bad-message", "not JSON"),
        ("[]", "bad-message", "expected a JSON object, got list"),
        ("{}", "bad-message", "unknown message type None"),
        ('{"type": "sya"}', "bad-message", "did you mean 'say'"),
        ('{"type": "say"}', "bad-message", "say needs text"),
        ('{"type": "say", "text": 3}', "bad-message", "say.text must be a JSON string, got 3"),
        ('{"type": "say", "text": "a", "txet": 1}', "bad-message", "did you mean 'text'"),
        ('{"type": "start", "seed": true}', "bad-message", "start.seed must be a JSON whole number"),
        ('{"type": "start", "seed": 1e400}', "bad-message", "start.seed"),
        ('{"type": "playhead", "at": NaN}', "bad-message", "NaN"),
        ('{"type": "start", "protocol": 2}', "unsupported-version", "speaks protocol 1, got 2"),
        ("[" * 100_000, "bad-message", "not JSON"),
    ],
)
def test_a_bad_message_says_what_is_wrong(text, code, about):
    with pytest.raises(ProtocolError) as caught:
        parse_message(text)
    assert caught.value.code == code
    assert about in str(caught.value)


def test_an_illegal_message_names_the_legal_ones():
    with pytest.raises(ProtocolError, match="resume is not possible while listening; possible: say, i") as caught:
        Machine(phase="listening").take("resume")
    assert caught.value.code == "illegal" and caught.value.legal == LEGAL["listening"]
    with pytest.raises(ProtocolError, match="possible: nothing"):
        Machine(phase="closed").take("say")


def test_pausing_returns_to_where_it_was():
    speaking = Machine().take("start").admitted(speaking=True)
    paused = speaking.take("pause")
    assert paused.name == "paused" and paused.take("resume") == speaking
    assert paused.take("interrupt").take("resume") == Machine(phase="listening")
    assert paused.spoken().take("resume").phase == "listening"


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*MESSAGES, "+admitted", "+spoken"]), max_size=12))
def test_any_sequence_is_legal_or_a_typed_error(sequence):
    machine = Machine()
    for step in sequence:
        before = machine
        if step.startswith("+"):
            machine = machine.admitted(speaking=True) if step == "+admitted" else machine.spoken()
            continue
        try:
            machine = machine.take(step)
            assert step in LEGAL[before.name]
        except ProtocolError as error:
            assert error.code == "illegal" and step not in LEGAL[before.name] and error.legal == LEGAL[before.name]
            assert machine == before, "a refused message changes nothing"
        assert machine.name in LEGAL


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))
names = st.sampled_from(["type", "text", "session", "at", "seed", "character", "frames", "protocol", "id", "x"])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(names, values), st.none() | st.sampled_from(sorted(MESSAGES)))
def test_any_object_is_a_message_or_a_typed_error(fields, kind):
    if kind:
        fields["type"] = kind
    try:
        message = parse_message(json.dumps(fields))
    except ProtocolError as error:
        assert error.code in ("bad-message", "unsupported-version") and error.message
    else:
        assert parse_message(dump(message)) == message


def test_defaults_are_a_whole_start():
    assert parse_message('{"type": "start"}') == Start()
    assert parse_message(b'{"type": "say", "text": "x"}') == Say(text="x")
