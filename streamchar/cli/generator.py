"""What makes the clips of `eval run`: a model through the pipeline, or the world's own drawing (the ceiling).

Shape letters: T frames, H height, W width, S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import streamchar
from streamchar import clock
from streamchar.errors import InputError
from streamchar.eval.cache import code_hash, source_hash, weights_hash
from streamchar.eval.evaluation import world_character
from streamchar.eval.protocol import Item, Protocol, digest
from streamchar.eval.suite import Generated
from streamchar.types import Word

PACKAGE = Path(streamchar.__file__).parent
VOICE_SECONDS = 60.0
"""More reference audio than any model takes; the pipeline cuts it."""
OTHER_TAKE = 1_000_003
"""Added to the performance of the ceiling row: the reference set is the same items in another take, never itself."""
SLOWEST = 2.5
"""A stream that runs this many times as long as the teacher speaks is cut."""
WORDS_PER_SECOND = 2.5


class ModelGenerator:
    """Clips of a model, one stream each, through the chunk step that everything else uses."""

    def __init__(self, source: str, *, steps: int | None = None, device: str = "cpu") -> None:
        from streamchar.stream.models import parts_of, resolve
        from streamchar.stream.pipeline import StreamCharPipeline

        self.pipe = StreamCharPipeline.from_pretrained(source, device=device)
        self.steps = self.pipe.models.steps if steps is None else steps
        folder = resolve(source)
        shared = {path.parent for path in parts_of(folder).values()} - {folder}
        self.weights = weights_hash(folder, *sorted(shared))
        self.source = source
        code = [source_hash(PACKAGE / "stream" / f) for f in ("pipeline.py", "mux.py")]
        self.key = digest(["model", self.weights, self.steps, device, *code, code_hash(Path(__file__))])

    @property
    def about(self) -> dict[str, Any]:
        """The model's block of metrics.json."""
        models = self.pipe.models
        parameters = {n: sum(p.numel() for p in part.parameters()) for n, part in self.pipe.components().items()}
        return {
            "name": models.name, "source": self.source, "sha256": self.weights, "steps": self.steps,
            "guidance": models.guidance, "picture_guidance": models.picture_guidance,
            "picture_guidance_above": models.picture_guidance_above,
            "temperature": models.temperature, "picture_temperature": models.picture_temperature,
            "parameters": parameters,
        }  # fmt: skip

    def check(self, protocol: Protocol) -> None:
        """Raise `InputError` for the first transcript that the model cannot speak, before any work."""
        from streamchar.stream.inputs import check_speakable

        for item in protocol.items:
            try:
                check_speakable(item.transcript, self.pipe.tokenizer, self.pipe.unspeakable)
            except InputError as error:
                raise InputError(f"{item.name}: {error}") from None

    def __call__(self, item: Item, target: Path) -> Generated:
        from streamchar.stream.inputs import read_image, read_voice
        from streamchar.stream.mux import Muxer

        assert item.picture is not None  # the suite has written it
        picture = read_image(item.picture, self.pipe.config.height, self.pipe.config.width)
        voice = None if item.voice is None else read_voice(item.voice, max_seconds=VOICE_SECONDS)
        expected = item.seconds or len(item.transcript.split()) / WORDS_PER_SECOND
        limit = clock.chunks_for(SLOWEST * expected) + 4
        words: list[Word] = []
        warnings = list(self.pipe.prompt_warnings(item.prompt))
        began = time.perf_counter()
        with Muxer(target) as muxer:
            state = self.pipe.start(
                item.transcript, character=picture[:, 0], prompt=item.prompt, voice=voice, seed=item.noise_seed,
                steps=self.steps,
            )  # fmt: skip
            session = self.pipe.session(state)
            for chunk in session:
                muxer.write(chunk)
                words += chunk.words
                if muxer.chunks >= limit and not chunk.last:
                    warnings.append(f"cut after {limit} chunks: {session.spoken_words} of {session.total_words} words")
                    break
        wall = time.perf_counter() - began
        if session.stalled:
            warnings.append(f"the pointer stood still after {session.spoken_words} of {session.total_words} words")
        seconds = float(muxer.chunks * clock.CHUNK_SECONDS)
        return Generated(seconds=seconds, wall_seconds=wall, words=tuple(words), warnings=tuple(warnings))


Plant = Callable[[Tensor, Tensor], Tensor]
"""(T, 3, H, W) frames in [0, 255] and (T,) progress through the clip in [0, 1] -> frames."""


def _colour(frames: Tensor, progress_T: Tensor) -> Tensor:
    """Ever more contrast and warmth: how autoregressive video burns out."""
    p = progress_T.view(-1, 1, 1, 1)
    tint = torch.tensor([45.0, 5.0, -40.0]).view(1, 3, 1, 1)
    return 128 + (frames - 128) * (1 + 0.7 * p) + p * tint


def _blur(frames: Tensor, progress_T: Tensor) -> Tensor:
    """Ever softer: a Gaussian that grows to 4 pixels at 256."""
    out = []
    for frame, p in zip(frames, progress_T.tolist(), strict=True):
        sigma = 4.0 * p * frame.shape[-1] / 256
        if sigma < 0.05:
            out.append(frame)
            continue
        radius = max(1, round(3 * sigma))
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(3, 1, -1)
        padded = F.pad(frame[None], (radius,) * 4, mode="replicate")
        across = F.conv2d(padded, kernel[:, :, None, :], groups=3)
        out.append(F.conv2d(across, kernel[:, :, :, None], groups=3)[0])
    return torch.stack(out)


PLANTS: dict[str, Plant | None] = {"colour": _colour, "blur": _blur, "identity": None}
"""Faults drawn into the truth, to see that the metrics find them; `identity` is another character's second half."""


@dataclass(frozen=True, kw_only=True)
class TruthGenerator:
    """The world's own drawing of an item."""

    take: int = 0
    shift_frames: int = 0
    """The sound is moved so that the picture is late by so many frames of 24 fps."""
    plant: str | None = None

    @property
    def key(self) -> str:
        code = [source_hash(PACKAGE / "world" / "clips.py"), source_hash(PACKAGE / "stream" / "mux.py")]
        return digest(["truth", self.take, self.shift_frames, self.plant, *code, code_hash(Path(__file__))])

    @property
    def about(self) -> dict[str, Any]:
        """The model's block of metrics.json."""
        return {
            "name": "truth", "source": "the cartoon world's own drawing and teacher voice", "sha256": None,
            "shift_frames": self.shift_frames, "plant": self.plant,
        }  # fmt: skip

    def check(self, protocol: Protocol) -> None:
        """Raise `InputError` for an item that is not of the world."""
        for item in protocol.items:
            if item.character is None or item.direction is None:
                raise InputError(
                    f"--model truth draws characters of the world; {item.name} of {protocol.name} has no character "
                    "and direction"
                )

    def __call__(self, item: Item, target: Path) -> Generated:
        from streamchar.stream.mux import Muxer
        from streamchar.world.clips import make_clip, pick_character
        from streamchar.world.prompt import Direction

        assert item.character is not None and item.direction is not None
        who = world_character(item)
        mood, gesture, energy = item.direction
        direction = Direction(mood=mood, gesture=gesture, energy=energy)
        clip = make_clip(item.performance + self.take, item.transcript, who=who, direction=direction)
        other = replace(clip, character=pick_character(item.character + 1, held_out=True))
        sound = shifted(clip.speech.samples, self.shift_frames)
        total = clock.frames(clip.chunks)
        with Muxer(target) as muxer:
            for chunk in range(clip.chunks):  # drawn piece by piece: five minutes need no more memory
                first, last = clock.frames(chunk), clock.frames(chunk + 1)
                progress_T = torch.arange(first, last) / max(1, total - 1)
                frames = self._frames(clip, other, first, last, progress_T)
                muxer.add(frames.permute(0, 2, 3, 1), sound[clock.samples(chunk) : clock.samples(chunk + 1)])
        seconds = float(clip.chunks * clock.CHUNK_SECONDS)
        lead = self.shift_frames / clock.VIDEO_FPS
        words = tuple(
            Word(text=w.text, start=_within(w.start - lead, seconds), end=_within(w.end - lead, seconds))
            for w in clip.speech.words
        )
        return Generated(seconds=seconds, words=words)

    def _frames(self, clip: Any, other: Any, first: int, last: int, progress_T: Tensor) -> Tensor:
        frames = clip.frames(first, last)
        if self.plant == "identity":
            second = (progress_T >= 0.5).view(-1, 1, 1, 1)
            return torch.where(second, other.frames(first, last), frames)
        change = PLANTS[self.plant] if self.plant else None
        return frames if change is None else change(frames.float(), progress_T).round().clamp(0, 255).to(torch.uint8)


def _within(time_s: float, seconds: float) -> float:
    return min(max(time_s, 0.0), seconds)


def shifted(samples_S: Tensor, frames: int) -> Tensor:
    """Sound `frames` frames earlier (later if negative), filled with silence: its length stays."""
    move = frames * clock.AUDIO_STRIDE
    if abs(move) >= samples_S.shape[0]:
        raise InputError(f"--shift-frames must be less than the clip's length, got {frames}")
    if move >= 0:
        return F.pad(samples_S[move:], (0, move))
    return F.pad(samples_S[:move], (-move, 0))
