"""The clips of a report, best and worst first: film strip, sound, words, what was heard, every figure."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from urllib.parse import quote

from streamchar.errors import DataError
from streamchar.eval.metric import Better
from streamchar.eval.pages.evaluation import ARROWS, ClipResult, Evaluation, number
from streamchar.eval.pages.film import Film, film, read_words
from streamchar.eval.pages.words import marked
from streamchar.eval.plots import curve_over

SHOWN = 4
"""Clips shown at once from each end of the order; the others are folded away."""
PICTURED = 24
"""Clips with pictures, from both ends of the order: more would make the page too heavy."""
WORDS_UP_TO = 20.0
"""Seconds; the words of a longer clip would lie over each other."""
TOLD = ("errors", "sound")
"""Notes that stand under the transcript; the others are folded away with the figures."""
ORDER = (
    "wer", "sync_d", "sync_c", "mouth_correlation", "identity", "attributes_kept", "speaker_similarity", "dnsmos",
    "quality_drift",
)  # fmt: skip
"""What the order of clips goes by: figures of a clip itself that have a better end."""
CHIPS = (
    "wer", "sync_offset_frames", "sync_d", "mouth_correlation", "identity", "speaker_similarity", "dnsmos",
    "quality_drift", "rtf",
)  # fmt: skip


def standing(value: float, better: Better) -> float:
    """Lower is better, whatever the direction."""
    return {"higher": -value, "lower": value, "zero": abs(value), "neither": 0.0}[better]


def ordering_keys(evaluation: Evaluation) -> list[str]:
    """Those of `ORDER` that tell clips apart."""
    found = []
    for name in ORDER:
        if name in evaluation.entries:
            values = {clip.values[name] for clip in evaluation.clips} - {None}
            found.extend([name] if len(values) > 1 else [])
    return found


def by_quality(evaluation: Evaluation) -> list[ClipResult]:
    """Best clips first: by the mean of their places in each of `ordering_keys`, where they were measured."""
    places: dict[str, list[float]] = {clip.name: [] for clip in evaluation.clips}
    for name in ordering_keys(evaluation):
        better = evaluation.entries[name].figure.better
        measured = {c.name: standing(v, better) for c in evaluation.clips if (v := c.values[name]) is not None}
        for clip_name, mine in measured.items():
            ahead = sum(other < mine for other in measured.values())
            level = sum(other == mine for other in measured.values()) - 1
            places[clip_name].append((ahead + level / 2) / max(1, len(measured) - 1))
    worst = 1.1  # nothing could be measured

    def place(clip: ClipResult) -> float:
        own = places[clip.name]
        return sum(own) / len(own) if own else worst

    return sorted(evaluation.clips, key=lambda c: (place(c), c.name))


def anchor(name: str) -> str:
    """Where the page shows a clip."""
    return "clip-" + quote(name, safe="")


def video_link(clip: ClipResult, evaluation: Evaluation) -> str:
    """The video from the page's folder; empty if the file is gone."""
    if not clip.video.is_file():
        return ""
    try:
        there = os.path.relpath(clip.video.resolve(), evaluation.folder.resolve())
    except ValueError:  # another drive
        return clip.video.resolve().as_uri()
    return quote(there.replace(os.sep, "/"))


def clip_sections(evaluation: Evaluation) -> str:
    """All clips that have pictures, as HTML."""
    clips = by_quality(evaluation)
    half = PICTURED // 2
    pictured = clips if len(clips) <= PICTURED else clips[:half] + clips[-half:]
    if len(pictured) <= 2 * SHOWN:
        return "".join(card(c, evaluation, _badge(i, clips)) for i, c in enumerate(clips))
    cards = [card(c, evaluation, _badge(clips.index(c), clips)) for c in pictured]
    middle = "".join(cards[SHOWN:-SHOWN])
    left_out = len(clips) - len(pictured)
    note = f' <span class="soft">({left_out} more in the table below)</span>' if left_out else ""
    folded = f"<details><summary>{len(cards) - 2 * SHOWN} clips between</summary>{middle}</details>{note}"
    return (
        f'<h3 class="soft">The best</h3>{"".join(cards[:SHOWN])}'
        f'<h3 class="soft">The worst, the very worst first</h3>{"".join(reversed(cards[-SHOWN:]))}{folded}'
    )


def _badge(index: int, clips: Sequence[ClipResult]) -> str:
    if len(clips) < 2:
        return ""
    if index == 0:
        return '<span class="badge">best</span>'
    return '<span class="badge low">worst</span>' if index == len(clips) - 1 else ""


def card(clip: ClipResult, evaluation: Evaluation, badge: str) -> str:
    """One clip."""
    shown = film(clip.video)
    link = video_link(clip, evaluation)
    data = f' data-video="{html.escape(link)}" data-seconds="{shown.seconds:.3f}"' if link else ""
    button = '<button class="play" type="button">Play</button>' if link else ""
    return (
        f'<article class="clip" id="{anchor(clip.name)}"{data}><header><h3>{html.escape(clip.name)}</h3>{badge}'
        f'{button}<span class="chips">{_chips(clip, evaluation)}</span></header>'
        f"{_timeline(clip, shown)}{_texts(clip)}{_all_figures(clip, evaluation)}</article>"
    )


def _chips(clip: ClipResult, evaluation: Evaluation) -> str:
    found = []
    for name in CHIPS:
        if name in evaluation.entries and clip.values[name] is not None:
            known = evaluation.entries[name].figure
            value = number(clip.values[name], signed=known.better == "zero")
            found.append(f"<span>{html.escape(known.title)} <b>{value}</b></span>")
    return "".join(found)


def _timeline(clip: ClipResult, shown: Film) -> str:
    fault = f'<p class="note">{html.escape(shown.fault)}</p>' if shown.fault else ""
    parts = []
    if shown.strip:
        parts.append(f'<img class="strip" src="{shown.strip}" alt="Ten pictures of {html.escape(clip.name)} in order">')
    if shown.spectrogram:
        opening = clip.series.get("opening", ())
        curve = curve_over(opening, "opening") if len(opening) > 1 else ""
        parts.append(
            f'<div class="sound"><img class="spectrogram" src="{shown.spectrogram}" alt="Spectrogram">{curve}</div>'
        )
    try:
        words = read_words(clip.words)
    except DataError as error:
        words, fault = [], fault + f'<p class="note">{html.escape(str(error))}</p>'
    if words and 0 < shown.seconds <= WORDS_UP_TO:
        spans = "".join(
            f'<span style="left:{100 * start / shown.seconds:.2f}%" title="{start:.2f} to {end:.2f} s">'
            f"{html.escape(word)}</span>"
            for word, start, end in words
        )
        parts.append(f'<div class="said">{spans}</div>')
    if not parts:
        return fault
    return f'<div class="wide"><div class="timeline">{"".join(parts)}<div class="head-line"></div></div></div>{fault}'


def _texts(clip: ClipResult) -> str:
    heard = clip.notes.get("heard")
    if heard is None:
        rows = f"<dt>Transcript</dt><dd>{html.escape(clip.transcript)}</dd>"
    else:
        wanted, got = marked(clip.transcript, heard)
        rows = f"<dt>Transcript</dt><dd>{wanted}</dd><dt>Heard</dt><dd>{got or '<em>nothing</em>'}</dd>"
    for name in TOLD:
        if clip.notes.get(name):
            rows += f"<dt>{name.capitalize()}</dt><dd>{html.escape(clip.notes[name])}</dd>"
    return f'<dl class="words">{rows}</dl>'


def _all_figures(clip: ClipResult, evaluation: Evaluation) -> str:
    rows = []
    for name, entry in evaluation.entries.items():
        value, known = clip.values[name], entry.figure
        text = (
            f'<td class="n">{number(value, signed=known.better == "zero")}</td><td>{html.escape(known.unit)}</td>'
            if value is not None
            else f'<td class="n">–</td><td class="soft">{html.escape(clip.reasons.get(name, "no reason given"))}</td>'
        )
        rows.append(f"<tr><td>{html.escape(known.title)}</td>{text}</tr>")
    for name, text in clip.notes.items():
        if name != "heard" and name not in TOLD and text:
            label = name.replace("_", " ")
            rows.append(f'<tr><td class="soft">{html.escape(label)}</td><td colspan="2">{html.escape(text)}</td></tr>')
    return f"<details><summary>All figures of this clip</summary><table>{''.join(rows)}</table></details>"


def clip_table(evaluation: Evaluation) -> str:
    """Every clip with every figure that was measured in some clip."""
    keys = [k for k in evaluation.entries if any(c.values[k] is not None for c in evaluation.clips)]
    if not keys:
        return ""
    head = "".join(
        f'<th class="n">{html.escape(evaluation.entries[k].figure.title)} {ARROWS[evaluation.entries[k].figure.better]}'
        "</th>"
        for k in keys
    )
    rows = []
    for clip in by_quality(evaluation):
        cells = "".join(
            f'<td class="n">{number(clip.values[k], signed=evaluation.entries[k].figure.better == "zero")}</td>'
            for k in keys
        )
        name = html.escape(clip.name)
        rows.append(f'<tr><td><a href="#{anchor(clip.name)}">{name}</a></td>{cells}</tr>')
    return (
        f"<details><summary>All {len(evaluation.clips)} clips in one table</summary>"
        f'<div class="wide"><table><thead><tr><th>Clip</th>{head}</tr></thead>{"".join(rows)}</table></div></details>'
    )
