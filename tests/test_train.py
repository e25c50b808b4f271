"""The training loop: averages, rates, checkpoints that are whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from streamchar.errors import ConfigError, StateError
from streamchar.train import loop
from streamchar.train.checkpoint import load_checkpoint, save_checkpoint
from streamchar.train.loop import Averages, Schedule, generator, run
from streamchar.train.muon import Muon

NO_LIMIT = 60.0


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No TensorBoard: it costs more than all that is tested here."""
    monkeypatch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)


# -- checkpoints -------------------------------------------------------------------------------------


class Line(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.fixed = nn.Linear(width, 2).requires_grad_(False)


def checkpoint(folder, width=3):
    torch.manual_seed(0)
    model = Line(width)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.linear(torch.randn(4, width)).sum().backward()
    optimizer.step()
    if folder is not None:
        save_checkpoint(folder, model, [optimizer], Averages(model, 0.9).values, {"step": 7, "seed": 1})
    return model, [optimizer]


def test_a_spoiled_checkpoint_is_refused(tmp_path):
    folder = tmp_path / "checkpoint"
    with pytest.raises(StateError, match="expected a training checkpoint .*; start without --resume"):
        load_checkpoint(folder, *checkpoint(None), {})
    checkpoint(folder)
    with pytest.raises(StateError, match="is of another model"):
        load_checkpoint(folder, *checkpoint(None, width=4), {})
    for name in ("model.safetensors", "optimizer.safetensors", "average.safetensors", "facts.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StateError, match="expected a training checkpoint"):
            load_checkpoint(folder, *checkpoint(None), {})
        (folder / name).write_bytes(whole)
    _, facts = load_checkpoint(folder, *checkpoint(None), {"seed": 1})
    assert facts["step"] == 7


def test_a_stop_between_two_renames_loses_nothing(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoint(folder)
    folder.rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.part").mkdir()
    _, facts = load_checkpoint(folder, *checkpoint(None), {})
    assert facts["step"] == 7
    checkpoint(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "average.safetensors", "facts.json", "model.safetensors", "optimizer.safetensors",
    ]


# -- the loop ----------------------------------------------------------------------------------------


def test_averages_follow_the_weights():
    model = Line()
    averages = Averages(model, 0.99)
    assert set(averages.values) == {"linear.weight", "linear.bias"}, "what is not trained is not averaged"
    expected = model.linear.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.linear.weight.add_(0.1)
        averages.update(model, step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.linear.weight.detach()
    torch.testing.assert_close(averages.values["linear.weight"], expected)
    assert (averages.values["linear.weight"] < model.linear.weight).all()


def test_averages_swap_in_and_out():
    model = Line()
    averages = Averages(model, 0.9)
    with torch.no_grad():
        model.linear.weight.add_(1.0)
    trained, mean = model.linear.weight.detach().clone(), averages.values["linear.weight"].clone()
    averages.swap(model)
    assert torch.equal(model.linear.weight, mean)
    averages.swap(model)
    assert torch.equal(model.linear.weight, trained) and torch.equal(averages.values["linear.weight"], mean)


class Regression:
    """A line to be found."""

    name, samples_per_step = "regression", 8

    def __init__(self):
        torch.manual_seed(1)
        self.model, self.seen, self.validated = Line(), [], []

    def rate_factor(self, name):
        return 0.5 if name.endswith("bias") else 1.0

    def loss(self, step):
        self.seen.append(step)
        x = torch.randn(8, 3, generator=generator(0, step))
        error = (self.model.linear(x) - x[:, :2]).square().mean()
        return error, {"error": float(error.detach())}

    def validate(self, step):
        self.validated.append((step, self.model.linear.weight.detach().clone()))
        return {"figure": 1.0}


def test_the_loop_trains_saves_and_exports_averages(tmp_path):
    objective, exported = Regression(), []
    before = objective.model.fixed.weight.clone()

    def export(folder):
        exported.append((folder, objective.model.linear.weight.detach().clone()))

    schedule = Schedule(minutes=NO_LIMIT, rate=0.03, warmup=1, max_steps=300, average=0.9)
    assert run(objective, schedule, tmp_path, resume=False, export=export) == 300
    assert objective.seen == list(range(300))
    torch.testing.assert_close(objective.model.linear.weight, torch.eye(2, 3), rtol=0, atol=0.02)
    ((folder, weight),) = exported
    ((step, validated),) = objective.validated
    average = load_file(tmp_path / "checkpoint" / "average.safetensors")["linear.weight"]
    assert folder == tmp_path and step == 300
    assert torch.equal(weight, average) and torch.equal(validated, average), "held-out figures are of what is exported"
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")["linear.weight"]
    assert torch.equal(stored, objective.model.linear.weight)
    assert torch.equal(objective.model.fixed.weight, before)
    facts = json.loads((tmp_path / "checkpoint" / "facts.json").read_text())
    assert facts == {"objective": "regression", "step": 300, "parts": 1}


def test_time_ends_a_run(tmp_path):
    schedule = Schedule(minutes=1e-12, rate=1e-3)
    assert run(Regression(), schedule, tmp_path, resume=False, export=lambda folder: None) == 0
    assert (tmp_path / "checkpoint").is_dir()


def test_rates():
    schedule = Schedule(minutes=1, rate=2.0, warmup=10, cooldown=0.25)
    assert loop._rate(schedule, 0, 0.0) == pytest.approx(0.2)
    assert loop._rate(schedule, 9, 0.0) == loop._rate(schedule, 500, 0.74) == 2.0
    assert loop._rate(schedule, 500, 0.875) == pytest.approx(1.0)
    assert loop._rate(schedule, 500, 0.9999) == pytest.approx(0.1)
    assert loop._rate(replace(schedule, cooldown=0.0), 500, 0.9999) == 2.0
    (adam,) = loop._optimizers(Regression(), schedule)
    groups = [(g["factor"], g["weight_decay"], len(g["params"])) for g in adam.param_groups]
    assert sorted(groups) == [(0.5, 0.0, 1), (1.0, 0.01, 1)]


def test_muon_trains_the_matrices_of_numbered_blocks():
    objective = Regression()
    objective.model.layers = nn.ModuleList([nn.Linear(3, 3)])
    muon, adam = loop._optimizers(objective, Schedule(minutes=1, rate=1e-3))
    assert isinstance(muon, Muon)
    ((only,),) = (group["params"] for group in muon.param_groups)
    assert only is objective.model.layers[0].weight
    assert sum(len(g["params"]) for g in adam.param_groups) == 3
    (alone,) = loop._optimizers(objective, Schedule(minutes=1, rate=1e-3, muon=False))
    assert isinstance(alone, torch.optim.AdamW)


def test_a_runs_checkpoint_is_not_overwritten(tmp_path):
    schedule = Schedule(minutes=NO_LIMIT, rate=1e-3, max_steps=1)
    run(Regression(), schedule, tmp_path, resume=False, export=lambda folder: None)
    with pytest.raises(ConfigError, match="go on with --resume"):
        run(Regression(), schedule, tmp_path, resume=False, export=lambda folder: None)


def test_divergence_stops_the_run_and_keeps_the_weights(tmp_path):
    objective = Regression()
    objective.loss = lambda step: (objective.model.linear.weight.sum() * float("inf"), {})
    before = objective.model.linear.weight.detach().clone()
    with pytest.raises(StateError, match="training diverged"):
        run(objective, Schedule(minutes=NO_LIMIT, rate=1e-3), tmp_path, resume=False, export=lambda folder: None)
    assert torch.equal(objective.model.linear.weight, before)


@pytest.mark.parametrize("changes", [{"minutes": 0}, {"rate": -1.0}, {"warmup": 0}, {"log_every": 0}])
def test_a_schedule_without_time_or_rate_is_refused(changes):
    with pytest.raises(ConfigError, match=f"training: {next(iter(changes))} must be above 0"):
        Schedule(**{"minutes": 1, "rate": 1e-3, **changes})


def test_a_steps_generator_does_not_depend_on_the_steps_before():
    assert torch.equal(torch.randn(5, generator=generator(3, 10)), torch.randn(5, generator=generator(3, 10)))
    draws = {float(torch.randn((), generator=generator(seed, step))) for seed in range(3) for step in range(50)}
    assert len(draws) == 150
