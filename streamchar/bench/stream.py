"""A stream to measure: the one chunk step, played by `Session`, for exactly as many chunks as asked for.

With random weights the pointer says anything, so the cursor is put where a speaker of mean rate would stand: the
window grows and slides as in a real stream. With trained weights the pointer is believed. In both a stream goes on
until its last chunk, whatever the pointer says of its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import psutil
import torch

from streamchar import clock
from streamchar.bench.timing import Stopwatch
from streamchar.errors import InputError
from streamchar.stream.chunk import ChunkLatents
from streamchar.stream.memory import Memory
from streamchar.stream.models import Models
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.session import Session
from streamchar.stream.state import StreamState
from streamchar.types import Chunk

SENTENCE = "We walk along the river in the morning, and nobody asks us where we are going. "
SPARE = 1.5  # more text than a speaker of mean rate needs
VOICE_SECONDS = 3
PICTURE_SEED = 17
J = clock.AUDIO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a stream left behind."""

    intervals: tuple[float, ...]
    """Seconds from one finished chunk to the next; the first is the first chunk's latency."""
    memory_mib: tuple[float, ...]
    """After each chunk: allocated on the GPU, or resident."""
    prefixes: dict[int, tuple[int, int]]
    """Chunk -> the orchestrator's keys before the tail, and transcript tokens in its window."""
    blanks: dict[int, tuple[int, int]]
    """The same of the pass without transcript and voice, where there is one."""
    trailing: bool
    """The last chunk was only decoded, as its audio codec waits for the chunk after (and the first made two)."""

    @property
    def whole(self) -> tuple[float, ...]:
        """The intervals in which a chunk was both made and decoded."""
        return self.intervals[:-1] if self.trailing else self.intervals


def text_for(models: Models, chunks: int) -> str:
    """A text long enough for so many chunks."""
    config = models.config.orchestrator
    wanted = int(SPARE * chunks * J * config.tokens_per_latent) + config.look_ahead + 16
    once = max(1, len(models.tokenizer(SENTENCE)) - 1)
    return (SENTENCE * (wanted // once + 2)).strip()


def begin(models: Models, *, chunks: int, steps: int, seed: int = 0) -> StreamState:
    """The state of a stream that has not begun: a drawn picture and a drawn voice, the same for equal sizes."""
    draw = torch.Generator().manual_seed(PICTURE_SEED)
    height, width = models.config.height, models.config.width
    picture = torch.rand(3, height, width, generator=draw) * 2 - 1
    voice = torch.randn(VOICE_SECONDS * clock.AUDIO_RATE, generator=draw) * 0.1
    return StreamCharPipeline(models).start(
        text_for(models, chunks), character=picture, voice=voice, seed=seed, steps=steps
    )


class Measured(Session):
    """A session of `limit` chunks. `alone`: a chunk is generated only when the one before it is finished, so that
    stages do not share the machine; else as it plays for a user."""

    def __init__(
        self,
        models: Models,
        state: StreamState,
        *,
        limit: int,
        paced: bool,
        alone: bool,
        watch: Stopwatch | None = None,
    ) -> None:
        super().__init__(models, state)
        if limit < 1:
            raise InputError(f"a stream to measure needs at least 1 chunk, got {limit}")
        self.limit, self.paced, self.alone = limit, paced, alone
        self.watch = watch or Stopwatch(device=models.device)
        self.prefixes: dict[int, tuple[int, int]] = {}
        self.blanks: dict[int, tuple[int, int]] = {}

    def generate(self, state: StreamState, memory: Memory | None) -> tuple[ChunkLatents, StreamState]:
        if self.alone:
            self.watch.turn = state.chunk
            with self.watch.lap("generate"):
                made, after = super().generate(state, memory)
        else:
            made, after = super().generate(state, memory)
        prefix = made.memory.prefix
        self.prefixes[state.chunk] = (prefix.length, prefix.text.features.shape[1])
        if made.memory.blank is not None:
            self.blanks[state.chunk] = (made.memory.blank.length, 1)
        return made, self._going_on(after)

    def _going_on(self, state: StreamState) -> StreamState:
        cursor = min(state.cursor, len(self.transcript) - 2.0)
        if self.paced:
            rate = self.models.config.orchestrator.tokens_per_latent
            cursor = min(state.chunk * J * rate, len(self.transcript) - 2.0)
        return replace(state, cursor=cursor, stalled=0, finished=state.chunk >= self.limit)

    def finish(self, made: ChunkLatents, state: StreamState, *following: torch.Tensor) -> Chunk:
        if not self.alone:
            return super().finish(made, state, *following)
        self.watch.turn = made.index
        return super().finish(made, state, *following)

    def _takes(self, pool: ThreadPoolExecutor) -> Iterator[tuple[ChunkLatents, StreamState]]:
        if not self.alone:
            yield from super()._takes(pool)
            return
        state, memory = self.state, None
        while not state.finished:
            made, state = self.generate(state, memory)
            memory = made.memory
            yield made, state


def held_mib(device: torch.device) -> float:
    """What the model and the stream hold now: allocated on the GPU, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return psutil.Process().memory_info().rss / 2**20


def play(session: Measured, now: Callable[[], float] = time.perf_counter) -> Played:
    """Play it to its end, by this clock."""
    intervals, memory, device = [], [], session.models.device
    before = now()
    for _ in session:
        intervals.append(now() - before)
        memory.append(held_mib(device))
        before = now()
    return Played(
        intervals=tuple(intervals), memory_mib=tuple(memory), prefixes=session.prefixes, blanks=session.blanks,
        trailing=session.models.audio_codec.lookahead > 0,
    )  # fmt: skip
