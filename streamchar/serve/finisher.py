"""The finishing thread: decodes chunks, draws listening, muxes and hands over; ends sessions."""

from __future__ import annotations

import logging
import time

from streamchar import clock
from streamchar.serve.actor import LISTEN_FRAMES
from streamchar.serve.floor import Floor, Take
from streamchar.serve.gather import is_slow
from streamchar.serve.live import Live
from streamchar.serve.protocol import Stopped

log = logging.getLogger(__name__)


def run(floor: Floor) -> None:
    """Until the floor is closed; first what the device's thread has it rehearse."""
    while (task := floor.rehearsal.get()) is not None:
        task()
    floor.keep("finish", step, floor.takes)


def step(floor: Floor) -> bool:
    """Sweep, end who is over, then finish one chunk, or draw one piece of listening; False if nothing is due."""
    floor.sweep()
    with floor.wake:
        lives = [*floor.lives.values(), *floor.leaving]
        takes = list(floor.takes)
        floor.takes.clear()
    for take in takes:
        take.live.held.append(take)
    for live in lives:
        _look_after(floor, live)
        if live.stopping == "gone" or (live.stopping is not None and live.in_flight == 0):
            _end(floor, live)
    cushion, playing = floor.cushion(), floor.everyone()
    ready = [live for live in lives if live.held and not live.gathering and live.outbox.room]
    due = [live for live in playing if live not in ready and live.wants_listening(cushion)]
    if not ready and not due:
        return False
    live = min((*ready, *due), key=Live.rank)  # (speech before all listening left a listener dry for 8 s)
    if live in ready:
        take = live.held.popleft()
        floor.safely(live, lambda: _complete(floor, take))
    else:
        floor.safely(live, lambda: _listen(floor, live))
    return True


def _look_after(floor: Floor, live: Live) -> None:
    """Keep the speech of a slow model back, or let it go; what was not decoded when a session ends is not needed."""
    if live.stopping is not None:
        live.drop_held()
    elif live.gathered():
        live.gathering = False
    elif live.ran_dry():
        live.gather(floor.share())


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
    floor.admission.observe(max(take.seconds, spent), take.seconds + spent)
    floor.metrics.chunk.observe(take.seconds + spent)
    if not live.begun:
        live.begun = True
        live.first_frame = floor.now() - live.asked_at
        floor.metrics.first_frame.observe(live.first_frame)
    live.slow = is_slow(floor.share())
    floor.settle(live)
    floor.tell_stats(live)
    fields = {"session": live.id[:8], "piece": live.pieces, "device": round(take.seconds, 4), "finish": round(spent, 4)}
    log.info(
        "session %(session)s piece %(piece)d device %(device).3fs finish %(finish).3fs", fields,
        extra={"fields": {"event": "chunk", **fields}},
    )


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
