"""Training checkpoints: weights, optimiser and averages as safetensors, the rest as JSON. Never pickle.

A resumed run is the run that was not stopped: batches, noise and dropout are functions of (seed,
step), so the step, the tensors here and the seed are all there is to restore.

Where the model is sharded, every process writes its own part (torch.distributed.checkpoint, as safetensors) and any
number of processes reads them, one without torchrun included; a checkpoint of one file each can be read sharded, too.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from streamchar.data.origin import encoders
from streamchar.errors import StateError
from streamchar.train.parallel import Team, cut_like

PARTS = ("model", "optimizer", "average")
FROZEN = "frozen"
"""Key of the facts of what a run uses, does not train and does not store: fingerprints by name."""
FORMAT, SHARDED = "format", "shards"
"""Key of a sharded checkpoint's facts, and its value."""


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
        value = value.to("cpu" if key == "step" else p.device)
        owner[id(p)].state.setdefault(p, {})[key] = _placed(value, p)


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape cut as the parameter is; anything else as it is."""
    return cut_like(value, like) if value.shape == like.shape and type(value) is Tensor else value


def swap(folder: Path, part: Path) -> None:
    """Put a whole checkpoint in the old one's place: a stop in between loses nothing."""
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def cleared(folder: Path) -> Path:
    """An empty folder beside the old checkpoint."""
    part = folder.with_name(folder.name + ".part")
    for leftover in (part, folder.with_name(folder.name + ".old")):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    facts: dict[str, Any],
) -> None:
    """Write a whole checkpoint beside the old one, then swap."""
    part = cleared(folder)
    save_file({n: p.detach().contiguous().clone() for n, p in model.state_dict().items()}, part / "model.safetensors")
    save_file(_optimizer_tensors(model, optimizers), part / "optimizer.safetensors")
    save_file({n: v.cpu().contiguous() for n, v in average.items()}, part / "average.safetensors")
    (part / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    swap(folder, part)


def save_shards(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    facts: dict[str, Any],
    team: Team,
) -> None:
    """The same by all processes together, each its own shards."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    part = folder.with_name(folder.name + ".part")
    if team.leads:
        cleared(folder)
    team.wait()
    tensors = {f"model|{n}": p.detach() for n, p in model.state_dict().items()}
    tensors |= {f"optimizer|{n}": value for n, value in _optimizer_tensors(model, optimizers).items()}
    tensors |= {f"average|{n}": value for n, value in average.items()}
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    team.wait()
    if team.leads:
        (part / "facts.json").write_text(json.dumps({**facts, FORMAT: SHARDED}, indent=2), encoding="utf-8")
        swap(folder, part)
    team.wait()


def _empty(like: Tensor | None, size: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Room for a stored tensor, cut as `like` is where it is of its shape."""
    if like is None or tuple(like.shape) != size:
        return torch.zeros(size, dtype=kind)
    return torch.zeros_like(like, dtype=kind)


def read_parts(folder: Path, state: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """A checkpoint's model, optimizer and average, of either form. `state`: a model's, whose tensors may be cut; a
    sharded checkpoint is then read as they are, else whole."""
    if read_facts(folder).get(FORMAT) != SHARDED:
        return {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
    wanted: dict[str, Tensor] = {}
    for key, about in reader.read_metadata().state_dict_metadata.items():
        part, _, name = key.partition("|")
        size, kind = tuple(about.size), about.properties.dtype  # pyright: ignore[reportAttributeAccessIssue]
        like = None
        if state is not None:
            like = state.get(name.rpartition("|")[0] if part == "optimizer" else name)
            fits = like is not None and (tuple(like.shape) == size or part == "optimizer")
            if not fits:
                got = "nothing of that name" if like is None else tuple(like.shape)
                raise StateError(f"the checkpoint in {folder} is of another model: {name} has {size}, this one {got}")
        wanted[key] = parts[part][name] = _empty(like, size, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that one process is one process
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not dist.is_initialized())
    return parts


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], expected: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore model and optimiser in place; returns the weight average and the facts.

    Raises `StateError` if the checkpoint is missing, broken or of another run (`expected`)."""
    recover(folder)
    try:
        facts = read_facts(folder)
        parts = read_parts(folder, model.state_dict())
    except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
        raise StateError(f"expected a training checkpoint in {folder}: {error}; start without --resume") from None
    for key, value in expected.items():
        if key != FROZEN and facts.get(key) != value:
            raise StateError(f"the checkpoint in {folder} has {key} = {facts.get(key)!r}, this run has {value!r}")
    facts[FROZEN] = _same_frozen(folder, facts.get(FROZEN, {}), expected.get(FROZEN, {}))
    state, trained = model.state_dict(), dict(model.named_parameters())
    try:
        model.load_state_dict({n: _placed(v, state[n]) if n in state else v for n, v in parts["model"].items()})
    except RuntimeError as error:
        raise StateError(f"the checkpoint in {folder} is of another model: {error}") from None
    _restore_optimizer(model, optimizers, parts["optimizer"])
    return {n: _placed(v, trained[n]) if n in trained else v for n, v in parts["average"].items()}, facts


def with_frozen(facts: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's facts with what the latents of its data were encoded with."""
    frozen = {**facts.get(FROZEN, {}), **encoders(one.folder for one in data.values())}
    return {**facts, FROZEN: frozen} if frozen else facts


def _same_frozen(folder: Path, stored: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """All that is known of it; checkpoints from before it was noted, and data without a recipe, know less."""
    for name in sorted(stored.keys() & now.keys()):
        if stored[name] != now[name]:
            raise StateError(
                f"the run in {folder} was begun with another {name.replace('_', ' ')}; go on with that one, or begin "
                "anew in another --out"
            )
    return {**stored, **now}


def recover(folder: Path) -> None:
    """A run that was stopped between two renames has its checkpoint beside its place."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        old.rename(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of the run. Raises `OSError` and `ValueError`."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError(f"facts.json holds a {type(facts).__name__}, no object")
    return facts


def stored_parts(folder: Path) -> int | None:
    """Batches a step of the run in `folder`; None where it does not say (or is not there: loading will say so)."""
    try:
        return read_facts(folder).get("parts")
    except (OSError, ValueError):
        return None
