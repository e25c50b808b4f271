"""Where the reference frame shows what a frame of the world shows.

Layers move by their own poses, as when they are drawn (`world/render.py`); on a face brows, lids and irises move besides
(`world/face.py`). It is what the video decoder's mixer is taught by (`train/reference.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.world import face, limbs
from streamchar.world.character import Character
from streamchar.world.motion import MotionTrack, neutral
from streamchar.world.render import DEPTH, Cast, Sprite, body_pose, cast_of, head_pose, inverse
from streamchar.world.shapes import UNITS, smoothstep

RIM = 2.5
"""Units around the rims of glasses that move as they do."""


@torch.no_grad()
def displacement(
    who: Character, track: MotionTrack, size: int = 256, cell: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the reference frame shows what a frame shows: (T, 2, size / cell, size / cell), x and y in pixels from
    each cell's centre; how much of that is a face's acting, its brows, lids and gaze, in the same form; and
    (T, size / cell, size / cell), whether it is shown. It is not behind the character, nor where an arm is in front.
    A mouth comes from where it rests; lids that are shut are the skin above them."""
    device = track.smile.device
    cast, scale = cast_of(who, size, str(device)), size / UNITS
    centres = (torch.arange(size // cell, device=device) + 0.5) * (cell / scale)
    here = torch.stack(torch.meshgrid(centres, centres, indexing="xy"))
    found = torch.zeros(len(track), *here.shape, device=device)
    acted = torch.zeros_like(found)
    known = torch.zeros(len(track), *here.shape[1:], dtype=torch.bool, device=device)
    rest, boxes = neutral(), [face.mouth_reach(cast.head)]
    boxes += [reach(cast.head, side) for reach in (face.eye_reach, face.brow_reach) for side in (-1, 1)]
    for name in ("back", "body", "skull", "features", "acting", "glasses", "front", "brows"):
        drawn = name not in ("acting", "brows")
        if drawn and name not in cast.sprites:
            continue
        depth = 0.0 if name == "body" else DEPTH[name if drawn else "features"]
        poses = (body_pose(t) if name == "body" else head_pose(t, depth) for t in (track, rest))
        now, home = (pose.to(device) for pose in poses)
        back = inverse(now)
        x, y = torch.einsum("tij,jhw->ithw", back[:, :, :2], here) + back[:, :, 2].T[:, :, None, None]
        if name == "skull":
            y = y - (5.0 * track.opening).view(-1, 1, 1) * smoothstep(y, 14.0, 62.0)
        moves = torch.zeros(2, *x.shape, device=device)
        if drawn:
            around = (-RIM, 0.0, RIM) if name == "glasses" else (0.0,)
            shown = torch.stack([_opacity(cast.sprites[name], x + a, y + b) for a in around for b in around]).amax(0) > 0.5
        else:
            moves, near = _acting(who, cast, track, rest, x, y)
            inside = [(x > x0) & (x < x1) & (y > y0) & (y < y1) for x0, y0, x1, y1 in boxes]
            shown = known & torch.stack(inside).any(0) if name == "acting" else near >= 1
        there = torch.einsum("ij,jthw->tihw", home[0, :, :2], torch.stack([x, y])) + home[:, :, 2, None, None]
        moves = -torch.einsum("ij,jthw->tihw", home[0, :, :2], moves)
        found = torch.where(shown[:, None], there + moves - here, found)
        acted = torch.where(shown[:, None], moves, acted)
        known = known | shown
    return found * scale, acted * scale, known & ~_behind_arms(who, track, here, scale)


def _acting(
    who: Character, cast: Cast, track: MotionTrack, rest: MotionTrack, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """(2, T, h, w): how far right of and below its place at rest what a face shows at local places is; and 1 on a
    brow, less around it."""
    eyes, brows = (
        [moved(who, cast.head, track, rest, side, x, y) for side in (-1, 1)] for moved in (face.eye_moved, face.brow_moved)
    )
    near = brows[0][1] + brows[1][1]
    down = torch.where(near >= 1, 0.0, eyes[0][1] + eyes[1][1]) + brows[0][0] + brows[1][0]
    return torch.stack([eyes[0][0] + eyes[1][0], down]), near


def _opacity(sprite: Sprite, x: Tensor, y: Tensor) -> Tensor:
    """(T, h, w) of a sprite at local places."""
    _, high, wide = sprite.pixels.shape
    grid = torch.stack([(x - sprite.x0) * (2 * sprite.scale / wide) - 1, (y - sprite.y0) * (2 * sprite.scale / high) - 1], -1)
    return F.grid_sample(sprite.pixels[3:].expand(len(x), -1, -1, -1), grid, align_corners=False)[:, 0]


def _behind_arms(who: Character, track: MotionTrack, here_2hw: Tensor, scale: float) -> Tensor:
    """(T, h, w): whether an arm or hand is in front of places in picture units."""
    hidden = torch.zeros(len(track), *here_2hw.shape[1:], dtype=torch.bool, device=here_2hw.device)
    for up, layers in _arms(who, track, here_2hw, scale):
        for _, amount in layers:
            hidden = hidden | up & (amount > 0.5)
    return hidden


@torch.no_grad()
def bare_arms(who: Character, track: MotionTrack, size: int = 256, cell: int = 4) -> Tensor:
    """(T, size / cell, size / cell): how much of each cell's colour is that of bare skin of arms and hands."""
    scale = size / UNITS
    centres = (torch.arange(size // cell, device=track.smile.device) + 0.5) * (cell / scale)
    here, skin = torch.stack(torch.meshgrid(centres, centres, indexing="xy")), limbs.skin_tones(who)
    bare = torch.zeros(len(track), *here.shape[1:], device=here.device)
    for up, layers in _arms(who, track, here, scale / cell):
        for colour, amount in layers:
            bare = torch.where(up, bare + amount * (float(colour in skin) - bare), bare)
    return bare


def _arms(
    who: Character, track: MotionTrack, here_2hw: Tensor, scale: float
) -> Iterator[tuple[Tensor, list[face.Layer]]]:
    """Of each arm whether it is up, (T, 1, 1), and its layers at places in picture units, as they are drawn."""
    arms, body = limbs.fitted(who, track.arms), body_pose(track)
    for side, place in ((0, -56.0 * who.shoulder), (1, 56.0 * who.shoulder)):
        shoulder = (body @ torch.tensor([place, 220.0, 1.0], device=body.device)).unbind(-1)
        up = (arms.y[:, side] < UNITS + limbs.HAND).view(-1, 1, 1)
        x, y = here_2hw[:, None].expand(-1, len(track), -1, -1)
        yield up, limbs.arm_layers(who, arms, side, shoulder, x, y, scale)
