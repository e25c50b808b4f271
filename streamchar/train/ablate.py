"""The paper's ablations (section 5.5) in one go: every arm trained at one stated budget, with several seeds, measured
with the suite, and laid beside the paper's figures.

Everything is kept where it was made, so that the same command goes on after a stop: a training resumes from its
checkpoint, an evaluation from its cache, and what is finished is not done again. Arms share stage I's run where their
options for it are the same.

Intervals are bootstraps over seeds and, within each, over clips; those of a ratio draw both rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamchar.config.model import ModelConfig
from streamchar.errors import InputError, StateError
from streamchar.train.checkpoint import read_facts, recover
from streamchar.train.distill import train_distill
from streamchar.train.rollout import train_rollout
from streamchar.train.teacher import fingerprint, load_teacher

log = logging.getLogger(__name__)

Evaluate = Callable[[Path, Path], dict[str, Path]]
"""(model folder, folder for the evaluations) -> each protocol's metrics.json."""
RESAMPLES, LEVEL = 1000, 0.95
FIGURES = ("wer", "sync_c", "sync_d", "identity", "speaker_similarity", "quality_drift", "dynamic")
BASE, FULL = "base", "full"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row: what its two stages are told, and what the paper found."""

    name: str
    title: str
    first: Mapping[str, Any] | None = field(default_factory=dict)
    """Options of stage I; None: there is none."""
    second: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


ARMS = (
    Arm(name=FULL, title="both stages", paper={"wer": 0.0365, "quality_drift": 0.0067, "dynamic": 1.0}),
    Arm(
        name="no-sink", title="no sink chunk", first={"no_sink": True}, second={"no_sink": True},
        paper={"quality_drift": 0.0304},
    ),
    Arm(name="one-chunk", title="stage II on single chunks", second={"chunks": 1}, paper={"wer": 0.354}),
    Arm(name="no-stage-1", title="stage II from the teacher", first=None, second={"no_stage_1": True}),
    Arm(name="no-pointer", title="transcript cut by the clock", second={"no_pointer_truncation": True}),
    Arm(name="no-history", title="no history", first={"no_history": True}, second={"no_history": True}),
)
PAPER_BASE = {"wer": 0.0354}
"""Of the model before distillation, with its 50 steps."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an ablation is said to cost."""

    arm: str
    figure: str
    least: float
    """Ratio to the whole recipe's figure: at least so much (above 1), or at most (below)."""
    text: str


CLAIMS = (
    Claim(arm="no-sink", figure="quality_drift", least=3.0, text="no sink: at least 3 times the drift"),
    Claim(arm="one-chunk", figure="wer", least=2.0, text="single chunks: at least twice the word error rate"),
    Claim(arm="no-stage-1", figure="sync_c", least=0.97, text="stage II alone: loses sync"),
    Claim(arm="no-stage-1", figure="dynamic", least=0.97, text="stage II alone: loses motion"),
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets."""

    updates: int
    """Of the student, in each stage."""
    minutes: float
    """Of each training at most; where they end it sooner, the table says at how many updates."""
    seeds: int

    def __post_init__(self) -> None:
        if self.updates < 1 or self.seeds < 1 or not self.minutes > 0:
            raise InputError(
                "ablate: --updates and --seeds must be at least 1 and --minutes above 0, got "
                f"{self.updates}, {self.seeds}, {self.minutes}"
            )


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """All that the trainings share."""

    data: Path
    out: Path
    teacher: Path
    config: ModelConfig
    budget: Budget
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of both stages: batch, rate, fake_rate, guidance, audio_weight, follow."""
    grow: int = 40
    chunks: int = 5

    @property
    def follow(self) -> int:
        return int(self.options.get("follow", 5))

    def claim(self) -> None:
        """The folder is this ablation's, or a new one. Raises `InputError`."""
        own = {
            "teacher": fingerprint(self.teacher), "updates": self.budget.updates, "grow": self.grow,
            "chunks": self.chunks, **self.options,
        }
        mark = self.out / "ablation.json"
        if not mark.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            mark.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
            return
        found = json.loads(mark.read_text(encoding="utf-8"))
        differs = sorted(k for k in {*found, *own} if found.get(k) != own.get(k))
        if differs:
            raise InputError(
                f"{self.out} holds another ablation ({', '.join(differs)} differ); give another folder with --out"
            )

    def _go_on(self, train: Callable[..., None], folder: Path, **options: Any) -> int:
        """Train until the budget is spent, however often stopped. Returns the student's updates."""
        mark, checkpoint = folder / "done.json", folder / "checkpoint"
        if not mark.is_file():
            recover(checkpoint)
            train(
                self.data, folder, self.budget.minutes, config=self.config, resume=checkpoint.is_dir(),
                device=self.device, teacher=self.teacher, updates=self.budget.updates, **{**self.options, **options},
            )
            step = int(read_facts(checkpoint)["step"])
            mark.write_text(json.dumps({"updates": step // (self.follow + 1)}), encoding="utf-8")
        return int(json.loads(mark.read_text(encoding="utf-8"))["updates"])

    def train(self, arm: Arm, seed: int) -> tuple[Path, list[int]]:
        """The arm's student and its updates in each stage."""
        updates, start = [], None
        if arm.first is not None:
            label = "-".join([name.replace("_", "-") for name in arm.first] or ["plain"])
            start = self.out / "stage-1" / f"{label}-seed{seed}"
            updates.append(self._go_on(train_distill, start, seed=seed, **arm.first))
        folder = self.out / arm.name / f"seed{seed}"
        second = {"grow": self.grow, "chunks": self.chunks, **arm.second}
        if start is not None:
            second["start"] = start
        updates.append(self._go_on(train_rollout, folder, seed=seed, **second))
        return folder, updates


def ablate(plan: Ablation, evaluate: Evaluate, *, arms: Sequence[Arm] = ARMS) -> dict[str, Any]:
    """Train and measure every arm, then write ablation.md and table.json to `plan.out`; returns the latter."""
    name = load_teacher(plan.teacher).config.name
    if name != plan.config.name:
        raise InputError(f"the teacher is a {name!r} model, got --preset {plan.config.name}; make them the same")
    plan.claim()
    rows: dict[str, dict[str, Any]] = {
        BASE: {"title": "the teacher, with its own steps", "paper": PAPER_BASE, "updates": [],
               "runs": [evaluate(plan.teacher, plan.out / BASE)]}
    }  # fmt: skip
    for arm in arms:
        runs, updates = [], []
        for seed in range(plan.budget.seeds):
            log.info("ablation: %s, seed %d", arm.name, seed)
            model, reached = plan.train(arm, seed)
            runs.append(evaluate(model, plan.out / "measured" / arm.name / f"seed{seed}"))
            updates.append(reached)
        rows[arm.name] = {"title": arm.title, "paper": dict(arm.paper), "updates": updates, "runs": runs}
    value = table(rows, plan.budget)
    (plan.out / "table.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    (plan.out / "ablation.md").write_text(markdown(value), encoding="utf-8")
    return value


# -- figures ---------------------------------------------------------------------------------------


def per_clip(path: Path) -> dict[str, list[float]]:
    """Each figure's values over an evaluation's clips."""
    try:
        clips = json.loads(path.read_text(encoding="utf-8"))["clips"]
    except (OSError, ValueError, KeyError) as error:
        raise StateError(f"expected an evaluation's metrics in {path}: {error}; delete its folder to redo it") from None
    return {key: [float(c[key]) for c in clips if c.get(key) is not None] for key in FIGURES}


def resampled(seeds: Sequence[Sequence[float]], draw: np.random.Generator) -> np.ndarray:
    """Means of seeds drawn with replacement, of clips drawn with replacement in each."""
    means = np.empty((RESAMPLES, len(seeds)))
    for column, which in enumerate(draw.integers(0, len(seeds), (len(seeds), RESAMPLES))):
        for index, values in enumerate(map(np.asarray, seeds)):
            rows = np.flatnonzero(which == index)
            means[rows, column] = values[draw.integers(0, len(values), (len(rows), len(values)))].mean(1)
    return means.mean(1)


def bounds(means: np.ndarray) -> list[float]:
    """The interval of resampled means."""
    return [float(v) for v in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def summary(seeds: Sequence[Sequence[float]], whole: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """A figure of one row: mean, interval, and its ratio to the whole recipe's; None where nothing was measured."""
    seeds, whole = [s for s in seeds if s], [s for s in whole if s]
    if not seeds:
        return None
    draw = np.random.default_rng(0)
    mean, sure = float(np.mean([np.mean(s) for s in seeds])), max(len(seeds), *(len(s) for s in seeds)) > 1
    means = resampled(seeds, draw)
    found: dict[str, Any] = {
        "mean": mean, "interval": bounds(means) if sure else None, "by_seed": [float(np.mean(s)) for s in seeds]
    }
    full = float(np.mean([np.mean(s) for s in whole])) if whole else 0.0
    if full:
        other = resampled(whole, np.random.default_rng(1))
        safe = np.where(np.abs(other) < 1e-12, np.nan, other)
        ratios = (means / safe)[np.isfinite(means / safe)]
        found["ratio"] = mean / full
        found["ratio_interval"] = bounds(ratios) if sure and len(ratios) else None
    return found


def table(rows: Mapping[str, Mapping[str, Any]], budget: Budget) -> dict[str, Any]:
    """Every row's figures by protocol, and what becomes of the claims."""
    protocols = list(dict.fromkeys(name for row in rows.values() for run in row["runs"] for name in run))
    read = {n: {p: [per_clip(run[p]) for run in row["runs"] if p in run] for p in protocols} for n, row in rows.items()}
    made = {
        name: {
            "title": row["title"], "paper": row["paper"], "updates": row["updates"],
            "figures": {
                p: {
                    key: summary([r[key] for r in read[name][p]], [r[key] for r in read.get(FULL, {}).get(p, [])])
                    for key in FIGURES
                }
                for p in protocols
            },
        }
        for name, row in rows.items()
    }  # fmt: skip
    return {"budget": asdict(budget), "protocols": protocols, "rows": made, "claims": judged(made, protocols)}


def judged(rows: Mapping[str, Any], protocols: Sequence[str]) -> list[dict[str, Any]]:
    """Each claim where it was measured: whether it holds, fails, or cannot be told from the interval."""
    found = []
    for claim in CLAIMS:
        for protocol in protocols:
            figure = rows.get(claim.arm, {}).get("figures", {}).get(protocol, {}).get(claim.figure)
            if not figure or "ratio" not in figure:
                continue
            above, (low, high) = claim.least > 1, figure["ratio_interval"] or (figure["ratio"],) * 2
            holds = low >= claim.least if above else high <= claim.least
            fails = high < claim.least if above else low > claim.least
            verdict = "holds" if holds else "does not hold" if fails else "cannot be told"
            if figure["ratio_interval"] is None:
                verdict += " (no interval)"
            found.append({
                "claim": claim.text, "protocol": protocol, "figure": claim.figure, "ratio": figure["ratio"],
                "interval": figure["ratio_interval"], "verdict": verdict,
            })  # fmt: skip
    return found


def markdown(value: Mapping[str, Any]) -> str:
    """The table as a page."""
    budget = value["budget"]
    lines = [
        "# Ablations", "",
        f"{budget['updates']} updates of the student in each stage, {budget['seeds']} seeds an arm. Mean over seeds, "
        f"[{LEVEL:.0%} interval: bootstrap over seeds and clips], x ratio to both stages; the paper's figure in "
        "parentheses, where it gives one (its model, data and clips are others: compare ratios).",
    ]  # fmt: skip
    for protocol in value["protocols"]:
        keys = [k for k in FIGURES if any(row["figures"][protocol][k] for row in value["rows"].values())]
        head, rule = "| arm | updates | " + " | ".join(keys) + " |", "|---" * (len(keys) + 2) + "|"
        lines += ["", f"## {protocol}", "", head, rule]
        for row in value["rows"].values():
            reached = ", ".join("+".join(map(str, seed)) for seed in row["updates"]) or "-"
            cells = [_cell(row["figures"][protocol][k], row["paper"].get(k)) for k in keys]
            lines.append(f"| {row['title']} | {reached} | " + " | ".join(cells) + " |")
    if value["claims"]:
        lines += ["", "## What was claimed", "", "| claim | protocol | ratio | verdict |", "|---|---|---|---|"]
    for claim in value["claims"]:
        lines.append(f"| {claim['claim']} | {claim['protocol']} | {_ratio(claim)} | {claim['verdict']} |")
    return "\n".join(lines) + "\n"


def _ratio(claim: Mapping[str, Any]) -> str:
    interval = claim["interval"]
    return f"{claim['ratio']:.3g}" + ("" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]")


def _cell(figure: Mapping[str, Any] | None, paper: float | None) -> str:
    said = "" if paper is None else f" ({paper:.4g})"
    if figure is None:
        return "-" + said
    text = f"{figure['mean']:.4g}"
    if figure["interval"] is not None:
        text += f" [{figure['interval'][0]:.3g}, {figure['interval'][1]:.3g}]"
    if "ratio" in figure:
        text += f" x{figure['ratio']:.2g}"
    return text + said
