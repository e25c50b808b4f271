"""The report of an evaluation: report.html, one file that needs nothing else, and report.md.

`write_comparison` and `ranking` (eval/pages/comparison.py) are offered here too.
"""

from __future__ import annotations

import html
from pathlib import Path

from streamchar.errors import DataError
from streamchar.eval.pages.charts import report_charts
from streamchar.eval.pages.clips import by_quality, clip_sections, clip_table, ordering_keys
from streamchar.eval.pages.comparison import Comparison, compare, ranking, write_comparison
from streamchar.eval.pages.evaluation import (
    ARROWS,
    WORDS,
    Entry,
    Evaluation,
    group,
    interval_text,
    number,
    read_evaluation,
    truth_beside,
    value_text,
)
from streamchar.eval.pages.shell import bullets, cell, day, facts, page, plain, versions
from streamchar.eval.pages.words import marked_text

__all__ = ["Comparison", "compare", "ranking", "write_comparison", "write_report"]

HEADLINES = (
    "wer", "sync_offset_frames", "sync_d", "mouth_correlation", "identity", "quality_drift", "rtf",
    "speaker_similarity", "dnsmos", "fid_world", "fid",
)  # fmt: skip
TILES = 6
MARKED_CLIPS = 12
"""Clips whose recognised words stand in report.md."""


def write_report(folder: Path, *, truth: Path | None = None) -> Path:
    """Read metrics.json, series.json and the clips; write report.html and report.md; return the page.

    `truth`: the evaluation of the true videos of the same clips, shown as the ceiling; None: a folder named `truth`
    beside this one, if it is of the same clips. Raises `DataError` if a folder is no evaluation, or `truth` is of
    other clips.
    """
    evaluation = read_evaluation(folder)
    ceiling = _ceiling(evaluation, truth)
    (folder / "report.md").write_text(_markdown(evaluation, ceiling), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(_html(evaluation, ceiling), encoding="utf-8")
    return path


def _ceiling(evaluation: Evaluation, truth: Path | None) -> Evaluation | None:
    found = truth if truth is not None else truth_beside(evaluation.folder)
    if found is None:
        return None
    ceiling = read_evaluation(found)
    if ceiling.transcripts == evaluation.transcripts:
        return ceiling
    if truth is None:
        return None
    raise DataError(
        f"{truth}: expected the truth of the {len(evaluation.clips)} clips of {evaluation.folder}, got other names or "
        "texts; evaluate the truth with the same protocol and --clips"
    )


def _html(evaluation: Evaluation, ceiling: Evaluation | None) -> str:
    protocol = evaluation.protocol
    keys = ", ".join(evaluation.entries[k].figure.title for k in ordering_keys(evaluation))
    body = [
        '<p class="eyebrow">Evaluation</p>',
        f"<h1>{html.escape(evaluation.name)}</h1>",
        f'<p class="lead">{html.escape(_lead(evaluation))}</p>',
        '<nav><a href="#figures">Figures</a><a href="#curves">Curves</a><a href="#clips">Clips</a>'
        '<a href="#protocol">How it was measured</a></nav>',
        bullets(evaluation.warnings),
        _tiles(evaluation, ceiling),
        '<h2 id="figures">Figures</h2>',
        f'<p class="note">{_figures_note(ceiling)}</p>',
        _table(evaluation, ceiling),
        '<h2 id="curves">Curves</h2>',
        report_charts(evaluation),
        '<h2 id="clips">Clips</h2>',
        f'<p class="note">{_clips_note(keys)}</p>',
        clip_sections(evaluation),
        clip_table(evaluation),
        '<h2 id="protocol">How it was measured</h2>',
        f"<pre>{html.escape(str(protocol.get('exact', 'no exact protocol was written down')))}</pre>",
        '<div class="facts">',
        f"<section><h3>Protocol</h3>{facts({k: v for k, v in protocol.items() if k != 'exact'})}</section>",
        f"<section><h3>Model</h3>{_model(evaluation)}</section>",
        f"<section><h3>Environment</h3>{facts(evaluation.environment)}</section>",
        "</div>",
        "<h3>Measured by</h3>",
        _versions(evaluation),
        f"<footer>Written by streamchar eval from metrics.json and series.json; {html.escape(day(evaluation.created))}."
        "</footer>",
    ]
    return page(f"{evaluation.name}: evaluation", "\n".join(body))


def _lead(evaluation: Evaluation) -> str:
    protocol = evaluation.protocol
    seconds = protocol.get("seconds")
    length = f" of about {seconds:g} s" if isinstance(seconds, int | float) else ""
    name = f", protocol {protocol['name']}" if protocol.get("name") else ""
    measured = sum(e.mean is not None for e in evaluation.entries.values())
    count = len(evaluation.clips)
    return (
        f"{count} clip{'s' if count != 1 else ''}{length}{name}, {day(evaluation.created)}. "
        f"{measured} of {len(evaluation.entries)} figures were measured."
    )


def _figures_note(ceiling: Evaluation | None) -> str:
    note = "Means over clips with 95 % intervals, bootstrapped over clips. ↑ higher, ↓ lower, →0 nearer zero is better."
    if ceiling is not None:
        note += (
            f" <b>{html.escape(ceiling.name)}</b> is the same evaluation of the true videos: the ceiling, what a "
            "perfect model would get."
        )
    return note


def _clips_note(keys: str) -> str:
    if not keys:
        return "In the order of their names: no figure tells the clips apart."
    return (
        f"Ordered by the mean of their places in {html.escape(keys)}. Play a clip, or click into its pictures to play "
        "from there. The curve over the spectrogram is the mouth's opening, where it was read. Marked words are "
        '<mark class="changed">heard otherwise</mark>, <mark class="missing">not heard</mark> or '
        '<mark class="added">added</mark>; spellings that the word error rate forgives are marked too.'
    )


def _tiles(evaluation: Evaluation, ceiling: Evaluation | None) -> str:
    found = []
    for name in HEADLINES:
        entry = evaluation.entries.get(name)
        if entry is None or entry.mean is None or len(found) == TILES:
            continue
        interval = interval_text(entry)
        small = f'<span class="range">{interval}</span>' if interval else ""
        true = _ceiling_value(ceiling, entry)
        small += f'<span class="range">ceiling {true}</span>' if true else ""
        known = entry.figure
        found.append(
            f'<div class="tile" title="{html.escape(known.unit)}; {WORDS[known.better]}"><span>'
            f'{html.escape(known.title)}&nbsp;<i class="arrow">{ARROWS[known.better]}</i></span>'
            f"<b>{value_text(entry)}</b>{small}</div>"
        )
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def _ceiling_value(ceiling: Evaluation | None, entry: Entry) -> str:
    """The truth's value, if the same model and settings measured it."""
    true = None if ceiling is None else ceiling.entries.get(entry.figure.key)
    return value_text(true) if true is not None and true.mean is not None and true.version == entry.version else ""


def _table(evaluation: Evaluation, ceiling: Evaluation | None) -> str:
    wide = 6 if ceiling is None else 7
    true_head = "" if ceiling is None else f'<th class="n">{html.escape(ceiling.name)}</th>'
    rows = [
        '<table class="summary"><thead><tr><th>Figure</th><th class="n">Value</th><th class="n">95 % interval</th>'
        f'<th class="n">Clips</th>{true_head}<th>Unit</th><th>Measured by</th></tr></thead><tbody>'
    ]
    heading = ""
    for key, same in merged(evaluation).items():
        entry = evaluation.entries[key]
        if group(key) != heading:
            heading = group(key)
            rows.append(f'<tr class="head"><th colspan="{wide}">{heading}</th></tr>')
        known = entry.figure
        if entry.mean is None:
            titles = " · ".join(evaluation.entries[k].figure.title for k in same)
            rows.append(
                f'<tr class="none"><td>{html.escape(titles)}</td><td class="n">not measured</td>'
                f'<td class="reason" colspan="{wide - 2}">{html.escape(entry.reason)}</td></tr>'
            )
            continue
        title = (
            f'<td>{html.escape(known.title)}&nbsp;<span class="arrow" title="{WORDS[known.better]}">'
            f"{ARROWS[known.better]}</span></td>"
        )
        true = ""
        sizes = entry.samples.split(";")[0]  # the rest stands among the warnings
        samples = f"<small>{html.escape(sizes)}</small>" if sizes else ""
        version = html.escape(entry.version)
        if ceiling is not None:
            value = _ceiling_value(ceiling, entry) or "–"
            true = f'<td class="n truth" data-name="{html.escape(ceiling.name)}">{value}</td>'
        rows.append(
            f'<tr>{title}<td class="n value">{value_text(entry)}</td>'
            f'<td class="n range">{interval_text(entry) or "–"}</td>'
            f'<td class="n count" data-name="clips">{entry.count}</td>{true}'
            f'<td class="soft unit">{html.escape(known.unit)}</td><td class="by">'
            f'<span class="short" title="{version}">{version}</span>{samples}</td></tr>'
        )
    return "".join([*rows, "</tbody></table>"])


def merged(evaluation: Evaluation) -> dict[str, list[str]]:
    """The keys in order; those of a group that were not measured for one and the same reason stand together."""
    found: dict[str, list[str]] = {}
    first: dict[tuple[str, str], str] = {}
    for key, entry in evaluation.entries.items():
        place = first.setdefault((group(key), entry.reason), key) if entry.mean is None else key
        found.setdefault(place, []).append(key)
    return found


def _model(evaluation: Evaluation) -> str:
    if evaluation.model is None:
        return '<p class="note">Videos that existed before were scored; nothing was generated.</p>'
    return facts(evaluation.model)


def _versions(evaluation: Evaluation) -> str:
    rows = "".join(
        f"<li>{html.escape(', '.join(titles))}: {html.escape(version)}</li>"
        for version, titles in versions(list(evaluation.entries.values())).items()
    )
    return f'<ul class="note">{rows}</ul>'


def _markdown(evaluation: Evaluation, ceiling: Evaluation | None) -> str:
    lines = [f"# {evaluation.name}", "", _lead(evaluation), ""]
    lines.extend(f"> {w}\n" for w in evaluation.warnings)
    true_head = "" if ceiling is None else f" {cell(ceiling.name)} (ceiling) |"
    lines.append(f"| figure | value | 95 % interval | clips |{true_head} unit | measured by |")
    lines.append("|---|---:|---:|---:|" + ("---:|" if ceiling is not None else "") + "---|---|")
    for entry in evaluation.entries.values():
        known = entry.figure
        if entry.mean is None:
            continue
        true = "" if ceiling is None else f" {_ceiling_value(ceiling, entry) or '–'} |"
        lines.append(
            f"| {cell(known.title)} {ARROWS[known.better]} | {value_text(entry)} | {interval_text(entry) or '–'} | "
            f"{entry.count} |{true} {cell(known.unit)} | {cell(entry.version)} |"
        )
    missing = {k: same for k, same in merged(evaluation).items() if evaluation.entries[k].mean is None}
    if missing:
        lines += ["", "## Not measured", ""]
    for key, same in missing.items():
        titles = " · ".join(evaluation.entries[k].figure.title for k in same)
        lines.append(f"- {titles}: {evaluation.entries[key].reason}")
    lines += ["", "## Clips, the best first", ""]
    keys = ordering_keys(evaluation) or ["wer"]
    lines.append("| clip | " + " | ".join(cell(evaluation.entries[k].figure.title) for k in keys) + " |")
    lines.append("|---|" + "---:|" * len(keys))
    clips = by_quality(evaluation)
    for clip in clips:
        lines.append(f"| {cell(clip.name)} | " + " | ".join(number(clip.values[k]) for k in keys) + " |")
    heard = [c for c in clips if c.notes.get("heard") is not None]
    if heard:
        lines += ["", "## What was heard", "", "~~should be~~ **heard**; the worst clips first.", ""]
        lines.extend(f"- {c.name}: {marked_text(c.transcript, c.notes['heard'])}" for c in heard[::-1][:MARKED_CLIPS])
    lines += ["", "## Protocol", "", "```", str(evaluation.protocol.get("exact", "")), "```", "", "## Environment", ""]
    lines.extend(f"- {k}: {plain(v)}" for k, v in evaluation.environment.items())
    return "\n".join(lines) + "\n"
