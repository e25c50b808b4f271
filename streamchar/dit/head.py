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
    """What a linear denoiser knows of the velocity, past the narrow network.

    Without an anchor: a x, with a = gain * linear_velocity(sigma, deviation) + a learned linear map of the
    time embedding (zero at the start), one value per latent channel. With one - the reference frame's latent
    at the token's own place - the same around it: z = anchor + r, so v = a_r (x - (1 - sigma) anchor) - anchor.
    The untrained model's picture is then the reference, standing still, and what is learned is the change.
    `deviation` and `residual` are the latents' own, set from data before training. A sample whose anchor is nothing
    but zeros has none (a batch may mix: `Conditions.anchor`), and its latents deviate by `deviation`. Wan has no such
    path: `load_wan` sets its parameters to zero.
    """

    deviation: Tensor
    residual: Tensor

    def __init__(self, width: int, channels: int, *, anchored: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.anchor = nn.Parameter(torch.ones(1)) if anchored else None
        self.proj = nn.Linear(width, channels)
        self.register_buffer("deviation", torch.ones(channels))
        if anchored:
            self.register_buffer("residual", torch.ones(channels))

    def forward(self, noisy_BLPC: Tensor, time: TimeStates, anchor_BLPC: Tensor | None = None) -> Tensor:
        """(B, L, P, C) float32."""
        sigma_BS1 = time.sigma[..., None].float()
        anchored = anchor_BLPC is not None and self.anchor is not None
        deviation = self.deviation
        if anchored:
            there_B11 = (anchor_BLPC != 0).flatten(1).any(1)[:, None, None]
            deviation = torch.where(there_B11, self.residual, self.deviation)
        factor = self.gain.float() * linear_velocity(sigma_BS1, deviation.float()) + self.proj(time.embedding).float()
        x = noisy_BLPC.float()
        if not anchored:
            return factor[:, :, None] * x
        anchor = self.anchor.float() * anchor_BLPC.float()
        return factor[:, :, None] * (x - (1 - sigma_BS1)[:, :, None] * anchor) - anchor


class Head(nn.Module):
    """Wan's head (norm, shift and scale by the noise level, linear) and the skip beside it."""

    def __init__(self, width: int, channels: int, patch: int, eps: float, *, anchored: bool = False) -> None:
        super().__init__()
        self.eps, self.patch = eps, patch
        self.scale_shift_table = ModulationTable(2, width)
        self.proj_out = nn.Linear(width, patch * channels)
        self.velocity = VelocitySkip(width, channels, anchored=anchored)

    def forward(
        self, x_BLD: Tensor, noisy_BLPC: Tensor, time: TimeStates, anchor_BLPC: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, L, D), their own noisy latents and anchors (B, L, P, C) -> velocity (B, L, P, C) float32."""
        modulation = self.scale_shift_table(time.embedding[:, :, None])
        head_BLPC = self.proj_out(modulation.normed(x_BLD, 0, 1, self.eps)).unflatten(-1, (self.patch, -1))
        return head_BLPC.float() + self.velocity(noisy_BLPC, time, anchor_BLPC)
