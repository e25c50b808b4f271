"""Stage II: the student on its own streams (paper section 4.2, figure 2).

K chunks in a row through `generate_chunk`, as a session makes them: all steps of every chunk, the student's own
motion and history, its chunk 1 as the sink, the cursor where its pointer says. The last three chunks are scored
together; K grows in the course of training.

Gradient: through each scored chunk's one drawn step (and the keys of its conditions), not from a chunk to the one
before it. What is fed forward is the finished chunk, what is scored the estimate of the drawn step. So the memory
needed is three single steps, whatever K is, and what is played is what would be played, to the bit.

Scoring: the last three chunks are one window of stage 2's own form. Each is noised to the same level and scored
given the clean chunks before it, and the three share one divisor: the density of a sequence is the product of its
chunks' given their past. `dit/layout.py` has positions for three chunks of noisy tokens at once, but the joint model
has only ever seen one, and each chunk's plan hears the clean chunk before it, which such a layout would have as
noise: what came out would be no score of anything.

The transcript is cut where the pointer says: it begins with the window's first token that is not spoken yet and ends
`look_ahead` behind the spoken end, as all windows of training do.

Shapes: P chunks, B windows, m chunks of a window, J = 33.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from streamchar import clock
from streamchar.config.model import ModelConfig
from streamchar.data.dataset import WindowDataset
from streamchar.data.shards import ClipRecord
from streamchar.dit.cache import Conditions
from streamchar.errors import ConfigError, DataError, InputError
from streamchar.flow.path import clean_from_velocity
from streamchar.flow.sampler import Latents, Sampler, VelocityField
from streamchar.flow.schedule import Schedule as Steps
from streamchar.orchestrator.packing import SpeechBatch
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.models import Models
from streamchar.stream.session import sampler_of, without
from streamchar.stream.state import StreamState
from streamchar.train.context import Context
from streamchar.train.distill import (
    FAKE_SHARE,
    DistillObjective,
    DistillTerms,
    carry_out,
    movement,
    pace,
)
from streamchar.train.loop import generator
from streamchar.train.orchestrator import begins_with
from streamchar.train.parallel import Scale
from streamchar.train.streams import begin, transcript_of, true_cursor
from streamchar.train.teacher import begun, fingerprint, followed, load_teacher, teacher_guidance

J = clock.AUDIO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class RolloutTerms(DistillTerms):
    """What stage II adds."""

    chunks: int = 5
    """Longest rollout. 1: isolated chunks, begun from the data's motion, history and sink."""
    shortest: int = 2
    """Rollouts' length at the start."""
    grow: int = 40
    """Updates of the student after which rollouts become a chunk longer."""
    scored: int = 3
    """Chunks of a rollout, its last, that are scored."""
    pointer: bool = True
    """Cut the transcript where the pointer says; else where the clip's own timings do, by the clock."""

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ConfigError(f"a rollout has at least 1 chunk, got {self.chunks}; the paper's scores need 3")

    def length(self, step: int) -> int:
        """Chunks of the rollouts of step `step`."""
        return min(self.chunks, self.shortest + step // (self.follow + 1) // self.grow)


class Tap:
    """The student's sampler, unchanged; it keeps the estimate of one step, with its graph. No other step has one."""

    def __init__(self, sampler: Sampler, step: int) -> None:
        self.sampler, self.step = sampler, step
        self.estimate: Latents = ()

    @property
    def schedule(self) -> Steps:
        return self.sampler.schedule

    def __call__(self, field: VelocityField, noise: Latents, generator: torch.Generator) -> Latents:
        count = itertools.count()

        def watched(x: Latents, sigma: float, last: bool) -> Latents:
            here = next(count) == self.step
            with torch.set_grad_enabled(here and torch.is_grad_enabled()):
                v = tuple(part.float() for part in field(x, sigma, last))
                if here:
                    level = torch.full(x[0].shape[:1], sigma, device=x[0].device)
                    self.estimate = tuple(clean_from_velocity(a, b, level) for a, b in zip(x, v, strict=True))
            return tuple(part.detach() for part in v)

        return self.sampler(watched, noise, generator)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One scored chunk."""

    before: StreamState
    after: StreamState
    """As `generate_chunk` left it: its window ends with this chunk."""
    estimate: Latents


@dataclass(frozen=True, kw_only=True)
class Row:
    """A window for the scores, of m chunks; the last `scored` of them are."""

    text: Tensor
    cursor: Tensor
    """(m,) from the window's first token."""
    history: Tensor
    """(33 m, C)."""
    scored: int


class RolloutObjective(DistillObjective):
    """Stage II; the two scores and their updates are stage I's."""

    name = "rollout"
    uneven = True
    """A stream ends when its transcript does."""
    terms: RolloutTerms

    def __init__(self, config: ModelConfig, data: Path, teacher: Models, *, terms: RolloutTerms, **options) -> None:
        super().__init__(config, data, teacher, terms=terms, **options)
        self._check_lengths(terms.chunks)
        self.samples_per_step = self.batch

    def _check_lengths(self, chunks: int) -> None:
        longest = max(n for _, _, n in self.data.index)
        if longest < chunks:
            raise DataError(
                f"rollouts of {chunks} chunks need clips as long, the longest in {self.data.folder} has {longest}; "
                "give fewer --chunks or longer clips"
            )

    def sample(self, step: int, trained: int, draw: torch.Generator) -> tuple[Context, Latents]:
        """Rollouts of batch `step` and the student's estimates of their last chunks."""
        length = self.terms.length(step // self.parts)
        fitting = [entry for entry in self.data.index if entry[2] >= length]
        picks = torch.randint(len(fitting), (self.batch,), generator=draw).tolist()
        seeds = torch.randint(2**31, (self.batch,), generator=draw).tolist()
        streams = []
        for pick, seed in zip(picks, seeds, strict=True):
            path, number, n = fitting[pick]
            first = int(torch.randint(n, (), generator=draw)) if self.terms.chunks == 1 else 0
            clip = self.data.shards[path][number]
            streams.append((clip, self.roll(clip, length, trained, seed=seed, first=first)))
        estimates = [chunk.estimate for _, played in streams for chunk in played]
        return self.packed(streams), tuple(torch.cat(parts) for parts in zip(*estimates, strict=True))

    def roll(self, clip: ClipRecord, chunks: int, trained: int, *, seed: int, first: int = 0) -> list[Played]:
        """Play `chunks` chunks, or as many as the transcript has; the last few, with their estimates."""
        models, transcript = self.student(), transcript_of(clip)
        state, memory = begin(models, clip, seed=seed, first=first), None
        played: list[Played] = []
        for _ in range(chunks):
            tap = Tap(sampler_of(models, state), trained)
            with self.mixed():
                made, after = generate_chunk(models, state, tap, transcript=transcript, memory=memory)
            played = [*played, Played(before=state, after=after, estimate=tap.estimate)][-self.terms.scored :]
            memory, state = made.memory, without(after, sink=models.sink, history=models.history)
            if state.finished:
                break
        return played

    # -- what the scores see ---------------------------------------------------------------------

    def rows(self, clip: ClipRecord, played: list[Played]) -> list[Row]:
        """One window for all chunks of a rollout, where its history reaches that far back."""
        rows, left = [], len(played)
        while left:
            state = played[left - 1].after
            scored = min(left, state.history_chunks)
            rows.insert(0, self._row(clip, state, scored))
            left -= scored
        return rows

    def _row(self, clip: ClipRecord, state: StreamState, scored: int) -> Row:
        m, limits = state.history_chunks, self.teacher.config.orchestrator
        borders, start = np.array([*state.borders, state.cursor]), state.window_start
        if not self.terms.pointer:
            borders = true_cursor(clip, np.arange(state.chunk - m, state.chunk + 1))
            start = int(borders[0])
        stop = min(len(clip.tokens), int(borders[-1]) + limits.look_ahead + 1, start + limits.max_transcript)
        assert state.history is not None
        return Row(
            text=clip.tokens[start:stop].long(), cursor=torch.from_numpy(borders[:-1] - start).float(),
            history=state.history[0, -m * J :].float(), scored=scored,
        )

    def packed(self, streams: list[tuple[ClipRecord, list[Played]]]) -> Context:
        """All rollouts' scored chunks as one batch."""
        per_stream = [self.rows(clip, played) for clip, played in streams]
        rows = [row for some in per_stream for row in some]
        voices = [played[0].before.voice for (_, played), some in zip(streams, per_stream, strict=True) for _ in some]
        m = max(len(row.cursor) for row in rows)
        picks = [
            i * m + k for i, row in enumerate(rows) for k in range(len(row.cursor) - row.scored, len(row.cursor))
        ]
        group = [i for i, (_, played) in enumerate(streams) for _ in played]
        return Context(
            speech=self._speech(rows, voices, m), conditions=self._conditions(streams), empty=self.empty,
            picks=torch.tensor(picks, device=self.device), group=torch.tensor(group, device=self.device),
        )

    def _speech(self, rows: list[Row], voices: list[Tensor | None], m: int) -> SpeechBatch:
        """Rows padded at their ends: no chunk hears what is behind it."""
        limits, b = self.teacher.config.orchestrator, len(rows)
        reference = torch.zeros(b, limits.max_reference, limits.audio_channels, device=self.device)
        for i, voice in enumerate(voices):
            if voice is not None:
                reference[i, : voice.shape[1]] = voice[0]
        history = torch.zeros(b, m * J, limits.audio_channels, device=self.device)
        for i, row in enumerate(rows):
            history[i, : len(row.history)] = row.history
        return SpeechBatch(
            reference=reference,
            reference_length=torch.tensor([0 if v is None else v.shape[1] for v in voices], device=self.device),
            text=pad_sequence([row.text for row in rows], batch_first=True).to(self.device),
            text_length=torch.tensor([len(row.text) for row in rows], device=self.device),
            history=history, noisy=history.new_zeros(b, m, J, limits.audio_channels), sigma=history.new_ones(b, m),
            cursor=pad_sequence([row.cursor for row in rows], batch_first=True).to(self.device),
        )

    def _conditions(self, streams: list[tuple[ClipRecord, list[Played]]]) -> Conditions:
        """What each scored chunk was made from; first chunks lack motion and sink."""
        states = [chunk.before for _, played in streams for chunk in played]
        parts: dict[str, Tensor] = {}
        for name in ("sink", "motion"):
            found = [getattr(state, name) for state in states]
            there = [value for value in found if value is not None]
            if there:
                parts[name] = torch.cat([torch.zeros_like(there[0]) if v is None else v for v in found])
            if there and len(there) < len(found):
                parts[f"has_{name}"] = torch.tensor([v is not None for v in found], device=self.device)
        text = self.teacher.prompt_encoder.encode([state.prompt for state in states]).to(self.device)
        return Conditions(text=text, ref=torch.cat([state.still for state in states]), **parts)

    # -- held-out figures ------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """What is fed forward drifts: the last of ten chunks against the first, over three streams."""
        firsts, lasts = [], []
        for i, clip in enumerate(longest(self.held_out, 3)):
            length = min(10, len(clip.audio) // J)
            firsts.append(self.roll(clip, 1, self.terms.steps - 1, seed=i)[0].estimate)
            lasts.append(self.roll(clip, length, self.terms.steps - 1, seed=i)[-1].estimate)
        (first_v, first_a), (last_v, last_a) = (
            tuple(torch.cat(parts) for parts in zip(*some, strict=True)) for some in (firsts, lasts)
        )
        figures = {
            "drift_video": float((last_v.mean((2, 3, 4)) - first_v.mean((2, 3, 4))).abs().mean()),
            "drift_contrast": float(last_v.std() / first_v.std()), "drift_audio": float(last_a.std() / first_a.std()),
            "drift_motion": float(movement(last_v) / movement(first_v)),
        }
        context, sample = self.sample(self.terms.follow, self.terms.steps - 1, generator(7, 0))
        _, scalars = self.match(context, sample, generator(7, 1))
        if self.gallery is not None:
            self.gallery.show(self.student(), step)
        return {**figures, **scalars}


def longest(data: WindowDataset, count: int) -> list[ClipRecord]:
    """The `count` longest clips."""
    ranked = sorted(data.index, key=lambda entry: -entry[2])[:count]
    return [data.shards[path][number] for path, number, _ in ranked]


def train_rollout(
    data: Path, out: Path, minutes: float, *, config: ModelConfig, resume: bool = False, batch: int = 4,
    rate: float | None = None, fake_rate: float | None = None, cooldown: float = 0.0, seed: int = 0,
    device: str = "cpu", teacher: Path | None = None, start: Path | None = None, guidance: float | None = None,
    picture_guidance: float | None = None, audio_weight: float = 1.0, follow: int = 5, temperature: float = 1.0,
    picture_temperature: float | None = None, train_orchestrator: bool = False, no_sink: bool = False,
    no_history: bool = False, no_stage_1: bool = False, no_pointer_truncation: bool = False, chunks: int = 5,
    grow: int = 40, warmup: int = 60, updates: int | None = None, scale: Scale | None = None,
) -> None:
    """Train stage II for `minutes`, or to `updates` of the student, from stage I's in `start`; writes a model folder
    and a checkpoint."""
    if no_stage_1 == (start is not None) and (no_stage_1 or not resume):
        raise InputError(
            "rollout begins from stage I's student: give --start DIR, or --no-stage-1 to begin from the teacher; "
            f"got {'both' if no_stage_1 else 'neither'}"
        )
    models, start = load_teacher(teacher), begins_with(start, resume)
    assert teacher is not None
    student = models if start is None else begun(models, start)
    schedule = pace(config, minutes, rate, cooldown, warmup, None if updates is None else updates * (follow + 1))
    terms = RolloutTerms(
        **teacher_guidance(models, guidance, picture_guidance), audio=audio_weight, follow=follow,
        temperature=temperature, picture_temperature=picture_temperature, sink=not no_sink, history=not no_history,
        orchestrator=train_orchestrator, chunks=chunks, grow=grow, pointer=not no_pointer_truncation,
    )
    objective = RolloutObjective(
        config, data, models, batch=batch, terms=terms, student=student, seed=seed, device=device,
        fake=models if start is None else followed(models, start),
        fake_factor=FAKE_SHARE if fake_rate is None else fake_rate / schedule.rate,
    )
    facts: dict[str, object] = {"teacher": fingerprint(teacher), "stage_1": not no_stage_1}
    carry_out(objective, schedule, out, resume=resume, facts=facts, scale=scale)
