"""The moving features: eyes, brows, mouth, blush; evaluated in head units on a small box of pixels.

Every function takes local coordinates x, y (T, H, W) and returns layers to be painted in order.
Shape letters: T frames, H height, W width of the box; parameters (T,) are used as (T, 1, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamchar.world.character import ANIMALS, HAIRS, IRISES, SKINS, Character
from streamchar.world.motion import MotionTrack
from streamchar.world.portrait import Head
from streamchar.world.shapes import Colour, darker, inside, inside_implicit, lighter, mix, rgb, segment, smoothstep

Layer = tuple[Colour, Tensor]
"""A flat colour and its coverage (T, H, W)."""

CAVITY = rgb(84, 14, 30)
TONGUE = rgb(226, 104, 112)
TEETH = rgb(252, 250, 246)
JAW = 22.0
"""Units between the lips at opening 1."""
BROWS = {"thin": (1.5, 2.6), "arched": (1.6, 4.4), "thick": (2.7, 2.6), "straight": (2.2, 0.8)}
"""How thick an eyebrow is, each side of its middle, and how high its arch."""


def _wide(value_T: Tensor) -> Tensor:
    return value_T.view(-1, 1, 1)


def _arch(p: Tensor, k: float = 0.35) -> Tensor:
    """Lid and lip profile over p = 1 - t^2: 1 in the middle, steep at the corners, linear beyond."""
    return p * (1 + k) / (k + p.clamp(min=0))


def lip_colour(who: Character) -> Colour:
    skin = SKINS[who.skin]
    if who.kind == "robot":
        return darker(skin, 0.35)
    painted = {"rose": rgb(226, 96, 112), "coral": rgb(238, 104, 88), "berry": rgb(190, 62, 96)}
    if who.lips in painted:
        return mix(painted[who.lips], skin, 0.12)
    return mix(darker(skin, 0.12), rgb(214, 92, 92), 0.42)


def mouth_reach(head: Head) -> tuple[float, float, float, float]:
    """Box of the mouth in head units (x0, y0, x1, y1), lips of every shape included."""
    return (-1.5 * head.mouth_rx, head.mouth_y - 13.0, 1.5 * head.mouth_rx, head.mouth_y + 25.0)


def eye_reach(head: Head, side: int) -> tuple[float, float, float, float]:
    """Box of one eye with lashes and brow's lower edge left out."""
    rx, ry = head.eye_rx * 1.4, head.eye_ry * 1.4
    return (side * head.eye_x - rx, head.eye_y - ry, side * head.eye_x + rx, head.eye_y + ry)


def brow_reach(head: Head, side: int) -> tuple[float, float, float, float]:
    rx = head.eye_rx * 1.35
    return (side * head.eye_x - rx, head.brow_y - 16, side * head.eye_x + rx, head.brow_y + 15)


def mouth_layers(who: Character, head: Head, track: MotionTrack, x: Tensor, y: Tensor) -> list[Layer]:
    """Lips, line, cavity, teeth and tongue."""
    m = track.mouth
    opening, width, rounded, press, smile = (_wide(v) for v in (m.opening, m.width, m.round, m.press, track.smile))
    half = head.mouth_rx * (1 + 0.20 * width - 0.34 * rounded + 0.14 * smile.clamp(min=0) * (1 - rounded))
    gap = JAW * opening
    t2 = (x / half).square().clamp(max=1.5)
    p = 1 - t2
    profile = _arch(p, 0.3)
    curl = 7.0 * smile * (1 - 0.6 * rounded)
    middle = head.mouth_y - curl * (t2 - 0.45)
    centre = head.mouth_y + 0.45 * curl
    above, below = 0.22 * gap, 0.78 * gap
    upper, lower = middle - above * profile, middle + below * profile
    ends = x.abs() - half
    hole = torch.maximum(torch.maximum(upper - y, y - lower), ends)
    full = 1.0 if who.lips != "natural" else 0.55
    thick = full * (1 - 0.45 * press) * (1 + 0.35 * rounded)
    soft = _arch(p, 0.22)
    bow = 1 - 0.32 * torch.exp(-((x / 3.2) ** 2))
    lips = torch.maximum(upper - 3.3 * thick * soft * bow - y, y - lower - 4.6 * thick * soft)
    lips = torch.maximum(lips, ends - 1.5)
    tint = lip_colour(who)
    cavity = inside_implicit(hole + 0.25) * smoothstep(gap, 0.0, 1.6)
    teeth_y = 0.5 * (upper + centre - above) + torch.minimum(6.5 * _wide(m.teeth), 0.36 * gap)
    teeth = (0.5 + (teeth_y - y)).clamp(0, 1) * cavity
    lift = 0.08 * gap + 0.22 * gap * _wide(m.tongue)
    tongue_d = ((x / (0.66 * half)).square() + ((y - (centre + below + 0.12 * gap)) / (0.16 * gap + lift + 0.3)).square()) - 1
    tongue = inside_implicit(tongue_d) * cavity
    line = inside_implicit(hole - 0.75)
    shadow = torch.exp(-((x / (0.55 * half)) ** 2) - ((y - lower - 4.6 * thick - 4.0) / 2.0) ** 2)
    shine = torch.exp(-((x / (0.34 * half)) ** 2) - ((y - lower - 2.1 * thick) / 1.0) ** 2)
    return [
        (darker(SKINS[who.skin], 0.4), 0.2 * shadow),
        (tint, inside_implicit(lips)),
        ((1.0, 1.0, 1.0), shine * 0.3 * full * inside_implicit(lips)),
        (darker(mix(tint, CAVITY, 0.5), 0.1), line),
        (CAVITY, cavity), (TONGUE, tongue), (TEETH, teeth),
    ]  # fmt: skip


def _in_eye(who: Character, head: Head, side: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outwards and downwards from an eye's middle."""
    u, v = (x - side * head.eye_x) * side, y - head.eye_y
    return u, v + {"almond": 0.13, "soft": -0.07}.get(who.eye_shape, 0.0) * u


def _opened(head: Head, track: MotionTrack) -> tuple[Tensor, Tensor]:
    """How far up the upper lid is, and how far down the lower one, without a blink."""
    widen, smile = _wide(track.widen), _wide(track.smile)
    squint = 0.34 * (smile - 0.45).clamp(min=0) + 0.22 * (-widen).clamp(min=0)
    high = head.eye_ry * (1 + 0.17 * widen.clamp(min=0) + 0.42 * widen.clamp(max=0))
    return high, 0.84 * head.eye_ry * (1 - squint)


def _iris(head: Head, track: MotionTrack, side: int) -> tuple[Tensor, Tensor]:
    """How far outwards and down an iris is."""
    return side * _wide(track.gaze_x) * 0.30 * head.eye_rx, _wide(track.gaze_y) * 0.26 * head.eye_ry + 0.6


def eye_layers(who: Character, head: Head, track: MotionTrack, side: int, x: Tensor, y: Tensor) -> list[Layer]:
    """One eye: white, iris, pupil, highlights, lids and lashes. `side` -1 is on the picture's left."""
    blink = _wide(track.blink)
    rx, ry = head.eye_rx, head.eye_ry
    u, v = _in_eye(who, head, side, x, y)
    p = 1 - (u / rx).square().clamp(max=1.7)
    profile = _arch(p, 0.4)
    high, low = _opened(head, track)
    upper, lower = -high * profile, low * profile
    shut = 0.34 * ry * profile
    upper, lower = upper + blink * (shut - upper), lower + blink * (shut - lower)
    open_d = torch.maximum(torch.maximum(upper - v, v - lower), (u.abs() - rx))
    white = inside_implicit(open_d + 0.2) * (1 - smoothstep(blink, 0.9, 0.99))
    r = 0.80 * min(rx, ry)
    cx, cy = _iris(head, track, side)
    far = torch.hypot(u - cx, v - cy)
    scale = 1.0 / float((x[0, 0, 1] - x[0, 0, 0]).abs().clamp(min=1e-3))
    colour = IRISES[who.iris]
    glow = torch.hypot(u - cx, (v - cy - 0.45 * r) * 1.25)
    edge = _arch(p.clamp(min=0), 0.4)  # lines stop at the corners, where the lids' continuation would dive
    over = -high * edge
    over = over + blink * (0.34 * ry * edge - over)
    lid = inside_implicit(torch.maximum((v - over).abs() - (1.15 + 0.55 * who.lashes) * (1 - 0.25 * (u / rx) ** 2), u.abs() - rx * 1.03))
    under = inside_implicit(torch.maximum((v - lower).abs() - 0.55, u.abs() - 0.72 * rx))
    crease = inside_implicit(torch.maximum((v - (1.14 * over - 2.0)).abs() - 0.55, u.abs() - 0.7 * rx))
    dark = rgb(56, 36, 46)
    layers: list[Layer] = [
        (darker(SKINS[who.skin], 0.35), 0.5 * crease),
        (rgb(255, 254, 252), white),
        (darker(colour, 0.55), white * inside(far - r, scale)),
        (colour, white * inside(far - r + 1.3, scale)),
        (lighter(colour, 0.45), 0.75 * white * inside(far - r + 1.6, scale) * (1 - smoothstep(glow, 0.1 * r, 0.85 * r))),
        (rgb(30, 20, 32), white * inside(far - 0.50 * r, scale)),
        (rgb(80, 60, 110), white * 0.28 * (1 - smoothstep(v - upper, 0.0, 5.5))),
        ((1.0, 1.0, 1.0), white * inside(torch.hypot((u - cx) * side + 0.32 * r, v - cy + 0.36 * r) - 0.30 * r, scale)),
        ((1.0, 1.0, 1.0), 0.85 * white * inside(torch.hypot((u - cx) * side - 0.34 * r, v - cy - 0.36 * r) - 0.15 * r, scale)),
        (darker(SKINS[who.skin], 0.5), 0.4 * under),
        (dark, lid),
    ]  # fmt: skip
    if who.lashes:
        drop = (blink * 0.55 * ry).expand(-1, 1, 1)
        for ax, ay, bx, by in ((0.86, -0.34, 1.28, -0.66), (0.98, -0.08, 1.36, -0.24)):
            a, b = torch.tensor(ax * rx, device=x.device), torch.tensor(bx * rx, device=x.device)
            distance, along = segment(u, v, a, ay * ry + drop, b, by * ry + 1.5 * drop)
            layers.append((dark, inside(distance - 1.3 * (1 - 0.75 * along), scale)))
    return layers


def _along_brow(head: Head, side: int, x: Tensor) -> Tensor:
    """From -1 at the nose's end of an eyebrow to 1 at the other."""
    return (x - side * head.eye_x) * side / head.eye_rx


def _brow_shift(track: MotionTrack, u: Tensor) -> Tensor:
    """How far down an eyebrow is."""
    return 4.2 * _wide(track.brow_tilt) * u - 5.0 * _wide(track.brow_raise)


def _off_brow(who: Character, head: Head, track: MotionTrack, u: Tensor, y: Tensor) -> Tensor:
    """From an eyebrow's middle line downwards."""
    return y - (head.brow_y + _brow_shift(track, u) - BROWS[who.brows][1] * (1 - u * u) + 1.5)


def brow_layers(who: Character, head: Head, track: MotionTrack, side: int, x: Tensor, y: Tensor) -> list[Layer]:
    """One eyebrow."""
    u = _along_brow(head, side, x)
    body = _off_brow(who, head, track, u, y).abs() - BROWS[who.brows][0] * (1 - 0.3 * (u + 0.9).clamp(min=0))
    value = torch.maximum(body, (u.abs() - 1.06) * head.eye_rx)
    skin = SKINS[who.skin]
    if who.kind in ANIMALS or who.kind == "robot":
        tint = darker(skin, 0.5)
    else:
        tint = mix(darker(HAIRS[who.hair_colour], 0.25), darker(skin, 0.45), 0.25)
    return [(tint, inside_implicit(value))]


def brow_moved(
    who: Character, head: Head, track: MotionTrack, rest: MotionTrack, side: int, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """How far below its place at rest an eyebrow is, in a field that moves the brow as a whole and the skin around it
    less and less, so that nothing is folded; and 1 on the brow down to 0 where the field ends."""
    u = _along_brow(head, side, x)
    off, beside = _off_brow(who, head, track, u, y), (u.abs() - 1.06).clamp(min=0) * head.eye_rx
    beyond = torch.where(off < 0, -off / 11.0, off / 9.0) - 0.3
    near = (1 - beyond.clamp(min=0)).clamp(min=0) * (1 - beside / 7.0).clamp(min=0)
    return near * (_brow_shift(track, u) - _brow_shift(rest, u)), near


def eye_moved(
    who: Character, head: Head, track: MotionTrack, rest: MotionTrack, side: int, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """How far right of and below its place at rest what an eye shows is: lids as far as they are open, with their lines,
    and the iris; in a field that ends around the eye. A lid that comes down is the skin above it, stretched."""
    rx, ry = head.eye_rx, head.eye_ry
    u, v = _in_eye(who, head, side, x, y)
    profile = _arch((1 - (u / rx).square()).clamp(min=0), 0.4)
    inner = (1 - (u / rx).square().square()).clamp(min=0)
    (right, down), (right0, down0) = (_iris(head, t, side) for t in (track, rest))
    now, home = (
        [lid * profile + _wide(t.blink) * (0.34 * ry - lid) * profile for lid in (-high, low)]
        for t, (high, low) in ((t, _opened(head, t)) for t in (track, rest))
    )
    line = 1.3 + 0.55 * who.lashes
    ends = 1.17 * ry * profile + 3.0 + line, 0.84 * ry * profile + 6.0
    iris = torch.minimum(torch.maximum(down.expand_as(v), now[0]), now[1])
    knots = [-ends[0], now[0] - line, now[0], iris, now[1], ends[1]]
    lids = [near - rested for near, rested in zip(now, home, strict=True)]
    moves = [torch.zeros_like(v), lids[0], lids[0], (down - down0) * inner, lids[1], torch.zeros_like(v)]
    below = torch.zeros_like(v)
    for start, end, first, last in zip(knots, knots[1:], moves, moves[1:], strict=False):
        along = ((v - start) / (end - start).clamp(min=1e-3)).clamp(0, 1)
        below = torch.where((v >= start) & (v < end), torch.lerp(first, last, along), below)
    outside = torch.maximum(now[0] - v, v - now[1]).clamp(min=0)
    return side * (right - right0) * inner * (1 - outside / 5.0).clamp(min=0), below


def blush_layers(who: Character, head: Head, track: MotionTrack, x: Tensor, y: Tensor) -> list[Layer]:
    """Warm cheeks of a mood."""
    away = ((x.abs() - 0.62 * head.half_width) / 11).square() + ((y - 24) / 6.5).square()
    skin = SKINS[who.skin]
    return [(mix(skin, rgb(255, 84, 98), 0.4 + 0.4 * skin[1]), _wide(track.blush) * 0.5 * torch.exp(-away))]
