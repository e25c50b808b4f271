"""Modules without weights, and the ways to give them some: drawn, or read shard by shard.

A model of the paper's size is built on the meta device and filled where it is to run, one tensor at a time, in the
type it is to have: nothing is ever held twice, and never in float32 only to be cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from streamchar.config.model import DiTConfig, OrchestratorConfig
from streamchar.dit.model import JointDiT
from streamchar.orchestrator.lm import Orchestrator, SigmaEmbedding

M = TypeVar("M", bound=nn.Module)
BACKBONE = "backbone."
HEAD_STD = 0.02
"""Of what training starts at zero: a drawn model whose heads were zero would not show what it computed."""


def on_meta(build: Callable[[], M]) -> M:
    """Build a module without memory for its parameters; buffers that no checkpoint holds are real."""
    with torch.random.fork_rng(devices=[]):  # what is built to be thrown away draws nothing of the caller's
        with torch.device("meta"):
            module = build()
        rates = {2 * p.rate.numel() for p in module.modules() if isinstance(p, SigmaEmbedding)}
        rate = {inner: SigmaEmbedding(1, inner).rate for inner in rates}
    for part in module.modules():
        if isinstance(part, SigmaEmbedding):
            part.rate = rate[2 * part.rate.numel()].clone()
        elif type(part).__name__ == "Qwen2RotaryEmbedding":
            fresh = type(part)(part.config)
            for name, value in fresh.named_buffers():
                part.register_buffer(name, value, persistent=False)
    return module


def homes(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where every tensor of the state dict lives: its module and attribute."""
    found = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name in (*part._parameters, *part._buffers):
            if getattr(part, name) is not None and name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = (part, name)
    return found


def place(home: tuple[nn.Module, str], value: Tensor) -> None:
    """Put a tensor where a meta tensor was."""
    part, name = home
    if name in part._parameters:
        old = part._parameters[name]
        assert old is not None
        part._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad and value.is_floating_point())
    else:
        part._buffers[name] = value


def to_device(module: M, device: torch.device | str) -> M:
    """Move the buffers that `on_meta` made, and whatever else is elsewhere, to the device."""
    left = [name for name, value in module.state_dict().items() if value.is_meta]
    assert not left, f"tensors without values: {left[:3]}"
    return module.to(device)


def cast(module: M, dtype: torch.dtype | None) -> M:
    """Parameters as `dtype`. Buffers stay: rotary frequencies and time rates lose their meaning in bfloat16."""
    if dtype is not None:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return module


def draw_start(name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, draw: torch.Generator):
    """A starting value for a weight of this name: keeps the variance of what passes through."""
    if name.endswith("bias") and "relative_attention" not in name:
        return torch.zeros(shape, device=device, dtype=dtype)
    if len(shape) < 2 or name.endswith("gamma"):  # norms, and gains of a norm over channels of a video
        return torch.ones(shape, device=device, dtype=dtype)
    value = torch.empty(shape, device=device, dtype=dtype)
    if "embed_tokens" in name or "relative_attention" in name:
        return value.normal_(std=0.02, generator=draw)
    if "rows_1MD" in name:
        return value.normal_(std=0.1, generator=draw)
    std = math.prod(shape[1:]) ** -0.5
    return value.normal_(std=std / 8 if "SelfAttention.q." in name else std, generator=draw)  # T5 has no 1 / sqrt(d)


@torch.no_grad()
def fill(
    module: M, known: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype, draw: torch.Generator
) -> M:
    """Give every tensor of a module from `on_meta` a value: what is `known`, else one that is drawn."""
    device = torch.device(device)
    done: dict[int, Tensor] = {}
    for name, home in homes(module).items():
        part, attribute = home
        old = getattr(part, attribute)
        if id(old) in done:  # tied: one tensor under two names
            part._parameters[attribute] = done[id(old)]
            continue
        kind = dtype if attribute in part._parameters else old.dtype
        if name in known:
            value = known[name].to(device=device, dtype=kind)
            if value.ndim > 1 and not value.any():
                value = torch.empty_like(value).normal_(std=HEAD_STD, generator=draw)
        else:
            value = draw_start(name, tuple(old.shape), device, kind, draw)
        place(home, value)
        done[id(old)] = getattr(part, attribute)
    return to_device(module, device)


def new_orchestrator_weights(config: OrchestratorConfig, seed: int) -> dict[str, Tensor]:
    """Starting values of what the orchestrator has beside its language model, as its modules begin.

    They depend on the width alone, so a model of one small layer has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = Orchestrator(replace(config, layers=1, vocab_size=8, ffn=8))
    return {name: value for name, value in small.state_dict().items() if not name.startswith(BACKBONE)}


def new_dit_weights(config: DiTConfig, seed: int) -> dict[str, Tensor]:
    """Starting values of what the DiT has and Wan has not: the audio path and the heads' skips."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = JointDiT(replace(config, layers=0, ffn=8))
    return {name: value for name, value in small.state_dict().items() if name.startswith(("audio.", "head.velocity."))}
