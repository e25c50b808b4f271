"""The finishing thread: decodes chunks, draws listening, muxes and hands over; ends sessions."""

from __future__ import annotations

import logging
import time

from streamchar import clock
from streamchar.serve.actor import LISTEN_FRAMES
from streamchar.serve.floor import Floor, Take
from streamchar.serve.live import Live
from streamchar.serve.protocol import Stopped

log = logging.getLogger(__name__)


def run(floor: Floor) -> None:
    """Until the floor is closed."""
    while not floor.over:
        with floor.wake:
            lives = list(floor.lives.values())
            take = floor.takes.popleft() if floor.takes else None
        for live in lives:
            if live.stopping == "gone" or (live.stopping is not None and live.in_flight == 0):
                _end(floor, live)
        if take is not None:
            floor.safely(take.live, lambda take=take: _complete(floor, take))
            continue
        due = [live for live in floor.everyone() if live.wants_listening()]
        if due:
            live = min(due, key=lambda each: each.lead())
            floor.safely(live, lambda live=live: _listen(floor, live))
        else:
            floor.rest(floor.takes)


def _complete(floor: Floor, take: Take) -> None:
    """Decode and deliver a chunk of speech, unless it was interrupted meanwhile."""
    live = take.live
    began = time.perf_counter()
    try:
        with live.acting:
            actor = live.actor
            if take.epoch != live.epoch or actor is None:
                return
            chunk = actor.finish(take.made)
            piece = live.speech(chunk, take.epoch)
            if piece is None:  # what is not delivered was not said
                return
            events, data = piece
            if not live.once:  # before it goes out: no client ever holds more than can be gone on from
                floor.vault.save(live.start, live.record(live.frames + clock.FRAMES_PER_CHUNK), actor)
            live.deliver(events, data, clock.FRAMES_PER_CHUNK, take.epoch)
    finally:
        with live.lock:
            live.in_flight -= 1
        floor.ring()
    spent = time.perf_counter() - began
    floor.admission.observe(max(take.seconds, spent))
    floor.metrics.chunk.observe(take.seconds + spent)
    if not live.begun:
        live.begun = True
        live.first_frame = floor.now() - live.asked_at
        floor.metrics.first_frame.observe(live.first_frame)
    floor.settle(live)
    floor.tell_stats(live)
    log.info("session %s piece %d device %.3fs finish %.3fs", live.id[:8], live.pieces, take.seconds, spent)


def _listen(floor: Floor, live: Live) -> None:
    with live.acting:
        if live.actor is None:
            return
        events, data = live.listening(live.actor.listen(live.frames))
        live.deliver(events, data, LISTEN_FRAMES)
    floor.tell_stats(live)


def _end(floor: Floor, live: Live) -> None:
    """Close the file, say so, and let go."""
    reason = live.stopping
    try:
        with live.acting:
            if reason == "restart":
                floor.save(live)
            if reason in ("asked", "finished", "restart"):
                tail = live.finish_file()
                if tail:
                    live.outbox.put(tail)
                live.outbox.put(Stopped(reason=reason, session=live.id, frames=live.frames))
    finally:
        floor.release(live)
    if reason == "asked":
        floor.vault.forget(live.id)
