"""THE chunk step: state in, latents and the next state out. Live server, command line, benchmark,
evaluation and stage 4 all call it; there is no second loop. Pure and differentiable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from streamchar import clock
from streamchar.dit.model import Velocity
from streamchar.flow.sampler import Latents, Sampler
from streamchar.orchestrator.lm import Plan
from streamchar.stream.memory import Memory, chunk_conditions, chunk_layout, recall, slide, to_device
from streamchar.stream.models import Models
from streamchar.stream.state import StreamState, chunk_generator
from streamchar.types import Transcript, Word

STALL_TOKENS = 0.5
STALL_CHUNKS = 4
"""The pointer may stand still for 5.5 s; then the stream ends with a warning."""
J = clock.AUDIO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class ChunkLatents:
    """One chunk before decoding, and what the pointer says was spoken in it."""

    index: int
    video: Tensor
    """(1, Cv, 9, h, w)."""
    audio: Tensor
    """(1, 33, C)."""
    words: tuple[Word, ...]
    last: bool
    stalled: bool
    memory: Memory
    """Hand it back for the next chunk; dropping it costs time only."""
    still: Tensor | None = None
    """(1, Cv, 1, h, w) the stream's own, and `picture` (1, 3, H, W) in 8 bits: a decoder may take from them what the
    chunk has in common with them."""
    picture: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def generate_chunk(
    models: Models, state: StreamState, sampler: Sampler, *, transcript: Transcript, memory: Memory | None = None
) -> tuple[ChunkLatents, StreamState]:
    """Generate chunk `state.chunk` (paper section 4.1).

    `transcript` is `models.tokenizer(state.text)`, made once by the caller. Motion is the previous
    chunk's own latents; the sink is chunk 1's; the cursor moves where the pointer says at the last step.
    """
    began = time.perf_counter()
    limits = models.config.orchestrator
    state = slide(state, transcript, limits.look_ahead, limits.max_transcript)
    memory = recall(models, state, transcript, memory)
    cache = chunk_conditions(models, state, memory)
    blank = chunk_conditions(models, state, memory, blank=True) if state.weights[0] != 1.0 else None
    layout = chunk_layout(models, state, motion=True)
    planned = time.perf_counter()
    cursor = torch.full((1,), state.cursor - state.window_start, device=models.device)
    plans: list[Plan] = []

    def velocities(x: Latents, sigma: float, last: bool) -> Latents:
        level = torch.full((1,), sigma, device=models.device)
        plan = models.orchestrator.plan(memory.prefix, x[1], level, cursor)
        if last:
            plans.append(plan)
        v = _both(models.dit.denoise(x[0], x[1], plan.c_a, level, layout, cache))
        weights = state.weights_at(sigma)
        if memory.blank is None or weights == (1.0, 1.0):
            return v
        empty = models.orchestrator.plan(memory.blank, x[1], level, torch.zeros_like(cursor))
        if blank is None or weights[0] == 1.0:  # only the speech is guided, and it speaks without the main blocks too
            u = v[0], models.dit.denoise_audio(x[1], empty.c_a, level)
        else:
            u = _both(models.dit.denoise(x[0], x[1], empty.c_a, level, layout, blank))
        return tuple(b + weight * (a - b) for a, b, weight in zip(v, u, weights, strict=True))

    draw = chunk_generator(state)
    noise = tuple(
        to_device(temperature * torch.randn(shape, generator=draw), models.device)
        for shape, temperature in zip(_shapes(models), state.temperatures, strict=True)
    )
    video, audio = sampler(velocities, noise, draw)
    following, words, stalled = _advance(state, transcript, plans[-1], video, audio)
    done = time.perf_counter()  # after the cursor was read: on a GPU that is where the work is waited for
    return ChunkLatents(
        index=state.chunk, video=video, audio=audio, words=words, last=following.finished, stalled=stalled,
        memory=memory, still=state.still, picture=state.picture,
        seconds={"orchestrate": planned - began, "denoise": done - planned},
    ), following


def _both(v: Velocity) -> Latents:
    assert v.video is not None and v.audio is not None  # the layout has both
    return v.video, v.audio


def _shapes(models: Models) -> tuple[tuple[int, ...], tuple[int, ...]]:
    h, w = models.config.latent_size
    return (
        (1, models.config.dit.video_channels, clock.VIDEO_LATENTS_PER_CHUNK, h, w),
        (1, J, models.config.dit.audio_channels),
    )


def _advance(
    state: StreamState, transcript: Transcript, plan: Plan, video: Tensor, audio: Tensor
) -> tuple[StreamState, tuple[Word, ...], bool]:
    """The state after the chunk: memory, cursor (monotonic), words, and whether the stream is over."""
    # the one time in a chunk that the host waits for the device
    read = torch.cat([plan.progress.end, plan.progress.position[0]]).detach().cpu()
    end = float(read[0]) + state.window_start
    cursor = min(max(state.cursor, end), float(len(transcript)))
    still = state.stalled + 1 if cursor - state.cursor < STALL_TOKENS else 0
    spoken = cursor >= len(transcript) - 1.5  # the end token is reached: only silence is left
    stalled = not spoken and still >= STALL_CHUNKS
    finished = spoken or stalled
    positions = read[1:] + state.window_start
    words, next_word, word_start = _hear(state, transcript, positions, cursor, spoken)
    history = audio if state.history is None else torch.cat([state.history, audio], dim=1)
    following = replace(
        state, chunk=state.chunk + 1, cursor=cursor, motion=video, history=history,
        sink=video if state.sink is None else state.sink, borders=(*state.borders, state.cursor), stalled=still,
        next_word=next_word, word_start=word_start, finished=finished,
    )
    return following, words, stalled


def _hear(
    state: StreamState, transcript: Transcript, positions_J: Tensor, cursor: float, spoken: bool
) -> tuple[tuple[Word, ...], int, float | None]:
    """Words whose end the pointer passed in this chunk, with their times in the stream."""
    spans = word_spans(transcript)
    reached = positions_J.clamp(min=state.cursor - 0.5, max=cursor).cummax(0).values.tolist()
    begin = state.chunk * float(clock.CHUNK_SECONDS)
    frame = 1 / float(clock.AUDIO_LATENT_RATE)
    words, index, started = [], state.next_word, state.word_start
    for j, position in enumerate(reached):
        now = begin + j * frame
        while index < len(spans):
            first, after = spans[index]
            if started is None and position >= first - 0.5:
                started = now
            if started is None or position < after - 0.5:
                break
            words.append(Word(text=transcript.words[index], start=started, end=max(now, started + frame)))
            index, started = index + 1, None
    stop = begin + float(clock.CHUNK_SECONDS)
    while spoken and index < len(spans):
        words.append(Word(text=transcript.words[index], start=stop if started is None else started, end=stop))
        index, started = index + 1, None
    return tuple(words), index, started


def word_spans(transcript: Transcript) -> list[tuple[int, int]]:
    """For each word its first token and the one after its last."""
    spans: dict[int, tuple[int, int]] = {}
    for token, word in enumerate(transcript.token_word):
        if word >= 0:
            spans[word] = (spans.get(word, (token, 0))[0], token + 1)
    if spans:  # what follows the last word (pause, end) is not part of it
        last = max(spans)
        first, after = spans[last]
        spans[last] = (first, max(first + 1, min(after, len(transcript) - 2)))
    return [spans[w] for w in sorted(spans)]
