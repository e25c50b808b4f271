"""Anti-aliased vector shapes as tensor code: filled outlines for what is static, implicit functions for what moves.

Lengths are in *design units*: the picture is 256 x 256 units, x to the right, y down, whatever its
size in pixels. Static art (head, hair, clothes) is drawn once per character into a `Canvas`, then
warped per frame; moving parts (eyes, mouth, hands) are implicit functions evaluated per frame in a
small box.

Shape letters: N points, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

UNITS = 256.0
"""Width and height of the picture in design units."""

Colour = tuple[float, float, float]
Outline = list[tuple[float, float]]
Points = Sequence[tuple[float, float]]


def rgb(red: int, green: int, blue: int) -> Colour:
    """8-bit components -> a colour with components in [0, 1]."""
    return (red / 255.0, green / 255.0, blue / 255.0)


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Linear blend: `amount` 0 gives `first`, 1 gives `second`."""
    return tuple(a + (b - a) * amount for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def darker(colour: Colour, amount: float) -> Colour:
    """Towards a cool dark rather than black: shadows that keep some colour look alive."""
    return mix(colour, (0.16, 0.08, 0.20), amount)


def lighter(colour: Colour, amount: float) -> Colour:
    """Towards a warm white."""
    return mix(colour, (1.0, 0.985, 0.95), amount)


# ---- outlines ---------------------------------------------------------------------------------


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, power: float = 2.0, n: int = 56) -> Outline:
    """Ellipse (power 2) or superellipse (power > 2, boxier), turned by `turn` radians about its centre."""
    points = []
    c, s = math.cos(turn), math.sin(turn)
    for i in range(n):
        a = 2 * math.pi * i / n
        x = math.copysign(abs(math.cos(a)) ** (2 / power), math.cos(a)) * rx
        y = math.copysign(abs(math.sin(a)) ** (2 / power), math.sin(a)) * ry
        points.append((cx + x * c - y * s, cy + x * s + y * c))
    return points


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Outline:
    """Axis-aligned rectangle with rounded corners."""
    if radius <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    points = []
    corners = ((x1 - radius, y0 + radius, -90), (x1 - radius, y1 - radius, 0), (x0 + radius, y1 - radius, 90))
    for cx, cy, first in (*corners, (x0 + radius, y0 + radius, 180)):
        for step in range(7):
            a = math.radians(first + 15 * step)
            points.append((cx + radius * math.cos(a), cy + radius * math.sin(a)))
    return points


def spline(points: Points, closed: bool = True, per: int = 8) -> Outline:
    """Catmull-Rom curve through `points`, `per` samples a span."""
    p = torch.tensor(points, dtype=torch.float64)
    if closed:
        before, after, last = p.roll(1, 0), p.roll(-1, 0), p.roll(-2, 0)
    else:
        padded = torch.cat([p[:1], p, p[-1:]])
        before, after, last = padded[:-3], padded[2:-1], padded[3:]
        p = p[:-1]
    t = (torch.arange(per, dtype=torch.float64) / per).view(1, per, 1)
    a, b, c, d = (q.unsqueeze(1) for q in (before, p, after, last))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    out = [(x, y) for x, y in curve.reshape(-1, 2).tolist()]
    return out if closed else [*out, points[-1]]


def symmetric(right: Points) -> Outline:
    """Close a right half, given from top to bottom, with its mirror image about x = 0."""
    left = [(-x, y) for x, y in reversed(right) if abs(x) > 1e-6]
    return [*right, *left]


def mirror(points: Points) -> Outline:
    return [(-x, y) for x, y in points]


def moved(points: Points, dx: float, dy: float) -> Outline:
    return [(x + dx, y + dy) for x, y in points]


def ribbon(points: Points, width: float, taper: float = 0.0) -> Outline:
    """Outline of a stroke along an open polyline; `taper` in [0, 1] thins both ends."""
    n = len(points)
    sides: tuple[Outline, Outline] = ([], [])
    for i, (x, y) in enumerate(points):
        (ax, ay), (bx, by) = points[max(i - 1, 0)], points[min(i + 1, n - 1)]
        length = math.hypot(bx - ax, by - ay) or 1.0
        nx, ny = -(by - ay) / length, (bx - ax) / length
        u = 2 * i / (n - 1) - 1
        half = 0.5 * width * (1 - taper * u * u)
        sides[0].append((x + nx * half, y + ny * half))
        sides[1].append((x - nx * half, y - ny * half))
    return sides[0] + sides[1][::-1]


# ---- filling ----------------------------------------------------------------------------------


def coverage(points_N2: Tensor, height: int, width: int, rows: int = 4) -> Tensor:
    """Share of each pixel inside a closed outline given in pixels -> (H, W) in [0, 1].

    Non-zero winding. Exact along x, `rows` sub-scanlines along y. Signed crossings are scattered
    and summed along x, so the cost is crossings + pixels, not points x pixels.
    """
    start, end = points_N2, points_N2.roll(-1, 0)
    rise = end[:, 1] - start[:, 1]
    ys = (torch.arange(height * rows, dtype=torch.float64) + 0.5) / rows
    low, high = torch.minimum(start[:, 1], end[:, 1]), torch.maximum(start[:, 1], end[:, 1])
    edge, row = ((ys >= low[:, None]) & (ys < high[:, None])).nonzero(as_tuple=True)
    slope = (end[edge, 0] - start[edge, 0]) / rise[edge]
    x = (start[edge, 0] + (ys[row] - start[edge, 1]) * slope).clamp(0, width)
    column = x.floor()
    inside = rise[edge].sign()
    flat = torch.zeros(height * rows * (width + 2), dtype=torch.float64)
    at = row * (width + 2) + column.long()
    flat.index_add_(0, at, inside * (column + 1 - x))
    flat.index_add_(0, at + 1, inside * (x - column))
    winding = flat.view(height * rows, width + 2).cumsum(1)[:, :width]
    return winding.abs().clamp(max=1).view(height, rows, width).mean(1).float()


def blurred(mask_HW: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur, `sigma` in pixels, zero outside."""
    radius = max(1, math.ceil(2.5 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = mask_HW[None, None]
    image = F.conv2d(image, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return F.conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, radius))[0, 0]


class Canvas:
    """A premultiplied RGBA picture, painted back to front, in design units around an origin.

    `margin` units are kept around the picture, so that a sprite may move without showing an edge.
    `scale` is pixels per unit.
    """

    def __init__(self, scale: float, origin: tuple[float, float] = (0.0, 0.0), margin: float = 28.0) -> None:
        self.scale, self.origin, self.margin = scale, origin, margin
        self.side = round((UNITS + 2 * margin) * scale)
        self.pixels = torch.zeros(4, self.side, self.side)

    def mask(self, points: Points, blur: float = 0.0) -> Tensor:
        """(H, W) coverage of an outline over the whole canvas; `blur` is a Gaussian sigma in units."""
        p = torch.tensor(points, dtype=torch.float64)
        p = (p + torch.tensor(self.origin, dtype=torch.float64) + self.margin) * self.scale
        reach = math.ceil(2.5 * blur * self.scale) + 2
        x0, y0 = (max(0, math.floor(v) - reach) for v in p.min(0).values.tolist())
        x1, y1 = (min(self.side, math.ceil(v) + reach) for v in p.max(0).values.tolist())
        whole = torch.zeros(self.side, self.side)
        if x1 <= x0 or y1 <= y0:
            return whole
        part = coverage(p - torch.tensor([x0, y0], dtype=torch.float64), y1 - y0, x1 - x0)
        whole[y0:y1, x0:x1] = blurred(part, blur * self.scale) if blur > 0 else part
        return whole

    def fill(
        self,
        points: Points,
        colour: Colour,
        *,
        below: Colour | None = None,
        alpha: float = 1.0,
        blur: float = 0.0,
        within: Tensor | None = None,
    ) -> Tensor:
        """Paint an outline; returns its mask, to clip what is painted on it next.

        `below`: colour at the outline's bottom, for a vertical gradient. `within`: a mask to clip to.
        """
        mask = self.mask(points, blur)
        if within is not None:
            mask = mask * within
        used = mask.nonzero()
        if len(used) == 0:
            return mask
        (y0, x0), (y1, x1) = used.min(0).values.tolist(), (used.max(0).values + 1).tolist()
        paint = torch.tensor(colour).view(3, 1, 1)
        if below is not None:
            down = torch.linspace(0, 1, y1 - y0).view(1, -1, 1)
            paint = paint + (torch.tensor(below).view(3, 1, 1) - paint) * down
        amount = mask[y0:y1, x0:x1] * alpha
        region = self.pixels[:, y0:y1, x0:x1]
        region *= 1 - amount
        region[:3] += paint * amount
        region[3] += amount
        return mask

    def stroke(self, points: Points, width: float, colour: Colour, *, taper: float = 0.0, alpha: float = 1.0,
               within: Tensor | None = None) -> Tensor:  # fmt: skip
        """Paint a line along an open polyline."""
        return self.fill(ribbon(points, width, taper), colour, alpha=alpha, within=within)


# ---- implicit functions -----------------------------------------------------------------------


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def inside(distance_THW: Tensor, scale: float) -> Tensor:
    """Pixel coverage of {distance < 0} for a true distance in units; `scale` is pixels per unit."""
    return (0.5 - distance_THW * scale).clamp_(0, 1)


def inside_implicit(value_THW: Tensor) -> Tensor:
    """Pixel coverage of {value < 0} for any function: divided by its gradient, taken between pixels."""
    dx = F.pad(value_THW[..., 2:] - value_THW[..., :-2], (1, 1), mode="replicate")
    dy = F.pad(value_THW[..., 2:, :] - value_THW[..., :-2, :], (0, 0, 1, 1), mode="replicate")
    steep = (dx * dx).addcmul_(dy, dy).sqrt_().mul_(0.5).clamp_(min=1e-4)
    return (0.5 - value_THW / steep).clamp_(0, 1)


def segment(x: Tensor, y: Tensor, ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to a segment and the position along it in [0, 1]; end points broadcast against x, y."""
    ex, ey = bx - ax, by - ay
    px, py = x - ax, y - ay
    along = ((px * ex + py * ey) / (ex * ex + ey * ey).clamp(min=1e-6)).clamp_(0, 1)
    return torch.hypot(px - along * ex, py - along * ey), along
