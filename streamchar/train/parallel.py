"""Several processes train one model: each takes its own batches, gradients are averaged, weights stay equal.

Started by `torchrun --nproc-per-node N -m streamchar train ...`; without it there is one process and nothing here
costs anything. Process r of n sees the batches of steps n s + r, so that n processes with batch b are one process
with batch n b, up to the order of the samples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def batch(self, step: int) -> int:
        """The number of this process's batch at a step of the run."""
        return step * self.size + self.rank

    def agree(self, value: float) -> float:
        """The leader's value, on every process: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

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


def join_team() -> Team:
    """This process's place, from torchrun's environment; joins the group on the first call."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Team(rank=dist.get_rank(), size=size)
