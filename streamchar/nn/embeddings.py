"""What enters a transformer: noise level, text states and video patches.

Shape letters: B batch, S noise levels of a sample, M modulation rows, D width, T latent frames, C channels,
H W latent height and width, L tokens, P latents of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TIMESTEPS = 1000.0
"""Wan's timestep of pure noise: timestep = 1000 sigma."""


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """(...,) -> (..., width): cosines, then sines, of geometrically spaced frequencies; float32."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[..., None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class MLP(nn.Module):
    """Two linear layers with an activation between them: "silu" or "gelu" (tanh approximation)."""

    def __init__(self, inputs: int, width: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        hidden = self.linear_1(x)
        hidden = F.silu(hidden) if self.activation == "silu" else F.gelu(hidden, approximate="tanh")
        return self.linear_2(hidden)


@dataclass(frozen=True, kw_only=True)
class TimeStates:
    """A noise level as the network sees it."""

    sigma: Tensor
    """(B, S) float32."""
    embedding: Tensor
    """(B, S, D)."""
    rows: Tensor
    """(B, S, M, D): the modulation rows that all blocks share."""

    def tokens(self, part: slice) -> TimeStates:
        """The states of a slice of the tokens."""
        if self.sigma.shape[1] == 1:
            return self
        return TimeStates(sigma=self.sigma[:, part], embedding=self.embedding[:, part], rows=self.rows[:, part])


class TimeEmbedding(nn.Module):
    """Noise level -> a vector, and the six modulation rows that all blocks share (Wan's adaLN)."""

    def __init__(self, sinusoids: int, width: int, rows: int = 6) -> None:
        super().__init__()
        self.sinusoids, self.rows = sinusoids, rows
        self.time_embedder = MLP(sinusoids, width, width, "silu")
        self.time_proj = nn.Linear(width, rows * width)

    def forward(self, sigma: Tensor) -> TimeStates:
        """(B,) or (B, S), one level a sample or one a token, each in [0, 1]; S is 1 for (B,)."""
        sigma_BS = (sigma[:, None] if sigma.ndim == 1 else sigma).float()
        waves = sinusoid(TIMESTEPS * sigma_BS, self.sinusoids)
        time_BSD = self.time_embedder(waves.to(self.time_proj.weight.dtype))
        rows = self.time_proj(F.silu(time_BSD)).unflatten(-1, (self.rows, -1))
        return TimeStates(sigma=sigma_BS, embedding=time_BSD, rows=rows)


def patchify(x_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) -> (B, L, C P): tokens in order time, height, width; channels as in a Conv3d weight."""
    t, h, w = patch
    return rearrange(x_BCTHW, "b c (T t) (H h) (W w) -> b (T H W) (c t h w)", t=t, h=h, w=w)


def patch_latents(x_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) -> (B, L, P, C): each token's own latents, in the order of Wan's head."""
    t, h, w = patch
    return rearrange(x_BCTHW, "b c (T t) (H h) (W w) -> b (T H W) (t h w) c", t=t, h=h, w=w)


def unpatch_latents(x_BLPC: Tensor, grid: tuple[int, int], patch: tuple[int, int, int]) -> Tensor:
    """The inverse: (B, L, P, C) -> (B, C, T, H, W)."""
    (H, W), (t, h, w) = grid, patch
    return rearrange(x_BLPC, "b (T H W) (t h w) c -> b c (T t) (H h) (W w)", H=H, W=W, t=t, h=h, w=w)
