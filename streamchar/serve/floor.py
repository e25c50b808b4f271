"""What the engine's threads share: the sessions, the line in front, and one condition that wakes them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamchar.errors import StreamCharError
from streamchar.serve.actor import Studio
from streamchar.serve.admission import Admission
from streamchar.serve.live import Live
from streamchar.serve.metrics import Metrics
from streamchar.serve.protocol import Error, Message, ProtocolError, Stats
from streamchar.serve.vault import Vault

log = logging.getLogger(__name__)

TICK = 0.05
"""Longest sleep: leads shrink without anybody telling."""
STATS_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server allows."""

    sessions: int = 8
    queue: int = 32
    per_address: int = 4
    text: int = 5_000
    """Characters in one message."""
    unsaid: int = 3_000
    """Words that may wait to be spoken."""
    rate: float = 20.0
    """Messages a second, with as many more at once."""
    idle: float = 300.0
    """Seconds of listening after which a session ends if others wait."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Where a session comes from: its state's file and what was said later, if it is restored."""

    path: Path | None = None
    later: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Take:
    """A generated chunk on its way to be decoded."""

    live: Live
    epoch: int
    made: Any
    seconds: float


class Floor:
    """Everything here is guarded by `wake`."""

    def __init__(
        self, studio: Studio, vault: Vault, limits: Limits, metrics: Metrics, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.studio, self.vault, self.limits, self.metrics, self.now = studio, vault, limits, metrics, now
        self.wake = threading.Condition()
        self.admission = Admission(limit=limits.sessions, queue=limits.queue)
        self.lives: dict[str, Live] = {}
        self.parked: set[str] = set()
        """Sessions whose clients take nothing: they keep their state and give their place away."""
        self.openings: dict[str, Opening] = {}
        self.orders: deque[tuple[Live, Message]] = deque()
        self.takes: deque[Take] = deque()
        self.ready = threading.Event()
        self.over = False
        self.draining = False
        self.failure = ""

    def everyone(self) -> list[Live]:
        with self.wake:
            return [live for name, live in self.lives.items() if name not in self.parked]

    def ring(self) -> None:
        with self.wake:
            self.wake.notify_all()

    def rest(self, work: deque[Any]) -> None:
        """Sleep for a tick, or until there is work."""
        with self.wake:
            if not work and not self.over:
                self.wake.wait(TICK)

    def gone(self, live: Live) -> None:
        """The client is not there any more."""
        with live.lock:
            live.stopping = live.stopping or "gone"
            live.epoch += 1
        live.outbox.close()
        self.ring()

    def release(self, live: Live) -> None:
        """Let go of everything a session holds."""
        with live.lock:
            live.machine = live.machine.closed()
        live.drop_file()
        live.outbox.close()
        live.actor = None
        with self.wake:
            self.lives.pop(live.id, None)
            self.openings.pop(live.id, None)
            self.parked.discard(live.id)
            self.admission.release(live.id)
            self.wake.notify_all()

    def safely(self, live: Live, act: Callable[[], None]) -> None:
        """One session's failure ends that session only."""
        try:
            act()
        except StreamCharError as error:
            event = error.event() if isinstance(error, ProtocolError) else Error(code="bad-input", message=str(error))
            fatal = live.actor is None
            live.outbox.put(replace(event, fatal=fatal))
            if fatal:
                self.gone(live)
        except Exception:
            if live.stopping is not None:  # its actor was taken away in the middle
                return
            log.exception("session %s failed", live.id[:8])
            self.metrics.failed.add()
            hint = "start anew; the server's log says more"
            live.outbox.put(Error(code="internal", message="this session failed", hint=hint, fatal=True))
            self.gone(live)

    def settle(self, live: Live) -> None:
        """All is said: listen, or end a download."""
        with live.lock:
            if live.settled(self.now()) and live.once:
                live.stopping = live.stopping or "finished"

    def save(self, live: Live, *, alone: bool = False) -> None:
        """Write a snapshot of this moment."""
        if live.once:
            return
        with live.acting:
            if live.actor is not None:
                self.vault.save(live.start, live.record(), live.actor, alone=alone)

    def tell_stats(self, live: Live) -> None:
        if live.once or self.now() - live.stats_at < STATS_SECONDS:
            return
        live.stats_at = self.now()
        line = self.admission
        live.outbox.put(
            Stats(
                factor=round(line.factor, 3), lead=round(live.lead(), 3), first_frame=round(live.first_frame, 3),
                sessions=len(line.active), capacity=line.capacity, waiting=len(line.waiting),
            )
        )
