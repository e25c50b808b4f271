"""Normalisation in float32, whatever the precision of what is normalised.

Shape letters: B batch, L tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def standardise(x_BLD: Tensor, eps: float) -> Tensor:
    """Layer norm without affine part: (B, L, D) of any float type -> (B, L, D) float32."""
    return F.layer_norm(x_BLD.float(), x_BLD.shape[-1:], eps=eps)


class LayerNorm(nn.Module):
    """Layer norm with weight and bias, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D) in the type of the input."""
        y = F.layer_norm(x_BLD.float(), x_BLD.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
        return y.to(x_BLD.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over all heads together, as Wan's `rms_norm_across_heads`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) of any float type -> (B, L, D) float32: rotation follows, one cast after both."""
        return F.rms_norm(x_BLD.float(), x_BLD.shape[-1:], self.weight.float(), self.eps)
