"""A stream being played: an iterator of decoded chunks.

Chunk n is decoded by a worker while chunk n + 1 is denoised; the two meet at the next yield.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from streamchar.codecs.audio import DecoderState
from streamchar.errors import StateError
from streamchar.flow.sampler import EulerSampler, Sampler
from streamchar.flow.schedule import Schedule
from streamchar.stream.chunk import ChunkLatents, generate_chunk
from streamchar.stream.models import Models
from streamchar.stream.state import StreamState
from streamchar.types import Chunk

log = logging.getLogger(__name__)

SHIFT = 5.0


def default_sampler(steps: int) -> Sampler:
    """The base model's sampler."""
    return EulerSampler(schedule=Schedule(steps=steps, shift=SHIFT))


class Session:
    """Iterate it for `Chunk`s; `state` is the value after the chunk last yielded."""

    def __init__(self, models: Models, state: StreamState, sampler: Sampler | None = None) -> None:
        if state.model != models.name:
            raise StateError(f"the state belongs to the model {state.model!r}, this is {models.name!r}; load that one")
        self.models, self.state = models, state
        self.sampler = sampler or default_sampler(state.steps)
        self.transcript = models.tokenizer(state.text)
        self.stalled = False
        self.total_words = len(self.transcript.words)

    @property
    def spoken_words(self) -> int:
        return self.state.next_word

    def __iter__(self) -> Iterator[Chunk]:
        state, memory, decoder = self.state, None, self.state.decoder
        waiting: tuple[ChunkLatents, StreamState, Future] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            while True:
                made = None
                if not state.finished:
                    with torch.inference_mode():
                        made, state = generate_chunk(
                            self.models, state, self.sampler, transcript=self.transcript, memory=memory
                        )
                    memory = made.memory
                if waiting is not None:
                    decoder = yield from self._deliver(waiting)
                if made is None:
                    return
                # the audio decoder's state goes from chunk to chunk: one worker keeps the order
                waiting = (made, state, pool.submit(decode, self.models, made, decoder))

    def _deliver(self, waiting: tuple[ChunkLatents, StreamState, Future]) -> Iterator[Chunk]:
        made, state, future = waiting
        frames, samples, decoder, seconds = future.result()
        if made.stalled:
            self.stalled = True
            log.warning("chunk %d: the pointer stands still, the stream ends before its transcript does", made.index)
        self.state = replace(state, decoder=decoder)
        log.info("chunk %d cursor %.1f/%d %s", made.index, state.cursor, len(self.transcript),
                 " ".join(f"{k} {v:.3f}s" for k, v in {**made.seconds, **seconds}.items()))
        yield Chunk(
            index=made.index, frames=frames, samples=samples, words=made.words, last=made.last,
            seconds={**made.seconds, **seconds},
        )
        return decoder


def decode(
    models: Models, made: ChunkLatents, decoder: DecoderState | None
) -> tuple[Tensor, Tensor, DecoderState, dict[str, float]]:
    """Latents -> (33, H, W, 3) uint8 frames and (67584,) samples, with the audio decoder's next state."""
    with torch.inference_mode():
        began = time.perf_counter()
        pixels = models.video_codec.decode(made.video)[0].float().clamp(-1, 1)
        frames = pixels.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()
        middle = time.perf_counter()
        samples, decoder = models.audio_codec.decode(made.audio, decoder)
        samples = samples[0].float().clamp(-1, 1).cpu()
    return frames, samples, decoder, {
        "decode_video": middle - began, "decode_audio": time.perf_counter() - middle,
    }
