"""Several evaluations side by side: who is best at what, and whether the data can tell.

Systems are ranked in a column only if the same clips were measured by the same model; where not, the page says so.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from streamchar.errors import DataError
from streamchar.eval.metric import Better, Figure
from streamchar.eval.pages.charts import distance_chart, drift_chart, offset_chart, wer_curves
from streamchar.eval.pages.clips import by_quality, standing
from streamchar.eval.pages.evaluation import (
    ARROWS,
    WORDS,
    Entry,
    Evaluation,
    group,
    interval_text,
    ordered,
    read_evaluation,
    value_text,
)
from streamchar.eval.pages.film import film
from streamchar.eval.pages.shell import bullets, cell, colour, figure, page
from streamchar.eval.plots import Interval, forest

OF_A_SET = ("fid", "fvd", "fid_world")
"""Figures that depend on the reference videos."""
STRIPS = 3
"""Clips whose pictures stand side by side."""


def ranking(values: Sequence[float | None], better: Better) -> list[int | None]:
    """1 for the best, 2 for the second best value, and so on; equal values share a rank and none is skipped.

    None is not ranked, nor is anything where neither direction is better. With `zero` the smallest size wins.
    """
    if better == "neither":
        return [None] * len(values)
    sizes = [None if v is None or not math.isfinite(v) else standing(v, better) for v in values]
    levels = sorted({s for s in sizes if s is not None})
    return [None if s is None else levels.index(s) + 1 for s in sizes]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of all systems."""

    figure: Figure
    entries: tuple[Entry | None, ...]
    """None where a system's evaluation has no such figure at all."""
    ranks: tuple[int | None, ...]
    close: tuple[bool, ...]
    """The interval meets the best one's: the clips do not tell the two apart."""
    note: str = ""
    """Why there are no ranks."""

    def reason(self, index: int) -> str:
        """Why system `index` has a dash."""
        entry = self.entries[index]
        return "not a part of this evaluation" if entry is None else entry.reason


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `eval compare` shows, on the page and in the terminal."""

    evaluations: tuple[Evaluation, ...]
    """With names of their own."""
    columns: tuple[Column, ...]
    warnings: tuple[str, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read and rank; raises `DataError` for fewer than two folders or one that is no evaluation."""
    if len(folders) < 2:
        raise DataError(f"expected at least two evaluation folders to compare, got {len(folders)}")
    evaluations = _named([read_evaluation(folder) for folder in folders])
    warnings = _warnings(evaluations)
    references = {str(e.protocol.get("reference")) for e in evaluations}
    same_clips = all(e.transcripts == evaluations[0].transcripts for e in evaluations)
    keys = ordered(list(dict.fromkeys(key for e in evaluations for key in e.entries)))
    columns = tuple(
        _column([e.entries.get(key) for e in evaluations], same_clips, references if key in OF_A_SET else set())
        for key in keys
    )
    return Comparison(evaluations=evaluations, columns=columns, warnings=warnings)


def _named(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    names = [e.name for e in evaluations]
    unique = [e.name if names.count(e.name) == 1 else f"{e.name} ({e.folder.resolve().name})" for e in evaluations]
    if len(set(unique)) < len(unique):
        unique = [f"{i}. {n}" for i, n in enumerate(names, 1)]
    return tuple(replace(e, name=n) for e, n in zip(evaluations, unique, strict=True))


def _warnings(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    first, found = evaluations[0], []
    for other in evaluations[1:]:
        mine, theirs = first.transcripts, other.transcripts
        if mine == theirs:
            continue
        lone = len(set(mine) ^ set(theirs))
        texts = sum(mine[n] != theirs[n] for n in set(mine) & set(theirs))
        found.append(
            f"{first.name} and {other.name} were not measured on the same clips ({lone} names in one only, "
            f"{texts} other texts): nothing is ranked"
        )
    own = [f"{e.name}: {w}" for e in evaluations for w in e.warnings]
    shared = [w for w in evaluations[0].warnings if all(w in e.warnings for e in evaluations)]
    own = [line for line in own if line.split(": ", 1)[1] not in shared]
    return (*found, *shared, *own)


def meeting(a: tuple[float, float] | None, b: tuple[float, float] | None, better: Better) -> bool:
    """Whether two intervals overlap; with `zero`, of the sizes."""
    if a is None or b is None:
        return False
    if better == "zero":
        a, b = _size(a), _size(b)
    return a[0] <= b[1] and b[0] <= a[1]


def _size(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _column(entries: Sequence[Entry | None], same_clips: bool, references: set[str]) -> Column:
    known = next(e for e in entries if e is not None)
    better = known.figure.better
    measured = [e for e in entries if e is not None and e.mean is not None]
    versions = list(dict.fromkeys(e.version for e in measured))
    note = ""
    if len(versions) > 1:
        note = f"{known.figure.title} is not ranked: measured by different models or settings ({'; '.join(versions)})"
    elif len(references) > 1 and len(measured) > 1:
        note = (
            f"{known.figure.title} is not ranked: taken against different references ({'; '.join(sorted(references))})"
        )
    ranks: list[int | None] = [None] * len(entries)
    if same_clips and not note and len(measured) > 1:
        ranks = ranking([None if e is None else e.mean for e in entries], better)
    best = next((e for e, rank in zip(entries, ranks, strict=True) if rank == 1), None)
    close = tuple(
        rank is not None and rank > 1 and e is not None and best is not None
        and meeting(e.interval, best.interval, better)
        for e, rank in zip(entries, ranks, strict=True)
    )  # fmt: skip
    return Column(figure=known.figure, entries=tuple(entries), ranks=tuple(ranks), close=close, note=note)


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """compare.html and compare.md in `out`; returns the page. Raises `DataError` as `compare` does."""
    found = compare(folders)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(_markdown(found), encoding="utf-8")
    path = out / "compare.html"
    path.write_text(_html(found, out), encoding="utf-8")
    return path


def _groups(found: Comparison) -> dict[str, list[Column]]:
    """The columns with at least one value, by heading."""
    groups: dict[str, list[Column]] = {}
    for column in found.columns:
        if any(e is not None and e.mean is not None for e in column.entries):
            groups.setdefault(group(column.figure.key), []).append(column)
    return groups


def _reasons(found: Comparison) -> list[tuple[str, str]]:
    """(figure, why) of every dash; systems with the same reason share a line."""
    lines: list[tuple[str, str]] = []
    for column in found.columns:
        by_reason: dict[str, list[str]] = {}
        for i, e in enumerate(column.entries):
            if e is None or e.mean is None:
                by_reason.setdefault(column.reason(i), []).append(found.evaluations[i].name)
        for reason, names in by_reason.items():
            who = "" if len(names) == len(found.evaluations) else f"{', '.join(names)}: "
            lines.append((column.figure.title, who + reason))
    return lines


LEGEND = (
    "The best of each column is bold, the second underlined. ≈ behind a value: its 95 % interval meets the best one's, "
    "so these clips do not tell the two apart. Intervals are bootstrapped over clips."
)


def _html(found: Comparison, out: Path) -> str:
    names = ", ".join(e.name for e in found.evaluations)
    first = found.evaluations[0]
    body = [
        '<p class="eyebrow">Comparison</p>',
        f"<h1>{html.escape(' · '.join(e.name for e in found.evaluations))}</h1>",
        f'<p class="lead">{len(found.evaluations)} systems, {len(first.clips)} clips of the protocol '
        f"{html.escape(str(first.protocol.get('name', 'without a name')))}. {LEGEND}</p>",
        bullets(found.warnings),
        *(_table(title, columns, found, out) for title, columns in _groups(found).items()),
        "<h2>Intervals</h2>",
        '<p class="note">Each value with its 95 % interval; shaded is the interval of the best.</p>',
        f'<div class="plots">{"".join(_forest(c, found) for c in found.columns)}</div>',
        "<h2>Curves</h2>",
        '<div class="plots">',
        *(chart(found.evaluations) for chart in (drift_chart, offset_chart, distance_chart, wer_curves)),
        "</div>",
        _strips(found),
        _missing(found),
    ]
    return page(f"Comparison: {names}", "\n".join(body))


def _table(title: str, columns: Sequence[Column], found: Comparison, out: Path) -> str:
    head = "".join(
        f'<th class="n">{html.escape(c.figure.title)}&nbsp;<span class="arrow" title="{WORDS[c.figure.better]}">'
        f"{ARROWS[c.figure.better]}</span><small>{html.escape(c.figure.unit)}</small></th>"
        for c in columns
    )
    rows = []
    for i, evaluation in enumerate(found.evaluations):
        name = html.escape(evaluation.name)
        report = evaluation.folder.resolve() / "report.html"
        if report.is_file():
            link = quote(os.path.relpath(report, out.resolve()).replace(os.sep, "/"))
            name = f'<a href="{link}">{name}</a>'
        cells = "".join(_cell(c, i) for c in columns)
        rows.append(f'<tr><td class="{colour(i)}"><i class="swatch"></i>{name}</td>{cells}</tr>')
    notes = "".join(f'<p class="note">{html.escape(c.note)}</p>' for c in columns if c.note)
    return (
        f'<h2>{html.escape(title)}</h2><div class="wide"><table class="systems"><thead><tr><th>System</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _cell(column: Column, index: int) -> str:
    entry, rank = column.entries[index], column.ranks[index]
    if entry is None or entry.mean is None:
        return f'<td class="n soft" title="{html.escape(column.reason(index))}">–</td>'
    style = {1: "best", 2: "second"}.get(rank or 0, "")
    close = ' <span class="close" title="its interval meets the best one\'s">≈</span>' if column.close[index] else ""
    interval = interval_text(entry)
    small = f"<small>{interval}</small>" if interval else ""
    return f'<td class="n"><span class="{style}">{value_text(entry)}</span>{close}{small}</td>'


def _forest(column: Column, found: Comparison) -> str:
    rows = []
    for i, entry in enumerate(column.entries):
        if entry is not None and entry.mean is not None and entry.interval is not None:
            low, high = entry.interval
            name = found.evaluations[i].name
            rows.append(Interval(label=name, value=entry.mean, low=low, high=high, style=colour(i)))
    if len(rows) < 2:
        return ""
    best = next((e for e, rank in zip(column.entries, column.ranks, strict=True) if rank == 1), None)
    band = None if best is None or column.figure.better == "zero" else best.interval
    known = column.figure
    return figure(known.title, WORDS[known.better], forest(rows, title=known.title, x_label=known.unit, band=band))


def _strips(found: Comparison) -> str:
    shared = set.intersection(*(set(e.transcripts) for e in found.evaluations))
    order = [c.name for c in by_quality(found.evaluations[0]) if c.name in shared]
    if not order:
        return ""
    places = range(len(order)) if len(order) <= STRIPS else (0, len(order) // 2, len(order) - 1)
    parts = [
        "<h2>Pictures</h2>",
        f'<p class="note">Clips from the best to the worst of {found.evaluations[0].name}.</p>',
    ]
    for place in places:
        name = order[place]
        parts.append(f'<div class="strips"><h3>{html.escape(name)}</h3>')
        for i, evaluation in enumerate(found.evaluations):
            clip = next(c for c in evaluation.clips if c.name == name)
            shown = film(clip.video, sound=False)
            label = f'<div class="key"><span class="{colour(i)}"><i></i>{html.escape(evaluation.name)}</span></div>'
            parts.append(
                f'{label}<div class="wide"><img src="{shown.strip}" alt="{html.escape(evaluation.name)}"></div>'
                if shown.strip
                else f'{label}<p class="note">{html.escape(shown.fault)}</p>'
            )
        parts.append("</div>")
    return "".join(parts)


def _missing(found: Comparison) -> str:
    lines = _reasons(found)
    if not lines:
        return ""
    rows = "".join(f"<li><b>{html.escape(t)}</b>: {html.escape(why)}</li>" for t, why in lines)
    return f"<h2>Not measured</h2><ul>{rows}</ul>"


def _markdown(found: Comparison) -> str:
    lines = ["# Comparison: " + ", ".join(e.name for e in found.evaluations), "", LEGEND, ""]
    lines.extend(f"> {w}\n" for w in found.warnings)
    for title, columns in _groups(found).items():
        lines += ["", f"## {title}", ""]
        lines.append(
            "| system | " + " | ".join(cell(f"{c.figure.title} {ARROWS[c.figure.better]}") for c in columns) + " |"
        )
        lines.append("|---|" + "---:|" * len(columns))
        for i, evaluation in enumerate(found.evaluations):
            lines.append(f"| {cell(evaluation.name)} | " + " | ".join(_plain_cell(c, i) for c in columns) + " |")
        lines.extend(f"\n{c.note}" for c in columns if c.note)
    reasons = _reasons(found)
    if reasons:
        lines += ["", "## Not measured", "", *(f"- {t}: {why}" for t, why in reasons)]
    return "\n".join(lines) + "\n"


def _plain_cell(column: Column, index: int) -> str:
    entry = column.entries[index]
    if entry is None or entry.mean is None:
        return "–"
    text = value_text(entry)
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(column.ranks[index] or 0, text)
    interval = interval_text(entry)
    return text + (" ≈" if column.close[index] else "") + (f" ({interval})" if interval else "")
