"""Who is served first, in simulated time: whoever plays stays supplied however many come, and the first words are not
delayed by listening."""

from __future__ import annotations

import pytest
from serving import Seat, worker

from streamchar.serve import device, finisher
from streamchar.serve.live import LATE, SOON
from streamchar.serve.pace import EARLY_SECONDS, Pace
from streamchar.serve.protocol import Start

WORK = 0.2
"""Seconds that a piece takes, of speech or of listening: two who listen and one who is spoken to fill the thread."""


class Stage:
    """Both threads' steps in turns, each on a clock of its own that only this moves."""

    def __init__(self, folder, whole: float = WORK) -> None:
        self.now = 1000.0
        self.engine = worker(folder, start=False, speed=1000, now=lambda: self.now, sessions=100, queue=100)
        self.floor = self.engine.floor
        self.floor.admission.observe = lambda *seconds: None  # type: ignore[method-assign]
        self.floor.admission.seconds, self.floor.admission.whole = WORK, whole
        self.free, self.first_in = 0.0, {}

    def come(self, text: str = "") -> Seat:
        return Seat(self.engine, Start(text=text), now=lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        device.step(self.floor)
        if self.now >= self.free:
            did = finisher.step(self.floor)
            self.free = self.now + WORK * did
            self.floor.admission.threads["finish"].add(WORK * did, WORK if did else seconds)


class Viewer:
    """Plays a seat's stream from its first piece on, and counts how often and how long it has nothing."""

    def __init__(self, seat: Seat) -> None:
        self.seat, self.at, self.dry = seat, 0.0, 0.0

    def watch(self, seconds: float) -> None:
        self.seat.read()
        if not self.seat.frames:
            return
        self.at += seconds
        lack = max(0.0, self.at - self.seat.frames / 24)
        self.at, self.dry = self.at - lack, self.dry + lack


@pytest.mark.parametrize("text", ["", "so many words that it lasts " * 20])
def test_whoever_was_there_first_is_never_starved(tmp_path, text):
    """Forty come within four seconds, to a machine that carries two or three."""
    stage = Stage(tmp_path)
    first = Viewer(stage.come(text))
    for _ in range(30):
        stage.pass_(0.02)
        first.watch(0.02)
    crowd: list[Viewer] = []
    for step in range(1000):
        if step % 5 == 0 and len(crowd) < 40:
            crowd.append(Viewer(stage.come("hello there " * (len(crowd) % 4))))
        stage.pass_(0.02)
        first.watch(0.02)
        for one in crowd:
            one.watch(0.02)
    assert first.dry == 0 and first.at > 20
    playing = [one for one in crowd if one.seat.frames]
    assert 1 <= len(playing) <= 4, "as many as there is room for"
    stage.engine.close()


def test_newcomers_are_let_in_one_after_another(tmp_path):
    stage = Stage(tmp_path)
    seats = [stage.come() for _ in range(4)]
    before = 0
    for _ in range(60):
        stage.pass_(0.02)
        inside = [seat for seat in seats if seat.live.actor is not None]
        assert len(inside) <= before + 1, "one at a time"
        assert all(seat.live.pieces for seat in inside[:-1]), "when the one before has something to play"
        before = len(inside)
    assert before >= 2
    assert [seat.live.seat for seat in inside] == list(range(1, before + 1))
    stage.engine.close()


@pytest.mark.parametrize(("whole", "waits"), [(1.0, True), (SOON + 0.1, False)])
def test_nothing_is_sent_before_a_first_word_that_comes_soon(tmp_path, whole, waits, monkeypatch):
    """... for the player would have to play it first. If the word is late, there is a picture all the same."""
    stage = Stage(tmp_path, whole)
    monkeypatch.setattr(device, "_make", lambda floor, live: None)  # it does not come
    seat = stage.come("hello there")
    stage.pass_(0.02)
    came = stage.now
    while not seat.frames:
        stage.pass_(0.02)
        seat.read()
        assert stage.now < came + 5
    assert stage.now - came == pytest.approx(whole + LATE if waits else 0.02, abs=0.05)
    stage.engine.close()


def test_a_player_cannot_claim_to_be_where_it_cannot_be():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.deliver(240)
    now[0] = 1.0
    pace.report(9.9)
    assert pace.position() == pytest.approx(1.0 + EARLY_SECONDS) and pace.lead() > 6
    pace.skip()
    assert pace.lead() == 0, "an interrupt lets it jump"
    pace.deliver(24)
    pace.report(10.0)
    assert pace.position() == pytest.approx(10.0)
