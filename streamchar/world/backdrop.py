"""What is behind a character: soft, low-contrast scenes that never compete with the face."""

from __future__ import annotations

import math
import random

from torch import Tensor

from streamchar.world.character import BACKDROPS, CLOTH, Character
from streamchar.world.shapes import Canvas, Colour, box, darker, ellipse, lighter, mix, rgb, spline


def _room(canvas: Canvas, draw: random.Random, near: Colour, accent: Colour) -> None:
    left = draw.random() < 0.5
    x = 16 if left else 178
    frame = lighter(near, 0.55)
    canvas.fill(box(x, 30, x + 62, 118, 4), frame)
    canvas.fill(box(x + 4, 34, x + 58, 114, 2), rgb(206, 232, 250), below=rgb(238, 246, 250))
    canvas.fill(box(x + 29, 34, x + 33, 114), frame)
    canvas.fill(box(x + 4, 70, x + 58, 74), frame)
    y = 96
    x = 188 if left else 12
    canvas.fill(box(x, y, x + 58, y + 5, 2), darker(near, 0.2))
    for i, high in enumerate((30, 24, 34, 27)):
        tint = mix(near, (accent, lighter(accent, 0.4), darker(near, 0.15), lighter(near, 0.5))[i], 0.55)
        canvas.fill(box(x + 5 + i * 10, y - high, x + 13 + i * 10, y, 1.5), tint)
    canvas.fill(box(-30, 200, 300, 300), darker(near, 0.10), below=darker(near, 0.16))


def _hills(canvas: Canvas, draw: random.Random, near: Colour) -> None:
    canvas.fill(ellipse(draw.choice((48, 208)), 52, 22, 22), rgb(255, 246, 214), alpha=0.9)
    for x, y, r in ((40, 96, 15), (58, 90, 19), (78, 97, 14), (196, 70, 13), (212, 64, 17), (230, 71, 12)):
        canvas.fill(ellipse(x, y, r, r * 0.7), (1.0, 1.0, 1.0), alpha=0.5, blur=1.2)
    green = mix(near, rgb(128, 190, 140), 0.55)
    for level, tint in ((168, lighter(green, 0.3)), (192, lighter(green, 0.1)), (222, darker(green, 0.05))):
        phase = draw.uniform(0, 6)
        crest = [(x, level + 12 * math.sin(x / 46 + phase)) for x in range(-28, 300, 12)]
        canvas.fill([*spline(crest, closed=False), (300, 300), (-30, 300)], tint, below=darker(tint, 0.06))


def _city(canvas: Canvas, draw: random.Random, near: Colour) -> None:
    for depth in (0.12, 0.24):
        x = -28.0
        tint = mix(near, darker(near, 0.6), depth)
        while x < 284:
            wide, top = draw.uniform(24, 42), draw.uniform(84, 150) + 60 * depth
            canvas.fill(box(x, top, x + wide, 300, 2), tint, below=lighter(tint, 0.35))
            if depth > 0.2:
                for wy in range(int(top) + 9, 220, 15):
                    for wx in range(int(x) + 6, int(x + wide) - 7, 11):
                        canvas.fill(box(wx, wy, wx + 5, wy + 7, 1), rgb(255, 240, 200), alpha=0.35)
            x += wide + draw.uniform(-2, 5)


def _pattern(canvas: Canvas, scene: str, near: Colour, far: Colour) -> None:
    if scene == "dots":
        for row in range(-1, 11):
            for column in range(-1, 11):
                x = column * 28 + 14 * (row % 2)
                canvas.fill(ellipse(x, row * 28, 4.6, 4.6), lighter(far, 0.45), alpha=0.55)
    else:
        for i in range(14):
            a, b = 2 * math.pi * i / 14, 2 * math.pi * (i + 0.5) / 14
            ray = [(128, 120), (128 + 260 * math.cos(a), 120 + 260 * math.sin(a)), (128 + 260 * math.cos(b), 120 + 260 * math.sin(b))]
            canvas.fill(ray, lighter(far, 0.5), alpha=0.36)
    canvas.fill(ellipse(128, 128, 92, 98), lighter(far, 0.6), alpha=0.55, blur=24)


def paint_backdrop(who: Character, canvas: Canvas) -> Tensor:
    """Paint the whole backdrop; returns opaque (3, H, W) of the canvas."""
    draw = random.Random(f"streamchar/backdrop/{who.seed}")
    far, near = BACKDROPS[who.backdrop]
    canvas.fill(box(-40, -40, 300, 300), far, below=near)
    if who.scene == "room":
        _room(canvas, draw, near, CLOTH[who.accent])
    elif who.scene == "hills":
        _hills(canvas, draw, near)
    elif who.scene == "city":
        _city(canvas, draw, near)
    elif who.scene in ("dots", "sunburst"):
        _pattern(canvas, who.scene, near, far)
    else:
        canvas.fill(ellipse(128, 118, 96, 96), lighter(far, 0.7), alpha=0.75, blur=26)
    return canvas.pixels[:3]
