"""Pictures of a character: static art as sprites warped per frame, moving features drawn on top.

Order, back to front: backdrop, back hair and ears, body, skull, features, eyes and mouth, glasses,
front hair, brows, arms. Turning the head shifts each layer by its depth (2.5D parallax).
Shape letters: T frames, H height, W width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.errors import InputError
from streamchar.world import face, limbs
from streamchar.world.backdrop import paint_backdrop
from streamchar.world.character import Character
from streamchar.world.hair import paint_hair, paint_headwear
from streamchar.world.motion import MotionTrack, neutral
from streamchar.world.portrait import Head, head_of, paint_ears, paint_features, paint_glasses, paint_skull
from streamchar.world.shapes import UNITS, Canvas, blurred, smoothstep
from streamchar.world.wardrobe import paint_body

CENTRE = (128.0, 116.0)
"""Where the face's centre stands in the picture, before `MAGNIFY`."""
MAGNIFY = 1.1
"""The head is drawn larger than life about its pivot: lips must be readable at 256 pixels."""
PIVOT = 62.0
"""The head rolls about the neck, this far below its centre."""
PARALLAX = (6.5, 5.0)
"""Units by which a layer of depth 1 shifts at yaw 1 and pitch 1."""
DEPTH = {"back": -0.55, "skull": 0.0, "features": 1.0, "glasses": 1.05, "front": 0.4}
CHUNK = 16
"""Frames drawn at a time: bounds memory and keeps the working set in cache."""
SHARP = 2.0
"""Sprite pixels per output pixel, so that bilinear warping does not blur."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sprite:
    """A premultiplied RGBA picture with the place of its corner in its own units."""

    pixels: Tensor
    """(4, h, w)."""
    x0: float
    y0: float
    scale: float
    """Pixels per unit."""

    @property
    def box(self) -> Box:
        return (self.x0, self.y0, self.x0 + self.pixels.shape[2] / self.scale, self.y0 + self.pixels.shape[1] / self.scale)


@dataclass(frozen=True)
class Cast:
    """Everything static of a character at one size."""

    head: Head
    backdrop: Tensor
    """(3, H, W)."""
    sprites: dict[str, Sprite]


def _sprite(canvas: Canvas) -> Sprite | None:
    """Crop a canvas to what is painted, with a transparent rim for the warp's border."""
    used = (canvas.pixels[3] > 1e-4).nonzero()
    if len(used) == 0:
        return None
    (y0, x0), (y1, x1) = (used.min(0).values - 2).clamp(min=0).tolist(), (used.max(0).values + 3).tolist()
    pixels = torch.stack([blurred(c, 0.5) for c in canvas.pixels[:, y0:y1, x0:x1]])
    shift = canvas.margin
    return Sprite(pixels, x0 / canvas.scale - shift - canvas.origin[0], y0 / canvas.scale - shift - canvas.origin[1], canvas.scale)


@functools.lru_cache(maxsize=8)
def cast_of(who: Character, size: int, device: str) -> Cast:
    scale = SHARP * size / UNITS
    head = head_of(who)
    w = head.half_width
    around = {name: Canvas(scale, CENTRE) for name in ("back", "skull", "features", "glasses", "front")}
    body = Canvas(scale, (128.0, 0.0))
    paint_hair(who, around["back"], around["front"], w)
    paint_ears(who, around["back"], w)
    paint_skull(who, around["skull"], w)
    paint_features(who, head, around["features"])
    paint_glasses(who, head, around["glasses"])
    paint_headwear(who, around["back"], around["front"], w)
    paint_body(who, body)
    sprites = {}
    for name, canvas in (*around.items(), ("body", body)):
        sprite = _sprite(canvas)
        if sprite is not None:
            sprites[name] = Sprite(sprite.pixels.to(device), sprite.x0, sprite.y0, sprite.scale)
    flat = Canvas(scale, margin=0.0)
    backdrop = F.avg_pool2d(paint_backdrop(who, flat)[None], int(SHARP))[0]
    return Cast(head, backdrop.to(device), sprites)


def _affine(angle_T: Tensor, about: tuple[float, float], to_x: Tensor, to_y: Tensor, zoom_T: Tensor, grow: float = 1.0) -> Tensor:
    """Local units -> picture units: turn and grow about a local point that goes to (to_x, to_y), zoom about the picture's foot -> (T, 2, 3)."""
    c, s = torch.cos(angle_T) * zoom_T * grow, torch.sin(angle_T) * zoom_T * grow
    px = UNITS / 2 + (to_x - UNITS / 2) * zoom_T
    py = UNITS + (to_y - UNITS) * zoom_T
    row_x = torch.stack([c, -s, px - c * about[0] + s * about[1]], -1)
    row_y = torch.stack([s, c, py - s * about[0] - c * about[1]], -1)
    return torch.stack([row_x, row_y], 1)


def head_pose(track: MotionTrack, depth: float) -> Tensor:
    """Head units of a layer -> picture units (T, 2, 3)."""
    x = CENTRE[0] + track.body_x + track.head_x
    y = CENTRE[1] + PIVOT + track.body_y + track.head_y
    about = (0.0, PIVOT)
    pose = _affine(track.roll + track.body_roll, about, x, y, track.zoom, MAGNIFY)
    shift = torch.stack([PARALLAX[0] * depth * track.yaw, PARALLAX[1] * depth * track.pitch], -1)
    moved = pose.clone()
    moved[:, :, 2] += (pose[:, :, :2] @ shift[:, :, None])[:, :, 0]
    return moved


def body_pose(track: MotionTrack) -> Tensor:
    return _affine(track.body_roll, (0.0, 250.0), 128.0 + track.body_x, 250.0 + track.body_y, track.zoom)


def inverse(pose_T23: Tensor) -> Tensor:
    turn = torch.linalg.inv(pose_T23[:, :, :2])
    return torch.cat([turn, -turn @ pose_T23[:, :, 2:]], -1)


def _corners(pose_T23: Tensor, box: Box) -> Tensor:
    """Bounding box of a transformed box per frame -> (T, 4) x0, y0, x1, y1 in picture units."""
    x0, y0, x1, y1 = box
    points = torch.tensor([[x0, y0, 1.0], [x1, y0, 1.0], [x0, y1, 1.0], [x1, y1, 1.0]], device=pose_T23.device)
    placed = points @ pose_T23.transpose(1, 2)
    return torch.cat([placed.min(1).values, placed.max(1).values], -1)


class _Stage:
    """Frames being painted, (T, 3, size, size) float, and the pixel arithmetic around them."""

    def __init__(self, backdrop: Tensor, n: int, size: int) -> None:
        self.frames = backdrop.expand(n, -1, -1, -1).clone()
        self.scale = size / UNITS
        self.size = size

    def window(self, boxes_T4: Tensor, rim: float = 1.5) -> tuple[int, int, int, int] | None:
        """Pixels that cover all boxes, or None if they lie outside the picture."""
        low, high = boxes_T4[:, :2].min(0).values.tolist(), boxes_T4[:, 2:].max(0).values.tolist()
        x0, y0 = (max(0, int((v - rim) * self.scale)) for v in low)
        x1, y1 = (min(self.size, int((v + rim) * self.scale) + 1) for v in high)
        return (x0, y0, x1, y1) if x1 - x0 > 2 and y1 - y0 > 2 else None

    def local(self, inverse_T23: Tensor, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Local coordinates of a window's pixel centres -> two (T, h, w)."""
        x0, y0, x1, y1 = window
        device = inverse_T23.device
        px = ((torch.arange(x0, x1, device=device) + 0.5) / self.scale)[None, None, :]
        py = ((torch.arange(y0, y1, device=device) + 0.5) / self.scale)[None, :, None]
        m = inverse_T23[:, :, :, None, None]
        return tuple((m[:, i, 1] * py + m[:, i, 2]) + m[:, i, 0] * px for i in (0, 1))  # type: ignore[return-value]

    def paint(self, window: tuple[int, int, int, int], layers: list[face.Layer], first: int = 0) -> None:
        """Composite flat-coloured layers; `first` is the frame that their first entry belongs to."""
        x0, y0, x1, y1 = window
        n = layers[0][1].shape[0]
        region = self.frames[first : first + n, :, y0:y1, x0:x1].contiguous()
        for colour, amount in layers:
            region.lerp_(torch.tensor(colour, device=region.device).view(1, 3, 1, 1), amount[:, None])
        self.frames[first : first + n, :, y0:y1, x0:x1] = region

    def put(self, sprite: Sprite, pose_T23: Tensor, jaw_T: Tensor | None = None) -> None:
        """Warp a sprite into all frames; `jaw_T` (units) stretches what lies below the nose downwards."""
        window = self.window(_corners(pose_T23, sprite.box), rim=1.5 if jaw_T is None else 6.0)
        if window is None:
            return
        x, y = self.local(inverse(pose_T23), window)
        if jaw_T is not None:
            y = y - jaw_T.view(-1, 1, 1) * smoothstep(y, 14.0, 62.0)
        _, high, wide = sprite.pixels.shape
        grid = torch.stack([(x - sprite.x0) * (2 * sprite.scale / wide) - 1, (y - sprite.y0) * (2 * sprite.scale / high) - 1], -1)
        pixels = sprite.pixels.expand(len(grid), -1, -1, -1)
        warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        x0, y0, x1, y1 = window
        region = self.frames[:, :, y0:y1, x0:x1]
        region.mul_(1 - warped[:, 3:]).add_(warped[:, :3])


def _paint_face(stage: _Stage, who: Character, cast: Cast, track: MotionTrack, pose: Tensor) -> None:
    back = inverse(pose)
    head = cast.head
    window = stage.window(_corners(pose, (-head.half_width, 10.0, head.half_width, 38.0)))
    if window is not None and bool((track.blush > 0).any()):
        stage.paint(window, face.blush_layers(who, head, track, *stage.local(back, window)))
    for side in (-1, 1):
        window = stage.window(_corners(pose, face.eye_reach(head, side)))
        if window is not None:
            stage.paint(window, face.eye_layers(who, head, track, side, *stage.local(back, window)))
    window = stage.window(_corners(pose, face.mouth_reach(head)))
    if window is not None:
        stage.paint(window, face.mouth_layers(who, head, track, *stage.local(back, window)))


def _paint_arms(stage: _Stage, who: Character, track: MotionTrack) -> None:
    pose = body_pose(track)
    for side in (0, 1):
        up = (track.arms.y[:, side] < UNITS + limbs.HAND).nonzero()
        if len(up) == 0:
            continue
        first, stop = int(up[0]), int(up[-1]) + 1
        arms = limbs.fitted(who, track.slice(first, stop).arms)
        place = (-56.0 if side == 0 else 56.0) * who.shoulder
        body = pose[first:stop]
        shoulder = (body @ torch.tensor([place, 220.0, 1.0], device=body.device)).unbind(-1)
        box = limbs.reach(arms, side, (float(shoulder[0].mean()), float(shoulder[1].mean())))
        window = stage.window(torch.tensor([box]))
        if window is None:
            continue
        identity = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]], device=body.device).expand(stop - first, -1, -1)
        x, y = stage.local(identity, window)
        stage.paint(window, limbs.arm_layers(who, arms, side, shoulder, x, y, stage.scale), first)


def _draw(who: Character, track: MotionTrack, size: int) -> Tensor:
    """A few frames at once -> (T, 3, size, size) uint8."""
    cast = cast_of(who, size, str(track.smile.device))
    stage = _Stage(cast.backdrop, len(track), size)
    pose = {name: head_pose(track, depth) for name, depth in DEPTH.items()}
    jaw = 5.0 * track.opening  # the chin follows the lower lip
    for name in ("back", "body", "skull", "features"):
        if name in cast.sprites:
            stage.put(cast.sprites[name], body_pose(track) if name == "body" else pose[name], jaw if name == "skull" else None)
    _paint_face(stage, who, cast, track, pose["features"])
    for name in ("glasses", "front"):
        if name in cast.sprites:
            stage.put(cast.sprites[name], pose[name])
    back = inverse(pose["features"])
    for side in (-1, 1):
        window = stage.window(_corners(pose["features"], face.brow_reach(cast.head, side)))
        if window is not None:
            stage.paint(window, face.brow_layers(who, cast.head, track, side, *stage.local(back, window)))
    _paint_arms(stage, who, track)
    return stage.frames.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


@torch.no_grad()
def render(who: Character, track: MotionTrack, size: int = 256, start: int = 0, stop: int | None = None) -> Tensor:
    """Frames start..stop-1 of a clip -> (T, 3, size, size) uint8, on the track's device.

    Deterministic, and the same for a frame whichever range it is drawn in. Raises InputError for an
    empty or impossible range, or a size below 32 or odd.
    """
    stop = len(track) if stop is None else stop
    if not 0 <= start < stop <= len(track):
        raise InputError(f"frames must satisfy 0 <= start < stop <= {len(track)}, got start={start}, stop={stop}")
    if size < 32 or size % 2:
        raise InputError(f"picture size must be even and at least 32, got {size}")
    out = torch.empty(stop - start, 3, size, size, dtype=torch.uint8, device=track.smile.device)
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        out[first - start : last - start] = _draw(who, track.slice(first, last), size)
    return out


def draw_frame(who: Character, size: int = 256) -> Tensor:
    """The reference frame: neutral, mouth closed, eyes open -> (3, size, size) uint8."""
    return render(who, neutral(), size)[0]


# ---- where to look, and what is seen there ----------------------------------------------------


def _pixel_boxes(who: Character, track: MotionTrack, box: Box, size: int) -> Tensor:
    return (_corners(head_pose(track, DEPTH["features"]), box) * (size / UNITS)).clamp(0, size)


def mouth_box(who: Character, track: MotionTrack, size: int = 256) -> Tensor:
    """Box of the mouth, lips and all openings included -> (T, 4) x0, y0, x1, y1 in pixels."""
    head = head_of(who)
    return _pixel_boxes(who, track, (-1.25 * head.mouth_rx, head.mouth_y - 9.0, 1.25 * head.mouth_rx, head.mouth_y + 23.0), size)


def eye_boxes(who: Character, track: MotionTrack, size: int = 256) -> Tensor:
    """Boxes of the left and right eye -> (T, 2, 4) x0, y0, x1, y1 in pixels."""
    head = head_of(who)
    return torch.stack([_pixel_boxes(who, track, face.eye_reach(head, side), size) for side in (-1, 1)], 1)


def hand_boxes(who: Character, track: MotionTrack, size: int = 256) -> Tensor:
    """Boxes of the left and right hand -> (T, 2, 4) x0, y0, x1, y1 in pixels; empty where a hand is out of the
    picture."""
    arms = limbs.fitted(who, track.arms)
    x, y = (arms.x + limbs.PALM * torch.sin(arms.turn), arms.y - limbs.PALM * torch.cos(arms.turn))
    half = limbs.HAND - limbs.PALM
    return (torch.stack([x - half, y - half, x + half, y + half], -1) * (size / UNITS)).clamp(0, size)


def measure_opening(frames_T3HW: Tensor, boxes_T4: Tensor) -> Tensor:
    """Estimate of the mouth's opening from pixels -> (T,), about [0, 1], rising with the true opening.

    The dark red of the cavity, `face.CAVITY`, occurs nowhere else in a face. Its share of the
    middle columns of the mouth's box is how far the lips stand apart, whatever the mouth's width.
    Frames uint8, or float in [0, 1].
    """
    frames = frames_T3HW.float() / 255.0 if frames_T3HW.dtype == torch.uint8 else frames_T3HW.float()
    _, _, high, wide = frames.shape
    across, down = 16, 48
    u = 0.5 + 0.28 * ((torch.arange(across, device=frames.device) + 0.5) / across - 0.5)
    v = (torch.arange(down, device=frames.device) + 0.5) / down
    x0, y0, x1, y1 = (boxes_T4[:, i, None].to(frames) for i in range(4))
    gx = ((x0 + u * (x1 - x0)) * (2 / wide) - 1)[:, None, :].expand(-1, down, -1)
    gy = ((y0 + v * (y1 - y0)) * (2 / high) - 1)[:, :, None].expand(-1, -1, across)
    patch = F.grid_sample(frames, torch.stack([gx, gy], -1), mode="bilinear", padding_mode="border", align_corners=False)
    red, green, _ = patch.unbind(1)
    saturated = smoothstep(1 - green / red.clamp(min=0.02), 0.50, 0.74)  # cavity 0.83, lips below 0.68, skin below 0.5
    dark = 1 - smoothstep(red, 0.40, 0.66)
    share = (saturated * dark).mean((1, 2)) / 0.42
    return share.clamp(min=0) ** 0.75  # teeth and tongue hide relatively more of a small opening
