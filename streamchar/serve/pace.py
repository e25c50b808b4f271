"""How far production is ahead of a player."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

from streamchar import clock

SILENCE_SECONDS = 2.0
"""A player that used to report and does not for so long is gone, or asleep."""
STANDING_SECONDS = 0.1
"""A player that moves by less between two reports, with something to play, has run dry and wants more."""
MORE_SECONDS = 0.4
MOST_SECONDS = 3.0
EARLY_SECONDS = 2.0
"""A player is never further than the time since its first piece, and this much (a chunk that an interrupt was too late
for, which it leaves out, and some): one that says so would be given more and more, at the cost of everybody else."""
BLIND_SECONDS = 1.0
"""A reported position is carried on by the wall clock for so long."""


class Pace:
    """The player's position: as reported, or, if it never reports, as a player without stalls would have it."""

    def __init__(self, now: Callable[[], float] = time.monotonic, *, first: int = 0) -> None:
        self._now = now
        self._frames = first
        self._at = first / clock.VIDEO_FPS
        self._stamp = now()
        self._reported = False
        self.required = False
        """Whether silence means that nobody is there even before the first report."""
        self._report_stamp = now()
        self._held, self._delivered = False, False
        self._last = self._at
        self._began, self._began_at = self._stamp, self._at
        self.extra = 0.0
        """Seconds of lead beyond the usual: browsers ask for more after each time they ran dry."""

    @property
    def produced(self) -> Fraction:
        return clock.frame_time(self._frames)

    def deliver(self, frames: int) -> None:
        self._advance()
        if not self._delivered:
            self._delivered, self._report_stamp = True, self._now()
            self._began = self._report_stamp
        self._frames += frames

    def report(self, at: float) -> None:
        """The player says where it is."""
        if self._reported and not self._held:
            standing = abs(at - self._last) < STANDING_SECONDS and float(self.produced) - at > STANDING_SECONDS
            self.extra = min(MOST_SECONDS, self.extra + MORE_SECONDS) if standing else max(0.0, self.extra - 0.02)
        self._reported, self._last = True, at
        latest = self._began_at + self._now() - self._began + EARLY_SECONDS
        self._at = min(max(0.0, at), float(self.produced), latest)
        self._stamp = self._report_stamp = self._now()

    def hold(self, held: bool) -> None:
        """The player stands still by request."""
        self._advance()
        self._held = held

    def skip(self) -> None:
        """The player leaves out what it has not played."""
        self._advance()
        self._at = self._began_at = float(self.produced)
        self._began = self._now()

    def position(self) -> float:
        self._advance()
        return self._at

    def lead(self) -> float:
        """Seconds that are produced and not played."""
        return float(self.produced) - self.position()

    @property
    def silent(self) -> bool:
        counts = self._reported or (self.required and self._delivered)
        return counts and self._now() - self._report_stamp > SILENCE_SECONDS

    def _advance(self) -> None:
        now = self._now()
        passed = now - self._stamp
        if self._reported:
            passed = min(passed, max(0.0, BLIND_SECONDS - (self._stamp - self._report_stamp)))
        if not self._held:
            self._at = min(float(self.produced), self._at + passed)
        self._stamp = now
