"""Processes that share a step out, gradients averaged or weights cut: what they reach is what one process reaches."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from streamchar.codecs.text import T5PromptEncoder, word_tokenizer
from streamchar.errors import ConfigError
from streamchar.train import loop
from streamchar.train.checkpoint import read_parts
from streamchar.train.distill import DistillObjective, pace
from streamchar.train.joint import JointObjective, VideoTerms
from streamchar.train.loop import Schedule, run
from streamchar.train.orchestrator import SpeechObjective, SpeechTerms
from streamchar.train.parallel import Scale
from tests.distillation import CONFIG, clip, distill, loaded_teacher, made_folders, rollout  # noqa: F401 - fixtures
from tests.teams import together

SHARDED, AUTOCAST = Scale(shard=True), torch.autocast


def _exact(kind, **options):
    return AUTOCAST(kind, enabled=False)


# no compiler, no TensorBoard, and float32: sums in another order are all that may differ
PLAIN = (
    (nn.Module, "compile", lambda self, *args, **kwargs: None),
    (loop, "_writer", lambda out: lambda name, value, step: None),
    (torch, "autocast", _exact),
    (DistillObjective, "mixed", lambda self: AUTOCAST("cpu", enabled=False)),
)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for owner, name, value in PLAIN:
        monkeypatch.setattr(owner, name, value)


def member(*arguments, mixed=False, resume=False):
    """`train` in a process of a team, which starts without this one's patches."""
    for owner, name, value in PLAIN:
        setattr(owner, name, value)
    if mixed:
        torch.autocast = AUTOCAST
    train(*arguments, resume=resume)


def speech(folders, teacher):
    return SpeechObjective(CONFIG, folders / "speech", batch=1, terms=SpeechTerms(), seed=3)


def joint(folders, teacher):
    torch.manual_seed(0)
    encoder = T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy", "and", "lively"]))
    return JointObjective(
        CONFIG, folders / "video", encoder, batch=1, terms=VideoTerms(), seed=3, speech=folders / "speech"
    )


STAGES = {"speech": speech, "joint": joint, "distill": distill, "uneven": rollout}


def train(kind, folders, teacher, out: Path, steps: int, scale: Scale, *, resume=False):
    """Train and keep every batch's loss, by its number, one file a process."""
    objective, losses = STAGES[kind](folders, teacher), {}
    inner = objective.loss

    def loss(number):
        objective.drawn = number
        total, scalars = inner(number)
        losses[number] = float(total.detach())
        return total, scalars

    if kind == "uneven":  # half of the streams end after one chunk: fewer passes on one process than on the other
        roll = objective.roll
        objective.roll = lambda clip, chunks, trained, *, seed, **rest: roll(
            clip, chunks if objective.drawn % 2 else 1, trained, seed=seed, **rest
        )
    objective.loss = loss
    if kind in ("speech", "joint"):
        (objective if kind == "speech" else objective.speech).chunks = (2,)
    objective.validate = lambda step: {}
    common = {"minutes": 60.0, "rate": 1e-2, "warmup": 1, "average": 0.5, "max_steps": steps}
    schedule = Schedule(**common) if kind in ("speech", "joint") else pace(CONFIG, 60.0, 1e-2, 0.0, 1, steps)

    def export(folder):
        state = {n: type(p).__name__ for n, p in objective.model.state_dict().items()}
        assert set(state.values()) <= {"Tensor"}, "what is exported is whole"

    run(
        objective,
        schedule,
        out,
        resume=resume,
        export=export,
        facts={"seed": 3},
        scale=scale,
        data={"data": objective.data},
    )
    rank = os.environ.get("RANK", "0")
    out.mkdir(parents=True, exist_ok=True)  # whole weights are the first process's to write: it may not have begun to
    (out / f"losses-{rank}.json").write_text(json.dumps(losses))


def reached(out: Path):
    """Every batch's loss, and the averages."""
    losses = {}
    for path in sorted(out.glob("losses-*.json")):
        losses |= {int(k): v for k, v in json.loads(path.read_text()).items()}
    return losses, read_parts(out / "checkpoint")


ROUNDING = "pointer.key.bias"
"""It moves all of a query's logits alike: its gradient is nothing but rounding, which Adam divides by its own size."""


def same(one: Path, other: Path):
    (losses_a, a), (losses_b, b) = reached(one), reached(other)
    for key in losses_b:
        assert losses_b[key] == pytest.approx(losses_a[key], rel=2e-3, abs=1e-5), key
    for part in ("model", "average", "optimizer"):
        assert a[part].keys() == b[part].keys() and a[part]
        for name, value in a[part].items():
            if ROUNDING in name:
                continue
            torch.testing.assert_close(b[part][name], value, rtol=2e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["joint", "distill", "uneven"])
def test_two_processes_reach_what_one_reaches(kind, folders, teacher, tmp_path):
    """Losses of every batch, weights, moments and averages; the one process computes both parts of each step."""
    steps = 2  # of both kinds, where a stage has two
    train(kind, folders, teacher, tmp_path / "one", steps, Scale(accumulate=2))
    together(2, member, kind, folders, teacher, tmp_path / "cut", steps, SHARDED, folder=tmp_path / "team")
    losses, _ = reached(tmp_path / "one")
    assert sorted(losses) == list(range(2 * steps))
    same(tmp_path / "one", tmp_path / "cut")


def test_a_run_goes_on_with_any_number_of_processes(folders, teacher, tmp_path):
    """Two processes with shards, then one with the same, then two with whole weights: one process's whole run."""
    train("speech", folders, teacher, tmp_path / "one", 3, Scale(accumulate=2))
    out = tmp_path / "moved"
    together(2, member, "speech", folders, teacher, out, 1, SHARDED, folder=tmp_path / "first")
    assert json.loads((out / "checkpoint" / "facts.json").read_text())["parts"] == 2
    assert not (out / "checkpoint" / "model.safetensors").exists(), "each process writes its own shards"
    losses, _ = reached(out)
    with pytest.raises(ConfigError, match="steps are of 2 batches, got 1 processes with --accumulate 3"):
        train("speech", folders, teacher, out, 2, Scale(accumulate=3), resume=True)
    train("speech", folders, teacher, out, 2, Scale(), resume=True)
    losses |= reached(out)[0]
    last = Scale(shard=True, checkpoint_activations=True)
    together(2, partial(member, resume=True), "speech", folders, teacher, out, 3, last, folder=tmp_path / "last")
    losses |= reached(out)[0]
    assert losses == pytest.approx(reached(tmp_path / "one")[0], rel=2e-3)
    same(tmp_path / "one", out)


def test_averaged_gradients_do_the_same_from_whole_weights(folders, teacher, tmp_path):
    train("joint", folders, teacher, tmp_path / "one", 1, Scale(accumulate=2))
    together(2, member, "joint", folders, teacher, tmp_path / "two", 1, Scale(), folder=tmp_path / "team")
    same(tmp_path / "one", tmp_path / "two")


def test_weights_may_travel_as_bfloat16(folders, teacher, tmp_path):
    """Masters, moments and averages stay float32; losses agree as far as eight bits go."""
    train("speech", folders, teacher, tmp_path / "one", 1, Scale(accumulate=2))
    rough, scale = partial(member, mixed=True), Scale(shard=True, bf16=True)
    together(2, rough, "speech", folders, teacher, tmp_path / "cut", 1, scale, folder=tmp_path / "team")
    (exact, _), (rough, parts) = reached(tmp_path / "one"), reached(tmp_path / "cut")
    for key, value in exact.items():
        assert rough[key] == pytest.approx(value, rel=0.05) and rough[key] != value
    assert {v.dtype for part in parts.values() for v in part.values() if v.is_floating_point()} == {torch.float32}


def test_one_process_has_nothing_to_cut(folders, teacher, tmp_path):
    with pytest.raises(ConfigError, match="--shard spreads a model over processes, .* start it with torchrun"):
        train("speech", folders, teacher, tmp_path, 1, SHARDED)
    with pytest.raises(ConfigError, match="bf16 is how sharded weights travel"):
        Scale(bf16=True)
