"""The one training loop: steps, rate, averages, logging, checkpoints, exact resume.

An objective says what a batch's loss is; the loop does not know what it trains. How several processes share a step's
batches out, and a model's weights, is `train/parallel.py`'s; the order of the batches is theirs to keep, not to choose.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from streamchar.errors import ConfigError, DataError, StateError
from streamchar.train.checkpoint import (
    FROZEN,
    load_checkpoint,
    recover,
    save_checkpoint,
    save_shards,
    stored_parts,
    with_frozen,
)
from streamchar.train.muon import Muon
from streamchar.train.parallel import (
    Scale,
    Shards,
    Team,
    checkpoint_activations,
    compile_main_blocks,
    join_team,
    parts_of_a_step,
    shard,
    whole,
)

log = logging.getLogger(__name__)

REFRESH = 100
"""Steps after which data that was finished meanwhile is taken in."""


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
    """Of one batch."""
    parts: int
    """Batches of a step, set by the loop: batch `number` is a part of step number // parts."""
    model: nn.Module
    uneven: bool
    """Whether the number of forward passes differs between batches; asked for only where a model is sharded."""

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of the parameter of this name."""
        ...

    def loss(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of batch `number` and scalars to log; a function of (seed, number) and the weights. What kind of
        step it is depends on number // parts alone: all processes then run the same parts of the model."""
        ...

    def validate(self, step: int) -> dict[str, float]:
        """Figures on held-out data, with the averaged weights in place."""
        ...


class Growing(Protocol):
    """Data that may grow while it is trained on (`data/dataset.py`)."""
    folder: Path

    @property
    def names(self) -> list[str]: ...

    def refresh(self) -> None: ...

    def restrict(self, names: list[str]) -> None: ...


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


@dataclass(kw_only=True)
class Run:
    """One run's moving parts."""

    objective: Objective
    schedule: Schedule
    folder: Path
    team: Team
    scale: Scale
    facts: dict[str, object]
    data: Mapping[str, Growing]
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    shards: Shards | None = None
    twin: nn.Module | None = None
    """Sharded: the whole model on the leader, into which averages are gathered to be measured and exported."""

    @property
    def model(self) -> nn.Module:
        return self.objective.model

    def build(self, stored: int | None) -> Averages:
        """Everything from outside the model, then the optimisers. `stored`: parts of a resumed run's steps."""
        parts = parts_of_a_step(self.team, self.scale, stored)
        self.objective.parts, self.facts["parts"] = parts, parts
        if self.scale.shard and self.team.leads:
            self.twin = deepcopy(self.model).cpu()
        if self.scale.checkpoint_activations:
            checkpoint_activations(self.model)
        if self.scale.compile:
            compile_main_blocks(self.model)
        if self.scale.shard:
            self.shards = shard(self.model, self.team, self.scale, uneven=self.objective.uneven)
        self.optimizers = _optimizers(self.objective, self.schedule)
        return Averages(self.model, self.schedule.average)

    def gradients(self, step: int) -> dict[str, float]:
        """The step's gradients, of all its parts on all processes. Returns the means of this process's scalars."""
        self.model.zero_grad(set_to_none=True)
        parts = range(self.team.rank, self.objective.parts, self.team.size)
        sums: dict[str, list[float]] = {}
        for part in parts:
            last = part == parts[-1]
            with self.shards.turn(last=last) if self.shards else nullcontext():
                loss, scalars = self.objective.loss(step * self.objective.parts + part)
                (loss / len(parts) if len(parts) > 1 else loss).backward()
            for key, value in scalars.items():
                sums.setdefault(key, []).append(value)
        if self.shards is None:
            self.team.average_gradients([p for p in self.model.parameters() if p.requires_grad])
        return {key: sum(values) / len(values) for key, values in sums.items()}

    def advance(self, step: int, averages: Averages) -> float:
        """Clip and update; returns the gradient's norm. Raises `StateError` where it is not finite."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(whole(nn.utils.clip_grad_norm_(trained, self.schedule.clip)))
        if not math.isfinite(norm):
            raise StateError(
                f"training diverged: the gradient at step {step} is not finite. An earlier step is in "
                f"{self.folder}; resume from it with a lower --rate (this one: {self.schedule.rate:g})"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        if self.shards is not None:
            self.shards.rest()
        averages.update(self.model, step)
        return norm

    def take_in(self) -> None:
        """Data that was finished meanwhile: what the leader sees, on every process."""
        for data in self.data.values():
            if self.team.leads:
                data.refresh()
            names = self.team.tell(data.names)
            if not self.team.leads:
                data.restrict(names)

    def know(self, shards: Mapping[str, list[str]]) -> None:
        """The data as the checkpoint's run knew it; where it has gone, what there is, and a warning."""
        try:
            for name in shards.keys() & self.data.keys():
                self.data[name].restrict(shards[name])
        except DataError as error:
            log.warning("%s; going on with what is there: not to the bit the run that was not stopped", error)
            self.take_in()

    def save(self, step: int, averages: Averages) -> None:
        """A checkpoint, by all processes where they have shards."""
        facts = {**self.facts, "step": step, "shards": {name: data.names for name, data in self.data.items()}}
        if not self.data:
            del facts["shards"]
        if self.shards is not None:
            save_shards(self.folder, self.model, self.optimizers, averages.values, facts, self.team)
            return
        self.team.wait()
        if self.team.leads:
            save_checkpoint(self.folder, self.model, self.optimizers, averages.values, facts)

    @contextmanager
    def averaged(self, averages: Averages) -> Iterator[None]:
        """The averages in place of the weights, on the leader, for figures and exports; others have nothing to do."""
        if self.shards is None:
            averages.swap(self.model)
            yield
            averages.swap(self.model)
            return
        weights = {**self.model.state_dict(), **averages.values}
        values = {name: _kept(value, self.twin) for name, value in weights.items()}
        if self.twin is None:
            yield
            return
        sharded = self.model
        self.twin.load_state_dict(values)
        self.objective.model = self.twin.to(next(sharded.parameters()).device)
        yield
        self.objective.model = sharded
        self.twin.cpu()


def _kept(value: Tensor, twin: nn.Module | None) -> Tensor:
    """The whole of a tensor, gathered by every process and kept by the one that has a use for it."""
    full = whole(value.detach())
    return full.cpu() if twin is not None else full[:0] if full.ndim else full


def run(
    objective: Objective,
    schedule: Schedule,
    out: Path,
    *,
    resume: bool,
    export: Callable[[Path], None],
    facts: dict[str, object] | None = None,
    scale: Scale | None = None,
    data: Mapping[str, Growing] | None = None,
) -> int:
    """Train for `schedule.minutes`; `export(out)` writes the averaged weights as components. Returns
    the step reached. Under torchrun the step is shared out (`scale`), the first process writes. `data` is what grows
    meanwhile: which of it a step saw is kept."""
    folder, expected = out / "checkpoint", with_frozen({"objective": objective.name, **(facts or {})}, data or {})
    team = join_team(next(objective.model.parameters()).device)
    if team.leads:
        recover(folder)
    team.wait()
    if folder.exists() and not resume:
        raise ConfigError(f"{folder} holds a run's checkpoint: go on with --resume, or choose another --out")
    this = Run(
        objective=objective, schedule=schedule, folder=folder, team=team, scale=scale or Scale(),
        facts={**expected}, data=data or {},
    )
    averages, step = this.build(stored_parts(folder) if resume else None), 0
    if resume:
        stored_average, stored = load_checkpoint(folder, this.model, this.optimizers, expected)
        averages.values = {n: v.to(averages.values[n].device) for n, v in stored_average.items()}
        step = int(stored["step"])
        this.facts[FROZEN] = stored[FROZEN]
        this.know(stored.get("shards", {}))
    # a checkpoint may come without the optimiser's moments (scripts/gpu): it then warms up again
    warm_from = 0 if this.optimizers[0].state else step
    writer = _writer(out) if team.leads else _ignore
    start, saved = time.monotonic(), 0.0
    smooth: dict[str, float] = {}

    def save() -> None:
        this.save(step, averages)
        with this.averaged(averages):
            figures = objective.validate(step) if team.leads else {}
            if team.leads:
                export(out)
        for key, value in figures.items():
            writer(f"held_out/{key}", value, step)
        if team.leads:
            log.info("step %d held out %s", step, _text(figures))

    first = step
    while True:
        elapsed = team.agree(time.monotonic() - start)
        share = elapsed / (60 * schedule.minutes)
        if share >= 1 or (schedule.max_steps is not None and step >= schedule.max_steps):
            break
        if step % REFRESH == 0:
            this.take_in()
        for group in (group for optimizer in this.optimizers for group in optimizer.param_groups):
            group["lr"] = _rate(schedule, step - warm_from, share) * group["factor"]
        scalars = this.gradients(step)
        scalars["gradient_norm"] = this.advance(step, averages)
        step += 1
        for key, value in scalars.items():
            smooth[key] = 0.95 * smooth.get(key, value) + 0.05 * value
        if step % schedule.log_every == 0:
            samples = (step - first) * objective.samples_per_step * objective.parts
            pace = samples / max(1e-9, time.monotonic() - start)
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
