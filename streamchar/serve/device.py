"""The device's thread: lets sessions in, takes what they are to say, and makes one chunk after another.

Whoever is least ahead of its player comes next; downloads come last. Newcomers are let in one after another, and only
while everybody who plays has enough to play.
"""

from __future__ import annotations

import logging
import time

from streamchar import clock
from streamchar.serve.floor import Floor, Opening, Take
from streamchar.serve.gather import is_slow
from streamchar.serve.live import Live, Pipe
from streamchar.serve.protocol import Error, Interrupt, Message, Queued, Saved, Say, Snapshot, Start
from streamchar.stream.mux import Muxer

log = logging.getLogger(__name__)

CHUNK = float(clock.CHUNK_SECONDS)
STUCK_SECONDS = 2.0
"""A client that takes nothing for so long gives its place away."""
DROP_SECONDS = 20.0
"""... and after so long it is dropped; its snapshot stays."""
WARM_TEXT = "Hello there, this is the first sentence that I say today."


def run(floor: Floor) -> None:
    """Until the floor is closed."""
    warm(floor)
    floor.keep("device", step, floor.orders)


def step(floor: Floor) -> bool:
    """Do what was asked, let in who may come, and make one chunk; False if none is wanted."""
    with floor.wake:
        orders = list(floor.orders)
        floor.orders.clear()
    for live, message in orders:
        floor.safely(live, lambda live=live, message=message: _obey(floor, live, message))
    _look_after(floor)
    _let_in(floor)
    wanting = [live for live in floor.everyone() if live.wants_speech()]
    if wanting:
        live = min(wanting, key=lambda each: each.rank(each.in_flight * CHUNK))
        floor.safely(live, lambda: _make(floor, live))
    return bool(wanting)


def warm(floor: Floor) -> None:
    """Do everything once, each on its own thread: the first visitor does not wait for it, and the speed is known. What
    is done for the very first time takes longer and says nothing about it."""
    try:
        actor = floor.studio.open(Start())
        actor.say(WARM_TEXT)
        muxer = Muxer(Pipe())  # pyright: ignore[reportArgumentType]
        for measured in (False, True, True):
            if not actor.finished:
                began = time.perf_counter()
                made = actor.generate()
                middle = time.perf_counter()
                floor.rehearse(lambda made=made: muxer.write(actor.finish(made)))
                done = time.perf_counter()
                if measured:
                    floor.admission.observe(max(middle - began, done - middle), done - began)
        floor.rehearse(lambda: actor.listen(0))
        muxer.abort()
    finally:
        floor.rehearsal.put(None)
    log.info("warm: real-time factor %.2f, room for %d", floor.admission.factor, floor.admission.capacity)
    floor.ready.set()


def _look_after(floor: Floor) -> None:
    """Park who takes nothing, drop who does so for long, and end who keeps others waiting."""
    with floor.wake:
        lives = list(floor.lives.values())
    for live in lives:
        stuck = live.outbox.stuck > STUCK_SECONDS or live.pace.silent
        with floor.wake:
            if stuck and live.id in floor.admission.active:
                floor.admission.release(live.id)
                floor.parked.add(live.id)
            elif not stuck and live.id in floor.parked and live.id not in floor.admission.waiting:
                floor.admission.request(live.id, first=True)
                live.outbox.put(Queued(session=live.id, place=1))
        if live.outbox.stuck > DROP_SECONDS or live.outbox.overrun:
            log.info("session %s reads nothing and is dropped", live.id[:8])
            floor.gone(live)
        elif (
            floor.admission.waiting and live.machine.phase == "listening" and not live.once
            and floor.now() - live.asked_at > floor.limits.idle
        ):
            about = "nothing was said for long and others wait"
            live.outbox.put(Error(code="idle-timeout", message=about, hint="start anew", fatal=True))
            floor.gone(live)


def _let_in(floor: Floor) -> None:
    """One at a time: the next when this one has something to play and nobody else has little."""
    if any(live.unsettled() for live in floor.everyone()):
        return
    with floor.wake:
        let_in = floor.admission.admit()
        for place, name in enumerate(floor.admission.waiting if let_in else (), start=1):
            floor.lives[name].outbox.put(Queued(session=name, place=place))
        found = [floor.lives[name] for name in let_in if name in floor.lives]
        entering = [live for live in found if live.id not in floor.parked]
        floor.parked.difference_update(let_in)
        for live in found:
            floor.seats += not live.seat
            live.seat = live.seat or floor.seats
    for live in entering:
        floor.safely(live, lambda live=live: _enter(floor, live))


def _enter(floor: Floor, live: Live) -> None:
    opening = floor.openings.pop(live.id, Opening())
    if live.stopping:
        return
    if opening.path is None:
        actor = floor.studio.open(live.start)
        texts = [live.start.text] if live.start.text.strip() else []
    else:
        actor, texts = floor.studio.load(live.start, opening.path), list(opening.later)
    for text in texts:
        floor.studio.check(text)
    live.outbox.put(live.ready(floor.studio.width, floor.studio.height))
    with live.lock:
        live.actor, early = actor, live.early
        live.early = []
    for text in texts:
        _say(live, Say(text=text))
    for message in early:
        floor.safely(live, lambda message=message: _obey(floor, live, message))
    with live.lock:
        # in the middle of speech nothing may come between: a chunk that is made again lies where it lay
        live.begun = opening.path is not None and not actor.finished
        live.machine = live.machine.admitted(speaking=not actor.finished or bool(live.pending))
        live.slow = is_slow(floor.share())
        if not live.begun and live.machine.phase == "speaking":
            live.gather(floor.share())
        live.expect(floor.admission.whole)
    floor.settle(live)
    floor.save(live, forget="later")


def _obey(floor: Floor, live: Live, message: Message) -> None:
    actor = live.actor
    if live.stopping or actor is None:
        return
    if isinstance(message, Say):
        try:
            if live.pending:  # else it was interrupted before it was taken
                _say(live, message)
                if live.gathering or not live.begun:
                    live.gather(floor.share())
                floor.save(live)
        finally:
            with live.lock:
                live.pending = max(0, live.pending - 1)
            floor.settle(live)
    elif isinstance(message, Interrupt):
        with live.acting:
            actor.hush()
            live.hushing = False
        floor.save(live, forget="others")
    elif isinstance(message, Snapshot):
        floor.save(live)
        live.outbox.put(Saved(session=live.id, frames=live.frames))


def _say(live: Live, message: Say) -> None:
    with live.acting:
        actor = live.actor
        if actor is None:
            return
        actor.say(message.text)
        with live.lock:
            live.said.append(message.text)
            live.outbox.put(live.took(actor.words, message.id))


def _make(floor: Floor, live: Live) -> None:
    """One chunk; the finishing thread takes it from there."""
    with live.lock:
        actor, epoch = live.actor, live.epoch
        if actor is None or live.stopping:
            return
        live.in_flight += 1
    began = time.perf_counter()
    try:
        made = actor.generate()
    except BaseException:
        live.in_flight -= 1
        raise
    with floor.wake:
        floor.takes.append(Take(live=live, epoch=epoch, made=made, seconds=time.perf_counter() - began))
        floor.wake.notify_all()
