"""One interface over the real model and the mock: a studio opens actors, an actor speaks chunk by chunk.

Two threads use an actor: `generate`, `say` and `hush` belong to the device, `finish`, `listen` and `save` to the
thread that decodes and muxes. Whoever changes what the other one reads holds the lock of the live session.
Shape letters: T frames, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from streamchar.serve.protocol import Start
from streamchar.types import Chunk

LISTEN_FRAMES = 11
"""Frames of one piece while listening: a third of a chunk, exactly 22,000 samples at 48,000 Hz. Short, so that little
silence lies between the player and the first word."""


class Actor(Protocol):
    """A character that is being played."""

    @property
    def words(self) -> tuple[str, ...]:
        """All words of this turn."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing is left to generate."""
        ...

    def say(self, text: str) -> None:
        """Append to the turn's text. Raises `InputError` for what cannot be spoken."""
        ...

    def hush(self) -> None:
        """Forget what was not finished; the next `say` begins a turn."""
        ...

    def generate(self) -> Any:
        """The next chunk, not decoded. On the device."""
        ...

    def finish(self, take: Any) -> Chunk:
        """What `generate` gave, decoded; its index and its words count in chunks of speech."""
        ...

    def listen(self, first: int) -> Tensor:
        """`LISTEN_FRAMES` frames (T, H, W, 3) of a silent, living picture; `first` counts the session's frames."""
        ...

    def save(self, path: Path) -> None:
        """Everything after the last finished chunk, all said text included."""
        ...


class Studio(Protocol):
    """Opens actors; its device is used by one thread."""

    name: str
    width: int
    height: int
    pictures: bool
    """Whether a person's own picture comes out as it looks."""

    def check(self, text: str) -> None:
        """Raise `InputError` if no word of `text` can be spoken."""
        ...

    def open(self, start: Start) -> Actor:
        """A silent actor. Raises `InputError`."""
        ...

    def load(self, start: Start, path: Path) -> Actor:
        """An actor as it was saved. Raises `StateError`."""
        ...
