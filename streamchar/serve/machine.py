"""What a session may be asked for, and when: a pure state machine.

                 start, restore                admitted            say
       new  ----------------------> waiting ------------> listening <====> speaking
                                                          |    all spoken, interrupt  |
                                                          '---- pause --> paused <----'
                                                                          | resume: back to where it was
       every phase but closed: stop --> closed
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from streamchar.serve.protocol import ProtocolError

Phase = Literal["new", "waiting", "listening", "speaking", "closed"]

LEGAL: dict[str, tuple[str, ...]] = {
    "new": ("start", "restore"),
    "waiting": ("say", "playhead", "stop"),
    "listening": ("say", "interrupt", "pause", "snapshot", "playhead", "stop"),
    "speaking": ("say", "interrupt", "pause", "snapshot", "playhead", "stop"),
    "paused": ("say", "resume", "interrupt", "snapshot", "playhead", "stop"),
    "closed": (),
}
_HINTS = {
    "new": "begin with start",
    "waiting": "wait for ready",
    "paused": "resume first",
    "closed": "connect again",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A session's phase; `paused` lies over it, so that `resume` knows where to go back to."""

    phase: Phase = "new"
    paused: bool = False

    @property
    def name(self) -> str:
        """The phase as a person sees it."""
        return "paused" if self.paused and self.phase != "closed" else self.phase

    @property
    def legal(self) -> tuple[str, ...]:
        """Types of the messages accepted now."""
        return LEGAL[self.name]

    def take(self, kind: str) -> Machine:
        """The machine after a client's message; raises `ProtocolError` "illegal" and names what is legal."""
        if kind not in self.legal:
            can = ", ".join(self.legal) or "nothing"
            raise ProtocolError(
                "illegal", f"{kind} is not possible while {self.name}; possible: {can}", _HINTS.get(self.name, ""),
                self.legal,
            )
        if kind in ("start", "restore"):
            return replace(self, phase="waiting")
        if kind == "say" and self.phase == "listening":
            return replace(self, phase="speaking")
        if kind == "interrupt":
            return replace(self, phase="listening")
        if kind in ("pause", "resume"):
            return replace(self, paused=kind == "pause")
        return Machine(phase="closed") if kind == "stop" else self

    def admitted(self, speaking: bool) -> Machine:
        """There is room for it."""
        return replace(self, phase="speaking" if speaking else "listening") if self.phase == "waiting" else self

    def spoken(self) -> Machine:
        """Nothing is left to say."""
        return replace(self, phase="listening") if self.phase == "speaking" else self

    def closed(self) -> Machine:
        return Machine(phase="closed")
