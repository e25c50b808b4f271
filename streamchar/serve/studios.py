"""Which studio a server plays: what a user asked for, as plain values that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass

from streamchar.errors import InputError
from streamchar.serve.actor import Studio

MAX_STEPS = 100
MAX_GUIDANCE = 10.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model, or the mock at `speed` times real time. Raises `InputError`."""

    model: str = "toon"
    steps: int | None = None
    guidance: float | None = None
    mock: bool = False
    speed: float = 4.0
    size: int = 256
    """Pixels a side of the mock's picture."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.speed <= 1000:
            raise InputError(f"--mock-speed must be from 0.1 to 1000, got {self.speed}")
        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"--steps must be from 1 to {MAX_STEPS}, got {self.steps}")
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise InputError(f"--guidance must be from 0 to {MAX_GUIDANCE:g} (1 is none), got {self.guidance}")

    def open(self) -> Studio:
        """Load it."""
        if self.mock:
            from streamchar.serve.mock import MockStudio

            return MockStudio(speed=self.speed, size=self.size)
        from streamchar.serve.model import ModelStudio
        from streamchar.stream.pipeline import StreamCharPipeline

        pipe = StreamCharPipeline.from_pretrained(self.model)
        return ModelStudio(pipe, steps=self.steps, guidance=self.guidance)
