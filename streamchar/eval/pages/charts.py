"""The plots of a report and of a comparison: quality over time, lip sync, WER by clip, mouth against loudness."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace

from streamchar import clock
from streamchar.eval.pages.clips import anchor
from streamchar.eval.pages.evaluation import ClipResult, Evaluation, number
from streamchar.eval.pages.shell import colour, figure, key
from streamchar.eval.plots import Bar, Line, bar_chart, histogram, line_chart, mean_line

REACH = 15
"""Shifts of the sync search to each side."""
SHIFTS = tuple(range(-REACH, REACH + 1))
SHOWN_SECONDS = 8.0
"""Of the mouth against the loudness: longer is a hedge."""
MANY = 40
"""Single curves drawn behind a mean; more would be a grey block."""


def _curves(evaluation: Evaluation, name: str) -> list[tuple[ClipResult, Sequence[float]]]:
    return [(c, c.series[name]) for c in evaluation.clips if len(c.series.get(name, ())) > 1]


def _mean_and_thin(evaluations: Sequence[Evaluation], name: str, xs: Sequence[float] | None = None) -> list[Line]:
    """A mean of each system; with one system its single clips stand behind it."""
    lines: list[Line] = []
    for k, evaluation in enumerate(evaluations):
        curves = _curves(evaluation, name)
        if not curves:
            continue
        if len(evaluations) == 1 and len(curves) > 1:
            for clip, ys in curves[:MANY]:
                lines.append(Line(xs=list(xs or range(len(ys))), ys=ys, style="thin", label=clip.name))
        mean = mean_line([ys for _, ys in curves])
        label = f"{evaluation.name}, mean of {len(curves)}" if len(curves) > 1 else curves[0][0].name
        lines.append(Line(xs=list(xs or range(len(mean))), ys=mean, style=colour(k), label=label))
    return lines


def _labels(evaluations: Sequence[Evaluation]) -> str:
    return key([e.name for e in evaluations]) if len(evaluations) > 1 else ""


def drift_chart(evaluations: Sequence[Evaluation]) -> str:
    """Quality by the second."""
    lines = _mean_and_thin(evaluations, "quality")
    if not lines:
        return ""
    drawn = line_chart(
        lines, title="Quality over time", x_label="seconds from the start", y_label="quality (the drift's model)"
    )
    note = (
        "A stream that holds up runs level; one that drifts rises or falls. "
        "A mean over clips that end at different times steps where one ends."
    )
    return figure("Quality over time", note, drawn, _labels(evaluations))


def offset_chart(evaluations: Sequence[Evaluation]) -> str:
    """How often each shift between picture and sound was found."""
    sets = []
    for k, evaluation in enumerate(evaluations):
        values = [v for c in evaluation.clips if (v := c.values.get("sync_offset_frames")) is not None]
        if values:
            sets.append((evaluation.name, values, colour(k)))
    if not sets:
        return ""
    drawn = histogram(
        sets, low=-REACH, high=REACH, title="Sync offset", x_label="frames of 25 fps; to the right the picture is late",
        y_label="clips",
    )  # fmt: skip
    return figure(
        "Sync offset", "Where picture and sound fit best, clip by clip. In time is 0.", drawn, _labels(evaluations)
    )


def distance_chart(evaluations: Sequence[Evaluation]) -> str:
    """SyncNet's distance over the shift."""
    whole = [
        replace(e, clips=tuple(c for c in e.clips if len(c.series.get("sync_distance", ())) == len(SHIFTS)))
        for e in evaluations
    ]
    lines = _mean_and_thin(whole, "sync_distance", SHIFTS)
    if not lines:
        return ""
    drawn = line_chart(
        lines, title="Distance of picture and sound over the shift", x_label="shift in frames of 25 fps",
        y_label="distance", x_ticks=range(-REACH, REACH + 1, 5), upright=0.0,
    )  # fmt: skip
    note = "A deep, narrow valley at 0 is good sync: its floor is Sync-D, its depth below the median Sync-C."
    return figure("Distance over shift", note, drawn, _labels(evaluations))


def wer_chart(evaluation: Evaluation) -> str:
    """Word error rate of each clip, worst last."""
    measured = [(c, v) for c in evaluation.clips if (v := c.values.get("wer")) is not None]
    if not measured:
        return ""
    measured.sort(key=lambda pair: pair[1])
    bars = [Bar(label=c.name, value=v, link=f"#{anchor(c.name)}") for c, v in measured]
    drawn = bar_chart(
        bars, title="Word error rate by clip", x_label=f"{len(bars)} clips, the clearest first", y_label="WER",
        level=evaluation.entries["wer"].mean,
    )  # fmt: skip
    clean = sum(v == 0 for _, v in measured)
    return figure("WER by clip", f"{clean} of {len(measured)} clips were heard without an error.", drawn)


def wer_curves(evaluations: Sequence[Evaluation]) -> str:
    """The sorted word error rates of several systems."""
    lines = []
    for k, evaluation in enumerate(evaluations):
        values = sorted(v for c in evaluation.clips if (v := c.values.get("wer")) is not None)
        if values:
            xs = [100 * (i + 0.5) / len(values) for i in range(len(values))]
            lines.append(Line(xs=xs, ys=values, style=colour(k), label=evaluation.name))
    if not lines:
        return ""
    drawn = line_chart(
        lines, title="Word error rates, sorted", x_label="per cent of the clips, the clearest first", y_label="WER",
        zero=True,
    )  # fmt: skip
    return figure(
        "WER, sorted", "The lower and the longer at zero, the better understood.", drawn, _labels(evaluations)
    )


def scaled(values: Sequence[float]) -> list[float]:
    """Lowest to 0, highest to 1: two curves of different units on one axis."""
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def middle_clip(evaluation: Evaluation) -> ClipResult | None:
    """Of the clips with both curves, the one in the middle by mouth correlation: neither flattering nor unfair."""
    both = [
        c for c in evaluation.clips if len(c.series.get("opening", ())) > 1 and len(c.series.get("loudness", ())) > 1
    ]
    ranked = sorted(
        (c for c in both if c.values.get("mouth_correlation") is not None),
        key=lambda c: float(c.values["mouth_correlation"] or 0.0),
    )
    return ranked[len(ranked) // 2] if ranked else both[0] if both else None


def mouth_chart(evaluation: Evaluation) -> str:
    """Mouth opening of one clip against the loudness and, where it is known, the opening that the speech demands."""
    clip = middle_clip(evaluation)
    if clip is None:
        return ""
    lines, names = [], []
    for style, name, label in (
        ("s1", "loudness", "loudness"), ("s2", "demanded", "demanded by the speech"),
        ("s0", "opening", "mouth opening"),
    ):  # fmt: skip
        if len(clip.series.get(name, ())) > 1:
            ys = scaled(clip.series[name])[: round(SHOWN_SECONDS * clock.VIDEO_FPS)]
            lines.append(Line(xs=[i / clock.VIDEO_FPS for i in range(len(ys))], ys=ys, style=style, label=label))
            names.append(f'<span class="{style}"><i></i>{label}</span>')
    drawn = line_chart(
        lines, title="Mouth opening against loudness", x_label="seconds", y_label="each from its least to its most"
    )
    value = clip.values.get("mouth_correlation")
    middle = ""
    if value is not None:
        title = evaluation.entries["mouth_correlation"].figure.title
        middle = f" ({html.escape(title)}: {number(value)}, the middle one of the clips)"
    part = (
        f"its first {SHOWN_SECONDS:g} s" if len(clip.series["opening"]) > SHOWN_SECONDS * clock.VIDEO_FPS else "whole"
    )
    note = f"The clip {html.escape(clip.name)}{middle}, {part}."
    return figure("Mouth against loudness", note, drawn, f'<div class="key">{"".join(names[::-1])}</div>')


def pointer_chart(evaluation: Evaluation) -> str:
    """Words ended, as the pointer said and as the speech has them, of the clip in the middle by that error."""
    known = [c for c in evaluation.clips if len(c.series.get("words_pointer", ())) > 1]
    known = [c for c in known if c.values.get("pointer_words") is not None]
    if not known:
        return ""
    known.sort(key=lambda c: float(c.values["pointer_words"] or 0.0))
    clip = known[len(known) // 2]
    lines = [
        Line(xs=[i / clock.VIDEO_FPS for i in range(len(ys))], ys=ys, style=style, label=label)
        for style, label, ys in (
            ("s1", "in the speech", clip.series.get("words_spoken", ())),
            ("s0", "by the pointer", clip.series["words_pointer"]),
        )
    ]  # fmt: skip
    drawn = line_chart(lines, title="Words ended", x_label="seconds", y_label="words ended", zero=True)
    error = number(clip.values["pointer_words"])
    note = f"The clip {html.escape(clip.name)}: {error} words apart on average, the middle one of the clips."
    names = "".join(f'<span class="{line.style}"><i></i>{line.label}</span>' for line in lines[::-1])
    return figure("Pointer against speech", note, drawn, f'<div class="key">{names}</div>')


def report_charts(evaluation: Evaluation) -> str:
    """All plots of one evaluation that there is something for."""
    one = [evaluation]
    found = "".join([
        drift_chart(one), offset_chart(one), distance_chart(one), wer_chart(evaluation), mouth_chart(evaluation),
        pointer_chart(evaluation),
    ])  # fmt: skip
    return f'<div class="plots">{found}</div>' if found else '<p class="note">No curves were measured.</p>'
