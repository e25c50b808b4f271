"""The engine on the mock: words in order, interrupts, admission, slow and gone clients, pace."""

from __future__ import annotations

import io
import time

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import TEXT, Seat, until, worker

from streamchar import clock
from streamchar.serve import device, finisher
from streamchar.serve.admission import Admission
from streamchar.serve.outbox import MAX_PIECES
from streamchar.serve.pace import Pace
from streamchar.serve.protocol import (
    Interrupt,
    Pause,
    Playhead,
    ProtocolError,
    Resume,
    Say,
    Snapshot,
    Start,
    Stop,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = worker(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


def test_a_take_is_one_file_with_every_word(engine):
    seat = Seat(engine, once=True)
    stopped = seat.wait("stopped")
    assert stopped.reason == "finished" and stopped.frames == seat.frames
    words = seat.of("spoken")
    assert [word.text for word in words] == TEXT.split()
    assert [word.index for word in words] == list(range(12))
    assert all(a.end <= b.start + 1e-6 for a, b in zip(words, words[1:], strict=False))
    with av.open(io.BytesIO(seat.bytes)) as movie:
        assert sum(1 for _ in movie.decode(video=0)) == seat.frames
    with av.open(io.BytesIO(seat.bytes)) as movie:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in movie.decode(audio=0)])
    first, last = (int(t * 48_000) for t in (words[0].start, words[0].end))
    assert np.abs(sound[first + 2400 : last - 4800]).max() > 0.1, "a word sounds"
    assert np.abs(sound[int(words[-1].end * 48_000) + 4800 :]).max() < 0.01, "and after the last one it is still"


def test_appended_text_is_spoken_and_then_it_listens(engine):
    seat = Seat(engine, Start(text="one two"))
    said = seat.wait("said")
    assert (said.first, said.words) == (0, ("one", "two"))
    seat.send(Say(text="three four", id=9))
    said = seat.wait("said", 2)
    assert (said.id, said.first, said.words) == (9, 2, ("three", "four"))
    idle = seat.wait("idle")
    assert [word.text for word in seat.of("spoken")] == ["one", "two", "three", "four"]
    until(lambda: [e for e in seat.of("chunk") if e.kind == "listening" and e.frames >= idle.frames])
    starts = [event.frames for event in seat.of("chunk")]
    counts = [event.count for event in seat.of("chunk")]
    assert starts == [sum(counts[:i]) for i in range(len(counts))], "no gap and no overlap"
    seat.send(Stop())
    assert seat.wait("stopped").reason == "asked"


def test_an_interrupt_stops_within_one_chunk_and_reports_what_was_heard(engine):
    seat = Seat(engine, Start(text=TEXT * 5))
    word = seat.wait("spoken", 4)
    seat.send(Interrupt(at=word.end))
    before = len([e for e in seat.of("chunk") if e.kind == "speech"])
    cut = seat.wait("interrupted")
    assert cut.spoken == word.index + 1 and cut.dropped == len(seat.of("said")[0].words) - cut.spoken
    assert cut.text.split()[-1] == word.text
    time.sleep(0.3)
    after = [e for e in seat.of("chunk") if e.kind == "speech"]
    assert len(after) <= before + 1
    seat.send(Say(text="again"))
    said = seat.wait("said", 2)
    assert said.first == cut.spoken + cut.dropped, "indices are never used twice"
    until(lambda: seat.of("spoken")[-1].text == "again")
    assert seat.of("spoken")[-1].index == said.first
    engine.gone(seat.live)


def test_nothing_of_an_interrupted_text_is_made_before_the_device_knows(tmp_path):
    """Interrupt and a new text come while the device is busy with another session: both wait in its orders."""
    engine = worker(tmp_path, start=False)
    seat = Seat(engine, Start(text=TEXT))
    assert device.step(engine.floor), "it has made a chunk"
    seat.send(Interrupt())
    seat.send(Say(text="again"))
    assert seat.live.machine.phase == "speaking" and not seat.live.wants_speech()
    for _ in range(20):
        device.step(engine.floor)
        finisher.step(engine.floor)
    assert [word.text for word in seat.of("spoken")] == ["again"]
    engine.close()


def test_a_pause_produces_nothing_until_it_is_resumed(engine):
    seat = Seat(engine, Start(text=TEXT * 3))
    seat.wait("spoken")
    seat.send(Pause())
    time.sleep(0.1)
    until(lambda: seat.live.in_flight == len(seat.live.held))  # what was being made comes out still, or is kept back
    frames = (seat.read(), seat.frames)[1]
    time.sleep(0.3)
    assert (seat.read(), seat.frames)[1] == frames
    seat.send(Resume())
    until(lambda: (seat.read(), seat.frames)[1] > frames)
    engine.gone(seat.live)


def test_production_keeps_a_lead_and_no_more(engine):
    seat = Seat(engine, Start(text=TEXT * 20))
    seat.send(Playhead(at=0.0)) if seat.wait("ready") else None
    for _ in range(20):
        seat.send(Playhead(at=0.0))
        time.sleep(0.02)
    seat.read()
    extra = seat.live.pace.extra  # such a player, which stands though it has pictures, is given more
    assert extra <= 3 and seat.frames / 24 <= 0.6 + 1.5 + extra + 2 * float(clock.CHUNK_SECONDS)
    engine.gone(seat.live)


def test_what_cannot_be_spoken_is_an_error_and_the_session_goes_on(engine):
    seat = Seat(engine, Start())
    seat.wait("ready")
    seat.send(Say(text="..."))
    error = seat.wait("error")
    assert error.code == "bad-input" and "at least one word" in error.message and not error.fatal
    with pytest.raises(ProtocolError, match="characters, got") as caught:
        seat.send(Say(text="a" * 6000))
    assert caught.value.code == "too-long"
    until(lambda: seat.live.machine.phase == "listening")
    seat.send(Say(text="fine"))
    until(lambda: seat.of("spoken"))
    engine.gone(seat.live)
    bad = Seat(engine, Start(picture="!!"))
    assert bad.wait("error").fatal and "not base64" in bad.of("error")[0].message
    until(lambda: bad.live.id not in engine.floor.lives)


# -- who may play ----------------------------------------------------------------------------------


def test_admission_follows_the_measured_speed():
    line = Admission(limit=8, queue=2)
    line.request("a")
    assert line.capacity == 1 and line.admit() == ["a"]
    line.observe(0.5)
    assert line.capacity == 2, "0.85 * 1.375 / 0.5"
    for name in "bcd":
        if name != "d":
            line.request(name)
    assert line.admit() == ["b"] and line.place("c") == 1
    for _ in range(50):
        line.observe(3.0)
    assert line.capacity == 1, "one is let in however slow it is"
    line.request("d")
    with pytest.raises(ProtocolError, match="2 are waiting") as caught:
        line.request("e")
    assert caught.value.code == "busy"
    line.release("a")
    line.release("b")
    assert line.admit() == ["c"] and line.place("d") == 1


def test_a_session_too_many_waits_and_is_told_its_place(tmp_path):
    engine = worker(tmp_path, sessions=1)
    first, second, third = (Seat(engine, Start(text="hello")) for _ in range(3))
    first.wait("idle")
    assert [e.place for e in second.of("queued")] == [1] and [e.place for e in third.of("queued")] == [2]
    assert not second.of("ready")
    third.send(Say(text="while waiting"))
    engine.gone(first.live)
    second.wait("ready")
    assert third.wait("queued", 2).place == 1
    engine.gone(second.live)
    until(lambda: len(third.of("spoken")) == 3)
    assert [word.text for word in third.of("spoken")] == ["hello", "while", "waiting"]
    engine.close()


def test_a_slow_client_is_paused_parked_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "STUCK_SECONDS", 0.2)
    engine = worker(tmp_path, sessions=1)
    slow = Seat(engine, Start(text=TEXT * 3), once=True)
    until(lambda: slow.live.outbox.pieces >= MAX_PIECES)
    other = Seat(engine, Start(text="hello"))
    other.wait("idle")  # the slow one has given its place away
    assert slow.live.outbox.pieces <= MAX_PIECES + 2
    engine.gone(other.live)
    until(lambda: len(slow.of("spoken")) == 36)
    assert [word.index for word in slow.of("spoken")] == list(range(36)), "it loses nothing"
    engine.close()


def test_who_never_reads_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "DROP_SECONDS", 0.3)
    engine = worker(tmp_path)
    seat = Seat(engine, Start(text=TEXT * 10), once=True)
    until(lambda: engine.sessions == 0)
    assert seat.live.outbox.closed and seat.live.muxer is None
    engine.close()


def test_a_gone_client_frees_its_session_at_once(engine):
    seat = Seat(engine, Start(text=TEXT * 5))
    seat.wait("spoken")
    engine.gone(seat.live)
    assert until(lambda: seat.live.id not in engine.floor.lives) < 2
    assert seat.live.actor is None and seat.live.muxer is None


# -- clocks, pace, noise ---------------------------------------------------------------------------


def test_pace_is_the_wall_clock_until_the_player_reports():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.deliver(48)
    now[0] = 0.5
    assert pace.lead() == pytest.approx(1.5)
    now[0] = 9.0
    assert pace.lead() == 0, "a player does not play what it has not"
    pace.deliver(24)
    pace.report(2.0)
    now[0] = 9.25
    assert pace.position() == pytest.approx(2.25) and not pace.silent
    now[0] = 20.0
    assert pace.silent


step = st.one_of(
    st.builds(Say, text=st.sampled_from(["one two three", "...", "x" * 6000, ""])), st.builds(Interrupt),
    st.builds(Pause), st.builds(Resume), st.builds(Snapshot), st.builds(Playhead, at=st.floats(0, 5)), st.builds(Stop),
    st.builds(Start), st.just(None),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=8), st.booleans())
def test_the_engine_survives_any_conversation(engine, steps, talkative):
    seat = Seat(engine, Start(text="hello there" if talkative else ""))
    for message in steps:
        try:
            time.sleep(0.005) if message is None else seat.send(message)
        except ProtocolError as error:
            assert error.code in ("illegal", "bad-input", "too-long") and error.message
    assert not [e for e in seat.of("error") if e.code == "internal"]
    assert not engine.floor.failure
    engine.gone(seat.live)
    until(lambda: seat.live.id not in engine.floor.lives)
    assert engine.floor.metrics.failed.value == 0


def test_a_player_that_ran_dry_is_given_more():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.deliver(24)
    for _ in range(4):
        now[0] += 0.5
        pace.report(0.2)
    assert pace.extra == pytest.approx(1.2)
    pace.hold(True)
    pace.report(0.2)
    assert pace.extra == pytest.approx(1.2), "a pause is not that"


def test_room_follows_the_work_at_hand():
    """Ten play and the thread that finishes is busy all the time: no room, whatever one chunk costs by itself."""
    line = Admission(limit=100, queue=100)
    line.observe(0.025)
    assert line.capacity == 46
    for name in range(10):
        line.request(str(name))
    assert [line.admit() for _ in range(11)] == [[str(name)] for name in range(10)] + [[]], "one at a time"
    for _ in range(100):
        line.threads["finish"].add(0.1, 0.1)
    assert line.threads["finish"].share > 0.85 and line.capacity < 10
    for _ in range(200):
        line.threads["finish"].add(0.06, 0.1)
    assert line.threads["finish"].share == pytest.approx(0.6, abs=0.02) and line.capacity == 14
    for _ in range(200):
        line.threads["finish"].add(0.01, 0.1)
    assert line.capacity == 46, "newcomers' haste is over"
