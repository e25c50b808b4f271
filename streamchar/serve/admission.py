"""Who may play at once: as many as the measured speed carries, the others in a queue with a place."""

from __future__ import annotations

from streamchar import clock
from streamchar.serve.protocol import ProtocolError

HEADROOM = 0.85
"""Share of the device that may be promised: the rest absorbs a slow chunk."""
SMOOTHING = 0.15
"""Weight of a new measurement."""


class Admission:
    """Not thread-safe: its owner holds a lock."""

    def __init__(self, *, limit: int, queue: int) -> None:
        self.limit, self.queue = limit, queue
        self.active: set[str] = set()
        self.waiting: list[str] = []
        self.seconds = 0.0
        """Computing time of one chunk on the slower of the two threads, smoothed; 0 before the first."""

    @property
    def factor(self) -> float:
        """Playing time over computing time."""
        return float(clock.CHUNK_SECONDS) / self.seconds if self.seconds else 0.0

    @property
    def capacity(self) -> int:
        """Sessions that play without a stall. One is let in even where the device is too slow for it."""
        if not self.seconds:
            return 1
        return max(1, min(self.limit, int(HEADROOM * self.factor)))

    def observe(self, seconds: float) -> None:
        """A chunk took so long."""
        self.seconds += (seconds - self.seconds) * (SMOOTHING if self.seconds else 1.0)

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
        """Those for whom there is room now; they count as active."""
        let_in = []
        while self.waiting and len(self.active) < self.capacity:
            name = self.waiting.pop(0)
            self.active.add(name)
            let_in.append(name)
        return let_in

    def place(self, name: str) -> int:
        """1 is next; 0 is not waiting."""
        return self.waiting.index(name) + 1 if name in self.waiting else 0
