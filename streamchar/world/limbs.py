"""Arms and hands that enter the picture from below, as distance functions on a box of pixels.

Shape letters: T frames, H height, W width of the box.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from streamchar.world.character import SKINS, Character
from streamchar.world.face import Layer
from streamchar.world.gesture import Arms
from streamchar.world.shapes import UNITS, Colour, darker, inside, lighter, mix, segment, smoothstep
from streamchar.world.wardrobe import sleeve

FOREARM = 70.0
HAND = 50.0
"""Units from the wrist to the farthest finger tip, with the outline."""
PALM = 22.0
"""From the wrist to a hand's middle."""


def _wide(value_T: Tensor) -> Tensor:
    return value_T.view(-1, 1, 1)


def fitted(who: Character, arms: Arms) -> Arms:
    """Gestures are planned for an average build: bring the hands in to this character's shoulders."""
    return replace(arms, x=UNITS / 2 + (arms.x - UNITS / 2) * (0.42 + 0.5 * who.shoulder))


def elbow(arms: Arms, side: int) -> tuple[Tensor, Tensor]:
    """Elbow of an arm -> two (T,): the forearm follows the hand's turn, less strongly."""
    lean = 0.6 * arms.turn[:, side]
    return arms.x[:, side] - FOREARM * torch.sin(lean), arms.y[:, side] + FOREARM * torch.cos(lean)


def reach(arms: Arms, side: int, shoulder: tuple[float, float]) -> tuple[float, float, float, float]:
    """Box in picture units that holds the arm in all frames."""
    ex, ey = elbow(arms, side)
    x, y = arms.x[:, side], arms.y[:, side]
    return (
        min(float((x - HAND).min()), float(ex.min()) - 18, shoulder[0] - 18), float((y - HAND).min()),
        max(float((x + HAND).max()), float(ex.max()) + 18, shoulder[0] + 18), float(ey.max()) + 18,
    )  # fmt: skip


def _hand(who: Character, arms: Arms, side: int, x: Tensor, y: Tensor, scale: float) -> list[Layer]:
    """Palm, four fingers and thumb around the wrist at the origin, fingers up."""
    size = 1.22 if who.age == "child" else 1.32 if who.presentation == "feminine" else 1.42
    turn = _wide(arms.turn[:, side])
    inward = 1.0 if side == 0 else -1.0
    hx = (x * torch.cos(turn) + y * torch.sin(turn)) * inward / size
    hy = (y * torch.cos(turn) - x * torch.sin(turn)) / size
    spread, point = _wide(arms.spread[:, side]), _wide(arms.point[:, side])
    px, py = hx.abs() - 4.0, (hy + 8.5).abs() - 4.5
    palm = torch.hypot(px.clamp(min=0), py.clamp(min=0)) + torch.maximum(px, py).clamp(max=0) - 5.4
    parts = [palm]
    for i, long in enumerate((9.5, 12.5, 13.0, 11.0)):
        length = long + point * ((15.0 if i == 3 else 1.8) - long)
        angle = (i - 1.5) * 0.20 * spread * (1 - point) + 0.02 * (i - 1.5)
        base = torch.tensor(-6.6 + 4.4 * i, device=x.device)
        top = torch.tensor(-15.0 - (1.2 if i in (1, 2) else 0.0), device=x.device)
        distance, _ = segment(hx, hy, base, top, base + length * torch.sin(angle), top - length * torch.cos(angle))
        parts.append(distance - 2.75)
    lean = 0.55 + 0.45 * spread - 1.1 * point
    bx, by = torch.tensor(6.5, device=x.device), torch.tensor(-6.0, device=x.device)
    distance, _ = segment(hx, hy, bx, by, bx + 10.5 * torch.sin(lean), by - 10.5 * torch.cos(lean))
    parts.append(distance - 3.0)
    whole = parts[0]
    for part in parts[1:]:
        whole = torch.minimum(whole, part)
    crisp = scale * size
    fill = inside(whole, crisp)
    skin = SKINS[who.skin]
    line = darker(mix(skin, (0.8, 0.3, 0.25), 0.2), 0.38)
    layers: list[Layer] = [(line, inside(whole - 1.0, crisp)), (lighter(skin, 0.04), fill)]
    for first, second in zip(parts[1:4], parts[2:5], strict=True):
        between = inside((first - second).abs() - 0.5, crisp) * inside(torch.minimum(first, second), crisp)
        layers.append((line, 0.55 * between * smoothstep(-hy, 13.5, 17.0)))
    layers.append((line, 0.12 * fill * smoothstep(-hx, 0.0, 9.0)))
    return layers


def skin_tones(who: Character) -> tuple[Colour, ...]:
    """What the layers of a hand's and of a bare forearm's skin are painted with; the hand's first."""
    skin = SKINS[who.skin]
    bare = () if sleeve(who)[1] else (lighter(skin, 0.03),)
    return (lighter(skin, 0.04), *bare)


def arm_layers(who: Character, arms: Arms, side: int, shoulder: tuple[Tensor, Tensor], x: Tensor, y: Tensor, scale: float) -> list[Layer]:
    """Upper arm, forearm and hand in picture units; `scale` is pixels per unit."""
    cloth, long = sleeve(who)
    skin = SKINS[who.skin]
    ex, ey = (_wide(v) for v in elbow(arms, side))
    wx, wy = _wide(arms.x[:, side]), _wide(arms.y[:, side])
    thin = 0.84 if who.age == "child" else 0.92 if who.presentation == "feminine" else 1.0
    upper, _ = segment(x, y, _wide(shoulder[0]), _wide(shoulder[1]), ex, ey)
    fore, along = segment(x, y, ex, ey, wx, wy)
    upper = upper - 15.0 * thin
    fore = fore - thin * (13.5 - 4.6 * along)
    tint = cloth if long else skin
    line = darker(tint, 0.42)
    layers: list[Layer] = [
        (darker(cloth, 0.42), 0.5 * inside(upper - 1.0, scale)), (darker(cloth, 0.06), inside(upper, scale)),
        (line, 0.75 * inside(fore - 1.1, scale)), (lighter(tint, 0.03), inside(fore, scale)),
        (darker(tint, 0.6), 0.16 * inside(fore, scale) * smoothstep(fore, -7.0, 0.0)),
    ]  # fmt: skip
    hand = _hand(who, arms, side, x - wx, y - wy, scale)
    if not long:
        return [*layers, *hand]
    cuff = torch.maximum(fore - 1.3, (along - 0.90).abs() * FOREARM - 4.2)
    return [*layers, *hand, (line, 0.6 * inside(cuff - 0.9, scale)), (lighter(cloth, 0.16), inside(cuff, scale))]
