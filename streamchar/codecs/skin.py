"""Hands in the colour of their character (`toon`'s video decoder).

A hand that comes up was in no still, and a few-step student gives it now the colour of one character, now of another.
What colour it should have stands in the still: it is its skin's. So the decoder's own picture is given it: a gate says
where bare skin of an arm or a hand is; its mean colour there is moved to the still's, and what differs from that goes
most of the way. The shape stays.

Shape letters as in `codecs/video.py`; M = 4 N frames, h and w of the decoder's finest features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar import clock

SEEN = 8
"""Places of the still, in each direction, whose colours are looked at."""
WIDTH = 48
CLOSED = 0.1
"""A gate that is less open than this is shut."""
ENOUGH = 4.0
"""Places that a hand has at least: what is smaller is coloured by less."""
EVEN = 0.8
"""How far what differs from the mean goes towards it: a drawn hand is of one colour, a student's of several."""
NEVER = -6.0
"""The gate's logit at the start."""


class Skin(nn.Module):
    """Where it is, and which colour it has."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.where = nn.Conv2d(features, clock.VIDEO_STRIDE, 1)
        self.seen = nn.Conv2d(3 * SEEN * SEEN, WIDTH, 1)
        self.colour = nn.Conv2d(WIDTH, 3, 1)
        nn.init.zeros_(self.where.weight)
        assert self.where.bias is not None
        nn.init.constant_(self.where.bias, NEVER)

    def of(self, still_BCHW: Tensor) -> Tensor:
        """(B, 3, 1, 1): the colour of a still's skin, in [-1, 1]."""
        places = F.adaptive_avg_pool2d(still_BCHW.float(), SEEN).flatten(1)[..., None, None]
        return torch.tanh(self.colour(F.silu(self.seen(places))).float())


def coloured(own_NCHW: Tensor, where_N4hw: Tensor, tone_B311: Tensor) -> Tensor:
    """`own_NCHW` (N, 4 3, H, W), four frames in the channels, with that colour where the gates of these logits are
    open."""
    own_MCHW = own_NCHW.float().unflatten(1, (clock.VIDEO_STRIDE, 3)).flatten(0, 1)
    gate = ((where_N4hw.float().sigmoid() - CLOSED) / (1 - CLOSED)).clamp(min=0).flatten(0, 1)[:, None]
    mass = gate.sum((-2, -1), keepdim=True)
    mean = (gate * F.adaptive_avg_pool2d(own_MCHW, gate.shape[-2:])).sum((-2, -1), keepdim=True) / mass.clamp(min=1e-3)
    tone, sure = tone_B311.repeat_interleave(len(gate) // len(tone_B311), 0), (mass / ENOUGH).clamp(max=1)
    wanted = own_MCHW + sure * (tone - mean - EVEN * (own_MCHW - mean))
    mixed = torch.lerp(own_MCHW, wanted, enlarged(gate, own_MCHW).expand_as(own_MCHW))
    return mixed.unflatten(0, (-1, clock.VIDEO_STRIDE)).flatten(1, 2)


def enlarged(small: Tensor, like: Tensor) -> Tensor:
    """Bilinearly to the height and width of `like`; as two products of matrices, for pictures a third of
    `F.interpolate`'s time."""
    down, across = (
        F.interpolate(torch.eye(few, device=small.device)[None], size=many, mode="linear", align_corners=False)[0].T
        for many, few in zip(like.shape[-2:], small.shape[-2:], strict=True)
    )
    return (down @ small @ across.T).float()
