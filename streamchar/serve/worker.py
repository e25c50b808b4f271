"""The engine: two threads over one floor of sessions, and what the event loop may ask of them.

No call from here waits for the device: what a client asks for is checked and answered at once where that costs
nothing, and queued where it does not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from streamchar.serve import device, finisher
from streamchar.serve.actor import Studio
from streamchar.serve.floor import Floor, Limits, Opening
from streamchar.serve.live import Live
from streamchar.serve.metrics import Metrics
from streamchar.serve.protocol import (
    Error,
    Interrupt,
    Message,
    Pause,
    Paused,
    Playhead,
    ProtocolError,
    Queued,
    Restore,
    Resume,
    Resumed,
    Say,
    Snapshot,
    Start,
    Stop,
)  # fmt: skip
from streamchar.serve.uploads import check_upload
from streamchar.serve.vault import Vault

log = logging.getLogger(__name__)

MAX_PENDING = 32
"""Texts that the device has not taken yet."""


class Worker:
    """Runs sessions on a studio. `start` first, `close` last."""

    def __init__(
        self, studio: Studio, vault: Vault, *, limits: Limits | None = None, metrics: Metrics | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.floor = Floor(studio, vault, limits or Limits(), metrics or Metrics(), now)
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True)
            for name, loop in (("device", device.run), ("finish", finisher.run))
        ]

    @property
    def ready(self) -> bool:
        """Loaded, warmed and not failed."""
        return self.floor.ready.is_set() and not self.floor.failure and not self.floor.draining

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End both threads; sessions that are left are let go."""
        with self.floor.wake:
            self.floor.over = True
            self.floor.wake.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=30)
        for live in [*self.floor.lives.values(), *self.floor.leaving]:
            self.floor.release(live)

    def open(self, live: Live, opening: Opening | None = None) -> None:
        """A new session gets in line. Raises `ProtocolError`."""
        floor = self.floor
        self._check_start(live.start)
        with floor.wake:
            if floor.draining or floor.over:
                raise ProtocolError("shutting-down", "the server is being restarted", "try again in a few seconds")
            if live.id in floor.lives:
                raise ProtocolError("illegal", "this session is being played already", "close its other window")
            same = sum(other.address == live.address for other in floor.lives.values())
            if same >= floor.limits.per_address:
                raise ProtocolError("busy", f"{same} sessions of your address are open", "close one of them")
            live.machine = live.machine.take("start")
            live.pace.required = floor.limits.reports and not live.once
            floor.admission.request(live.id)
            floor.lives[live.id] = live
            floor.openings[live.id] = opening or Opening()
            floor.metrics.opened.add()
            if len(floor.admission.active) >= floor.admission.capacity:
                live.outbox.put(Queued(session=live.id, place=floor.admission.place(live.id)))
            floor.wake.notify_all()

    def room(self) -> bool:
        """Whether a session that came now would not wait."""
        with self.floor.wake:
            line = self.floor.admission
            return not line.waiting and len(line.active) < line.capacity

    def submit(self, live: Live, message: Message) -> None:
        """A client's message. Raises `ProtocolError`; answers come through the outbox."""
        with live.lock:
            self._check(live, message)
            live.machine = live.machine.take(message.type)
            if isinstance(message, Playhead):
                live.pace.report(message.at)
            elif isinstance(message, Interrupt):
                live.outbox.put(live.cut(message.at))
            elif isinstance(message, Pause | Resume):
                live.pace.hold(isinstance(message, Pause))
                live.outbox.put(Paused() if isinstance(message, Pause) else Resumed())
            elif isinstance(message, Say):
                live.pending += 1
                live.asked_at = self.floor.now()
            elif isinstance(message, Stop):
                live.stopping = live.stopping or "asked"
                live.epoch += 1
            early = False
            if live.actor is None and isinstance(message, Say):
                early = True
                live.early.append(message)
        with self.floor.wake:
            if isinstance(message, Say | Interrupt | Snapshot) and not early:
                self.floor.orders.append((live, message))
            self.floor.wake.notify_all()

    def gone(self, live: Live) -> None:
        """The client is not there any more: everything it held is free at once; its snapshot stays."""
        self.floor.gone(live)

    def take_over(self, session: str) -> None:
        """A client came back before its old connection was noticed to be gone: that one ends now."""
        live = self.floor.lives.get(session)
        if live is not None:
            live.outbox.put(Error(code="illegal", message="this session goes on in another connection", fatal=True))
            self.floor.detach(live)

    def drain(self) -> None:
        """Take no one else, and end every session behind its last whole chunk, saved."""
        with self.floor.wake:
            self.floor.draining = True
            for live in self.floor.lives.values():
                live.stopping = live.stopping or "restart"
            self.floor.wake.notify_all()

    @property
    def sessions(self) -> int:
        return len(self.floor.lives)

    def gauges(self) -> dict[str, float]:
        """Figures of this moment, for `/metrics`."""
        with self.floor.wake:
            line = self.floor.admission
            return {
                "sessions": len(line.active), "queue_depth": len(line.waiting), "capacity": line.capacity,
                "realtime_factor": line.factor, "parked": len(self.floor.parked),
                "busy": line.busy,
                "outbox_pieces": sum(live.outbox.pieces for live in self.floor.lives.values()),
            }  # fmt: skip

    def _check_start(self, start: Start) -> None:
        if not 0 <= start.character < 2**53 or not 0 <= start.seed < 2**53:
            raise ProtocolError("bad-input", "character and seed must be whole numbers from 0 on", "leave them out")
        if not -1 <= start.voice < 1000:
            raise ProtocolError("bad-input", f"voice must be -1 (own) or an index, got {start.voice}", "leave it out")
        check_upload(start.picture, "picture")
        check_upload(start.recording, "recording")
        for what, text in (("text", start.text), ("prompt", start.prompt)):
            self._check_length(what, text)

    def _check_length(self, what: str, text: str) -> None:
        limit = self.floor.limits.text
        if len(text) > limit:
            about = f"a {what} may have {limit} characters, got {len(text)}"
            raise ProtocolError("too-long", about, "say it in pieces")
        if any((ord(mark) < 32 and not mark.isspace()) or 0xD800 <= ord(mark) < 0xE000 for mark in text):
            raise ProtocolError("bad-input", f"the {what} holds control characters", "send plain text")

    def _check(self, live: Live, message: Message) -> None:
        if isinstance(message, Start | Restore):
            legal = live.machine.legal
            raise ProtocolError("illegal", f"{message.type} comes once, at the beginning", "connect again", legal)
        if isinstance(message, Say):
            self._check_length("text", message.text)
            if not message.text.strip():
                raise ProtocolError("bad-input", "the text is empty", "give at least one word")
            unsaid = len(live.words) - live.spoken
            if live.pending >= MAX_PENDING or unsaid > self.floor.limits.unsaid:
                raise ProtocolError("too-long", f"{unsaid} words wait to be spoken", "wait until some are")

    def _guarded(self, loop: Callable[[Floor], None]) -> None:
        try:
            loop(self.floor)
        except Exception as error:
            log.exception("the engine has stopped")
            with self.floor.wake:
                self.floor.failure, self.floor.over = f"{type(error).__name__}: {error}", True
                for live in self.floor.lives.values():
                    live.outbox.put(Error(code="internal", message="the engine has stopped", fatal=True))
                    live.outbox.close()
                self.floor.wake.notify_all()
