"""Evaluations side by side: whether they may be compared at all, and the table for the terminal.

The page and the markdown come from eval/report.py; best and second, by each figure's direction, are decided there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from streamchar.errors import InputError
from streamchar.eval.pages.comparison import Comparison, compare, write_comparison
from streamchar.eval.pages.evaluation import ARROWS, Evaluation, interval_text, value_text
from streamchar.eval.suite import NOT_CHOSEN

OF_A_SET = ("fid", "fvd", "fid_world")
"""Figures that depend on the reference videos."""
BEST, SECOND = "bold", "underline"


def differences(evaluations: Sequence[Evaluation]) -> list[str]:
    """Why these evaluations' figures do not mean the same; empty if they do."""
    first, found = evaluations[0], list[str]()
    for other in evaluations[1:]:
        pair = f"{first.name} and {other.name}"
        if first.transcripts != other.transcripts:
            lone = len(set(first.transcripts) ^ set(other.transcripts))
            found.append(
                f"{pair}: protocols {first.protocol.get('name')} ({len(first.clips)} clips) and "
                f"{other.protocol.get('name')} ({len(other.clips)} clips), {lone} names in one only"
            )
        both = [k for k in first.entries if _mean(first, k) is not None and _mean(other, k) is not None]
        by_versions: dict[tuple[str, str], list[str]] = {}
        for key in both:
            versions = first.entries[key].version, other.entries[key].version
            if versions[0] != versions[1]:
                by_versions.setdefault(versions, []).append(key)
        found += [f"{pair}: {', '.join(k)} measured by {a!r} and {b!r}" for (a, b), k in by_versions.items()]
        references = first.protocol.get("reference"), other.protocol.get("reference")
        sets = [k for k in both if k in OF_A_SET]
        if sets and references[0] != references[1]:
            found.append(f"{pair}: {', '.join(sets)} against {references[0]!r} and {references[1]!r}")
    return found


def _mean(evaluation: Evaluation, key: str) -> float | None:
    entry = evaluation.entries.get(key)
    return None if entry is None else entry.mean


def compare_folders(folders: Sequence[Path], out: Path, *, anyway: bool = False) -> tuple[Comparison, Path]:
    """Check, write compare.html and compare.md, return what was compared and the page.

    Raises `InputError` for other clips, other versions of a metric or other references, unless `anyway`.
    """
    found = compare(folders)
    differ = differences(found.evaluations)
    if differ and not anyway:
        raise InputError(f"these evaluations do not compare: {'; '.join(differ)}; say --anyway to see them together")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, {out} is a file")
    if (out / "metrics.json").exists():
        raise InputError(f"--out must be a folder of its own, {out} is an evaluation")
    return found, write_comparison(folders, out)


def table(found: Comparison) -> Table:
    """A row a figure, a column a system; best bold, second underlined."""
    shown = Table(title="best in bold, second underlined; 95 % interval over clips in brackets", title_style="dim")
    shown.add_column("figure")
    for evaluation in found.evaluations:
        shown.add_column(evaluation.name, justify="right")
    for column in found.columns:
        if not any(e is not None and e.mean is not None for e in column.entries):
            continue
        cells = []
        for entry, rank in zip(column.entries, column.ranks, strict=True):
            if entry is None or entry.mean is None:
                cells.append(Text("–", style="dim"))
                continue
            bounds = interval_text(entry)
            cells.append(Text.assemble(
                (value_text(entry), {1: BEST, 2: SECOND}.get(rank or 0, "")), (f" [{bounds}]" if bounds else "", "dim")
            ))  # fmt: skip
        shown.add_row(f"{column.figure.title} {ARROWS[column.figure.better]}".strip(), *cells)
    return shown


def dashes(found: Comparison) -> list[str]:
    """`figures: systems: why` of every dash; no systems where it is all of them."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for column in found.columns:
        who: dict[str, list[str]] = {}
        for index, entry in enumerate(column.entries):
            if entry is None or entry.mean is None:
                who.setdefault(column.reason(index), []).append(found.evaluations[index].name)
        for reason, names in who.items():
            systems = "" if len(names) == len(found.evaluations) else f"{', '.join(names)}: "
            by_reason.setdefault((systems, reason), []).append(column.figure.title)
    return [f"{', '.join(titles)}: {systems}{reason}" for (systems, reason), titles in by_reason.items()]


def results(value: Mapping[str, Any]) -> Table:
    """The figures of one evaluation that could be measured, as in its metrics.json."""
    shown = Table(title=f"{value['name']}: {len(value['clips'])} clips, {value['protocol']['name']}", title_style="dim")
    shown.add_column("figure")
    for name in ("mean", "95 % interval", "clips"):
        shown.add_column(name, justify="right")
    for key, mean in value["mean"].items():
        if mean is not None:
            figure, bounds = value["figures"][key], value["interval"][key]
            interval = "" if bounds is None else f"{bounds[0]:.4g} to {bounds[1]:.4g}"
            title = f"{figure['title']} {ARROWS[figure['better']]}".strip()
            shown.add_row(title, f"{mean:.4g}", interval, str(value["count"][key]))
    return shown


def unmeasured(value: Mapping[str, Any]) -> list[str]:
    """`figures: why` of what metrics.json has null, without what was not asked for."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in value["reasons"].items():
        if reason != NOT_CHOSEN:
            by_reason.setdefault(reason, []).append(value["figures"][key]["title"])
    return [f"{', '.join(titles)}: {reason}" for reason, titles in by_reason.items()]
