"""What the engine's threads share: the sessions, the line in front, and one condition that wakes them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from streamchar.errors import StreamCharError
from streamchar.serve.actor import Studio
from streamchar.serve.admission import Admission
from streamchar.serve.live import Live
from streamchar.serve.metrics import Metrics
from streamchar.serve.protocol import Error, Message, ProtocolError, Stats
from streamchar.serve.vault import TakenError, Vault, Which
from streamchar.stream.heap import give_back

log = logging.getLogger(__name__)

TICK = 0.05
"""Longest sleep: leads shrink without anybody telling."""
STATS_SECONDS = 2.0
CUSHION_SECONDS = 1.0
SWEEP_SECONDS = 60.0
"""How often snapshots that are too old are looked for."""


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
    reports: bool = False
    """Whether a client must say where its player stands: behind a proxy that takes everything nothing else tells."""
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
        self.leaving: list[Live] = []
        """Sessions whose id is another connection's by now; the finishing thread lets go of what they hold."""
        self.parked: set[str] = set()
        """Sessions whose clients take nothing: they keep their state and give their place away."""
        self.openings: dict[str, Opening] = {}
        self.swept_at = now()
        self.seats = 0
        """How many have been let in so far."""
        self.orders: deque[tuple[Live, Message]] = deque()
        self.takes: deque[Take] = deque()
        self.rehearsal: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """What the finishing thread does before it begins; None ends it."""
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

    def keep(self, thread: str, step: Callable[[Floor], bool], work: deque[Any]) -> None:
        """One thread's loop until the floor is closed: a step, and a rest where it had nothing to do."""
        occupancy = self.admission.threads[thread]
        while not self.over:
            began = time.perf_counter()
            did = step(self)
            done = time.perf_counter()
            if not did:
                self.rest(work)
            occupancy.add(done - began, time.perf_counter() - began)

    def rehearse(self, act: Callable[[], Any]) -> None:
        """Have the finishing thread do something before it begins, and wait; its error is raised here."""
        done: Future[Any] = Future()

        def task() -> None:
            try:
                done.set_result(act())
            except Exception as error:
                done.set_exception(error)

        self.rehearsal.put(task)
        done.result()

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

    def detach(self, live: Live) -> None:
        """A session gives its id away at once, and ends when the finishing thread comes to it."""
        with self.wake:
            if self.lives.get(live.id) is live:
                self._forget(live.id)
                self.leaving.append(live)
        self.gone(live)

    def _forget(self, name: str) -> None:
        self.lives.pop(name, None)
        self.openings.pop(name, None)
        self.parked.discard(name)
        self.admission.release(name)

    def release(self, live: Live) -> None:
        """Let go of everything a session holds."""
        with live.lock:
            live.machine = live.machine.closed()
        live.drop_file()
        live.outbox.close()
        live.actor = None
        give_back()  # forty encoders' freed memory stayed with glibc: 190 MB
        with self.wake:
            if self.lives.get(live.id) is live:
                self._forget(live.id)
            if live in self.leaving:
                self.leaving.remove(live)
            self.wake.notify_all()

    def safely(self, live: Live, act: Callable[[], None]) -> None:
        """One session's failure ends that session only."""
        try:
            act()
        except StreamCharError as error:
            event = error.event() if isinstance(error, ProtocolError) else Error(code="bad-input", message=str(error))
            fatal = live.actor is None or isinstance(error, TakenError)
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

    def cushion(self) -> float:
        """Seconds that those who listen are given ahead beyond the usual: the busier the threads are, the later a
        piece may come."""
        with self.wake:
            return self.admission.strain * CUSHION_SECONDS

    def share(self) -> float:
        """Speed at which each session is served."""
        with self.wake:
            return self.admission.share

    def settle(self, live: Live) -> None:
        """All is said: listen, or end a download."""
        with live.lock:
            if live.settled(self.now()) and live.once:
                live.stopping = live.stopping or "finished"

    def save(self, live: Live, *, forget: Which = "surplus") -> None:
        """Write a snapshot of this moment."""
        if live.once:
            return
        with live.acting:
            if live.actor is not None:
                self.vault.save(live.start, live.record(), live.actor, forget=forget)

    def sweep(self) -> None:
        """Old snapshots go, also while nobody comes; those of open sessions stay."""
        if self.now() - self.swept_at < SWEEP_SECONDS:
            return
        self.swept_at = self.now()
        with self.wake:
            playing = list(self.lives)
        with contextlib.suppress(OSError):  # the folder is away for a moment
            self.vault.expire(playing)

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
