"""Contact sheets: many characters at once, or one character over time, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from streamchar.errors import InputError
from streamchar.world.character import Character, character
from streamchar.world.gesture import Arms
from streamchar.world.motion import TEMPERS, MotionTrack, neutral
from streamchar.world.render import render


def _tiled(frames_T3HW: Tensor, cols: int) -> Tensor:
    """(T, 3, H, W) -> one (rows H, cols W, 3) picture, the rest white."""
    count, _, high, wide = frames_T3HW.shape
    rows = -(-count // cols)
    blank = torch.full((rows * cols - count, 3, high, wide), 255, dtype=torch.uint8)
    grid = torch.cat([frames_T3HW.cpu(), blank]).view(rows, cols, 3, high, wide)
    return grid.permute(0, 3, 1, 4, 2).reshape(rows * high, cols * wide, 3)


def _save(picture_HW3: Tensor, path: str | Path) -> None:
    from PIL import Image

    Image.fromarray(picture_HW3.contiguous().numpy()).save(path)


def posed(mood: str = "calm", opening: float = 0.0, width: float = 0.0, rounded: float = 0.0, arms: Arms | None = None) -> MotionTrack:
    """One frame of a mood with a given mouth, to look at a face outside of any clip."""
    if mood not in TEMPERS:
        raise InputError(f"mood must be one of {', '.join(TEMPERS)}; got {mood!r}")
    t, rest = TEMPERS[mood], neutral()
    one = torch.ones(1)
    mouth = replace(rest.mouth, opening=one * opening, width=one * width, round=one * rounded, teeth=one * (0.6 - 0.6 * rounded), tongue=one * 0.2)
    return replace(
        rest, mouth=mouth, smile=one * t.smile, widen=one * t.widen, brow_raise=one * t.brow_raise, brow_tilt=one * t.brow_tilt,
        pitch=one * t.pitch, roll=one * t.roll, gaze_x=one * t.gaze[0], gaze_y=one * t.gaze[1], blush=one * t.blush, arms=arms or rest.arms,
    )  # fmt: skip


def sheet(path: str | Path, seeds: Sequence[int] = tuple(range(24)), cols: int = 6, size: int = 256, moods: bool = True) -> None:
    """Save a PNG with one picture a seed; with `moods`, each in another mood and mouth shape."""
    mouths = ((0.0, 0.0, 0.0), (0.55, 0.2, 0.0), (0.9, 0.0, 0.0), (0.35, 0.8, 0.0), (0.45, -0.6, 0.9))
    names = list(TEMPERS)
    frames = []
    for i, seed in enumerate(seeds):
        track = posed(names[i % len(names)], *mouths[i % len(mouths)]) if moods else neutral()
        frames.append(render(character(seed), track, size)[0])
    _save(_tiled(torch.stack(frames), cols), path)


def strip(path: str | Path, who: Character, track: MotionTrack, every: int = 2, cols: int = 12, size: int = 256) -> None:
    """Save a PNG with every `every`-th frame of a clip, in reading order."""
    _save(_tiled(render(who, track, size)[::every], cols), path)
