"""A model that is slower than playback: it gets ahead while the character listens, then speaks without a stall."""

from __future__ import annotations

import math
from typing import Any

import pytest
from serving import Seat, until, worker

from streamchar import clock
from streamchar.serve import device, finisher
from streamchar.serve.gather import MOST_SECONDS, WORD_SECONDS, chunks_to_gather, is_slow
from streamchar.serve.protocol import Interrupt, Say, Start, Stop

CHUNK = float(clock.CHUNK_SECONDS)


@pytest.mark.parametrize("factor", [0.35, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("chunks", [1, 2, 5, 9])
def test_what_is_gathered_lasts(chunks, factor):
    """Chunk k is there when it is wanted, and with one chunk less that would not be so."""
    words = int(chunks * CHUNK / WORD_SECONDS)
    whole = math.ceil(words * WORD_SECONDS / CHUNK)
    gathered = chunks_to_gather(words, factor)
    bounded = gathered >= int(MOST_SECONDS * factor / CHUNK)

    def stalls(ahead: int) -> bool:
        made = [k * CHUNK / factor for k in range(1, whole + 1)]
        return any(made[k] > made[ahead - 1] + k * CHUNK + 1e-9 for k in range(whole))

    assert bounded or not stalls(gathered)
    assert gathered == 1 or stalls(gathered - 1)


def test_a_fast_or_unmeasured_model_does_not_wait():
    assert chunks_to_gather(1000, 1.2) == chunks_to_gather(1000, 0.0) == 1
    assert is_slow(1.0) and not is_slow(0.0) and not is_slow(1.5)
    assert chunks_to_gather(100_000, 0.8) * CHUNK / 0.8 <= MOST_SECONDS, "a wait has a bound"


class Slow(Seat):
    """A seat whose server believes that its model is slow; the mock itself is quick, so that the test is."""

    def __init__(self, engine, **options: Any) -> None:
        engine.floor.admission.observe = lambda *seconds: None
        engine.floor.admission.seconds = CHUNK / 0.6
        super().__init__(engine, **options)


def test_it_listens_while_it_gathers_and_then_speaks_in_one_go(tmp_path):
    engine = worker(tmp_path)
    try:
        seat = Slow(engine, start=Start(text="one two three four five six seven eight nine ten"))
        notice = seat.wait("notice")
        assert notice.code == "slow-model" and "makes 0.60 s a second" in notice.message and notice.wait > 2
        seat.wait("idle")
        kinds = [event.kind for event in seat.of("chunk")]
        first = kinds.index("speech")
        spoken = [kind for kind in kinds[first:] if kind == "speech"]
        assert kinds[first : first + len(spoken)] == spoken, "no pause within a short text"
        assert [word.index for word in seat.of("spoken")] == list(range(10))
        assert len(seat.of("notice")) == 1
        seat.send(Stop())
        assert seat.wait("stopped").frames == seat.frames
    finally:
        engine.close()


def test_kept_back_speech_is_forgotten_when_interrupted_and_when_the_client_leaves(tmp_path):
    engine = worker(tmp_path, start=False)
    seat = Slow(engine, start=Start(text="one two three four five six seven eight nine ten"))
    live, floor = seat.live, engine.floor
    assert device.step(floor) and finisher.step(floor)
    assert live.gathering and len(live.held) == live.in_flight == 1
    seat.send(Interrupt())
    cut = seat.wait("interrupted")
    assert (cut.spoken, cut.dropped) == (0, 10) and not live.held and live.in_flight == 0
    seat.send(Say(text="again"))
    for _ in range(20):
        device.step(floor)
        finisher.step(floor)
    assert [word.text for word in seat.of("spoken")] == ["again"] and seat.of("idle")
    seat.send(Say(text="one two three four five six seven eight nine ten"))
    device.step(floor)
    finisher.step(floor)
    assert live.held
    engine.gone(live)
    finisher.step(floor)
    assert not engine.sessions and not live.held
    engine.close()


@pytest.mark.parametrize(("words", "factor", "pauses"), [(12, 0.7, False), (48, 0.5, True)])
def test_a_player_never_waits_in_the_middle_of_speech(tmp_path, words, factor, pauses):
    """In simulated time, both threads' steps in one: a chunk takes 1 / `factor` of its length, and the player, which
    plays what is there, always has something. A text that takes longer than was thought, or than may be waited for,
    is cut by pauses in which the character listens."""
    now = [1000.0]
    engine = worker(tmp_path, start=False, speed=1000, now=lambda: now[0])
    floor = engine.floor
    floor.admission.observe = lambda *seconds: None  # type: ignore[method-assign]
    floor.admission.seconds = CHUNK / factor
    seat = Seat(engine, Start(text=" ".join(f"word{i}" for i in range(words))), now=lambda: now[0])
    making, done_at, player, dry = None, 0.0, None, []
    for _ in range(40_000):
        if making is None and device.step(floor):
            making, done_at = floor.takes.pop(), now[0] + CHUNK / factor
        elif making is not None and now[0] >= done_at:
            floor.takes.append(making)
            making = None
        for _ in range(3):
            finisher.step(floor)
        seat.read()
        now[0] += 0.02
        player = player if player is not None or not seat.frames else now[0] + 0.3  # what a browser waits for at first
        if player is not None and now[0] - player > seat.frames / 24:
            dry.append(now[0] - player)
            break
        if seat.of("idle"):
            break
    assert not dry and seat.of("idle")
    runs = "".join(event.kind[0] for event in seat.of("chunk")).strip("l")
    assert ("l" in runs) == pauses
    assert all(len(run) >= 3 for run in runs.replace("l", " ").split()[:-1]), "it speaks for a while between pauses"
    frames = [(event.frames, event.count) for event in seat.of("chunk")]
    assert all(a + n == b for (a, n), (b, _) in zip(frames, frames[1:], strict=False)), "one continuous clock"
    spoken = seat.of("spoken")
    assert [word.index for word in spoken] == list(range(words))
    assert all(a.end <= b.start + 1e-6 for a, b in zip(spoken, spoken[1:], strict=False))
    engine.gone(seat.live)
    finisher.step(floor)
    assert not engine.sessions


def test_drained_while_it_gathers_and_restored(tmp_path):
    first = worker(tmp_path)
    seat = Slow(first, start=Start(text="one two three four five six seven eight"))
    until(lambda: seat.live.gathering)
    first.drain()
    stopped = seat.wait("stopped")
    first.close()
    from streamchar.serve.floor import Opening

    second = worker(tmp_path)
    start, record, path, later = second.floor.vault.find(stopped.session, stopped.frames)
    try:
        again = Seat(second, start, Opening(path=path, later=tuple(later)), record=record)
        again.wait("idle")
        both = [word.index for word in (*seat.of("spoken"), *again.of("spoken"))]
        assert both == list(range(8))
    finally:
        second.close()
