"""Stage I: a four-step student by distribution matching (paper section 4.2). No regression on data or on the
teacher's samples: the teacher is a score.

One loop alternates two trainings. On `terms.follow` steps of `terms.follow + 1` the fake score learns the student's
samples by the flow loss; on the last the student moves against the difference of the two scores. Which of the
student's steps is trained is drawn: the steps before it run without gradient, on the student's own path (backward
simulation), and its estimate of the data is what is scored.

What is trained: the DiT, its audio path included. The orchestrator is frozen unless asked for: the pointer, and with
it captions, cursor and the end of the stream, reads its states, and nothing in a score holds the pointer where it
is; frozen, one plan serves the teacher and the fake score. Trained, it is held by the pointer's own loss on data.

Shapes: P chunks, B windows of n chunks.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from streamchar import clock
from streamchar.codecs.component import save_component
from streamchar.config.model import ModelConfig
from streamchar.data.dataset import WindowDataset, Windows
from streamchar.dit.cache import Conditions
from streamchar.errors import ConfigError, DataError
from streamchar.flow.path import clean_from_velocity, interpolate, sample_sigma, shift_sigma, velocity
from streamchar.flow.sampler import Latents, RenoiseSampler
from streamchar.flow.schedule import Schedule as Steps
from streamchar.stream import models as stream_models
from streamchar.stream.models import Models
from streamchar.stream.state import guidance_weights
from streamchar.train.context import Context
from streamchar.train.dmd import dmd_gradient, dmd_loss, guided, per_sample, score_sigma
from streamchar.train.joint import chunk_conditions, mouth_focus
from streamchar.train.loop import Schedule, generator, run
from streamchar.train.orchestrator import SpeechTerms, begins_with, corrupt, pointer_terms
from streamchar.train.parallel import Scale
from streamchar.train.streams import Gallery
from streamchar.train.teacher import FAKE, begun, fingerprint, followed, load_teacher, teacher_guidance

log = logging.getLogger(__name__)

NAMES = ("video", "audio")
PAPER_RATE, RATE = 2e-6, 3e-5
"""Of the student: section 5.1's, and for models of a few million weights."""
FAKE_SHARE = 0.2
"""The fake score's rate as a share of the student's (section 5.1: 4e-7 to 2e-6)."""


@dataclass(frozen=True, kw_only=True)
class DistillTerms:
    """What both distillation stages share."""

    guidance: float = 1.0
    """The teacher's, as its sessions use it: on transcript and prompt."""
    picture_guidance: float | None = None
    """The teacher's for the picture; None: as `guidance`."""
    picture_guidance_above: float = 0.0
    """The noise level down to which the teacher guides the picture."""
    steps: int = 4
    """Of the student: [1, .75, .5, .25] warped by `shift`."""
    shift: float = 5.0
    temperature: float = 1.0
    """Deviation of the student's noise, in training and when it plays."""
    picture_temperature: float | None = None
    """The same for the picture; None: as `temperature`."""
    follow: int = 5
    """Updates of the fake score for one of the student."""
    video: float = 1.0
    audio: float = 1.0
    """Weights of the two terms; the gradient's divisor has made them alike in size."""
    focus: float = 5.0
    """Extra weight of the mouth, as in stage 2."""
    first_chunk: float = 0.25
    """Share of steps on streams' first chunks (stage I)."""
    condition_noise: float = 0.15
    """Largest noise level mixed into the data's motion and sink, as in stage 2 (stage I)."""
    sink: bool = True
    history: bool = True
    orchestrator: bool = False
    """Train the orchestrators too."""

    @property
    def temperatures(self) -> tuple[float, float]:
        """Of picture and speech."""
        return self.temperature if self.picture_temperature is None else self.picture_temperature, self.temperature


@dataclass(frozen=True, kw_only=True)
class Opening(Steps):
    """The first `steps` of a schedule of `of` steps, and from there to the data."""

    of: int

    def sigmas(self) -> Tensor:
        levels = shift_sigma(torch.linspace(1, 0, self.of + 1), self.shift)
        return torch.cat([levels[: self.steps], torch.zeros(1)])


class Distillation(nn.Module):
    """All that is trained: the student, under the names of its components, and the fake score."""

    def __init__(self, student: Models, fake: Models, *, orchestrator: bool) -> None:
        super().__init__()
        # a copy even where it is frozen: a checkpoint is loaded into it, and must not change the teacher
        self.orchestrator = deepcopy(student.orchestrator).requires_grad_(orchestrator)
        self.dit = deepcopy(student.dit).requires_grad_(True)
        self.fake_dit = deepcopy(fake.dit).requires_grad_(True)
        self.fake_orchestrator = deepcopy(fake.orchestrator).requires_grad_(True) if orchestrator else None


class DistillObjective:
    """Stage I on single chunks with the data's motion, history and sink."""

    name = "distill"
    parts, uneven = 1, False
    chunks = 2
    """Of a window; each is denoised alone, and the second hears the first."""

    def __init__(
        self, config: ModelConfig, data: Path, teacher: Models, *, batch: int, terms: DistillTerms,
        fake_factor: float = FAKE_SHARE, student: Models | None = None, fake: Models | None = None, seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if config.name != teacher.config.name:
            raise ConfigError(
                f"the teacher is a {teacher.config.name!r} model, got --preset {config.name}; make them the same"
            )
        self.device, self.terms, self.seed, self.batch = torch.device(device), terms, seed, batch
        self.fake_factor, self.teacher, self.speech_terms = fake_factor, teacher, SpeechTerms(drop_text=0.0)
        self.chunks = self.chunks if terms.history else 1
        self.samples_per_step = batch * self.chunks
        for part in teacher.components().values():
            part.to(self.device).requires_grad_(False)
        self.model = Distillation(student or teacher, fake or teacher, orchestrator=terms.orchestrator)
        self.model.to(self.device)
        limits = teacher.config.orchestrator
        reading = {"look_ahead": limits.look_ahead, "max_reference": limits.max_reference}
        self.data = WindowDataset(data, **reading, seed=seed + 1)
        held_out = data / "held_out"
        self.held_out = WindowDataset(held_out, **reading) if held_out.is_dir() else self.data
        if self.data.batch(0, 1, 1).video is None:
            raise DataError(f"expected clips with video in {data}, found speech alone; give what joint training read")
        self.focus = mouth_focus(teacher.config.latent_size, terms.focus).to(self.device)
        self.empty = teacher.prompt_encoder.encode([""]).to(self.device)
        self.gallery: Gallery | None = None

    def student(self) -> Models:
        """The student as a session plays it."""
        return replace(
            self.teacher, name=f"{self.teacher.name}-student", orchestrator=self.model.orchestrator,
            dit=self.model.dit, steps=self.terms.steps, guidance=1.0, picture_guidance=None, picture_guidance_above=0.0,
            temperature=self.terms.temperature, picture_temperature=self.terms.picture_temperature,
            sampler="renoise", shift=self.terms.shift, sink=self.terms.sink, history=self.terms.history,
        )

    def rate_factor(self, name: str) -> float:
        return self.fake_factor if name.startswith("fake_") else 1.0

    def mixed(self) -> torch.autocast:
        """bfloat16 products."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def moves_student(self, step: int) -> bool:
        return step % (self.terms.follow + 1) == self.terms.follow

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        step, draw = number // self.parts, generator(self.seed, number)
        torch.randint(self.terms.steps, (), generator=draw)  # its own would differ between the parts of a step
        trained = int(torch.randint(self.terms.steps, (), generator=generator(self.seed, step * self.parts)))
        moves = self.moves_student(step)
        with torch.set_grad_enabled(moves):
            context, sample = self.sample(number, trained, draw)
        if not moves:
            return self.follow(context, sample, draw)
        total, scalars = self.match(context, sample, draw)
        if self.terms.orchestrator:
            held, pointer = self.hold(number, draw)
            total, scalars = total + held, {**scalars, **pointer}
        return total, scalars

    # -- the student's samples -------------------------------------------------------------------

    def windows(self, step: int, draw: torch.Generator) -> Windows:
        if float(torch.rand((), generator=draw)) < self.terms.first_chunk:
            return self.data.batch(step, self.batch * self.chunks, 1, first="start")
        return self.data.batch(step, self.batch, self.chunks, first="later")

    def context(self, windows: Windows, draw: torch.Generator) -> Context:
        """Conditions from the data: first chunks have neither motion nor sink, all others have both."""
        batch, _ = corrupt(windows, self.speech_terms, draw)
        still, sink, motion = chunk_conditions(windows)
        assert windows.first is not None
        n = batch.chunks
        alone = n == 1 and bool((windows.first == 0).all())

        def noised(clean: Tensor) -> Tensor:
            level = torch.rand(clean.shape[0], generator=draw) * self.terms.condition_noise
            return interpolate(clean, torch.randn(clean.shape, generator=draw), level).to(self.device)

        text = self.teacher.prompt_encoder.encode(list(windows.prompts)).to(self.device)
        conditions = Conditions(
            text=text.repeat_interleave(n, 0), ref=still.to(self.device),
            sink=None if alone or not self.terms.sink else noised(sink), motion=None if alone else noised(motion),
        )
        every = torch.arange(len(still), device=self.device)
        speech = batch.to(self.device)
        return Context(speech=speech, conditions=conditions, empty=self.empty, picks=every, group=every)

    def sample(self, step: int, trained: int, draw: torch.Generator) -> tuple[Context, Latents]:
        """Conditions of step `step` and the student's estimate at its step `trained`."""
        context = self.context(self.windows(step, draw), draw)
        return context, self.generate(context, trained, draw)

    def generate(self, context: Context, trained: int, draw: torch.Generator) -> Latents:
        """The student's steps 0 to `trained`; gradient, where wanted, through the last of them alone."""
        schedule = Opening(steps=trained + 1, of=self.terms.steps, shift=self.terms.shift)
        sampler = RenoiseSampler(schedule=schedule, temperature=self.terms.temperatures)

        def field(x: Latents, sigma: float, last: bool) -> Latents:
            level = torch.full(context.picks.shape, sigma, device=self.device)
            with torch.set_grad_enabled(last and torch.is_grad_enabled()), self.mixed():
                c_a = context.plan(self.model.orchestrator, x[1], level)
                return context.velocities(self.model.dit, c_a, x, level)

        config, count = self.teacher.config, len(context.picks)
        shapes = (
            (count, config.dit.video_channels, clock.VIDEO_LATENTS_PER_CHUNK, *config.latent_size),
            (count, clock.AUDIO_LATENTS_PER_CHUNK, config.dit.audio_channels),
        )
        parts = zip(shapes, self.terms.temperatures, strict=True)
        noise = (temperature * torch.randn(shape, generator=draw) for shape, temperature in parts)
        return sampler(field, tuple(e.to(self.device) for e in noise), draw)

    # -- the two scores --------------------------------------------------------------------------

    def noised(self, sample: Latents, sigma: Tensor, draw: torch.Generator) -> tuple[Latents, Latents]:
        """x_t of both modalities, and the noise in it."""
        noise = tuple(torch.randn(z.shape, generator=draw).to(self.device) for z in sample)
        return tuple(interpolate(z.detach(), e, sigma) for z, e in zip(sample, noise, strict=True)), noise

    def real(self, context: Context, x: Latents, sigma: Tensor) -> tuple[Latents, Tensor]:
        """The teacher's guided velocities, and its plan; the pass without text has main blocks at every level, which a
        session saves itself where only the speech is guided."""
        c_a = context.plan(self.teacher.orchestrator, x[1], sigma)
        v = context.velocities(self.teacher.dit, c_a, x, sigma)
        weights = guidance_weights(self.terms.guidance, self.terms.picture_guidance)
        if weights == (1.0, 1.0):
            return v, c_a
        blank = context.blank()
        u = blank.velocities(self.teacher.dit, blank.plan(self.teacher.orchestrator, x[1], sigma), x, sigma)
        picture = torch.where(sigma > self.terms.picture_guidance_above, weights[0], 1.0)
        return (guided(v[0], u[0], per_sample(picture, v[0])), guided(v[1], u[1], weights[1])), c_a

    def fake(self, context: Context, x: Latents, sigma: Tensor, c_a: Tensor | None) -> Latents:
        """The fake score's velocities. `c_a`: the teacher's plan, if it is there already."""
        own = self.model.fake_orchestrator
        if own is not None or c_a is None:
            c_a = context.plan(self.teacher.orchestrator if own is None else own, x[1], sigma)
        return context.velocities(self.model.fake_dit, c_a, x, sigma)

    def match(self, context: Context, sample: Latents, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The student's loss: move where the teacher finds its samples likelier than the fake score does."""
        groups = int(context.group.max()) + 1
        sigma = score_sigma((groups,), self.terms.shift, draw).to(self.device)[context.group]
        with torch.no_grad(), self.mixed():
            x, _ = self.noised(sample, sigma, draw)
            real, c_a = self.real(context, x, sigma)
            fake = self.fake(context, x, sigma, c_a)
            real, fake = (
                tuple(clean_from_velocity(a, b, sigma) for a, b in zip(x, v, strict=True)) for v in (real, fake)
            )
        total, scalars = torch.zeros((), device=self.device), {}
        for i, (name, weight) in enumerate(zip(NAMES, (self.terms.video, self.terms.audio), strict=True)):
            gradient = dmd_gradient(sample[i].detach(), real[i], fake[i], context.group)
            total = total + weight * dmd_loss(sample[i], gradient, self.focus if name == "video" else None)
            scalars[f"dmd_{name}"] = float(gradient.square().mean().sqrt())
            scalars[f"apart_{name}"] = float((fake[i] - real[i]).abs().mean())
        return total, scalars

    def follow(self, context: Context, sample: Latents, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The fake score's loss: the flow loss on the student's samples."""
        groups = int(context.group.max()) + 1
        sigma = sample_sigma((groups,), self.terms.shift, draw).to(self.device)[context.group]
        x, noise = self.noised(sample, sigma, draw)
        with self.mixed():
            v = self.fake(context, x, sigma, None)
        errors = [(a - velocity(z, e)).square() for a, z, e in zip(v, sample, noise, strict=True)]
        total = self.terms.video * (errors[0] * self.focus).mean() + self.terms.audio * errors[1].mean()
        return total, {f"fake_{name}": float(e.detach().mean()) for name, e in zip(NAMES, errors, strict=True)}

    def hold(self, step: int, draw: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The pointer's loss on data, for a student whose orchestrator moves."""
        windows = self.data.batch(step, self.batch, 2)
        batch, _ = corrupt(windows, self.speech_terms, draw)
        windows, batch = windows.to(self.device), batch.to(self.device)
        with self.mixed():
            plan = self.model.orchestrator(batch)
        cross, distance, scalars = pointer_terms(plan, windows, batch)
        return self.speech_terms.pointer * cross + self.speech_terms.end * distance, scalars

    # -- held-out figures ------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Samples against the data, as ratios: too little motion is what too many DMD steps end in."""
        draw = generator(7, 0)
        windows = self.held_out.batch(10**8, 12, self.chunks, first="later")
        assert windows.video is not None
        context = self.context(windows, draw)
        video, audio = self.generate(context, self.terms.steps - 1, draw)
        true_v, true_a = windows.video.flatten(0, 1).to(self.device), windows.audio.flatten(0, 1).to(self.device)
        figures = {
            "motion": float(movement(video) / movement(true_v)), "video": float(video.std() / true_v.std()),
            "audio": float(audio.std() / true_a.std()), "sound_motion": float(change(audio) / change(true_a)),
        }
        _, scalars = self.match(context, (video, audio), draw)
        _, follow = self.follow(context, (video, audio), draw)
        if self.gallery is not None:
            self.gallery.show(self.student(), step)
        return {**figures, **scalars, **follow}


def movement(video_BCTHW: Tensor) -> Tensor:
    """Mean change from latent to latent."""
    return video_BCTHW.diff(dim=2).abs().mean()


def change(audio_BJC: Tensor) -> Tensor:
    return audio_BJC.diff(dim=1).abs().mean()


def export(objective: DistillObjective, target: Path) -> None:
    """The student as a model folder that streams, and the fake score beside it."""
    stream_models.save(objective.student(), target)
    teacher, model = objective.teacher, objective.model
    save_component(model.fake_dit, teacher.dit.config, target / FAKE / "dit")
    if model.fake_orchestrator is not None:
        save_component(model.fake_orchestrator, teacher.orchestrator.config, target / FAKE / "orchestrator")


def carry_out(
    objective: DistillObjective, schedule: Schedule, out: Path, *, resume: bool, facts: dict[str, object],
    scale: Scale | None = None,
) -> None:
    """Run the loop, with pictures of the same two streams at every save."""
    data = objective.held_out
    clips = [data.shards[path][clip] for path, clip, _ in data.index[:2]]
    objective.gallery = Gallery(out, clips)
    about = {"preset": objective.teacher.config.name, "seed": objective.seed, "batch": objective.batch}
    facts = {**about, **asdict(objective.terms), **facts}
    write, grows = (lambda target: export(objective, target)), {"data": objective.data}
    run(objective, schedule, out, resume=resume, export=write, facts=facts, scale=scale, data=grows)


def pace(
    config: ModelConfig, minutes: float, rate: float | None, cooldown: float, warmup: int, steps: int | None = None
) -> Schedule:
    """beta1 = 0 and no Muon: the fake score moves, and with it what a momentum would remember."""
    rate = (PAPER_RATE if config.name == "paper" else RATE) if rate is None else rate
    given = {"minutes": minutes, "rate": rate, "cooldown": cooldown, "warmup": warmup, "max_steps": steps}
    return Schedule(**given, muon=False, betas=(0.0, 0.999), weight_decay=0.0)


def train_distill(
    data: Path, out: Path, minutes: float, *, config: ModelConfig, resume: bool = False, batch: int = 8,
    rate: float | None = None, fake_rate: float | None = None, cooldown: float = 0.0, seed: int = 0,
    device: str = "cpu", teacher: Path | None = None, start: Path | None = None, guidance: float | None = None,
    picture_guidance: float | None = None, audio_weight: float = 1.0, follow: int = 5, temperature: float = 1.0,
    picture_temperature: float | None = None, train_orchestrator: bool = False, no_sink: bool = False,
    no_history: bool = False, warmup: int = 60, updates: int | None = None, scale: Scale | None = None,
) -> None:
    """Train stage I for `minutes`, or to `updates` of the student, from the model in `teacher` or an earlier student
    in `start`; writes a model folder and a checkpoint."""
    models, start = load_teacher(teacher), begins_with(start, resume)
    assert teacher is not None
    schedule = pace(config, minutes, rate, cooldown, warmup, None if updates is None else updates * (follow + 1))
    terms = DistillTerms(
        **teacher_guidance(models, guidance, picture_guidance), audio=audio_weight, follow=follow,
        temperature=temperature, picture_temperature=picture_temperature, sink=not no_sink, history=not no_history,
        orchestrator=train_orchestrator,
    )
    objective = DistillObjective(
        config, data, models, batch=batch, terms=terms, seed=seed, device=device,
        student=None if start is None else begun(models, start),
        fake=None if start is None else followed(models, start),
        fake_factor=FAKE_SHARE if fake_rate is None else fake_rate / schedule.rate,
    )
    carry_out(objective, schedule, out, resume=resume, facts={"teacher": fingerprint(teacher)}, scale=scale)
