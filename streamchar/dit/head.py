"""The way out: from a token to the velocity of its latent (eq. 2).

Shape letters: B batch, L tokens, D width, C latent channels, P latents of a token (4 in
a patch, 1 for audio), S noise levels of a sample (1 or L).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamchar.nn.embeddings import TimeStates
from streamchar.nn.modulation import ModulationTable


def linear_velocity(sigma: Tensor, deviation: Tensor | float = 1.0) -> Tensor:
    """The best factor a in v = a x when z has zero mean and this standard deviation, by sigma.

    x = (1 - sigma) z + sigma eps and v = eps - z give E[v x] / E[x x].
    """
    variance = deviation**2
    return (sigma - (1 - sigma) * variance) / ((1 - sigma) ** 2 * variance + sigma**2)


class VelocitySkip(nn.Module):
    """a(sigma) x: the part of the velocity that is linear in the noisy latent, past the narrow network.

    a = gain * linear_velocity(sigma, deviation) + a learned linear map of the time embedding (zero at the
    start), one value per latent channel. `deviation` is the latents' own, set from data before training: the
    sorted audio channels differ by two orders, and the text decides in the large ones. Wan has no such path:
    `load_wan` sets the gain to zero.
    """

    deviation: Tensor

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(width, channels)
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, time: TimeStates) -> Tensor:
        """-> a (B, S, C) float32."""
        learned_BSC = self.proj(time.embedding).float()
        return self.gain.float() * linear_velocity(time.sigma[..., None].float(), self.deviation.float()) + learned_BSC


class Head(nn.Module):
    """Wan's head (norm, shift and scale by the noise level, linear) and the skip beside it."""

    def __init__(self, width: int, channels: int, patch: int, eps: float) -> None:
        super().__init__()
        self.eps, self.patch = eps, patch
        self.scale_shift_table = ModulationTable(2, width)
        self.proj_out = nn.Linear(width, patch * channels)
        self.velocity = VelocitySkip(width, channels)

    def forward(self, x_BLD: Tensor, noisy_BLPC: Tensor, time: TimeStates) -> Tensor:
        """Tokens (B, L, D) and their own noisy latents (B, L, P, C) -> velocity (B, L, P, C) float32."""
        modulation = self.scale_shift_table(time.embedding[:, :, None])
        head_BLPC = self.proj_out(modulation.normed(x_BLD, 0, 1, self.eps)).unflatten(-1, (self.patch, -1))
        return torch.addcmul(head_BLPC.float(), noisy_BLPC.float(), self.velocity(time)[:, :, None])
