"""What the tests of streams share: a tiny model that shows every path, a pointer at a given pace, and playing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from streamchar.codecs.audio import DecoderState
from streamchar.config.presets import tiny
from streamchar.flow.sampler import EulerSampler
from streamchar.flow.schedule import Schedule
from streamchar.orchestrator.packing import TAIL
from streamchar.stream.chunk import ChunkLatents, generate_chunk
from streamchar.stream.models import Models, fresh
from streamchar.stream.state import StreamState

CONFIG = tiny()
SAMPLER = EulerSampler(schedule=Schedule(steps=2, shift=5.0))
SHORT = "hello there, how are you today?"
LONG = "the quick brown fox jumps over the lazy dog and then it rests under an old tree for a while. " * 4


def tiny_models() -> Models:
    """An untrained model in which nothing is zero as it is before training."""
    torch.manual_seed(0)
    made = fresh(CONFIG)
    with torch.no_grad():
        for part in (made.orchestrator, made.dit):
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@contextmanager
def paced(models: Models, rate: float) -> Iterator[None]:
    """Let the pointer read `rate` tokens a chunk."""

    def read(module, args, progress):
        _, text, cursor = args
        frames = cursor[:, None] + rate * (torch.arange(TAIL) + 0.5) / TAIL - 0.5
        return replace(progress, end=torch.minimum(cursor + rate, text.length.float()), position=frames)

    hook = models.orchestrator.pointer.register_forward_hook(read)
    yield
    hook.remove()


def start(models: Models, text: str = SHORT, **changes) -> StreamState:
    draw = torch.Generator().manual_seed(3)
    h, w = CONFIG.latent_size
    still = torch.randn(1, CONFIG.dit.video_channels, 1, h, w, generator=draw)
    voice = torch.randn(1, 10, CONFIG.dit.audio_channels, generator=draw)
    state = StreamState(model=models.name, text=text, prompt="happy", seed=5, steps=2, still=still, voice=voice)
    return replace(state, **changes)


def play(
    models: Models, state: StreamState, chunks: int | None = None, *, sampler=SAMPLER, keep_memory: bool = True
) -> Iterator[tuple[ChunkLatents, StreamState]]:
    """Chunks and the states behind them, until the stream ends or `chunks` are made."""
    transcript, memory = models.tokenizer(state.text), None
    for _ in itertools.count() if chunks is None else range(chunks):
        if state.finished:
            return
        with torch.inference_mode():
            made, state = generate_chunk(models, state, sampler, transcript=transcript, memory=memory)
        memory = made.memory if keep_memory else None
        yield made, state


def equal(a: object, b: object) -> bool:
    """Whether two values are the same to the bit, whatever is in them."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, StreamState | DecoderState):
        return type(a) is type(b) and all(
            equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b
