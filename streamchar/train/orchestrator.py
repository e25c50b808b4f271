"""Stage 1: the orchestrator, the pointer and the audio encoder and decoder, on speech with timings.

The DiT's main blocks do not run: the audio path alone turns c_a and x_t into a velocity, and the joint
model starts as exactly this one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamchar.codecs.component import load_component, save_component
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.data.dataset import WindowDataset, Windows
from streamchar.dit.model import JointDiT
from streamchar.flow.path import interpolate, sample_sigma, velocity
from streamchar.flow.sampler import EulerSampler, Latents
from streamchar.flow.schedule import Schedule as Steps
from streamchar.orchestrator.lm import Orchestrator, Plan
from streamchar.orchestrator.packing import SpeechBatch
from streamchar.orchestrator.pointer import pointer_loss
from streamchar.stream.models import parts_of
from streamchar.train.loop import Schedule, generator, run
from streamchar.train.parallel import Scale

if TYPE_CHECKING:  # streams are not needed to learn to speak, only to show it
    from streamchar.train.streams import Codecs, Gallery

log = logging.getLogger(__name__)

SPEAKING_STEPS = 16
"""Of the samples that are shown, in stages 1 and 2."""
SHOWN_EVERY = 4
"""Saves from one showing to the next: about a quarter of an hour."""
BEGINNING = 0.9


@dataclass(frozen=True, kw_only=True)
class SpeechTerms:
    """Rates and weights of the speech side, shared by stages 1 and 2."""

    shift: float = 5.0
    begin: float = 0.0
    """Share of chunks at noise levels between `BEGINNING` and 1, where sampling begins; the logit-normal has 1 %
    above 0.98."""
    drop_reference: float = 0.15
    drop_text: float = 0.08
    """For guidance on transcript and voice: they are dropped together."""
    history_noise: float = 0.25
    """Largest noise level mixed into history latents, so that the model survives its own output."""
    cursor_noise: float = 0.6
    """Standard deviation, in tokens, of the error of the cursor that the chunk starts from."""
    pointer: float = 0.1
    end: float = 0.05


class SpeechModel(nn.Module):
    """What stage 1 trains: the orchestrator and the DiT's audio path."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.orchestrator = Orchestrator(config.orchestrator)
        self.dit = JointDiT(config.dit)


def corrupt(windows: Windows, terms: SpeechTerms, draw: torch.Generator) -> tuple[SpeechBatch, Tensor]:
    """Noise on the chunks and on the conditions, dropout. Returns the batch and the velocity target.

    Dropped text becomes one pause: `text_length` 1, cursor 0."""
    b, n = windows.audio.shape[:2]
    sigma = sample_sigma((b, n), terms.shift, draw)
    if terms.begin:
        high = 1 - (1 - BEGINNING) * torch.rand((b, n), generator=draw)
        sigma = torch.where(torch.rand((b, n), generator=draw) < terms.begin, high, sigma)
    noise = torch.randn(windows.audio.shape, generator=draw)
    level = torch.rand((b, n), generator=draw) * terms.history_noise * (torch.rand((b, 1), generator=draw) < 0.7)
    history = interpolate(windows.audio, torch.randn(windows.audio.shape, generator=draw), level)
    no_text = torch.rand(b, generator=draw) < terms.drop_text
    no_reference = (torch.rand(b, generator=draw) < terms.drop_reference) | no_text
    cursor = windows.cursor[:, :-1] + terms.cursor_noise * torch.randn((b, n), generator=draw)
    cursor = torch.minimum(cursor.clamp(min=0), windows.text_length[:, None].float())
    cursor[:, 0] = torch.where(windows.cursor[:, 0] == 0, torch.zeros(b), cursor[:, 0])
    text = torch.where(no_text[:, None], torch.zeros_like(windows.text), windows.text)
    batch = SpeechBatch(
        reference=windows.reference,
        reference_length=windows.reference_length.masked_fill(no_reference, 0),
        text=text,
        text_length=windows.text_length.masked_fill(no_text, 1),
        history=history.flatten(1, 2),
        noisy=interpolate(windows.audio, noise, sigma),
        sigma=sigma,
        cursor=cursor.masked_fill(no_text[:, None], 0.0),
    )
    return batch, velocity(windows.audio, noise)


def pointer_terms(plan: Plan, windows: Windows, batch: SpeechBatch) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Pointer losses; chunks whose text was dropped do not count."""
    kept = (batch.text_length > 1).repeat_interleave(batch.chunks)
    token = windows.frame_token.flatten(0, 1).masked_fill(~kept[:, None], -1)
    end = torch.where(kept, windows.cursor[:, 1:].flatten(), plan.progress.end.detach())
    cross, distance = pointer_loss(plan.progress, token, end)
    guess = plan.progress.attention.detach().argmax(-1)
    if not kept.any():  # nothing to measure; a NaN would stay in the log's running means
        return cross, distance, {"pointer": float(cross.detach())}
    near = ((guess - token).abs() <= 1)[token >= 0].float().mean()
    miss = (plan.progress.end.detach() - end).abs()[kept].mean()
    return cross, distance, {"pointer": float(cross.detach()), "within_1": float(near), "end_error": float(miss)}


ADDED = ("ref_embedding.weight", "place_embedding.weight")
"""Of the DiT: begins at zero where the weights that a run starts from are of an older kind."""


def start_from(model: SpeechModel, folder: Path) -> None:
    """Load the weights of a model folder or of a run's export. Stage 1's has main blocks as initialised."""
    parts = parts_of(folder)
    speech = load_component(Orchestrator, OrchestratorConfig, parts["orchestrator"])
    model.orchestrator.load_state_dict(speech.state_dict())
    given, own = load_component(JointDiT, DiTConfig, parts["dit"]).state_dict(), model.dit.state_dict()
    model.dit.load_state_dict({**{name: own[name] for name in ADDED if name in own}, **given})


def begins_with(start: Path | None, resume: bool) -> Path | None:
    """The weights that a run begins with; one that is resumed has its own."""
    if resume and start is not None:
        log.info("--start %s is not read: a resumed run goes on with its own weights", start)
    return None if resume else start


@torch.no_grad()
def measure_deviation(dit: JointDiT, dataset: WindowDataset) -> None:
    """Tell the audio head's skip how large each latent channel is."""
    audio = torch.cat([dataset.batch(10**9 + i, 32, 2).audio.flatten(0, 2) for i in range(4)])
    dit.audio.head.velocity.deviation.copy_(audio.std(0))


def compile_speech(model: SpeechModel) -> None:
    """Compile the repeated blocks, from outside the model: a quarter less time a step on two cores."""
    for block in [*model.orchestrator.backbone.layers, *model.dit.audio.encoder, *model.dit.audio.decoder]:
        block.compile(dynamic=True)


class SpeechObjective:
    """Flow loss on audio plus the pointer's."""

    name = "orchestrator"
    parts, uneven = 1, False
    chunks = (4, 4, 4, 11)

    def __init__(
        self, config: ModelConfig, data: Path, *, batch: int, terms: SpeechTerms, seed: int = 0, device: str = "cpu",
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.config, self.terms, self.seed, self.batch = config, terms, seed, batch
        self.model = SpeechModel(config)
        if start is not None:
            start_from(self.model, start)
        self.model.dit.blocks.requires_grad_(False)
        compile_speech(self.model)
        limits = {"look_ahead": config.orchestrator.look_ahead, "max_reference": config.orchestrator.max_reference}
        self.data = WindowDataset(data, **limits, seed=seed)
        held_out = data / "held_out"
        self.held_out = WindowDataset(held_out, **limits) if held_out.is_dir() else None
        measure_deviation(self.model.dit, self.data)
        self.model.to(self.device)
        self.samples_per_step = batch
        self.gallery: Gallery | None = None
        self.codecs: Codecs | None = None

    def rate_factor(self, name: str) -> float:
        return 1.0

    def windows(self, step: int) -> Windows:
        n = self.chunks[step % len(self.chunks)]
        return self.data.batch(step, max(1, round(self.batch * self.chunks[0] / n)), n)

    def flow(self, batch: SpeechBatch) -> tuple[Plan, Tensor]:
        """The plan and the predicted velocity (B, n, 33, C)."""
        plan = self.model.orchestrator(batch)
        v = self.model.dit.denoise_audio(batch.noisy.flatten(0, 1), plan.c_a, batch.sigma.flatten())
        return plan, v.float().reshape(batch.noisy.shape)

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        windows = self.windows(number)
        batch, target = corrupt(windows, self.terms, generator(self.seed, number))
        windows, batch, target = windows.to(self.device), batch.to(self.device), target.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            plan, v = self.flow(batch)
        flow = (v - target).square().mean()
        cross, distance, scalars = pointer_terms(plan, windows, batch)
        total = flow + self.terms.pointer * cross + self.terms.end * distance
        return total, {"flow": float(flow.detach()), **scalars}

    def speak(self, windows: Windows, draw: torch.Generator) -> Tensor:
        """(B, 33 n, C): the windows' chunks from noise, each after the true ones before it."""
        quiet = SpeechTerms(drop_reference=0, drop_text=0, history_noise=0, cursor_noise=0)
        batch = corrupt(windows, quiet, draw)[0].to(self.device)

        def field(x: Latents, sigma: float, last: bool) -> Latents:
            return (self.flow(replace(batch, noisy=x[0], sigma=torch.full_like(batch.sigma, sigma)))[1],)

        sampler = EulerSampler(schedule=Steps(steps=SPEAKING_STEPS, shift=self.terms.shift))
        noise = torch.randn(batch.noisy.shape, generator=draw).to(self.device)
        return sampler(field, (noise,), draw)[0].flatten(1, 2)

    def show(self, step: int) -> None:
        """Spectrograms of two windows, and once of what they were cut from."""
        if self.gallery is None or self.codecs is None or not self.gallery.due():
            return
        windows, codec = (self.held_out or self.data).batch(10**8 + 1, 2, 2), self.codecs.audio
        if self.gallery.saves == 1:
            self.gallery.hear(windows.audio.flatten(1, 2), codec, step, "true_sound")
        self.gallery.hear(self.speak(windows, generator(7, 0)).cpu(), codec, step, "sound")

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Loss by sigma with the right condition, and how much a shuffled one costs."""
        data = self.held_out or self.data
        windows = data.batch(10**8, 24, 3)
        quiet = SpeechTerms(drop_reference=0, drop_text=0, history_noise=0, cursor_noise=0)
        figures: dict[str, float] = {}
        for sigma in (0.3, 0.6, 0.8, 0.95, 1.0):
            draw = generator(7, round(sigma * 100))
            batch, _ = corrupt(windows, quiet, draw)
            noise = torch.randn(windows.audio.shape, generator=draw)
            level = torch.full(batch.sigma.shape, sigma)
            batch = replace(batch, sigma=level, noisy=interpolate(windows.audio, noise, level)).to(self.device)
            target = velocity(windows.audio, noise).to(self.device)
            cases = {"": batch, "_wrong_text": wrong_text(batch), "_wrong_voice": wrong_voice(batch)}
            for name, changed in cases.items():
                if name and sigma not in (0.8, 1.0):
                    continue
                plan, v = self.flow(changed)
                figures[f"flow_{sigma}{name}"] = float((v - target).square().mean())
                if not name:
                    scalars = pointer_terms(plan, windows.to(self.device), batch)[2]
                    figures[f"within_1_{sigma}"] = scalars["within_1"]
                    figures[f"end_error_{sigma}"] = scalars["end_error"]
        self.show(step)
        return figures


def wrong_text(batch: SpeechBatch) -> SpeechBatch:
    """Every window with its neighbour's transcript."""
    return replace(batch, text=batch.text.roll(1, 0), text_length=batch.text_length.roll(1, 0))


def wrong_voice(batch: SpeechBatch) -> SpeechBatch:
    """Every window with its neighbour's reference; history still tells the voice after chunk 1."""
    return replace(batch, reference=batch.reference.roll(1, 0), reference_length=batch.reference_length.roll(1, 0))


def train_orchestrator(
    data: Path, out: Path, minutes: float, *, config: ModelConfig, resume: bool = False, batch: int = 16,
    rate: float = 1e-3, cooldown: float = 0.0, seed: int = 0, device: str = "cpu", start: Path | None = None,
    scale: Scale | None = None, codecs: Path | None = None,
) -> None:
    """Train stage 1 for `minutes`; writes `out/orchestrator`, `out/dit` and a checkpoint. `start`: a model or an
    export to begin from; `codecs`: their folder, to hear samples (the shipped ones where they fit)."""
    objective = SpeechObjective(
        config, data, batch=batch, terms=SpeechTerms(), seed=seed, device=device, start=begins_with(start, resume)
    )

    from streamchar.train.streams import Gallery, codecs_for

    objective.codecs, objective.gallery = codecs_for(config, codecs), Gallery(out, [], every=SHOWN_EVERY)

    def export(folder: Path) -> None:
        save_component(objective.model.orchestrator, config.orchestrator, folder / "orchestrator")
        save_component(objective.model.dit, config.dit, folder / "dit")

    schedule = Schedule(minutes=minutes, rate=rate, cooldown=cooldown)
    facts: dict[str, object] = {"preset": config.name, "seed": seed, "batch": batch}
    data_of = {"data": objective.data}
    run(objective, schedule, out, resume=resume, export=export, facts=facts, scale=scale, data=data_of)
