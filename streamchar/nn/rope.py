"""Rotary positions over (time, height, width), for any real position (paper section 3.3).

Shape letters: B batch, L tokens, N heads, E head width, A position axes.

Pairs of neighbouring channels turn together, and the head is split into the axes as in Wan, so that
Wan's projections can be used as they are. Angles come from positions directly, not from a table:
audio stands at quarters of a video latent and conditions stand at negative times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """The rotation of every token: what `rotate` applies to queries and keys."""

    cos: Tensor
    """(L, 1, E) float32, each angle's cosine twice."""
    sin: Tensor
    """(L, 1, E) float32, each angle's sine twice, the first negated."""

    def part(self, start: int, stop: int) -> Rotation:
        """The rotation of tokens `start` to `stop`."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width: a third each, the remainder to time."""
    spatial = 2 * (head_width // 6)
    return head_width - 2 * spatial, spatial, spatial


def rotation(positions_LA: Tensor, widths: tuple[int, ...], theta: float) -> Rotation:
    """Angles for tokens at `positions_LA`, one column for each entry of `widths` (channels of that axis).

    Float64 until the cosine: a float32 angle of a long sequence loses digits that parity would show.
    """
    angles = []
    for axis, width in enumerate(widths):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=positions_LA.device) / max(width, 1)
        angles.append(positions_LA[:, axis, None].double() * theta**-exponents)
    angle_LP = torch.cat(angles, dim=-1)
    cos, sin = angle_LP.cos().float(), angle_LP.sin().float()
    return Rotation(
        torch.stack((cos, cos), dim=-1).flatten(-2)[:, None],
        torch.stack((-sin, sin), dim=-1).flatten(-2)[:, None],
    )


def rotate(x_BLNE: Tensor, rotation: Rotation) -> Tensor:
    """Turn every channel pair of (B, L, N, E) by its token's angles; float32 in and out."""
    swapped = x_BLNE.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x_BLNE * rotation.cos, swapped, rotation.sin)
