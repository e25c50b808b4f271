"""Plots as inline SVG: no package needed, sharp on every screen, coloured by the page (light and dark).

Colours are the page's: classes `s0`, `s1`, ... are the systems, `thin` single clips, `grid` and `axis` the frame.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 14, 42
TICKS = 5
POINTS = 400
"""Longer curves are averaged down to this many: no screen shows more."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve; `style` is a class of the page."""

    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "s0"
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, shown with its label when pointed at, and linked if there is a place to go."""

    label: str
    value: float
    style: str = "s0"
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its interval in a forest plot."""

    label: str
    value: float
    low: float
    high: float
    style: str = "s0"


def ticks(low: float, high: float, count: int = TICKS, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(value: float) -> str:
    return f"{value:.10g}".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The axes: where a value lies in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    height: int = HEIGHT

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (self.height - TOP - BOTTOM)

    def svg(
        self, body: Sequence[str], *, title: str, x_label: str, y_label: str,
        x_ticks: Sequence[float] | None = None, y_whole: bool = False,
    ) -> str:  # fmt: skip
        """The plot with its grid, labels and a title for those who cannot see it."""
        parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{html.escape(title)}">']
        for value in ticks(self.y_low, self.y_high, whole=y_whole):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_text(value)}</text>')
        base = self.height - BOTTOM
        for value in ticks(self.x_low, self.x_high) if x_ticks is None else x_ticks:
            x = self.x(value)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 17}" text-anchor="middle">{_text(value)}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text class="name" x="{middle}" y="{self.height - 5}" text-anchor="middle">{html.escape(x_label)}</text>'
        )
        up = (TOP + base) / 2
        parts.append(
            f'<text class="name" transform="translate(12 {up}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(y_label)}</text>"
        )
        return "".join([*parts, *body, "</svg>"])


def _span(values: Sequence[float], *, pad: float = 0.06, zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    room = (high - low) * pad or abs(high) * 0.1 or 0.5
    return (low if zero and low == 0 else low - room), high + room


def thinned(xs: Sequence[float], ys: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most `points` points, each the mean of its neighbours."""
    size = math.ceil(len(ys) / points)
    if size <= 1:
        return list(xs), list(ys)
    cut = range(0, len(ys), size)
    return [sum(xs[i : i + size]) / len(xs[i : i + size]) for i in cut], [
        sum(ys[i : i + size]) / len(ys[i : i + size]) for i in cut
    ]


def mean_line(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean over curves at each place; shorter ones end earlier."""
    longest = max(map(len, curves))
    at = [[c[i] for c in curves if i < len(c)] for i in range(longest)]
    return [sum(values) / len(values) for values in at]


def line_chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, x_ticks: Sequence[float] | None = None,
    upright: float | None = None, zero: bool = False,
) -> str:  # fmt: skip
    """Curves over one pair of axes; `upright` draws a dotted line at that x."""
    lines = [line for line in lines if len(line.ys) > 0]
    if not lines:
        raise ValueError("a plot needs a line with points")
    x_all = [x for line in lines for x in line.xs]
    low, high = _span([y for line in lines for y in line.ys], zero=zero)
    x_low, x_high = min(x_all), max(x_all)
    frame = Frame(x_low=x_low, x_high=x_high if x_high > x_low else x_low + 1, y_low=low, y_high=high)
    body = []
    if upright is not None:
        x = frame.x(upright)
        body.append(f'<line class="upright" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line in lines:
        xs, ys = thinned(line.xs, line.ys)
        points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        tip = f"<title>{html.escape(line.label)}</title>" if line.label else ""
        if len(xs) == 1:
            body.append(f'<circle class="dot {line.style}" r="3" cx="{frame.x(xs[0]):.1f}" cy="{frame.y(ys[0]):.1f}">')
            body.append(f"{tip}</circle>")
        else:
            body.append(f'<polyline class="line {line.style}" points="{points}">{tip}</polyline>')
    return frame.svg(body, title=title, x_label=x_label, y_label=y_label, x_ticks=x_ticks)


def histogram(
    sets: Sequence[tuple[str, Sequence[float], str]], *, low: int, high: int, title: str, x_label: str, y_label: str
) -> str:
    """How often each whole number from low to high comes, for one or more sets of (label, values, style) side by
    side. Values beyond are counted at the ends."""
    counts = []
    for _, values, _ in sets:
        row = [0] * (high - low + 1)
        for value in values:
            row[min(max(round(value), low), high) - low] += 1
        counts.append(row)
    most = max(max(row) for row in counts)
    frame = Frame(x_low=low - 0.5, x_high=high + 0.5, y_low=0, y_high=max(1, most) * 1.08)
    width = 0.8 / len(sets)
    body = [f'<line class="upright" x1="{frame.x(0):.1f}" x2="{frame.x(0):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>']
    for k, ((label, _, style), row) in enumerate(zip(sets, counts, strict=True)):
        for i, count in enumerate(row):
            if count:
                x0, x1 = frame.x(low + i - 0.4 + k * width), frame.x(low + i - 0.4 + (k + 1) * width)
                y = frame.y(count)
                at = f"{low + i:+d}" if low + i else "0"
                body.append(
                    f'<rect class="bar {style}" x="{x0:.1f}" y="{y:.1f}" width="{x1 - x0:.1f}" '
                    f'height="{frame.y(0) - y:.1f}"><title>{html.escape(label)}: {count} at {at}</title></rect>'
                )
    step = 5 if high - low > 12 else 1
    at_whole = [v for v in range(low, high + 1) if v % step == 0]
    return frame.svg(body, title=title, x_label=x_label, y_label=y_label, x_ticks=at_whole, y_whole=True)


def bar_chart(bars: Sequence[Bar], *, title: str, x_label: str, y_label: str, level: float | None = None) -> str:
    """Bars in the order given, with a dotted line at `level`."""
    low, high = _span([b.value for b in bars] + ([] if level is None else [level]), zero=True)
    frame = Frame(x_low=0, x_high=len(bars), y_low=low, y_high=high)
    body = []
    wide = min(0.84, 40 * len(bars) / (WIDTH - LEFT - RIGHT))  # few bars stay bars, not walls
    for i, bar in enumerate(bars):
        x0, x1 = frame.x(i + 0.5 - wide / 2), frame.x(i + 0.5 + wide / 2)
        top, bottom = frame.y(max(bar.value, 0)), frame.y(min(bar.value, 0))
        height = max(bottom - top, 1.5)  # an exact zero still shows as a line
        rect = (
            f'<rect class="bar {bar.style}" x="{x0:.1f}" y="{bottom - height:.1f}" width="{x1 - x0:.1f}" '
            f'height="{height:.1f}"><title>{html.escape(bar.label)}: {bar.value:.3f}</title></rect>'
        )
        body.append(f'<a href="{html.escape(bar.link)}">{rect}</a>' if bar.link else rect)
    if level is not None:
        y = frame.y(level)
        body.append(f'<line class="upright" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick" x="{LEFT + 4}" y="{y - 5:.1f}">mean {level:.3f}</text>')
    return frame.svg(body, title=title, x_label=x_label, y_label=y_label, x_ticks=())


def forest(rows: Sequence[Interval], *, title: str, x_label: str, band: tuple[float, float] | None = None) -> str:
    """A value with its interval per row; `band` (the best's interval) is shaded through all rows."""
    ends = [v for r in rows for v in (r.low, r.high, r.value)]
    low, high = _span(ends)
    step, left, right = 38, 12, 12
    height = TOP + step * len(rows) + BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">']
    base = height - BOTTOM
    if band is not None:
        parts.append(
            f'<rect class="band" x="{x(band[0]):.1f}" y="{TOP}" width="{max(x(band[1]) - x(band[0]), 1):.1f}" '
            f'height="{base - TOP}"/>'
        )
    for value in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{base + 16}" text-anchor="middle">{_text(value)}</text>'
        )
    for i, row in enumerate(rows):
        y = TOP + step * i + 26
        tip = f"<title>{html.escape(row.label)}: {row.value:.4g} ({row.low:.4g} to {row.high:.4g})</title>"
        parts.append(f'<text class="row" x="{left}" y="{y - 10}">{html.escape(row.label)}</text>')
        parts.append(
            f'<line class="whisker {row.style}" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle class="dot {row.style}" cx="{x(row.value):.1f}" cy="{y}" r="4.5">{tip}</circle>')
    parts.append(
        f'<text class="name" x="{WIDTH / 2}" y="{height - 5}" text-anchor="middle">{html.escape(x_label)}</text></svg>'
    )
    return "".join(parts)


def curve_over(values: Sequence[float], style: str, width: int = 1000, height: int = 100) -> str:
    """A curve in [0, 1] stretched over another picture of the same time axis (mouth opening over a spectrogram)."""
    xs, ys = thinned(range(len(values)), values)
    last = max(len(values) - 1, 1)
    points = " ".join(
        f"{x / last * width:.0f},{(1 - min(max(y, 0.0), 1.0)) * (height - 4) + 2:.1f}"
        for x, y in zip(xs, ys, strict=True)
    )
    return (
        f'<svg class="over" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline class="line {style}" points="{points}"/></svg>'
    )
