"""Who may play at once: as many as the measured speed carries, the others in a queue with a place."""

from __future__ import annotations

import math

from streamchar import clock
from streamchar.serve.protocol import ProtocolError

HEADROOM = 0.85
"""Share of the device that may be promised: the rest absorbs a slow chunk."""
SMOOTHING = 0.15
"""Weight of a new measurement."""


MEMORY_SECONDS = 5.0
"""Longer than newcomers take to get ahead of their players, which is work that does not last."""
IDLE = 0.5
"""Below this share of work the time of a chunk says more of how many fit than the work at hand does."""


class Occupancy:
    """Share of its time that a thread has worked, over the last seconds."""

    def __init__(self) -> None:
        self.share = 0.0

    def add(self, worked: float, passed: float) -> None:
        """Seconds of work in so many seconds that passed."""
        if passed > 0:
            self.share += (min(1.0, worked / passed) - self.share) * -math.expm1(-passed / MEMORY_SECONDS)


class Admission:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self, *, limit: int, queue: int) -> None:
        self.limit, self.queue = limit, queue
        self.active: set[str] = set()
        self.waiting: list[str] = []
        self.threads = {"device": Occupancy(), "finish": Occupancy()}
        self.seconds = 0.0
        """Computing time of one chunk on the slower of the two threads, smoothed; 0 before the first."""

        self.whole = 0.0
        """Time of one chunk on both threads, one after the other, smoothed: a first chunk is there after it."""

    @property
    def factor(self) -> float:
        """Playing time over computing time."""
        return float(clock.CHUNK_SECONDS) / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """Speed at which each of those who play is served."""
        return self.factor / max(1, len(self.active))

    @property
    def capacity(self) -> int:
        """Sessions that play without a stall. One is let in even where the device is too slow for it."""
        if not self.seconds:
            return 1
        room = HEADROOM * self.factor
        busy = self.busy
        if self.active and busy > IDLE:  # listening, openings and the machine's other work cost time too
            room = min(room, len(self.active) * HEADROOM / busy)
        return max(1, min(self.limit, int(room)))

    @property
    def busy(self) -> float:
        """Share of its time that the busier thread works."""
        return max(thread.share for thread in self.threads.values())

    @property
    def strain(self) -> float:
        """0 while the threads have time to spare, 1 where no more may be promised."""
        return min(1.0, max(0.0, (self.busy - IDLE) / (HEADROOM - IDLE)))

    def observe(self, seconds: float, whole: float = 0.0) -> None:
        """A chunk took so long on the slower thread, and on both together."""
        self.seconds += (seconds - self.seconds) * (SMOOTHING if self.seconds else 1.0)
        self.whole += (whole - self.whole) * (SMOOTHING if self.whole else 1.0)

    def request(self, name: str, *, first: bool = False) -> None:
        """Get in line; `first` for one that already had a place and lost it. Raises `ProtocolError` "busy"."""
        if not first and len(self.waiting) >= self.queue:
            raise ProtocolError("busy", f"{len(self.waiting)} are waiting already", "come back in a few minutes")
        self.waiting.insert(0 if first else len(self.waiting), name)

    def release(self, name: str) -> None:
        self.active.discard(name)
        if name in self.waiting:
            self.waiting.remove(name)

    def admit(self) -> list[str]:
        """The next one, if there is room now; it counts as active. One at a time: twenty at once, on a machine that
        was idle a moment ago, are the work of a second for which everybody else would wait."""
        if not self.waiting or len(self.active) >= self.capacity:
            return []
        name = self.waiting.pop(0)
        self.active.add(name)
        return [name]

    def place(self, name: str) -> int:
        """1 is next; 0 is not waiting."""
        return self.waiting.index(name) + 1 if name in self.waiting else 0
