"""Arm gestures: where each hand is, how it is turned and what its fingers do, per frame.

Side 0 is the arm on the picture's left, side 1 on its right. Positions are those of the wrist, in
picture units; an arm at rest waits below the picture. Shape letters: T frames, 2 sides.

Everything about a gesture that can follow from the speech does: the first stressed word has a stroke, what swings
begins with its stroke, and all characters are right-handed. A side drawn at random cannot be
foreseen by any model, the mean of both sides is no hand at all, and a sampler of few steps stops there.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from streamchar.clock import VIDEO_FPS

REST_Y = 330.0


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Both arms; every field (T, 2)."""

    x: Tensor
    y: Tensor
    turn: Tensor
    """Direction of the fingers in radians from straight up, clockwise."""
    spread: Tensor
    """[0, 1]: fingers together to fanned out."""
    point: Tensor
    """[0, 1]: 1 = only the index finger out."""

    @staticmethod
    def down(n_frames: int) -> Arms:
        """Both hands out of the picture."""
        zero = torch.zeros(n_frames, 2)
        x = zero + torch.tensor([56.0, 200.0])
        return Arms(x=x, y=zero + REST_Y, turn=zero.clone(), spread=zero + 0.5, point=zero.clone())


RIGHT_HAND = 0
LIFT = 0.30  # seconds before its word that a stroke begins


def _strokes(n_frames: int, times: list[float], drive: float, draw: random.Random, cover: float) -> tuple[Tensor, Tensor]:
    """Strokes of 1-3 s on stressed words, on `cover` of them (on the first always if most have one) -> two (T,).

    First how far the hand is up, in [0, 1], eased; then the seconds since the present stroke, or the last, began.
    """
    n = n_frames
    wanted = torch.zeros(n)
    since = torch.arange(n) / VIDEO_FPS
    until = -1.0
    for i, t in enumerate(times):
        if t < until or draw.random() > (cover if i else round(cover)):
            continue
        hold = draw.uniform(1.1, 2.6)
        until = t + hold + draw.uniform(0.3, 1.1)
        first = max(0, int((t - LIFT) * VIDEO_FPS))
        wanted[first : max(0, int((t + hold) * VIDEO_FPS))] = 1.0
        since[first:] = torch.arange(max(n - first, 0)) / VIDEO_FPS
    # a critically damped follower: quick up, no overshoot, O(T)
    out = torch.zeros(n)
    level, speed = 0.0, 0.0
    rate = (7.0 + 2.5 * drive) / VIDEO_FPS
    for i, goal in enumerate(wanted.tolist()):
        speed += rate * rate * (goal - level) - 2 * rate * speed
        level += speed
        out[i] = level
    return out.clamp(0, 1), since


COVER = {"still": 0.0, "waving": 0.85, "pointing up": 0.7, "open hands": 0.8, "hand on chest": 0.8}


def plan_arms(gesture: str, times: list[float], n_frames: int, drive: float, draw: random.Random) -> Arms:
    """Arms of a clip of `n_frames`: `times` are the stressed words in seconds, `drive` the energy."""
    arms = Arms.down(n_frames)
    cover = COVER.get(gesture, 0.25 if drive > 1.2 else 0.0)  # head gestures: a small beat of the hand at high energy
    up, since = _strokes(n_frames, times, drive, draw, cover)
    side, out = RIGHT_HAND, -1.0  # away from the body
    swing = torch.sin(2 * math.pi * (1.5 + 0.5 * drive) * since)
    bob = torch.sin(2 * math.pi * 0.9 * since)
    centre = 128.0

    def place(s: int, up: Tensor, x: Tensor | float, y: Tensor | float, turn: Tensor | float, spread: float, point: float) -> None:
        arms.x[:, s] = arms.x[:, s] + up * (x - arms.x[:, s])
        arms.y[:, s] = REST_Y + up * (y - REST_Y)
        arms.turn[:, s] = turn
        arms.spread[:, s] = spread
        arms.point[:, s] = point

    if gesture == "waving":
        place(side, up, centre + out * (84 + 5 * swing), 182 - 3 * bob, out * 0.08 + 0.32 * swing * (0.6 + 0.4 * drive), 0.9, 0.0)
    elif gesture == "pointing up":
        place(side, up, centre + out * 80, 186 - 5 * bob * (0.5 + 0.5 * drive), out * 0.05 + 0.06 * bob, 0.2, 1.0)
    elif gesture == "open hands":
        for s, o in ((0, -1.0), (1, 1.0)):
            place(s, up, centre + o * (72 + 9 * bob), 222 - 6 * drive * bob * o, o * (0.55 + 0.12 * bob), 0.85, 0.0)
    elif gesture == "hand on chest":
        place(side, up, centre + out * 42, 236 - 1.5 * bob, -out * (0.95 + 0.04 * bob), 0.25, 0.0)
    elif gesture != "still":
        place(side, up, centre + out * 64, 236 - 6 * bob, out * 0.3, 0.5, 0.0)
    return arms
