"""A studio without a model: test pictures and tones, as slow or as fast as asked.

Each word is a tone of its own for a third of a second or more, with a mouth that is open while it sounds.
Shape letters: T frames, H height, W width, S samples.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import InputError, StateError
from streamchar.serve.actor import LISTEN_FRAMES, Actor
from streamchar.serve.protocol import Start
from streamchar.serve.uploads import picture_of, voice_of
from streamchar.types import Chunk, Word

N = clock.FRAMES_PER_CHUNK


class MockStudio:
    """`speed`: playing time over computing time of a chunk."""

    def __init__(self, *, speed: float = 4.0, size: int = 256) -> None:
        self.name, self.width, self.height, self.pictures = "mock", size, size, True
        self.speed = speed

    def check(self, text: str) -> None:
        _words(text)

    def open(self, start: Start) -> Actor:
        if start.recording:
            voice_of(start.recording)
        return MockActor(self, start, MockState())

    def load(self, start: Start, path: Path) -> Actor:
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            plain["words"] = tuple((text, a, b) for text, a, b in plain["words"])
            return MockActor(self, start, MockState(**plain))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StateError(f"{path.name} is not a saved mock stream: {error}; start anew") from None


@dataclass(frozen=True, kw_only=True)
class MockState:
    """Words of the turn with the frames in which each is spoken, and the place reached."""

    words: tuple[tuple[str, int, int], ...] = ()
    chunk: int = 0
    """Chunks of speech in all."""
    begun: int = 0
    """Chunk at which the turn began."""
    next_word: int = 0

    @property
    def finished(self) -> bool:
        return not self.words or self.words[-1][2] <= N * (self.chunk - self.begun)


def _words(text: str) -> list[str]:
    words = [word for word in text.split() if any(mark.isalnum() for mark in word)]
    if not words:
        raise InputError(f"nothing in the text can be spoken, got {text[:40]!r}; give at least one word")
    return words


class MockActor:
    def __init__(self, studio: MockStudio, start: Start, state: MockState) -> None:
        self._studio, self._ahead, self._done = studio, state, state
        if start.picture:
            picture = picture_of(start.picture, studio.height, studio.width).add(1).mul(127.5).round()
            self._face_HWC = picture.to(torch.uint8).permute(1, 2, 0).contiguous()
        else:
            self._face_HWC = _face(start.character, studio.height, studio.width)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(text for text, _, _ in self._ahead.words)

    @property
    def finished(self) -> bool:
        return self._ahead.finished

    def say(self, text: str) -> None:
        state, fresh = self._ahead, _words(text)
        if not state.words:
            state = replace(state, begun=state.chunk, next_word=0)
        at = max(state.words[-1][2] if state.words else 0, N * (state.chunk - state.begun))
        spans = []
        for word in fresh:
            stop = at + 7 + min(len(word), 9)
            spans.append((word, at, stop))
            at = stop
        self._ahead = replace(state, words=(*state.words, *spans))

    def hush(self) -> None:
        self._ahead = self._done = replace(self._done, words=(), next_word=0)

    def generate(self) -> tuple[MockState, MockState]:
        before = self._ahead
        time.sleep(float(clock.CHUNK_SECONDS) / self._studio.speed)
        stop = N * (before.chunk + 1 - before.begun)
        heard = before.next_word
        while heard < len(before.words) and before.words[heard][2] <= stop:
            heard += 1
        self._ahead = replace(before, chunk=before.chunk + 1, next_word=heard)
        return before, self._ahead

    def finish(self, take: tuple[MockState, MockState]) -> Chunk:
        before, after = take
        self._done = after
        first = N * (before.chunk - before.begun)
        frame_T = torch.arange(first, first + N)
        word_T = torch.full((N,), -1)
        for index in range(before.next_word, len(after.words)):  # (all words of an hour, each chunk: minutes)
            _, begin, stop = after.words[index]
            if begin >= first + N:
                break
            word_T[(frame_T >= begin) & (frame_T < stop - 1)] = index
        words = tuple(
            Word(text=text, start=_time(after, begin), end=_time(after, stop))
            for text, begin, stop in after.words[before.next_word : after.next_word]
        )
        return Chunk(
            index=before.chunk, frames=self._draw(word_T, N * before.chunk), samples=_tones(after, word_T),
            words=words, last=after.finished, seconds={"denoise": float(clock.CHUNK_SECONDS) / self._studio.speed},
        )

    def listen(self, first: int) -> Tensor:
        return self._draw(torch.full((LISTEN_FRAMES,), -1), first)

    def save(self, path: Path) -> None:
        # words said since: the schedule of `_ahead` holds for the state behind it too
        words = self._ahead.words
        begun = self._ahead.begun if words else self._done.begun
        state = replace(self._done, words=words, begun=begun)
        path.write_text(json.dumps(asdict(state)), encoding="utf-8")

    def _draw(self, word_T: Tensor, first: int) -> Tensor:
        """(T, H, W, 3): the face, its mouth open where there is a word, shut eyes every three seconds."""
        frames = self._face_HWC.repeat(len(word_T), 1, 1, 1)
        high, wide = frames.shape[1:3]
        for t, word in enumerate(word_T.tolist()):
            open_by = 1 + (word >= 0) * (2 + (first + t) % 4)
            middle, half = int(0.68 * high), max(1, high * open_by // 80)
            frames[t, middle - half : middle + half, int(0.42 * wide) : int(0.58 * wide)] = torch.tensor(
                [150, 40, 52], dtype=torch.uint8
            )
            if (first + t) % 72 < 4:
                lid = frames[t, int(0.3 * high), int(0.5 * wide)].clone()
                frames[t, int(0.4 * high) : int(0.5 * high), int(0.3 * wide) : int(0.7 * wide)] = lid
        return frames


def _time(state: MockState, frame: int) -> float:
    return (N * state.begun + frame) / clock.VIDEO_FPS


def _tones(state: MockState, word_T: Tensor) -> Tensor:
    """(S,): a tone a word, faded at its ends."""
    samples = torch.zeros(N, clock.AUDIO_STRIDE)
    second = torch.arange(clock.AUDIO_STRIDE) / clock.AUDIO_RATE
    for t, index in enumerate(word_T.tolist()):
        if index >= 0:
            pitch = 160 * 2 ** (sum(map(ord, state.words[index][0])) % 24 / 12)
            place = second + t / clock.VIDEO_FPS
            samples[t] = 0.25 * torch.sin(2 * math.pi * pitch * place)
    ramp = torch.linspace(0, 1, clock.AUDIO_STRIDE)
    for t in range(N):
        if t == 0 or word_T[t - 1] != word_T[t]:
            samples[t] *= ramp
        if t == N - 1 or word_T[t + 1] != word_T[t]:
            samples[t] *= 1 - ramp
    return samples.reshape(-1)


def _face(seed: int, high: int, wide: int) -> Tensor:
    """A flat face in the colours of a seed -> (H, W, 3) uint8."""
    draw = torch.Generator().manual_seed(seed % 2**31)
    back, skin = torch.randint(90, 200, (3,), generator=draw), torch.randint(150, 245, (3,), generator=draw)
    y = torch.linspace(0, 1, high)[:, None].expand(high, wide)
    x = torch.linspace(0, 1, wide)[None].expand(high, wide)
    image = (back.float() * (1.1 - 0.4 * y[..., None])).clamp(0, 255)
    head = ((x - 0.5) / 0.32) ** 2 + ((y - 0.52) / 0.4) ** 2 < 1
    image[head] = skin.float()
    for centre in (0.38, 0.62):
        image[((x - centre) / 0.05) ** 2 + ((y - 0.45) / 0.05) ** 2 < 1] = 30.0
    return image.to(torch.uint8)
