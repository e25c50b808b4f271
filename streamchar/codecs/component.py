"""A component on disk: `config.json` and `model.safetensors` in one folder, never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamchar.errors import CheckpointError

M = TypeVar("M", bound=nn.Module)


BYTES, SCALE = "|int8", "|scale"
SMALL = 4096
"""Weights with fewer values stay as they are."""


def to_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as int8 with one float32 scale a row (its first axis): half of bfloat16, and about 1 %
    of a row's deviation as error."""
    rows = weight.detach().float().flatten(1)
    scale = rows.abs().amax(1).clamp(min=1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8).reshape(weight.shape), scale


def from_bytes(values: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight of `to_bytes`."""
    return values.float() * scale.reshape(-1, *[1] * (values.ndim - 1))


def save_component(module: nn.Module, config: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `module` and its frozen config; floating weights as `dtype` if given (buffers stay).

    `torch.int8` stores matrices by rows (`to_bytes`) and the rest as bfloat16."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tensors = {}
    for name, value in module.state_dict().items():
        cast = dtype is not None and name in parameters and value.is_floating_point()
        value = value.detach().cpu()
        if cast and dtype == torch.int8 and value.ndim > 1 and value.numel() >= SMALL:
            tensors[name + BYTES], tensors[name + SCALE] = (t.contiguous() for t in to_bytes(value))
            continue
        plain = torch.bfloat16 if dtype == torch.int8 else dtype
        tensors[name] = (value.to(plain) if cast else value).contiguous().clone()
    part = folder / "model.safetensors.part"
    save_file(tensors, part)
    part.replace(folder / "model.safetensors")
    text = json.dumps({"class": type(module).__name__, **dataclasses.asdict(config)}, indent=2)
    part = folder / "config.json.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / "config.json")


def read_config(config_type: type[Any], folder: Path, expected_class: str) -> Any:
    """The config of a component folder; raises `CheckpointError` if it is missing, broken or another's."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"expected a component folder with config.json, found none at {folder}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file ({error}); fetch the checkpoint again") from None
    if not isinstance(values, dict):
        got = type(values).__name__
        raise CheckpointError(f"{path} must hold one JSON object, got a {got}; fetch the checkpoint again")
    name = values.pop("class", None)
    if name != expected_class:
        raise CheckpointError(f"{path} describes a {name}, expected {expected_class}")
    fields = {f.name for f in dataclasses.fields(config_type)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise CheckpointError(f"{path} has unknown settings {unknown}; it was written by another version")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return config_type(**values)
    except TypeError as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from None


def read_weights(module: nn.Module, folder: Path) -> None:
    """Load `model.safetensors` of `folder` into `module`, strictly, keeping the module's dtypes."""
    path = Path(folder) / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"expected weights at {path}, found none (safetensors only; pickles are never read)")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); fetch it again") from None
    for name in [n for n in tensors if n.endswith(BYTES)]:
        plain = name.removesuffix(BYTES)
        if plain + SCALE not in tensors:
            raise CheckpointError(f"{path} holds {name} without its scale; fetch it again")
        tensors[plain] = from_bytes(tensors.pop(name), tensors.pop(plain + SCALE))
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    wrong = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"wrong shape {wrong[:3]} ({len(missing)}, {len(extra)}, {len(wrong)} in all)"
        )
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})


def load_component(module_type: type[M], config_type: type[Any], folder: Path) -> M:
    """Build a component from its folder, in evaluation mode."""
    module = module_type(read_config(config_type, folder, module_type.__name__))
    read_weights(module, folder)
    return module.eval()


def fingerprint(module: nn.Module, *, without: str = "decoder.") -> str:
    """Tells weights from others, whatever type they were stored as; those under the name `without` do not count: a
    codec's decoder may be trained further, and its latents stay what they are."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.startswith(without):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
