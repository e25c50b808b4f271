"""The stream's memory: which history and transcript the orchestrator sees, and the derived caches.

The window holds at most 15 s of history. When it is full, or when the transcript in it runs short of
the look-ahead, the oldest chunks go, together with the tokens that the pointer says were spoken in them
(paper section 5.1). Half a window is dropped at once, so that keys are recomputed every few chunks only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamchar import clock
from streamchar.dit.cache import ConditionCache, Conditions
from streamchar.dit.layout import Layout
from streamchar.orchestrator.lm import Prefix
from streamchar.stream.models import Models
from streamchar.stream.state import StreamState
from streamchar.types import Transcript

KEEP = clock.MAX_HISTORY_CHUNKS // 2
J = clock.AUDIO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the orchestrator's prefix is made of."""

    start: int
    ids: tuple[int, ...]
    chunks: int
    """Chunks of history."""
    guided: bool


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Keys and values derived from a state; only ever an economy. Rebuilt, it is the same to the bit:
    the prefix is always made of the text first and then chunk by chunk."""

    window: Window
    """What the prefixes stand for."""
    prefix: Prefix
    blank: Prefix | None
    """The same without transcript and voice, for guidance."""
    anchor: ConditionCache
    """Reference and sink."""
    anchor_blank: ConditionCache | None
    has_sink: bool
    prompt: str


def slide(state: StreamState, transcript: Transcript, look_ahead: int, max_tokens: int) -> StreamState:
    """The state with its window moved on if it must be."""
    stop = state.window_start + max_tokens
    short = stop < len(transcript) and state.cursor + look_ahead > stop
    if state.history_chunks <= clock.MAX_HISTORY_CHUNKS and not short:
        return state
    keep = min(KEEP, state.history_chunks)
    # a fast speaker's last chunks may hold so much text that the look-ahead does not fit behind it
    while keep and int(state.borders[-keep]) + max_tokens < min(state.cursor + look_ahead, len(transcript)):
        keep -= 1
    borders = state.borders[state.history_chunks - keep :]
    start = int(borders[0]) if borders else int(state.cursor)
    history = None if state.history is None or keep == 0 else state.history[:, -keep * J :]
    return replace(state, history=history, borders=borders, window_start=start)


def _prefix(models: Models, state: StreamState, ids: Tensor, voice: Tensor | None) -> Prefix:
    prefix = models.orchestrator.prefix(voice, ids, None)
    for chunk in range(state.history_chunks):
        assert state.history is not None
        prefix = models.orchestrator.extend(prefix, state.history[:, chunk * J : (chunk + 1) * J])
    return prefix


def window_ids(models: Models, state: StreamState, transcript: Transcript) -> tuple[int, ...]:
    """The transcript tokens in the window."""
    stop = state.window_start + models.config.orchestrator.max_transcript
    return transcript.ids[state.window_start : stop]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; a GPU is not waited for (pinned memory)."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def recall(models: Models, state: StreamState, transcript: Transcript, memory: Memory | None) -> Memory:
    """Bring the memory up to `state`: extended if it can be, computed anew if the window moved or the
    transcript grew."""
    ids = window_ids(models, state, transcript)
    guided = state.guided
    window = Window(start=state.window_start, ids=ids, chunks=state.history_chunks, guided=guided)
    if memory is not None and memory.window == window:
        prefix, blank = memory.prefix, memory.blank
    elif memory is not None and replace(memory.window, chunks=memory.window.chunks + 1) == window:
        assert state.history is not None
        latest = state.history[:, -J:]
        prefix = models.orchestrator.extend(memory.prefix, latest)
        blank = None if memory.blank is None else models.orchestrator.extend(memory.blank, latest)
    else:
        tokens = to_device(torch.tensor([ids]), models.device)
        prefix = _prefix(models, state, tokens, state.voice)
        blank = _prefix(models, state, torch.zeros_like(tokens[:, :1]), None) if guided else None
    held = memory if memory is not None and memory.prompt == state.prompt else None
    anchor = _anchor(models, state, state.prompt, held, None if held is None else held.anchor)
    anchor_blank = None
    if state.weights[0] != 1.0:  # the empty prompt's keys hold whatever the prompt
        anchor_blank = _anchor(models, state, "", memory, None if memory is None else memory.anchor_blank)
    return Memory(
        window=window, prefix=prefix, blank=blank, anchor=anchor, anchor_blank=anchor_blank,
        has_sink=state.sink is not None, prompt=state.prompt,
    )


def chunk_layout(models: Models, state: StreamState, *, motion: bool) -> Layout:
    """Segments of the next chunk. Chunk 2 has chunk 1 both as its sink and as its motion."""
    return Layout(
        grid=models.config.grid, ref=1, sink=clock.VIDEO_LATENTS_PER_CHUNK if state.sink is not None else 0,
        motion=clock.VIDEO_LATENTS_PER_CHUNK if motion and state.motion is not None else 0,
    )


def _anchor(
    models: Models, state: StreamState, prompt: str, memory: Memory | None, held: ConditionCache | None
) -> ConditionCache:
    """Keys of reference and prompt, and of the sink behind them once there is one: each is computed once a stream,
    always in this order, so that a rebuilt memory is the same to the bit."""
    if memory is not None and held is not None and memory.has_sink == (state.sink is not None):
        return held
    layout = chunk_layout(models, state, motion=False)
    if memory is not None and held is not None and not memory.has_sink:
        first = held
    else:
        text = models.prompt_encoder.encode([prompt]).to(models.device)
        first = models.dit.encode_conditions(replace(layout, sink=0), Conditions(text=text, ref=state.still))
    if state.sink is None:
        return first
    return models.dit.encode_conditions(layout, Conditions(text=None, ref=state.still, sink=state.sink), previous=first)


def chunk_conditions(models: Models, state: StreamState, memory: Memory, *, blank: bool = False) -> ConditionCache:
    """Reference, sink, motion and prompt for the next chunk: motion is the only part that is new."""
    anchor = memory.anchor_blank if blank else memory.anchor
    assert anchor is not None
    if state.motion is None:
        return anchor
    # no copies: a chunk's latents are what they were when they were made
    conditions = Conditions(text=None, ref=state.still, sink=state.sink, motion=state.motion)
    return models.dit.encode_conditions(chunk_layout(models, state, motion=True), conditions, previous=anchor)
