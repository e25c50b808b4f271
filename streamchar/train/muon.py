"""Muon: momentum whose update is orthogonalised, for the matrices inside a network (Jordan et al., 2024).

For short trainings on a CPU: a step costs little beside a convolutional network's own, and far fewer are needed than
with Adam. Convolutions count as matrices of (out, in x window). The update is scaled to a root mean square of 0.2 per
entry, so that rates are of the size one would give to Adam.

Orthogonalising needs the whole matrix. Where weights are sharded, the momentum is too; every process gathers one
matrix after another, does the same work on it as its fellows, and keeps its own rows of the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from streamchar.train.parallel import cut_like, whole

_QUINTIC = (3.4445, -4.7750, 2.0315)  # singular values in (0, 1] to about 1 within five rounds


def orthogonalised(matrix_MN: Tensor, rounds: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly (singular values within 0.7 to 1.2), by Newton-Schulz."""
    x = matrix_MN.to(torch.bfloat16)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix_MN.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, for parameters of two or more dimensions; `weight_decay` is decoupled."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = torch.lerp(parameter.grad, state["momentum"], group["momentum"])
                update = orthogonalised(whole(ahead).flatten(1))
                size = 0.2 * max(update.shape) ** 0.5
                update = cut_like(update.view(parameter.shape), parameter)
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)
