"""What a character does while there is nothing to say: it breathes and blinks, drawn without the model.

A character of the cartoon world is drawn by the world. Any other picture is the last frame held, swaying by less
than a pixel. Both melt over from the last frame that was shown, so that there is no cut.
Shape letters: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock
from streamchar.types import Speech
from streamchar.world.character import Character
from streamchar.world.motion import MotionTrack, plan
from streamchar.world.prompt import Direction
from streamchar.world.render import render

MELT = 6
"""Frames in which the last spoken frame melts into listening: a quarter of a second."""
BREATH_SECONDS = 3.8
DEPTH = 0.006
"""Scale by which a held picture breathes."""
LOOP = 24 * 60
"""Frames of drawn motion before it starts again, during a blink-long melt."""


class Listener:
    """Draws a silent character from any frame of the session on."""

    def __init__(self, who: Character | None, picture_HWC: Tensor, seed: int) -> None:
        self._who, self._shown, self._seed = who, picture_HWC, seed
        self._track: MotionTrack | None = None
        self._began: int | None = None

    def spoke(self, frame_HWC: Tensor) -> None:
        """The last frame of a chunk of speech: listening starts from it."""
        self._shown, self._began = frame_HWC, None

    def draw(self, first: int, count: int) -> Tensor:
        """(T, H, W, 3) uint8 frames `first`, `first` + 1, ... of the session."""
        self._began = first if self._began is None else self._began
        since = first - self._began
        if self._who is None:
            return breathing(self._shown, since, count)
        frames = self._drawn(self._who, since, count)
        melt = (torch.arange(since, since + count).float() + 1).div(MELT + 1).clamp(max=1)[:, None, None, None]
        if since >= MELT:
            return frames
        return (self._shown.float() * (1 - melt) + frames.float() * melt).round().to(torch.uint8)

    def _drawn(self, who: Character, since: int, count: int) -> Tensor:
        if self._track is None:
            empty = Speech(samples=torch.zeros(0), text="", phonemes=(), words=(), pitch=torch.zeros(0))
            calm = Direction(mood="calm", gesture="still", energy="low")
            self._track = plan(empty, calm, self._seed, LOOP)
        at = since % (LOOP - count)
        frames = render(who, self._track, size=self._shown.shape[0], start=at, stop=at + count)
        return frames.permute(0, 2, 3, 1).contiguous()


def breathing(picture_HWC: Tensor, since: int, count: int) -> Tensor:
    """A held picture that grows and shrinks about its lower edge -> (T, H, W, 3); at `since` 0 it is the picture."""
    seconds = torch.arange(since, since + count).double() / clock.VIDEO_FPS
    scale_T = 1 - DEPTH * 0.5 * (1 - torch.cos(2 * math.pi * seconds / BREATH_SECONDS))
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale_T.float()
    matrices[:, 1, 2] = (1 - scale_T).float()  # y = 1, the lower edge, stays
    image = picture_HWC.permute(2, 0, 1).float()[None].expand(count, -1, -1, -1)
    grid = F.affine_grid(matrices, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
