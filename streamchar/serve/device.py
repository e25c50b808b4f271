"""The device's thread: lets sessions in, takes what they are to say, and makes one chunk after another.

Whoever is least ahead of its player comes next; downloads come last.
"""

from __future__ import annotations

import logging
import time

from streamchar.serve.floor import Floor, Opening, Take
from streamchar.serve.live import Live
from streamchar.serve.protocol import Error, Interrupt, Message, Queued, Saved, Say, Snapshot, Start

log = logging.getLogger(__name__)

STUCK_SECONDS = 2.0
"""A client that takes nothing for so long gives its place away."""
DROP_SECONDS = 20.0
"""... and after so long it is dropped; its snapshot stays."""
WARM_TEXT = "Hello there, this is the first sentence that I say today."


def run(floor: Floor) -> None:
    """Until the floor is closed."""
    _warm(floor)
    while not floor.over:
        with floor.wake:
            orders = list(floor.orders)
            floor.orders.clear()
        for live, message in orders:
            floor.safely(live, lambda live=live, message=message: _obey(floor, live, message))
        _look_after(floor)
        _let_in(floor)
        wanting = [live for live in floor.everyone() if live.wants_speech()]
        if wanting:
            live = min(wanting, key=lambda each: (each.once, each.lead() + each.in_flight))
            floor.safely(live, lambda live=live: _make(floor, live))
        else:
            floor.rest(floor.orders)


def _warm(floor: Floor) -> None:
    """Do everything once: the first visitor does not wait for it, and the speed is known."""
    actor = floor.studio.open(Start())
    actor.say(WARM_TEXT)
    for _ in range(2):
        if not actor.finished:
            began = time.perf_counter()
            made = actor.generate()
            middle = time.perf_counter()
            actor.finish(made)
            floor.admission.observe(max(middle - began, time.perf_counter() - middle))
    actor.listen(0)
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
    with floor.wake:
        let_in = floor.admission.admit()
        for place, name in enumerate(floor.admission.waiting if let_in else (), start=1):
            floor.lives[name].outbox.put(Queued(session=name, place=place))
        found = [floor.lives[name] for name in let_in if name in floor.lives]
        entering = [live for live in found if live.id not in floor.parked]
        floor.parked.difference_update(let_in)
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
    floor.settle(live)
    floor.save(live)


def _obey(floor: Floor, live: Live, message: Message) -> None:
    actor = live.actor
    if live.stopping or actor is None:
        return
    if isinstance(message, Say):
        try:
            if live.pending:  # else it was interrupted before it was taken
                _say(live, message)
                floor.save(live)
        finally:
            with live.lock:
                live.pending = max(0, live.pending - 1)
            floor.settle(live)
    elif isinstance(message, Interrupt):
        with live.acting:
            actor.hush()
        floor.save(live, alone=True)
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
