"""Several processes train one model; everything here is applied from outside it.

Started by `torchrun --nproc-per-node N -m -- streamchar train ...`; without it there is one process and nothing here
costs anything. A step of a run is made of `parts` batches, numbered step x parts + part, whoever computes them:
process r of n takes the parts r, r + n, ... one after another and adds their gradients up (accumulation). So what a
step sees is a function of its number and of `parts` alone, and a run goes on with any number of processes that
divides `parts`.

Two ways to share the work out. Averaged gradients: every process holds the whole model, gradients are averaged in one
message. Sharded (FSDP2): weights, gradients, moments and averages are cut over the processes, and a block's weights
come together only while it runs. Where the number of forward passes differs between processes (rollouts end when
their transcript does), no process may wait for another in the middle of a pass: weights then come together for the
whole step, and gradients are shared out at its end.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from streamchar.dit.audio import AudioPath
from streamchar.dit.model import JointDiT
from streamchar.errors import ConfigError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.train.pose import PoseHead

log = logging.getLogger(__name__)

ENTRANCES = {
    Orchestrator: ("prefix", "extend", "plan"),
    JointDiT: ("denoise_audio", "encode_conditions", "denoise"),
    PoseHead: (),
}
"""What is called of a component besides `forward`: there, too, its weights must come together first."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a run is spread out."""

    shard: bool = False
    """FSDP2 instead of averaged gradients."""
    bf16: bool = False
    """Sharded: weights travel and multiply as bfloat16; the masters, gradients' sums and moments stay float32."""
    checkpoint_activations: bool = False
    """Blocks run anew in the backward pass instead of keeping what they computed."""
    compile: bool = False
    """Compile the DiT's main blocks (the speech side's are compiled anyway)."""
    accumulate: int = 1
    """Batches that a process computes for one step."""

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"training: accumulate must be at least 1, got {self.accumulate}")
        if self.bf16 and not self.shard:
            raise ConfigError(
                "training: bf16 is how sharded weights travel, got it without shard; add --shard (products are "
                "bfloat16 either way)"
            )


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The leader's value, on every process: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=_message_device())
        dist.broadcast(shared, src=0)
        return float(shared)

    def tell(self, names: list[str]) -> list[str]:
        """The leader's list, on every process."""
        if self.size == 1:
            return names
        text = "\n".join(names).encode()
        length = torch.tensor([len(text)], device=_message_device())
        dist.broadcast(length, src=0)
        data = torch.zeros(int(length), dtype=torch.uint8, device=length.device)
        if self.leads:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(data, src=0)
        return bytes(data.tolist()).decode().split("\n")

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the mean over processes, in one message.

        A parameter that no process used keeps None; one that only some used counts as zero on the others.
        """
        if self.size == 1:
            return
        device = parameters[0].device
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device)
        flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters
        ])  # fmt: skip
        message = torch.cat([used, flat])
        dist.all_reduce(message)
        used, flat = message[: len(parameters)], message[len(parameters) :] / self.size
        start = 0
        for p, count in zip(parameters, used.tolist(), strict=True):
            part = flat[start : start + p.numel()].view_as(p).to(p.dtype)
            p.grad = part if count else None
            start += p.numel()


def _message_device() -> torch.device:
    """NCCL carries nothing that lies in the host's memory."""
    if dist.get_backend() != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def join_team(device: torch.device | str = "cpu") -> Team:
    """This process's place, from torchrun's environment; joins the group on the first call."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    return Team(rank=dist.get_rank(), size=size)


def own_device(device: str) -> str:
    """`cuda` under torchrun is this process's own GPU of the machine."""
    if device != "cuda" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def parts_of_a_step(team: Team, scale: Scale, stored: int | None) -> int:
    """Batches of one step over all processes; `stored`: as the run that is resumed has them. Raises `ConfigError`."""
    now = team.size * scale.accumulate
    if stored is None or stored == now:
        return now
    if stored % team.size or scale.accumulate != 1:
        raise ConfigError(
            f"the checkpoint's steps are of {stored} batches, got {team.size} processes with --accumulate "
            f"{scale.accumulate}; give a number of processes that divides {stored} and leave --accumulate out"
        )
    return stored


# -- from outside the model -----------------------------------------------------------------------


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of every component in `model`."""
    found: list[nn.Module] = []
    for part in model.modules():
        if isinstance(part, Orchestrator):
            found += list(part.backbone.get_submodule("layers").children())
        elif isinstance(part, JointDiT):
            found += part.blocks
        elif isinstance(part, AudioPath):
            found += [*part.encoder, *part.decoder]
    return found


def checkpoint_activations(model: nn.Module) -> None:
    """Let every block forget what it computed and compute it again in the backward pass."""
    for block in blocks_of(model):
        block.forward = functools.partial(_forgetful, block.forward)


def _forgetful(forward, *args, **kwargs):
    """A language model's cache grows when a layer runs: such a pass (a stream's) must not run twice."""
    if not torch.is_grad_enabled() or kwargs.get("past_key_values") is not None:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def compile_main_blocks(model: nn.Module) -> None:
    """Compile the blocks of every DiT in `model`."""
    for part in model.modules():
        if isinstance(part, JointDiT):
            for block in part.blocks:
                block.compile(dynamic=True)


@dataclass
class Shards:
    """A model cut over the processes."""

    model: nn.Module
    roots: list[FSDPModule] = field(default_factory=list)
    uneven: bool = False
    """Forward passes differ in number between processes."""

    @property
    def units(self) -> list[FSDPModule]:
        return [part for part in self.model.modules() if isinstance(part, FSDPModule)]

    @contextmanager
    def turn(self, *, last: bool) -> Iterator[None]:
        """Around one batch's loss and backward pass; gradients are shared out after the `last` of a step."""
        for unit in self.units:
            unit.set_requires_gradient_sync(last and not self.uneven, recurse=False)
            if self.uneven:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.set_reshard_after_backward(False, recurse=False)
                unit.unshard()
        yield
        if self.uneven and last:
            self._share_out()

    def _share_out(self) -> None:
        """A backward pass through nothing: at its end every unit's gradients are reduced, once each."""
        for unit in self.units:
            unit.set_requires_gradient_sync(True, recurse=False)
            unit.set_reshard_after_backward(True, recurse=False)
        device = next(self.model.parameters()).device
        for root in self.roots:
            root.touch(torch.zeros(1, device=device, requires_grad=True)).sum().backward()  # type: ignore[attr-defined]

    def rest(self) -> None:
        """Leave nothing but the shards: what an optimiser changes must not be read from an old copy."""
        for unit in self.units:
            unit.reshard()


def shard(model: nn.Module, team: Team, scale: Scale, *, uneven: bool) -> Shards:
    """Cut `model`'s components over the processes, block by block (FSDP2). Raises `ConfigError` without torchrun."""
    if team.size == 1 and not dist.is_initialized():
        raise ConfigError(
            "training: --shard spreads a model over processes, got one process without torchrun; start it with "
            "torchrun --nproc-per-node N -m -- streamchar train ..."
        )
    device = next(model.parameters()).device
    # a velocity is a view of the head's output; nothing here works on it in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (team.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if scale.bf16 else None, reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise levels and cursors lose their meaning at eight bits
    )
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    shards = Shards(model=model, uneven=uneven)
    for part in list(model.modules()):
        entrances = next((names for kind, names in ENTRANCES.items() if isinstance(part, kind)), None)
        if entrances is None:
            continue
        part.__dict__["touch"] = _touch
        root = fully_shard(part, mesh=mesh, mp_policy=policy)
        for name in (*entrances, "touch"):
            register_fsdp_forward_method(part, name)
        shards.roots.append(root)
    loose = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    if loose:
        raise ConfigError(f"training: --shard knows orchestrators and DiTs, got {loose[0]} outside of them")
    return shards


def _touch(x: Tensor) -> Tensor:
    return x * 1


def whole(value: Tensor) -> Tensor:
    """The full tensor of a shard: every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def cut_like(full: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that all have in full."""
    if not isinstance(like, DTensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    full = full.to(like.device)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
