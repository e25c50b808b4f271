"""The real model behind the studio's interface."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamchar.codecs.audio import DecoderState
from streamchar.errors import InputError
from streamchar.serve.actor import LISTEN_FRAMES, Actor
from streamchar.serve.listening import Listener
from streamchar.serve.protocol import Start
from streamchar.serve.uploads import picture_of, voice_of
from streamchar.stream.chunk import ChunkLatents
from streamchar.stream.inputs import check_speakable
from streamchar.stream.pipeline import VOICE_SENTENCE, StreamCharPipeline
from streamchar.stream.session import Session, grow, joined_text
from streamchar.stream.state import StreamState
from streamchar.types import Chunk
from streamchar.world.character import Character, character
from streamchar.world.render import draw_frame
from streamchar.world.splits import HELD_OUT_VOICES
from streamchar.world.voice import VOICES, speak

PLACEHOLDER = "Hello."
"""Text of a state that has nothing to say yet; replaced by the first `say`."""

KEPT = 32
"""Characters with a voice whose encoding is kept: a tenth of a second less until the first sound."""

Take = tuple[ChunkLatents, StreamState]


class ModelStudio:
    """Actors of one pipeline; `steps` and `guidance` are the model's own unless given."""

    def __init__(self, pipe: StreamCharPipeline, *, steps: int | None = None, guidance: float | None = None) -> None:
        self._pipe, self._steps, self._guidance = pipe, steps, guidance
        self.name = pipe.models.name
        self.width, self.height = pipe.config.width, pipe.config.height
        self.pictures = pipe.config.video.family != "toon"
        self._kept: OrderedDict[tuple[int, int], tuple[Character | None, Tensor, StreamState]] = OrderedDict()

    def check(self, text: str) -> None:
        check_speakable(text, self._pipe.tokenizer, self._pipe.unspeakable)

    def open(self, start: Start) -> Actor:
        who, picture, state = self._encoded(start)
        state = replace(state, prompt=start.prompt, seed=start.seed)
        return ModelActor(self._pipe, state, _listener(who, picture, start.seed), silent=True)

    def _encoded(self, start: Start) -> tuple[Character | None, Tensor, StreamState]:
        """The character, its picture, and a state with picture and voice encoded; kept for those of the world."""
        own = bool(start.picture or start.recording)
        key = (start.character, start.voice)
        if not own and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        who, picture = self._look(start)
        state = self._pipe.start(
            PLACEHOLDER, character=picture, voice=self._voice(start, who), steps=self._steps, guidance=self._guidance
        )
        if not own:
            self._kept[key] = who, picture, state
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return who, picture, state

    def load(self, start: Start, path: Path) -> Actor:
        state = StreamState.load(path)
        state = _moved(state, self._pipe.models.device)
        who, picture = self._look(start)
        silent = state.finished and state.text == PLACEHOLDER
        return ModelActor(self._pipe, state, _listener(who, picture, start.seed), silent=silent)

    def _look(self, start: Start) -> tuple[Character | None, Tensor]:
        """The character if it is one of the world, and its picture (3, H, W) in [-1, 1]."""
        if start.picture:
            return None, picture_of(start.picture, self.height, self.width)
        who = character(start.character, n_voices=len(VOICES) - len(HELD_OUT_VOICES))
        if self.width != self.height:
            raise InputError(f"this model is {self.width}x{self.height}: give a picture, its world draws squares only")
        return who, draw_frame(who, size=self.height).float().div(127.5).sub(1)

    def _voice(self, start: Start, who: Character | None) -> Tensor | None:
        if start.recording:
            return voice_of(start.recording)
        if start.voice >= len(VOICES):
            raise InputError(f"voice must be -1 (own) or from 0 to {len(VOICES) - 1}, got {start.voice}")
        index = start.voice if start.voice >= 0 else who.voice if who else -1
        return speak(VOICE_SENTENCE, index).samples if index >= 0 else None


def _listener(who: Character | None, picture_3HW: Tensor, seed: int) -> Listener:
    pixels = picture_3HW.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Listener(who, pixels.permute(1, 2, 0).contiguous(), seed)


class ModelActor:
    """A `Session` whose chunks are asked for one by one.

    `_ahead` is the state after the last generated chunk, `_session.state` the one after the last finished chunk.
    """

    def __init__(self, pipe: StreamCharPipeline, state: StreamState, listener: Listener, *, silent: bool) -> None:
        self._pipe, self._listener = pipe, listener
        self._session = Session(pipe.models, replace(state, finished=True) if silent else state)
        self._ahead, self._memory, self._silent = self._session.state, None, silent

    @property
    def words(self) -> tuple[str, ...]:
        return () if self._silent else self._session.transcript.words

    @property
    def finished(self) -> bool:
        return self._ahead.finished

    def say(self, text: str) -> None:
        models = self._pipe.models
        check_speakable(text, self._pipe.tokenizer, self._pipe.unspeakable)
        if self._silent:
            self._ahead = self._session.state = _turn(self._session.state, text)
            self._silent, self._memory = False, None
        else:
            self._ahead = grow(models, self._ahead, joined_text(models, self._ahead, text))
        self._session.transcript = models.tokenizer(self._ahead.text)

    def hush(self) -> None:
        self._ahead, self._memory, self._silent = replace(self._session.state, finished=True), None, True

    def generate(self) -> Take:
        made, self._ahead = self._session.generate(self._ahead, self._memory)
        self._memory = made.memory
        return made, self._ahead

    def finish(self, take: Take) -> Chunk:
        chunk = self._session.finish(*take)
        self._listener.spoke(chunk.frames[-1])
        return chunk

    def listen(self, first: int) -> Tensor:
        return self._listener.draw(first, LISTEN_FRAMES)

    def save(self, path: Path) -> None:
        state = self._session.state
        if self._silent:
            state = replace(state, finished=True, text=PLACEHOLDER)
        elif state.text != self._ahead.text:
            state = grow(self._pipe.models, state, self._ahead.text)
        state.save(path)


def _turn(state: StreamState, text: str) -> StreamState:
    """The state with a new text and nothing of the old one: picture, voice and motion go on, the orchestrator's
    window begins anew (its history belongs to tokens that are gone)."""
    return replace(
        state, text=text, cursor=0.0, window_start=0, history=None, borders=(), stalled=0, next_word=0,
        word_start=None, finished=False,
    )


def _moved(state: StreamState, device: torch.device) -> StreamState:
    """A loaded state on the model's device."""
    tensors = {name: value.to(device) for name, value in vars(state).items() if isinstance(value, Tensor)}
    decoder = state.decoder
    if decoder is not None:
        parts: dict[str, Any] = {
            name: value.to(device) for name, value in vars(decoder).items() if isinstance(value, Tensor)
        }
        if isinstance(decoder, DecoderState):
            parts["left"] = tuple(t.to(device) for t in decoder.left)
        decoder = replace(decoder, **parts)
    return replace(state, decoder=decoder, **tensors)
