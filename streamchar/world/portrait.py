"""The static parts of a character's head: skull, ears, nose, cheeks, beard and glasses, in head units.

`Head` holds the proportions that the moving features (eyes, brows, mouth) share with the static art.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from streamchar.world.character import ANIMALS, CLOTH, HAIRS, SKINS, Character
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


@dataclass(frozen=True, kw_only=True)
class Head:
    """Proportions in units; positions relative to the face's centre."""

    half_width: float
    eye_x: float
    eye_y: float
    eye_rx: float
    eye_ry: float
    brow_y: float
    mouth_y: float
    mouth_rx: float


def head_of(who: Character) -> Head:
    """Proportions of a character's head."""
    child = who.age == "child"
    animal = who.kind in ANIMALS
    half = {"round": 50.0, "oval": 46.0, "square": 48.0, "heart": 48.0, "long": 44.5}[who.face_shape] * who.head_width
    if animal:
        half = 52.0 * who.head_width
    rx, ry = {"round": (11.6, 13.0), "almond": (13.4, 11.6), "soft": (12.6, 12.2), "wide": (12.8, 14.0)}[who.eye_shape]
    eye_y = 4.0 if child else 0.5
    return Head(
        half_width=half, eye_x=0.435 * half * who.eye_gap, eye_y=eye_y, eye_rx=rx * who.eye_size, eye_ry=ry * who.eye_size,
        brow_y=eye_y - 20.5 * who.eye_size, mouth_y=34.0, mouth_rx=17.5 * who.mouth_width,
    )  # fmt: skip


def skull(who: Character, w: float) -> Outline:
    """Outline of the face."""
    if who.kind == "robot":
        return ellipse(0, 1, w, 57, power=3.6, n=96)
    if who.kind in ANIMALS:
        return spline(symmetric([(0, -54), (0.58 * w, -48), (0.95 * w, -22), (1.04 * w, 8), (1.0 * w, 30), (0.7 * w, 50), (0.3 * w, 57), (0, 58)]))
    cheek, jaw, chin = {
        "round": (1.0, 0.84, 0.42), "oval": (0.96, 0.76, 0.36), "square": (0.99, 0.9, 0.5), "heart": (0.97, 0.7, 0.27), "long": (0.98, 0.82, 0.4),
    }[who.face_shape]  # fmt: skip
    right = [(0, -57), (0.56 * w, -50), (0.93 * w, -25), (w, 2), (cheek * w, 22), (jaw * w, 41), (chin * w, 55), (0, 59)]
    return spline(symmetric([(x, y * who.head_height) for x, y in right]))


def _human_ears(who: Character, canvas: Canvas, w: float, skin: Colour) -> None:
    for x in (-1, 1):
        if who.ears == "pointed":
            ear = [(0.9 * w, -8), (1.2 * w, -22), (1.52 * w, -40), (1.36 * w, -4), (1.1 * w, 18), (0.92 * w, 18)]
            inner = [(1.02 * w, -4), (1.2 * w, -14), (1.38 * w, -28), (1.26 * w, -2), (1.08 * w, 10)]
        else:
            ear, inner = ellipse(w + 1.5, 8, 9, 13), ellipse(w + 3, 8, 5, 8)
        outer = spline(ear) if who.ears == "pointed" else ear
        within = spline(inner) if who.ears == "pointed" else inner
        canvas.fill(outer if x > 0 else mirror(outer), darker(skin, 0.05))
        canvas.fill(within if x > 0 else mirror(within), mix(darker(skin, 0.14), (0.9, 0.4, 0.4), 0.2))
    if who.accessory == "earrings":
        for x in (-1, 1):
            canvas.fill(ellipse(x * (w + 4), 24, 4.2, 4.2), CLOTH[who.accent], below=darker(CLOTH[who.accent], 0.15))
            canvas.fill(ellipse(x * (w + 3.2), 22.8, 1.3, 1.3), (1.0, 1.0, 1.0), alpha=0.8)


def paint_ears(who: Character, canvas: Canvas, w: float) -> None:
    """Ears lie behind the face, on the canvas of the hair's back."""
    skin = SKINS[who.skin]
    pink = mix(skin, rgb(246, 150, 160), 0.6)
    if who.kind == "robot":
        steel = darker(skin, 0.3)
        for x in (-1, 1):
            canvas.fill(box(min(x * (w - 4), x * (w + 11)), -8, max(x * (w - 4), x * (w + 11)), 22, 5), steel, below=darker(steel, 0.15))
        canvas.fill(box(-2.4, -80, 2.4, -50), steel)
        canvas.fill(ellipse(0, -82, 7.5, 7.5), CLOTH[who.accent], below=darker(CLOTH[who.accent], 0.12))
        canvas.fill(ellipse(-2, -84.5, 2.2, 2.2), (1.0, 1.0, 1.0), alpha=0.7)
    elif who.kind in ANIMALS:
        outer, inner = {
            "cat": ([(0.24 * w, -46), (0.62 * w, -78), (0.86 * w, -88), (1.0 * w, -54), (1.02 * w, -18)], [(0.46 * w, -50), (0.7 * w, -70), (0.83 * w, -76), (0.9 * w, -52), (0.9 * w, -30)]),
            "fox": ([(0.2 * w, -44), (0.62 * w, -80), (0.9 * w, -91), (1.06 * w, -54), (1.04 * w, -14)], [(0.46 * w, -50), (0.72 * w, -73), (0.87 * w, -78), (0.94 * w, -52), (0.92 * w, -30)]),
            "bear": (ellipse(0.74 * w, -48, 20, 20), ellipse(0.76 * w, -48, 11.5, 11.5)),
            "bunny": ([(0.12 * w, -46), (0.2 * w, -78), (0.5 * w, -98), (0.78 * w, -78), (0.66 * w, -40)], [(0.27 * w, -50), (0.34 * w, -75), (0.5 * w, -87), (0.64 * w, -73), (0.54 * w, -46)]),
        }[who.kind]  # fmt: skip
        for points, colour in ((outer, darker(skin, 0.04)), (inner, pink)):
            points = points if who.kind == "bear" else spline(points)
            canvas.fill(points, colour)
            canvas.fill(mirror(points), colour)
    else:
        _human_ears(who, canvas, w, skin)


def paint_skull(who: Character, canvas: Canvas, w: float) -> Tensor:
    """Face with soft shading; returns its mask."""
    skin = SKINS[who.skin]
    face = canvas.fill(skull(who, w), lighter(skin, 0.05), below=darker(skin, 0.035))
    canvas.fill(ellipse(0.98 * w, 22, 0.42 * w, 64), darker(mix(skin, (0.9, 0.35, 0.3), 0.25), 0.4), alpha=0.24, blur=7, within=face)
    canvas.fill(ellipse(-0.42 * w, -26, 0.36 * w, 16), (1.0, 1.0, 1.0), alpha=0.14, blur=8, within=face)
    if who.kind == "robot":
        plate = canvas.fill(ellipse(0, 4, 0.86 * w, 46, power=4, n=96), lighter(skin, 0.45), below=lighter(skin, 0.2))
        canvas.fill(ellipse(0.9 * w, 20, 0.4 * w, 50), darker(skin, 0.5), alpha=0.14, blur=7, within=plate)
        for x in (-0.9, 0.9):
            for y in (-40, 46):
                canvas.fill(ellipse(x * w * 0.86, y * 1.04, 2, 2), darker(skin, 0.35))
    elif who.kind in ANIMALS:
        _fur(who, canvas, w, skin, face)
    if who.hair_style not in ("bald", "none", "tuft", "buzz"):
        canvas.fill(ellipse(0, -46, w * 1.1, 26), darker(mix(skin, (0.8, 0.3, 0.25), 0.3), 0.4), alpha=0.3, blur=5, within=face)
    if who.facial_hair != "none":
        _beard(who, canvas, w, face)
    return face


def _fur(who: Character, canvas: Canvas, w: float, skin: Colour, face: Tensor) -> None:
    """Muzzle and markings."""
    pale = lighter(skin, 0.62)
    if who.kind == "fox":
        cheek = [(0.08 * w, 20), (0.5 * w, 8), (1.08 * w, 4), (1.06 * w, 34), (0.6 * w, 60), (0, 64), (0, 30)]
        for points in (cheek, mirror(cheek)):
            canvas.fill(spline(points), pale, within=face)
    canvas.fill(ellipse(0, 35, 0.56 * w, 24, power=2.3), pale, within=face)
    if who.kind == "cat":
        for x in (-10, 0, 10):
            canvas.stroke([(x, -54), (x * 0.9, -38 + abs(x) * 0.3)], 4.5, darker(skin, 0.28), taper=0.7, within=face)


def _beard(who: Character, canvas: Canvas, w: float, face: Tensor) -> None:
    colour = HAIRS[who.hair_colour] if who.hair_style != "bald" or who.age == "elder" else HAIRS["brown"]
    colour = lighter(colour, 0.10)  # keeps a black beard well apart from the dark of the mouth
    if who.facial_hair in ("beard", "stubble"):
        right = [(0, 22), (0.2 * w, 20.5), (0.46 * w, 25), (0.72 * w, 18), (0.9 * w, -4), (1.06 * w, 0), (1.04 * w, 40), (0.5 * w, 66), (0, 70)]
        alpha = 1.0 if who.facial_hair == "beard" else 0.24
        canvas.fill(spline(symmetric(right)), colour, below=darker(colour, 0.1), alpha=alpha, blur=0.7, within=face)
        if who.facial_hair == "beard":
            canvas.fill(ellipse(0, 36, 15, 4.5), SKINS[who.skin], alpha=0.5, blur=2.5)
    else:
        half = [(0, 24), (6, 22), (15, 25), (23, 31), (13, 30.5), (0, 29)]
        canvas.fill(spline(symmetric(half)), colour, below=darker(colour, 0.12))


def paint_features(who: Character, head: Head, canvas: Canvas) -> None:
    """Nose, cheeks, freckles, whiskers: what shifts with the features when the head turns."""
    skin = SKINS[who.skin]
    w = head.half_width
    glow = mix(skin, rgb(255, 96, 96), 0.28 + 0.24 * skin[1])  # gentler on dark skin
    if who.kind != "robot":
        for x in (-1, 1):
            canvas.fill(ellipse(x * 0.62 * w, 24, 10, 6.5), glow, alpha=0.45 if who.age != "elder" else 0.3, blur=3)
    else:
        for x in (-1, 1):
            canvas.fill(ellipse(x * 0.62 * w, 25, 6, 4), CLOTH[who.accent], alpha=0.5)
    nose = darker(mix(skin, rgb(235, 90, 80), 0.28), 0.2)
    if who.nose == "animal":
        tint = rgb(236, 130, 140) if who.kind in ("cat", "bunny") else rgb(74, 52, 56)
        canvas.fill(spline([(-7, 16), (0, 14.5), (7, 16), (4, 21), (0, 24), (-4, 21)]), tint, below=darker(tint, 0.15))
        canvas.fill(ellipse(-2, 17.3, 2, 1.1), (1.0, 1.0, 1.0), alpha=0.7)
        if who.kind in ("cat", "bunny", "fox"):
            for x in (-1, 1):
                for y in (28, 34):
                    canvas.stroke([(x * 0.62 * w, y), (x * 1.12 * w, y + (y - 32) * 0.9)], 1.0, darker(skin, 0.45), alpha=0.6)
    elif who.nose == "button":
        canvas.fill(ellipse(0, 19, 5.2, 3.8), nose, alpha=0.55, blur=0.7)
        canvas.fill(ellipse(-1, 17, 2.4, 1.7), (1.0, 1.0, 1.0), alpha=0.4, blur=0.6)
    elif who.nose == "soft":
        canvas.stroke(spline([(-4.5, 18), (-2, 21), (2, 21), (4.5, 18)], closed=False), 2.1, nose, taper=0.6)
    elif who.nose == "line":
        canvas.stroke(spline([(2, 4), (4.5, 13), (5, 18), (1, 20.5), (-3, 20)], closed=False), 2.0, nose, taper=0.7)
    elif who.nose == "round":
        canvas.fill(ellipse(0, 17, 7, 6), mix(skin, rgb(240, 110, 96), 0.26), below=nose, blur=0.5)
        canvas.fill(ellipse(-2, 15, 2.4, 1.8), (1.0, 1.0, 1.0), alpha=0.45, blur=0.5)
    if who.freckles:
        for x, y in ((-26, 17), (-20, 20), (-15, 17), (-22, 14), (26, 17), (20, 20), (15, 17), (22, 14)):
            canvas.fill(ellipse(x, y, 1.1, 1.1), darker(mix(skin, rgb(190, 90, 50), 0.5), 0.1), alpha=0.7)
    if who.age == "elder":
        for x in (-1, 1):
            fold = spline([(x * 9, 21), (x * 17, 27), (x * 21.5, 34)], closed=False)
            canvas.stroke(fold, 1.4, nose, taper=0.8, alpha=0.55)
            canvas.stroke([(x * (head.eye_x - 9), 18), (x * (head.eye_x + 7), 18.5)], 1.3, nose, taper=0.9, alpha=0.45)


def paint_glasses(who: Character, head: Head, canvas: Canvas) -> None:
    """Frames with a faint tint and a glint."""
    if who.accessory not in ("glasses", "round glasses"):
        return
    frame = darker(CLOTH[who.accent], 0.5) if who.seed % 2 else rgb(58, 54, 66)
    y, rx, ry = head.eye_y + 1, head.eye_rx + 5.0, head.eye_ry + 3.4
    power = 2.0 if who.accessory == "round glasses" else 3.4
    ry = ry if power > 2 else max(rx, ry)
    for x in (-head.eye_x, head.eye_x):
        lens = ellipse(x, y, rx, ry, power=power, n=72)
        canvas.fill(lens, (1.0, 1.0, 1.0), alpha=0.10)
        canvas.fill(ellipse(x - 0.5 * rx, y - 0.55 * ry, 2.0, 5.5, turn=0.6), (1.0, 1.0, 1.0), alpha=0.55)
        rim = ellipse(x, y, rx + 1.3, ry + 1.3, power=power, n=72)
        hole = ellipse(x, y, rx - 1.0, ry - 1.0, power=power, n=72)
        canvas.fill(rim, frame, within=1 - canvas.mask(hole))
    gap = head.eye_x - rx
    canvas.stroke(spline([(-gap, y - 3), (0, y - 5.5), (gap, y - 3)], closed=False), 2.4, frame)
    for x in (-1, 1):
        canvas.stroke([(x * (head.eye_x + rx), y - 4), (x * (head.half_width + 1), y - 7)], 2.4, frame)
