"""Does the mouth move with the speech? The drawn world's mouth opening, read from generated pixels,
against the loudness of the generated speech.

Unit: Pearson correlation at the best shift, and that shift in frames (positive: the picture is late).
Higher and nearer 0 are better. It misses the shape of the mouth: a vowel as wide as it should be
round counts as good. Ground truth scores 0.66 (14 held-out clips), not 1: loud is not the same as open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamchar import clock
from streamchar.world.character import Character
from streamchar.world.motion import neutral
from streamchar.world.render import measure_opening, mouth_box

REACH = 12
"""Shifts tried to each side, in frames."""
MARGIN = 6.0
"""Pixels of 256 added to the resting mouth's box: the head of a generated clip moves where we do not know."""


@dataclass(frozen=True, kw_only=True)
class MouthSync:
    """The best shift of a clip and its correlation."""

    correlation: float
    offset_frames: int
    at_zero: float
    """Correlation without a shift."""


def envelope(samples_S: Tensor) -> Tensor:
    """(S,) at 49,152 Hz -> (S / 2048,) loudness of each video frame, in about [0, 1]."""
    frames = samples_S[: samples_S.shape[0] // clock.AUDIO_STRIDE * clock.AUDIO_STRIDE].reshape(-1, clock.AUDIO_STRIDE)
    decibels = 20 * torch.log10(frames.square().mean(1).sqrt() + 1e-4)
    return ((decibels + 60) / 45).clamp(0, 1)


def openings(frames_T3HW: Tensor, who: Character) -> Tensor:
    """(T,) mouth opening read from the pixels of a clip of `who`, of any length."""
    side = frames_T3HW.shape[-1]
    margin = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * MARGIN * side / 256
    box = mouth_box(who, neutral(), size=side) + margin
    return torch.cat([measure_opening(part, box.expand(part.shape[0], 4)) for part in frames_T3HW.split(256)])


def correlation(a_T: Tensor, b_T: Tensor) -> float:
    """Pearson's; 0 if either is constant."""
    a, b = a_T - a_T.mean(), b_T - b_T.mean()
    scale = a.norm() * b.norm()
    return float((a * b).sum() / scale) if scale > 1e-6 else 0.0


def mouth_sync(opening_T: Tensor, loudness_T: Tensor) -> MouthSync:
    """Search the shift of the picture against the sound."""
    n = min(opening_T.shape[0], loudness_T.shape[0])
    found: dict[int, float] = {}
    for shift in range(-REACH, REACH + 1):
        a = opening_T[max(0, shift) : n + min(0, shift)]
        b = loudness_T[max(0, -shift) : n - max(0, shift)]
        found[shift] = correlation(a, b)
    best = max(found, key=lambda k: found[k])
    return MouthSync(correlation=found[best], offset_frames=best, at_zero=found[0])
