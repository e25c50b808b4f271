"""Training checkpoints: weights, optimiser and averages as safetensors, the rest as JSON. Never pickle.

A resumed run is the run that was not stopped: batches, noise and dropout are functions of (seed,
step), so the step, the tensors here and the seed are all there is to restore.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamchar.errors import StateError


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{names[id(p)]}|{key}": value.detach().clone()
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("|")
        if parameter not in parameters:
            raise StateError(f"the optimiser's state names {parameter}, which this model does not have")
        p = parameters[parameter]
        if id(p) not in owner:
            raise StateError(f"the optimiser's state names {parameter}, which this run does not train")
        owner[id(p)].state.setdefault(p, {})[key] = value.to("cpu" if key == "step" else p.device)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    facts: dict[str, Any],
) -> None:
    """Write a whole checkpoint beside the old one, then swap: a stop in between loses nothing."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({n: p.detach().contiguous().clone() for n, p in model.state_dict().items()}, part / "model.safetensors")
    save_file(_optimizer_tensors(model, optimizers), part / "optimizer.safetensors")
    save_file({n: v.cpu().contiguous() for n, v in average.items()}, part / "average.safetensors")
    (part / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], expected: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore model and optimiser in place; returns the weight average and the facts.

    Raises `StateError` if the checkpoint is missing, broken or of another run (`expected`)."""
    if not folder.exists() and folder.with_name(folder.name + ".old").exists():
        folder.with_name(folder.name + ".old").rename(folder)
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        average = load_file(folder / "average.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise StateError(f"expected a training checkpoint in {folder}: {error}; start without --resume") from None
    for key, value in expected.items():
        if facts.get(key) != value:
            raise StateError(f"the checkpoint in {folder} has {key} = {facts.get(key)!r}, this run has {value!r}")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise StateError(f"the checkpoint in {folder} is of another model: {error}") from None
    _restore_optimizer(model, optimizers, moments)
    return average, facts
