"""Neck, shoulders and clothes, painted once on the body's canvas in picture units.

The body's centre line is x = 128; shoulders begin near y = 192 and the clothes run out below the picture.
"""

from __future__ import annotations

from torch import Tensor

from streamchar.world.character import CLOTH, SKINS, Character
from streamchar.world.shapes import (
    Canvas,
    Colour,
    Outline,
    box,
    darker,
    ellipse,
    lighter,
    mirror,
    mix,
    rgb,
    spline,
    symmetric,
)

NECK_TOP, BOTTOM = 150.0, 282.0


def neck_width(who: Character) -> float:
    """Half width of the neck in units."""
    return 12.5 if who.age == "child" else 15.0 if who.presentation == "feminine" else 18.5


def sleeve(who: Character) -> tuple[Colour, bool]:
    """Colour of the forearm's cloth, and whether the sleeve is long (else the forearm is bare)."""
    cloth, second = CLOTH[who.cloth], CLOTH[who.cloth_second]
    if who.clothes in ("tshirt", "dress"):
        return cloth, False
    return (second if who.clothes == "dungarees" else cloth), True


def torso(who: Character) -> Outline:
    """Outline of the clothed body about x = 0."""
    s, n = who.shoulder, neck_width(who)
    right = [(0, 184), (n + 2, 184), (n + 15, 189), (48 * s, 198), (66 * s, 209), (76 * s, 228), (80 * s, 252), (82 * s, BOTTOM), (0, BOTTOM)]
    return spline(symmetric(right))


def _neck(who: Character, canvas: Canvas) -> None:
    skin, n = SKINS[who.skin], neck_width(who)
    right = [(0, NECK_TOP), (n, NECK_TOP), (n, 176), (n + 5, 186), (n + 22, 194), (30, 214), (0, 220)]
    mask = canvas.fill(symmetric(right), skin, below=darker(skin, 0.04))
    canvas.fill(ellipse(2, 164, n + 14, 21), darker(mix(skin, (0.8, 0.3, 0.25), 0.25), 0.45), alpha=0.5, blur=3, within=mask)
    if who.kind == "robot":
        for y in (172, 179, 186):
            canvas.fill(box(-n - 2, y, n + 2, y + 3, 1.5), darker(skin, 0.35), within=mask)


def _collar(who: Character, canvas: Canvas, body: Tensor, depth: float, width: float, trim: Colour) -> None:
    """A round neckline: skin shown again over the cloth, with a trim around it."""
    skin = SKINS[who.skin]
    canvas.fill(ellipse(0, 183, width + 4.5, depth + 4.5), trim, within=body)
    inner = canvas.fill(ellipse(0, 182, width, depth), skin, within=body)
    canvas.fill(ellipse(2, 170, width + 4, 20), darker(mix(skin, (0.8, 0.3, 0.25), 0.25), 0.45), alpha=0.45, blur=3, within=inner)


def _suit(who: Character, canvas: Canvas, body: Tensor) -> None:
    jacket, tie = CLOTH[who.cloth], CLOTH[who.cloth_second]
    n = neck_width(who)
    shirt = rgb(248, 246, 244)
    canvas.fill([(-n - 7, 182), (n + 7, 182), (20, 210), (4, 284), (-4, 284), (-20, 210)], shirt, below=darker(shirt, 0.08), within=body)
    canvas.fill([(-5.5, 191), (5.5, 191), (3.5, 199), (9, 240), (0, 262), (-9, 240), (-3.5, 199)], tie, below=darker(tie, 0.2))
    canvas.fill([(-6.5, 188), (6.5, 188), (4, 199), (-4, 199)], darker(tie, 0.15))
    flap = [(n - 1, 176), (n + 6, 183), (15, 201), (3, 189)]
    for points in (flap, mirror(flap)):
        canvas.fill(points, lighter(shirt, 0.6))
        canvas.stroke([points[2], points[3]], 1.0, darker(shirt, 0.3), alpha=0.7)
    lapel = [(n + 6, 182), (n + 19, 189), (31, 216), (26, 222), (29, 228), (8, 284), (2, 284), (19, 209)]
    for points in (lapel, mirror(lapel)):
        canvas.fill(points, lighter(jacket, 0.13), below=lighter(jacket, 0.04), within=body)


def _hoodie(who: Character, canvas: Canvas, body: Tensor) -> None:
    cloth, n = CLOTH[who.cloth], neck_width(who)
    hood = [(-n - 9, 178), (-n - 24, 190), (-24, 206), (0, 213), (24, 206), (n + 24, 190), (n + 9, 178), (14, 194), (0, 199), (-14, 194)]
    canvas.fill(spline(hood), lighter(cloth, 0.12), below=darker(cloth, 0.12))
    for x in (-1, 1):
        canvas.stroke(spline([(x * 12, 203), (x * 13, 220), (x * 11.5, 236)], closed=False), 2.4, rgb(250, 248, 244))
        canvas.fill(ellipse(x * 11.5, 238, 2.1, 3.2), darker(CLOTH[who.cloth_second], 0.05))
    canvas.fill(ellipse(0, 266, 34, 14, power=4), darker(cloth, 0.14), within=body)


def _dungarees(who: Character, canvas: Canvas, body: Tensor) -> None:
    denim, s = CLOTH[who.cloth], who.shoulder
    for x in (-1, 1):
        strap = [(x * 27 * s, 180), (x * 38 * s, 184), (x * 33, 236), (x * 23, 236)]
        canvas.fill(strap, darker(denim, 0.06), within=body)
    bib = canvas.fill(box(-36, 226, 36, 300, 6), denim, below=darker(denim, 0.1), within=body)
    canvas.fill(box(-15, 243, 15, 268, 4), darker(denim, 0.12), within=bib)
    canvas.stroke([(-34, 229), (34, 229)], 1.0, lighter(denim, 0.5), alpha=0.7)
    for x in (-1, 1):
        canvas.fill(ellipse(x * 28, 234, 3.8, 3.8), rgb(248, 206, 110), below=rgb(222, 168, 70))


def _shirt(who: Character, canvas: Canvas) -> None:
    cloth, n = CLOTH[who.cloth], neck_width(who)
    canvas.fill([(-n, 182), (n, 182), (0, 206)], SKINS[who.skin])
    canvas.fill([(-n, 178), (n, 178), (0, 196)], darker(SKINS[who.skin], 0.3), alpha=0.35, blur=2)
    flap = [(n - 1, 175), (n + 9, 184), (17, 207), (0, 203)]
    for points in (flap, mirror(flap)):
        canvas.fill(points, lighter(cloth, 0.28), below=lighter(cloth, 0.1))
        canvas.stroke([points[1], points[2], points[3]], 1.0, darker(cloth, 0.35), alpha=0.6)
    canvas.stroke([(0, 204), (0, 284)], 1.3, darker(cloth, 0.35), alpha=0.6)
    for y in (216, 234, 252):
        canvas.fill(ellipse(0, y, 2.3, 2.3), lighter(cloth, 0.65))


def _dress(who: Character, canvas: Canvas, body: Tensor) -> None:
    cloth, n = CLOTH[who.cloth], neck_width(who)
    skin = SKINS[who.skin]
    neckline = spline([(-n - 16, 176), (n + 16, 176), (n + 13, 196), (8, 211), (0, 207.5), (-8, 211), (-n - 13, 196)])
    canvas.fill(neckline, skin, within=body)
    canvas.fill(ellipse(2, 170, n + 8, 19), darker(mix(skin, (0.8, 0.3, 0.25), 0.25), 0.45), alpha=0.45, blur=3, within=canvas.mask(neckline) * body)
    canvas.fill(ellipse(0, 203, 2.6, 2.6), rgb(252, 222, 150))
    canvas.stroke(spline([(-n - 4, 183), (-10, 197), (0, 202), (10, 197), (n + 4, 183)], closed=False), 1.1, rgb(236, 196, 110))
    for x in range(-66, 70, 22):
        for row, y in enumerate((222, 240, 258)):
            canvas.fill(ellipse(x + 11 * (row % 2), y, 2.7, 2.7), lighter(cloth, 0.55), alpha=0.7, within=body)


def paint_body(who: Character, canvas: Canvas) -> None:
    """Paint neck, clothes and scarf on a canvas whose origin lies at (128, 0)."""
    cloth, second = CLOTH[who.cloth], CLOTH[who.cloth_second]
    base = second if who.clothes == "dungarees" else cloth
    _neck(who, canvas)
    body = canvas.fill(torso(who), lighter(base, 0.05), below=darker(base, 0.1))
    n = neck_width(who)
    if who.clothes == "stripes":
        for y in range(200, 282, 15):
            arc = [(x, y + 5 - (x / 34) ** 2) for x in range(-90, 91, 10)]
            canvas.stroke(arc, 6.5, second if second != base else lighter(base, 0.5), within=body)
    if who.clothes in ("tshirt", "stripes", "sweater", "dungarees"):
        trim = darker(base, 0.14) if who.clothes != "sweater" else lighter(base, 0.16)
        _collar(who, canvas, body, 14 if who.clothes == "tshirt" else 10, n + (7 if who.clothes == "tshirt" else 4), trim)
    if who.clothes == "sweater":
        for x in range(-70, 71, 14):
            canvas.stroke([(x * 0.86, 202 + abs(x) * 0.16), (x, 284)], 1.5, darker(base, 0.2), alpha=0.4, within=body)
    {"suit": _suit, "hoodie": _hoodie, "dungarees": _dungarees, "dress": _dress}.get(who.clothes, lambda *_: None)(who, canvas, body)
    if who.clothes == "shirt":
        _shirt(who, canvas)
    shade = darker(base, 0.7)
    canvas.fill(ellipse(66 * who.shoulder, 262, 34, 62), shade, alpha=0.16, blur=9, within=body)
    for x in (-1, 1):  # the fold between arm and chest
        fold = spline([(x * 52 * who.shoulder, 226), (x * 54 * who.shoulder, 246), (x * 52 * who.shoulder, 284)], closed=False)
        canvas.stroke(fold, 2.0, shade, alpha=0.3, taper=0.6)
    if who.accessory == "scarf":
        wool = CLOTH[who.accent]
        canvas.fill(box(8, 194, 30, 250, 5), darker(wool, 0.12), below=darker(wool, 0.2))
        for x in (11, 17, 23, 28):
            canvas.stroke([(x, 246), (x, 257)], 2.6, darker(wool, 0.2))
        band = [(-n - 15, 178), (-8, 190), (10, 190), (n + 15, 178), (n + 20, 190), (12, 206), (-12, 206), (-n - 20, 190)]
        wrap = canvas.fill(spline(band), lighter(wool, 0.1), below=darker(wool, 0.06))
        for x in range(-32, 33, 9):
            canvas.stroke([(x, 180), (x + 5, 206)], 1.4, darker(wool, 0.25), alpha=0.5, within=wrap)
