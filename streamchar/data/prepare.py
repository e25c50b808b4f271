"""Data generation: world clips through the codecs into shards; parallel, resumable.

Shard i of a folder is a function of the recipe and i alone: workers take numbers, a stopped run goes on
where shards are missing, and two machines can share the work.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from streamchar import clock, phonemes
from streamchar.codecs.component import fingerprint
from streamchar.data.origin import NAME, settle
from streamchar.data.shards import REFERENCE_LATENTS, ClipRecord, write_shard
from streamchar.errors import ConfigError, DataError
from streamchar.types import AudioCodec, Speech, VideoCodec

log = logging.getLogger(__name__)

SHARD_SECONDS = 600.0
MAX_SHARD_SECONDS = 1200.0
"""A shard's clips have `SEEDS` numbers to themselves, and no clip is shorter than a chunk."""
END_ID = len(phonemes.ALPHABET)
SEEDS = 1000
"""Numbers of clips that a shard has to itself."""
SHARDS = 100_000
"""Numbers of shards that a seed has to itself."""
RANDOM_VOICES = 0.6
"""Share of the clips of speech alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to prepare."""

    folder: Path
    hours: float
    audio_codec: Path
    video_codec: Path | None = None
    """None: speech alone, for stage 1."""
    seed: int = 0
    held_out: bool = False
    workers: int = 1
    shard_seconds: float = field(default_factory=lambda: SHARD_SECONDS)
    """Playing time of one shard: short ones where little time is left to finish any."""
    size: int = 256
    """Height and width of the pictures in pixels."""
    short: bool = False
    """Clips of one or two sentences: more characters an hour."""

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise ConfigError(f"hours must be above 0, got {self.hours}")
        if self.short and self.video_codec is None:
            raise ConfigError("short is for clips with pictures: expected a video codec, got none (leave out --speech-only)")
        if not 0 < self.shard_seconds <= MAX_SHARD_SECONDS:
            raise ConfigError(f"shard_seconds must be above 0 and at most {MAX_SHARD_SECONDS:.0f}, got {self.shard_seconds}")

    @property
    def shards(self) -> int:
        return max(1, round(self.hours * 3600 / self.shard_seconds))


def origin(recipe: Recipe) -> dict[str, Any]:
    """What shard N of a folder follows from, beside N. Not its playing time: whatever that is, a shard's clips have
    numbers of their own, and short shards may lie beside long ones."""
    from streamchar.codecs.audio import ToonAudioCodec
    from streamchar.codecs.video import ToonVideoCodec

    found = {
        "seed": recipe.seed, "held_out": recipe.held_out, "speech_only": recipe.video_codec is None,
        "audio_codec": fingerprint(ToonAudioCodec.load(recipe.audio_codec)),
    }  # fmt: skip
    if recipe.video_codec is None:
        return {**found, "random_voices": RANDOM_VOICES}
    found |= {"video_codec": fingerprint(ToonVideoCodec.load(recipe.video_codec)), "size": recipe.size}
    return {**found, "short": recipe.short or None}  # recipes of before know of none


def told(path: Path) -> dict[str, Any]:
    """What a shard says itself of what it follows from."""
    try:
        with safe_open(path, "pt") as file:
            clips = json.loads((file.metadata() or {})["clips"])
            return {"seed": clips[0]["seed"] // SEEDS // SHARDS, "speech_only": "video" not in file.keys()}
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a readable shard ({error}); delete it and prepare it again") from None


def tokens_of(speech: Speech) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and start times of a world utterance, the end token last."""
    from streamchar.world.clips import merge_pauses

    timed = merge_pauses(speech)
    ids = [phonemes.ALPHABET.index(s) for s, _, _ in timed] + [END_ID]
    starts = [a for _, a, _ in timed] + [timed[-1][2]]
    return torch.tensor(ids, dtype=torch.int16), torch.tensor(starts, dtype=torch.float32)


@torch.no_grad()
def _encode_speech(codec: AudioCodec, speech: Speech) -> torch.Tensor:
    usable = speech.samples.shape[0] // codec.stride * codec.stride
    return codec.encode(speech.samples[None, :usable])[0]


def _reference(codec: AudioCodec, voice, rng: random.Random, held_out: bool) -> torch.Tensor:
    from streamchar.world.text import sentences
    from streamchar.world.voice import speak

    speech = speak(sentences(rng.randrange(2**31), 1, held_out=held_out)[0], voice, seed=rng.randrange(2**31))
    latents = _encode_speech(codec, speech)
    start = rng.randint(0, max(0, latents.shape[0] - REFERENCE_LATENTS))
    return latents[start : start + REFERENCE_LATENTS]


def speech_record(codec: AudioCodec, seed: int, *, held_out: bool) -> ClipRecord:
    """A clip of speech alone, by a trained voice or, three times in five, by a random one: from ten voices a model
    learns to tell ten apart, from a continuum to follow its reference."""
    from streamchar.world.clips import talk
    from streamchar.world.splits import HELD_OUT_VOICES
    from streamchar.world.text import sentences
    from streamchar.world.voice import VOICES, random_voice

    rng = random.Random(f"speech-{seed}-{held_out}")
    named = [v for i, v in enumerate(VOICES) if i not in HELD_OUT_VOICES]
    voice = random_voice(rng) if rng.random() < RANDOM_VOICES else rng.choice(named)
    speech = talk(sentences(seed, rng.randint(2, 5), held_out=held_out, template_rate=0.2), voice, rng)
    ids, starts = tokens_of(speech)
    return ClipRecord(
        audio=_encode_speech(codec, speech), reference=_reference(codec, voice, rng, held_out), tokens=ids,
        token_start=starts, text=speech.text, voice=voice.name, seed=seed,
    )


@torch.no_grad()
def clip_record(
    audio: AudioCodec, video: VideoCodec, seed: int, *, held_out: bool, size: int = 256, short: bool = False
) -> ClipRecord:
    """A clip of speech and picture by a character of the split."""
    from streamchar.world.clips import make_clip
    from streamchar.world.pose import poses, poses_by_latent
    from streamchar.world.render import draw_frame
    from streamchar.world.voice import VOICES

    clip = make_clip(seed, held_out=held_out, short=short)
    rng = random.Random(f"reference-{seed}-{held_out}")
    ids, starts = tokens_of(clip.speech)
    latents = []
    for chunk in range(clip.chunks):
        frames = clip.frames(clock.frames(chunk), clock.frames(chunk + 1), size).float().div(127.5).sub(1)
        with torch.autocast("cpu", torch.bfloat16):  # latents 1 % (RMS) off float32's; 1.8 x as fast
            latents.append(video.encode(frames.transpose(0, 1)[None])[0].float())
    still = draw_frame(clip.character, size).float().div(127.5).sub(1)
    voice = VOICES[clip.character.voice]
    return ClipRecord(
        audio=_encode_speech(audio, clip.speech), reference=_reference(audio, voice, rng, held_out), tokens=ids,
        token_start=starts, text=clip.speech.text, voice=voice.name, seed=seed, prompt=clip.prompt,
        direction=(clip.direction.mood, clip.direction.gesture, clip.direction.energy),
        pose=poses_by_latent(poses(clip.track)), video=torch.stack(latents).to(torch.float16),
        still=video.encode(still.reshape(1, 3, 1, *still.shape[-2:]))[0], short=short,
    )


def prepare_shard(recipe: Recipe, index: int) -> Path:
    """Make shard `index` unless it is there."""
    from streamchar.codecs.audio import ToonAudioCodec
    from streamchar.codecs.video import ToonVideoCodec

    path = recipe.folder / f"shard-{index:05d}.safetensors"
    if path.exists():
        return path
    audio = ToonAudioCodec.load(recipe.audio_codec)
    video = None if recipe.video_codec is None else ToonVideoCodec.load(recipe.video_codec)
    clips: list[ClipRecord] = []
    seconds, seed, began = 0.0, (recipe.seed * SHARDS + index) * SEEDS, time.monotonic()
    while seconds < recipe.shard_seconds:
        record = (
            speech_record(audio, seed, held_out=recipe.held_out) if video is None
            else clip_record(audio, video, seed, held_out=recipe.held_out, size=recipe.size, short=recipe.short)
        )
        clips.append(record)
        seconds += record.audio.shape[0] / float(clock.AUDIO_LATENT_RATE)
        seed += 1
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_shard(path, clips)
    log.info("shard %d: %d clips, %.0f s, %.1f x real time", index, len(clips), seconds,
             seconds / (time.monotonic() - began))
    return path


def _work(job: tuple[Recipe, int]) -> Path:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    return prepare_shard(*job)


def prepare(recipe: Recipe) -> list[Path]:
    """Make all missing shards with `workers` processes; returns every shard of the recipe. Raises `InputError` where
    the folder's are of another."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    there = sorted(recipe.folder.glob("shard-*.safetensors"))
    settle(recipe.folder / NAME, origin(recipe), begun=bool(there), known=told(there[0]) if there else None)
    jobs = [(recipe, index) for index in range(recipe.shards)]
    if recipe.workers <= 1:
        return [prepare_shard(*job) for job in jobs]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(recipe.workers) as pool:
        return list(pool.imap_unordered(_work, jobs))
