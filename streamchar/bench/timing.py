"""How long the stages of a chunk take, measured from outside: the model's code knows nothing of it.

On a GPU a lap is two events on the current stream, read when everything is over: nothing waits that would not wait
without them. On a CPU it is the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from streamchar.stream.models import Models

STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "conditions": (("dit", "encode_conditions"),),
    "history": (("orchestrator", "prefix"), ("orchestrator", "extend")),
    "plan": (("orchestrator", "plan"),),
    "denoise": (("dit", "denoise"), ("dit", "denoise_audio")),
    "prompt": (("prompt_encoder", "encode"),),
    "decode_video": (("video_codec", "decode"),),
    "decode_audio": (("audio_codec", "decode"),),
}
"""Stage -> the calls that belong to it. `plan` and `denoise` sum over a chunk's sampling steps."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds of one stage over the chunks that count."""

    median: float
    p95: float
    p99: float
    mean: float
    longest: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Percentiles between neighbouring values are interpolated."""
        ordered = sorted(seconds)

        def at(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        return cls(
            median=at(0.5), p95=at(0.95), p99=at(0.99), mean=sum(ordered) / len(ordered), longest=ordered[-1],
            count=len(ordered),
        )  # fmt: skip

    def figures(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Lap:
    stage: str
    turn: int
    """The chunk it belongs to."""
    began: Any
    ended: Any


@dataclass(kw_only=True)
class Stopwatch:
    """Laps of stages, by chunk. `turn` is the chunk that is being worked on; one thread at a time."""

    device: torch.device
    turn: int = 0
    now: Callable[[], float] = time.perf_counter
    """The clock off a GPU."""
    laps: list[Lap] = field(default_factory=list)

    @contextmanager
    def lap(self, stage: str) -> Iterator[None]:
        """Time what is inside, for the present turn; an exception leaves no lap."""
        turn, began = self.turn, self._now()
        yield
        ended = self._now()
        if began is not None and ended is not None:
            self.laps.append(Lap(stage=stage, turn=turn, began=began, ended=ended))

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return self.now()
        if torch.cuda.is_current_stream_capturing():
            return None  # an event recorded into a graph has no time
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, dict[int, float]]:
        """Stage -> chunk -> seconds, summed over a chunk's laps. On a GPU this waits for all work, once."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, dict[int, float]] = {}
        for lap in self.laps:
            on_gpu = self.device.type == "cuda"
            spent = lap.began.elapsed_time(lap.ended) / 1000 if on_gpu else lap.ended - lap.began
            turns = found.setdefault(lap.stage, {})
            turns[lap.turn] = turns.get(lap.turn, 0.0) + spent
        return found


@contextmanager
def watched(models: Models, watch: Stopwatch) -> Iterator[None]:
    """Within, every call of a stage is a lap. The components are as they were afterwards."""
    with ExitStack() as undo:
        for stage, calls in STAGES.items():
            for component, name in calls:
                part = getattr(models, component)
                own, call = name in vars(part), getattr(part, name)
                setattr(part, name, _timed(watch, stage, call))
                undo.callback(setattr, part, name, call) if own else undo.callback(delattr, part, name)
        yield


def _timed(watch: Stopwatch, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        with watch.lap(stage):
            return call(*arguments, **options)

    return timed
