"""The one training loop: steps, rate, averages, logging, checkpoints, exact resume.

An objective says what a step's loss is; the loop does not know what it trains.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from streamchar.errors import ConfigError, StateError
from streamchar.train.checkpoint import load_checkpoint, save_checkpoint
from streamchar.train.muon import Muon
from streamchar.train.parallel import join_team

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast."""

    minutes: float
    rate: float
    warmup: int = 200
    cooldown: float = 0.0
    """Share of this run's minutes, at its end, in which the rate falls to a twentieth (0: none, so that
    the run can go on)."""
    average: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    save_minutes: float = 4.0
    log_every: int = 20
    max_steps: int | None = None
    muon: bool = True
    """Muon for the hidden matrices (decisions.md has the comparison); else AdamW for everything."""

    def __post_init__(self) -> None:
        for name in ("minutes", "rate", "warmup", "log_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training: {name} must be above 0, got {getattr(self, name)}")


class Objective(Protocol):
    """What is trained."""

    name: str
    samples_per_step: int

    @property
    def model(self) -> nn.Module: ...

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of the parameter of this name."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of step `step` and scalars to log; a function of (seed, step) and the weights."""
        ...

    def validate(self, step: int) -> dict[str, float]:
        """Figures on held-out data, with the averaged weights in place."""
        ...


class Averages:
    """Exponential moving average of the trained weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {n: p.detach().clone().float() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Early steps are forgotten faster: the decay rises with the step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            if name in self.values:
                self.values[name].lerp_(p.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averages."""
        for name, p in model.named_parameters():
            if name in self.values:
                now = p.detach().clone().float()
                p.copy_(self.values[name])
                self.values[name] = now


def _rate(schedule: Schedule, step: int, share: float) -> float:
    rate = schedule.rate * min(1.0, (step + 1) / schedule.warmup)
    if schedule.cooldown and share > 1 - schedule.cooldown:
        rate *= max(0.05, (1 - share) / schedule.cooldown)
    return rate


def hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix between hidden states: one of a numbered block's projections."""
    return parameter.ndim == 2 and any(part.isdigit() for part in name.split("."))


def _optimizers(objective: Objective, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for the rest, grouped by rate factor; vectors (norms, biases) do not decay."""
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, p in objective.model.named_parameters():
        if p.requires_grad:
            muon = schedule.muon and hidden(name, p)
            key = (muon, objective.rate_factor(name), schedule.weight_decay if p.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(p)

    def part(muon: bool) -> list[dict]:
        return [
            {"params": ps, "factor": factor, "weight_decay": decay}
            for (kind, factor, decay), ps in groups.items() if kind == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    if part(True):
        optimizers.append(Muon(part(True), schedule.rate))
    if part(False):
        optimizers.append(torch.optim.AdamW(part(False), schedule.rate, betas=schedule.betas))
    return optimizers


def run(
    objective: Objective,
    schedule: Schedule,
    out: Path,
    *,
    resume: bool,
    export: Callable[[Path], None],
    facts: dict[str, object] | None = None,
) -> int:
    """Train for `schedule.minutes`; `export(out)` writes the averaged weights as components. Returns
    the step reached. Under torchrun the batch is shared out (`train/parallel.py`) and the first process writes."""
    model, folder, team = objective.model, out / "checkpoint", join_team()
    if folder.exists() and not resume:
        raise ConfigError(f"{folder} holds a run's checkpoint: go on with --resume, or choose another --out")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(objective, schedule)
    averages, step, facts = Averages(model, schedule.average), 0, {"objective": objective.name, **(facts or {})}
    if resume:
        stored_average, stored = load_checkpoint(folder, model, optimizers, facts)
        averages.values = {n: v.to(averages.values[n].device) for n, v in stored_average.items()}
        step = int(stored["step"])
    # a checkpoint may come without the optimiser's moments (scripts/gpu): it then warms up again
    warm_from = 0 if optimizers[0].state else step
    writer = _writer(out) if team.leads else _ignore
    start, saved = time.monotonic(), 0.0
    smooth: dict[str, float] = {}

    def save() -> None:
        team.wait()
        if not team.leads:
            return
        save_checkpoint(folder, model, optimizers, averages.values, {**facts, "step": step})
        averages.swap(model)
        figures = objective.validate(step)
        export(out)
        averages.swap(model)
        for key, value in figures.items():
            writer(f"held_out/{key}", value, step)
        log.info("step %d held out %s", step, _text(figures))

    first = step
    while True:
        elapsed = team.agree(time.monotonic() - start)
        share = elapsed / (60 * schedule.minutes)
        if share >= 1 or (schedule.max_steps is not None and step >= schedule.max_steps):
            break
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = _rate(schedule, step - warm_from, share) * group["factor"]
        loss, scalars = objective.loss(team.batch(step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients(trained)
        scalars["gradient_norm"] = float(nn.utils.clip_grad_norm_(trained, schedule.clip))
        if not math.isfinite(scalars["gradient_norm"]):
            raise StateError(
                f"training diverged: the gradient at step {step} is not finite. An earlier step is in "
                f"{folder}; resume from it with a lower --rate (this one: {schedule.rate:g})"
            )
        for optimizer in optimizers:
            optimizer.step()
        averages.update(model, step)
        step += 1
        for key, value in scalars.items():
            smooth[key] = 0.95 * smooth.get(key, value) + 0.05 * value
        if step % schedule.log_every == 0:
            pace = (step - first) * objective.samples_per_step * team.size / max(1e-9, time.monotonic() - start)
            for key, value in smooth.items():
                writer(f"train/{key}", value, step)
            writer("train/samples_per_s", pace, step)
            left = max(0.0, schedule.minutes - elapsed / 60)
            if team.leads:
                log.info("step %d %s %.1f samples/s %.1f min left", step, _text(smooth), pace, left)
        if elapsed - saved > 60 * schedule.save_minutes:
            save()
            saved = elapsed
    save()
    return step


def _text(figures: dict[str, float]) -> str:
    return " ".join(f"{k} {v:.4g}" for k, v in figures.items())


def _ignore(name: str, value: float, step: int) -> None:
    """Scalars of processes that do not lead."""


def _writer(out: Path) -> Callable[[str, float, int], None]:
    """TensorBoard scalars if it is installed (extra `train`), else nothing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: scalars go to the log alone")
        return lambda name, value, step: None
    writer = SummaryWriter(str(out / "scalars"))
    return writer.add_scalar


def generator(seed: int, step: int) -> torch.Generator:
    """A generator for one step: what it draws does not depend on the steps before."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))
