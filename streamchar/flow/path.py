"""The flow's path between data and noise (paper eq. 1 and 2). Pure functions of tensors.

sigma in [0, 1]; 1 is noise. x = (1 - sigma) z + sigma eps, v = eps - z.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.dtype).reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t of eq. 1; sigma's axes are the leading axes of `clean`."""
    s = _like(sigma, clean)
    return (1 - s) * clean + s * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """The regression target of eq. 2."""
    return noise - clean


def clean_from_velocity(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """The data estimate: x - sigma v."""
    return x - _like(sigma, x) * v


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1: shift s / (1 + (shift - 1) s). Keeps 0 and 1, to the bit."""
    return shift * sigma / (shift * sigma + (1 - sigma))


def sample_sigma(shape: tuple[int, ...], shift: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels for training: logit-normal, shifted. Text decides at high sigma, so that is where
    most samples should be (docs/decisions.md)."""
    return shift_sigma(torch.randn(shape, generator=generator).sigmoid(), shift)
