"""(seed, text) -> Clip: a character, what it says and how it moves, with every truth exact."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamchar import clock, phonemes
from streamchar.errors import InputError
from streamchar.types import Speech
from streamchar.world.character import Character, character
from streamchar.world.motion import MotionTrack, plan
from streamchar.world.prompt import Direction, phrase, sample_direction
from streamchar.world.render import render
from streamchar.world.splits import HELD_OUT_VOICES, is_held_out_character
from streamchar.world.text import sentences
from streamchar.world.voice import VOICES, Voice, join, speak

MAX_CHUNKS = 14  # 19.25 s: nothing in training is longer than 20 s (paper section 5.1)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A talking character, drawn only when asked (`frames`)."""

    seed: int
    character: Character
    direction: Direction
    prompt: str
    speech: Speech
    """Padded with silence to whole chunks."""
    track: MotionTrack

    @property
    def chunks(self) -> int:
        return self.speech.samples.shape[0] // clock.SAMPLES_PER_CHUNK

    def frames(self, start: int = 0, stop: int | None = None, size: int = 256) -> Tensor:
        """(T, 3, size, size) uint8 frames start..stop."""
        return render(self.character, self.track, size=size, start=start, stop=stop)


def merge_pauses(speech: Speech) -> list[tuple[str, float, float]]:
    """(symbol, start, end) as the transcript tokenizer counts phonemes: adjacent pauses are one."""
    out: list[tuple[str, float, float]] = []
    for mark in speech.phonemes:
        if out and mark.symbol == phonemes.PAUSE == out[-1][0]:
            out[-1] = (mark.symbol, out[-1][1], mark.end)
        else:
            start = out[-1][2] if out else 0.0
            out.append((mark.symbol, start, mark.end))
    return out


def pad_to_chunks(speech: Speech, lead: float = 0.0, tail: float = 0.0) -> Speech:
    """Silence in front (`lead` s) and behind (at least `tail` s), up to a whole number of chunks."""
    if lead:
        speech = join([_silence(lead), speech])
    needed = round(speech.samples.shape[0] + tail * clock.AUDIO_RATE)
    total = -(-needed // clock.SAMPLES_PER_CHUNK) * clock.SAMPLES_PER_CHUNK
    samples = torch.nn.functional.pad(speech.samples, (0, total - speech.samples.shape[0]))
    pitch = torch.nn.functional.pad(speech.pitch, (0, max(0, total // 512 - speech.pitch.shape[0])))
    return replace(speech, samples=samples, pitch=pitch)


def _silence(seconds: float) -> Speech:
    count = round(seconds * clock.AUDIO_RATE)
    return Speech(samples=torch.zeros(count), text="", phonemes=(), words=(), pitch=torch.zeros(round(seconds * 96)))


def talk(texts: list[str], voice: Voice | int, rng: random.Random, *, limit: int = MAX_CHUNKS) -> Speech:
    """As many of `texts` as fit in `limit` chunks, with short pauses between, padded to whole chunks."""
    parts: list[Speech] = []
    gaps: list[float] = []
    total = 0.0
    room = float(limit * clock.CHUNK_SECONDS) - 0.2
    tempo = rng.uniform(0.94, 1.06)
    for text in texts:
        part = speak(text, voice, tempo=tempo, seed=rng.randrange(2**31))
        if parts and total + part.seconds > room:
            break
        if part.seconds > room:
            raise InputError(f"expected a sentence of at most {room:.1f} s, got {part.seconds:.1f} s; split it")
        parts.append(part)
        gaps.append(rng.choice([0.0, 0.0, rng.uniform(0.05, 0.4)]))
        total += part.seconds + gaps[-1]
    gaps[-1] = 0.0
    return pad_to_chunks(join(parts, gaps), tail=rng.choice([0.0, 0.15]))


def pick_character(seed: int, *, held_out: bool) -> Character:
    """The first character from `seed` on, in steps of a large prime, that is of the wanted split. A
    held-out character keeps a trained voice: picture and voice are held out apart from each other."""
    candidate = seed
    while is_held_out_character(candidate) != held_out:
        candidate += 7_368_787
    return character(candidate, n_voices=len(VOICES) - len(HELD_OUT_VOICES))


def make_clip(
    seed: int,
    text: str | None = None,
    *,
    who: Character | None = None,
    direction: Direction | None = None,
    held_out: bool = False,
    short: bool = False,
    limit: int = MAX_CHUNKS,
) -> Clip:
    """The clip of this seed: two to five sentences of the split (`short`: one or two), or `text` (of any length), by a
    character of the split."""
    rng = random.Random(f"clip-{seed}-{held_out}")
    who = who or pick_character(seed, held_out=held_out)
    direction = direction or sample_direction(rng.randrange(2**31))
    if text is None:
        texts = sentences(seed, rng.randint(*((1, 2) if short else (2, 5))), held_out=held_out, template_rate=0.2)
    else:
        texts = phonemes.split_sentences(phonemes.speakable(text))
        texts = [t for t in texts if phonemes.utterance(t).words]
        if not texts:
            raise InputError(f"expected a text with at least one English word, got {text!r}")
        limit = 10_000
    speech = talk(texts, who.voice, rng, limit=limit)
    n_frames = speech.samples.shape[0] // clock.AUDIO_STRIDE
    return Clip(
        seed=seed, character=who, direction=direction, prompt=phrase(direction, rng.randrange(2**31)), speech=speech,
        track=plan(speech, direction, seed, n_frames),
    )
