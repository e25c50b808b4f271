"""Hair and headwear, painted in head units (origin at the face's centre) on a back and a front canvas.

The back canvas lies behind the body, the front canvas over the face: between them they frame it.
`w` is the half width of the head in units; the skull reaches from y = -56 (crown) to 58 (chin).
"""

from __future__ import annotations

import math

from streamchar.world.character import CLOTH, HAIRS, Character
from streamchar.world.shapes import Canvas, Colour, Outline, darker, ellipse, lighter, mirror, spline, symmetric


def _cap(w: float, hairline: Outline, lift: float = 0.0, side: float = 4.0) -> Outline:
    """Hair over the skull: an outer arc, closed along a hairline that is given from right to left."""
    arc = [(-w - 3, side), (-w - 4, -22), (-0.78 * w, -50 - lift), (-0.36 * w, -65 - lift), (0, -69 - lift)]
    return spline([*arc, *[(-x, y) for x, y in reversed(arc[:-1])], *hairline])


def _fringe(style: str, w: float) -> Outline:
    """Hairline from the right temple to the left."""
    lines: dict[str, Outline] = {
        "swept": [(w - 3, -6), (0.84 * w, -26), (0.45 * w, -34), (-0.1 * w, -38), (-0.55 * w, -28), (-0.86 * w, -14), (-w + 3, -2)],
        "middle": [(w - 3, 0), (0.86 * w, -16), (0.5 * w, -30), (0.06 * w, -48), (-0.06 * w, -48), (-0.5 * w, -30), (-0.86 * w, -16), (-w + 3, 0)],
        "straight": [(w - 3, 2), (0.9 * w, -15), (0.55 * w, -17), (0, -18), (-0.55 * w, -17), (-0.9 * w, -15), (-w + 3, 2)],
        "high": [(w - 3, -4), (0.9 * w, -22), (0.72 * w, -36), (0.3 * w, -42), (-0.3 * w, -42), (-0.72 * w, -36), (-0.9 * w, -22), (-w + 3, -4)],
        "choppy": [(w - 3, 2), (0.88 * w, -22), (0.62 * w, -15), (0.4 * w, -28), (0.12 * w, -17), (-0.12 * w, -29), (-0.42 * w, -16), (-0.62 * w, -28), (-0.86 * w, -16), (-w + 3, 2)],
    }  # fmt: skip
    return lines[style]


def _blobs(canvas: Canvas, colour: Colour, w: float, spots: list[tuple[float, float, float]]) -> None:
    """Round curls: circles of radius r about (x, y), x in half widths."""
    for x, y, r in spots:
        canvas.fill(ellipse(x * w, y, r, r), colour, below=darker(colour, 0.08))


def _gloss(canvas: Canvas, mask, colour: Colour, w: float, y: float = -47.0) -> None:
    """Light on the crown: one band that follows the skull, as flat illustration paints it."""
    arc = [(x * w, y + 16 * (x + 0.15) ** 2 - 4) for x in (-0.7, -0.5, -0.3, -0.1, 0.1, 0.25)]
    canvas.stroke(spline(arc, closed=False), 7.0, lighter(colour, 0.5), taper=0.95, alpha=0.55, within=mask)
    canvas.fill(ellipse(0.55 * w, -20, w * 0.9, 58), darker(colour, 0.7), alpha=0.12, blur=9, within=mask)


LONG_BACK: dict[str, Outline] = {
    "long": [(0, -68), (0.62, -60), (1.08, -30), (1.18, 10), (1.26, 60), (1.34, 104), (0.9, 112), (0, 108)],
    "wavy": [(0, -69), (0.66, -62), (1.14, -32), (1.3, 0), (1.22, 24), (1.42, 48), (1.3, 72), (1.44, 96), (0.9, 108), (0, 104)],
    "bob": [(0, -68), (0.64, -60), (1.12, -30), (1.24, 8), (1.26, 40), (1.08, 58), (0.7, 60), (0, 58)],
    "fringe": [(0, -67), (0.62, -60), (1.08, -30), (1.16, 10), (1.2, 60), (1.14, 92), (0.8, 96), (0, 92)],
    "pixie": [(0, -66), (0.62, -60), (1.06, -30), (1.1, 0), (1.04, 20), (0.8, 30), (0, 30)],
    "shaggy": [(0, -68), (0.64, -62), (1.12, -34), (1.14, -4), (1.2, 12), (1.06, 14), (1.1, 30), (0.94, 28), (0.8, 40), (0, 40)],
}  # fmt: skip


def _back(style: str, canvas: Canvas, colour: Colour, w: float) -> None:
    shade = darker(colour, 0.22)
    if style in LONG_BACK:
        mask = canvas.fill(spline(symmetric([(x * w, y) for x, y in LONG_BACK[style]])), shade, below=darker(colour, 0.1))
        if style in ("long", "wavy", "fringe"):
            for x in (-1.16, -1.02, 1.02, 1.16):
                lock = spline([(x * w * 0.94, -6), (x * w, 40), (x * w * 1.06, 96)], closed=False)
                canvas.stroke(lock, 3.2, lighter(colour, 0.06), taper=0.9, alpha=0.6, within=mask)
    elif style == "curly":
        ring = [(1.08 * math.sin(a), -14 - 46 * math.cos(a), 17.0) for a in [i * 0.42 - 2.3 for i in range(12)]]
        _blobs(canvas, shade, w, [*ring, (0, -40, 44)])
    elif style == "ponytail":
        tail = [(0.5 * w, -50), (1.3 * w, -56), (1.75 * w, -20), (1.62 * w, 30), (1.84 * w, 66), (1.36 * w, 44), (1.24 * w, 0), (0.9 * w, -24)]
        canvas.fill(spline(tail), shade, below=colour)
        canvas.fill(ellipse(1.04 * w, -46, 6, 8), darker(colour, 0.55))
    elif style == "bun":
        canvas.fill(ellipse(0, -74, 21, 17), shade, below=colour)
        canvas.stroke(spline([(-12, -77), (-2, -83), (10, -79)], closed=False), 3, lighter(colour, 0.3), taper=0.8, alpha=0.6)
    elif style == "pigtails":
        tail = [(0.86 * w, -26), (1.3 * w, -40), (1.62 * w, -14), (1.56 * w, 26), (1.66 * w, 58), (1.24 * w, 34), (1.1 * w, 0)]
        for points in (tail, mirror(tail)):
            canvas.fill(spline(points), shade, below=colour)
        for x in (1.1, -1.1):
            canvas.fill(ellipse(x * w, -26, 6, 7), CLOTH["coral"])


def _front(style: str, canvas: Canvas, colour: Colour, w: float) -> None:
    top, bottom = lighter(colour, 0.08), darker(colour, 0.06)
    line = {"long": "middle", "wavy": "swept", "bob": "straight", "ponytail": "swept", "bun": "high", "pigtails": "middle",
            "curly": "high", "fringe": "straight", "pixie": "swept", "short": "swept", "quiff": "high", "spiky": "choppy",
            "buzz": "high", "swept": "swept", "shaggy": "choppy"}[style]  # fmt: skip
    side = {"bob": 30.0, "long": 44.0, "wavy": 40.0, "fringe": 40.0, "shaggy": 16.0, "pixie": 12.0, "buzz": -8.0}.get(style, 2.0)
    hairline = _fringe(line, w)
    if side > 10:  # locks that fall beside the face
        hairline = [(w + 1, side), (w - 5, side - 14), *hairline[1:-1], (-w + 5, side - 14), (-w - 1, side)]
    lift = {"buzz": -6.0, "quiff": 0.0, "short": 0.0, "bob": 1.0}.get(style, 0.0)
    mask = canvas.fill(_cap(w, hairline, lift, side), top, below=bottom, alpha=0.92 if style == "buzz" else 1.0)
    if style == "quiff":
        crest = [(-0.74 * w, -44), (-0.6 * w, -70), (-0.1 * w, -84), (0.5 * w, -84), (0.86 * w, -70), (0.8 * w, -44), (0.3 * w, -38), (-0.3 * w, -38)]
        mask = mask.maximum(canvas.fill(spline(crest), top, below=bottom))
        canvas.stroke(spline([(-0.5 * w, -52), (0, -66), (0.6 * w, -72)], closed=False), 3.5, bottom, taper=0.9, alpha=0.8)
    elif style == "spiky":
        for x, y, tilt in ((-0.85, -40, -20), (-0.5, -56, -10), (0, -60, 2), (0.45, -57, 12), (0.85, -42, 22)):
            spike = [(x * w - 13, y + 8), (x * w + tilt * 0.9, y - 26), (x * w + 13, y + 8), (x * w, y + 18)]
            mask = mask.maximum(canvas.fill(spike, top, below=colour))
    elif style == "curly":
        spots = [(-0.86, -30, 13.0), (-0.66, -46, 15.0), (-0.3, -55, 16.0), (0.1, -57, 16.0), (0.48, -51, 15.0), (0.8, -36, 14.0), (0.97, -16, 10.0), (-0.98, -14, 10.0)]
        for x, y, r in spots:
            mask = mask.maximum(canvas.fill(ellipse(x * w, y, r, r), top, below=bottom))
    elif style in ("swept", "short", "pixie", "ponytail", "wavy"):
        for shift in (0.0, 0.3):
            strand = [(0.5 * w - shift * w, -60), (0.1 * w - shift * w, -48), (-0.42 * w - shift * 0.5 * w, -34)]
            canvas.stroke(spline(strand, closed=False), 2.4, darker(colour, 0.3), taper=0.95, alpha=0.55, within=mask)
    if style != "buzz":
        _gloss(canvas, mask, colour, w)


def _tuft(canvas: Canvas, colour: Colour) -> None:
    tuft = [(-17, -48), (-15, -64), (-7, -58), (-3, -74), (5, -60), (13, -68), (16, -48), (7, -38), (1, -44), (-7, -37)]
    canvas.fill(spline(tuft), lighter(colour, 0.08), below=colour)


def paint_hair(who: Character, back: Canvas, front: Canvas, w: float) -> None:
    """Paint the hair of a character (nothing for "bald" and "none")."""
    colour = HAIRS[who.hair_colour]
    if who.hair_style == "tuft":
        _tuft(front, colour)
    elif who.hair_style not in ("bald", "none"):
        _back(who.hair_style, back, colour, w)
        _front(who.hair_style, front, colour, w)


def paint_headwear(who: Character, back: Canvas, front: Canvas, w: float) -> None:
    """Hat, beanie, headphones or bow."""
    colour = CLOTH[who.accent]
    if who.accessory == "hat":
        crown = [(-0.86 * w, -38), (-0.84 * w, -70), (-0.5 * w, -88), (0, -92), (0.5 * w, -88), (0.84 * w, -70), (0.86 * w, -38)]
        mask = front.fill(spline(crown), lighter(colour, 0.1), below=darker(colour, 0.08))
        front.fill(ellipse(0.6 * w, -60, 24, 40), darker(colour, 0.6), alpha=0.14, blur=7, within=mask)
        front.fill(ellipse(0, -49, 0.9 * w, 9), darker(colour, 0.45), within=mask)
        front.fill(ellipse(0, -38, 1.36 * w, 10.5, power=2.3), colour, below=darker(colour, 0.14))
    elif who.accessory == "beanie":
        dome = [(-1.07 * w, -30), (-1.03 * w, -56), (-0.6 * w, -77), (0, -82), (0.6 * w, -77), (1.03 * w, -56), (1.07 * w, -30)]
        mask = front.fill(spline(dome), lighter(colour, 0.1), below=darker(colour, 0.08))
        front.fill(ellipse(0.7 * w, -54, 22, 42), darker(colour, 0.6), alpha=0.14, blur=7, within=mask)
        front.fill(ellipse(0, -33, 1.12 * w, 10.5, power=4), lighter(colour, 0.18), below=darker(colour, 0.02))
        for i in range(-5, 6):
            front.stroke([(i * w * 0.19, -41), (i * w * 0.2, -25)], 1.3, darker(colour, 0.3), alpha=0.45)
        front.fill(ellipse(0, -84, 10, 10), lighter(colour, 0.45), below=lighter(colour, 0.2))
    elif who.accessory == "headphones":
        arc = [((w + 7) * math.sin(a), 2 - 76 * math.cos(a)) for a in [i * 0.155 - 1.55 for i in range(21)]]
        front.stroke(arc, 8, darker(colour, 0.5))
        front.stroke(arc, 3, lighter(colour, 0.2), alpha=0.6)
        for x in (-1, 1):
            front.fill(ellipse(x * (w + 6), 6, 10, 17, power=3), darker(colour, 0.35))
            front.fill(ellipse(x * (w + 8), 6, 7.5, 14, power=3), colour, below=darker(colour, 0.12))
    elif who.accessory == "bow":
        x, y = (0.0, -58) if who.kind in ("cat", "fox", "bear", "bunny") else (0.6 * w, -56)
        wing = [(1, 0), (18, -12), (22, -2), (18, 12)]
        for points in (wing, mirror(wing)):
            front.fill(spline([(x + px, y + py) for px, py in points]), colour, below=darker(colour, 0.15))
        front.fill(ellipse(x, y, 5.5, 6.5), lighter(colour, 0.15), below=darker(colour, 0.2))
