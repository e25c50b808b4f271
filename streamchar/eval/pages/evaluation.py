"""An evaluation folder as read back: the figures with their intervals, the clips, the curves.

The layout is what `streamchar eval` writes: metrics.json (schema streamchar-eval/1), series.json, clips/.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from streamchar.errors import DataError
from streamchar.eval.metric import Better, Figure

SCHEMA = "streamchar-eval/1"
ARROWS: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "zero": "→0", "neither": ""}
WORDS: Mapping[Better, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "zero": "nearer zero is better",
    "neither": "neither direction is better",
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Speech": ("wer", "cer", "wer_first_minute", "wer_last_minute", "speaker_similarity", "dnsmos", "distillmos"),
    "Lip sync": ("sync_c", "sync_d", "sync_offset_frames", "sync_ms", "sync_abs_ms", "mouth_correlation"),
    "Pictures": ("fid", "fvd", "fid_world", "quality_drift"),
    "Identity and motion": (
        "identity", "attributes_kept", "human_identity", "human_anatomy", "dynamic", "dynamic_flow"
    ),
    "Prompt": ("prompt_adherence", "prompt_gesture", "prompt_mood", "prompt_energy"),
    "Pointer": ("pointer_words", "pointer_ms"),
    "Speed": ("rtf",),
    "VBench": (
        "vbench_subject_consistency", "vbench_background_consistency", "vbench_motion_smoothness",
        "vbench_dynamic_degree", "vbench_aesthetic_quality", "vbench_imaging_quality",
    ),
}  # fmt: skip
OTHER = "Further figures"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of an evaluation."""

    figure: Figure
    version: str
    """Model, source and settings."""
    mean: float | None
    interval: tuple[float, float] | None
    """95 % bootstrap over clips."""
    count: int
    reason: str
    """Why the mean is None; else empty."""
    samples: str = ""
    """What a figure over a set was taken of, in words."""


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What was found in one clip."""

    name: str
    video: Path
    """May be gone since: whoever reads it says so."""
    transcript: str
    values: Mapping[str, float | None]
    reasons: Mapping[str, str]
    notes: Mapping[str, str]
    series: Mapping[str, Sequence[float]]
    words: Path
    """[word, start, end] in seconds; exists where the timings are known."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A folder that `streamchar eval run` or `score` wrote."""

    folder: Path
    name: str
    created: str
    protocol: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Any] | None
    entries: Mapping[str, Entry]
    """By key, in the order of `GROUPS`."""
    clips: tuple[ClipResult, ...]
    warnings: tuple[str, ...]

    @property
    def transcripts(self) -> dict[str, str]:
        """What makes two evaluations comparable: the same names with the same texts."""
        return {c.name: c.transcript for c in self.clips}


def group(key: str) -> str:
    """The heading that a figure stands under."""
    return next((title for title, keys in GROUPS.items() if key in keys), OTHER)


def ordered(keys: Sequence[str]) -> list[str]:
    """Known keys in their groups' order, then the others by name."""
    known = [k for group_keys in GROUPS.values() for k in group_keys]
    return [k for k in known if k in keys] + sorted(k for k in keys if k not in known)


def read_evaluation(folder: Path) -> Evaluation:
    """Raise `DataError` if the folder does not hold a whole evaluation."""
    path = folder / "metrics.json"
    value = _json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{path}: expected schema {SCHEMA!r}, got {found!r}; evaluate again with this version")
    series = _json(folder / "series.json")
    try:
        entries = {key: _entry(value, key, path) for key in ordered(list(value["mean"]))}
        clips = tuple(_clip(folder, entry, list(entries), series, path) for entry in value["clips"])
        return Evaluation(
            folder=folder, name=str(value["name"]), created=str(value["created"]), protocol=value["protocol"],
            environment=value["environment"], model=value["model"], entries=entries, clips=clips,
            warnings=tuple(value["warnings"]),
        )  # fmt: skip
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: incomplete, {type(error).__name__} at {error}; evaluate again") from None


def _json(path: Path) -> Any:
    def refuse(name: str) -> float:
        raise DataError(f"{path}: expected numbers or null, got {name}; what cannot be computed is null with a reason")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}, part of an evaluation folder: {error}") from None


def _entry(value: dict[str, Any], key: str, path: Path) -> Entry:
    known = value["figures"][key]
    if known["better"] not in get_args(Better):
        raise DataError(f"{path}: {key} is better {known['better']!r}; expected one of {', '.join(get_args(Better))}")
    mean, interval, reason = value["mean"][key], value["interval"].get(key), value["reasons"].get(key, "")
    if mean is None and not reason:
        raise DataError(f"{path}: {key} is null without a reason")
    return Entry(
        figure=Figure(key=key, title=known["title"], unit=known["unit"], better=known["better"]),
        version=str(known["version"]), mean=mean, interval=None if interval is None else (interval[0], interval[1]),
        count=int(value["count"].get(key, 0)), reason="" if mean is not None else reason,
        samples=str(known.get("samples", "")),
    )  # fmt: skip


def _clip(folder: Path, value: dict[str, Any], keys: list[str], series: Any, path: Path) -> ClipResult:
    name = str(value["name"])
    missing = [k for k in keys if k not in value]
    if missing:
        raise DataError(f"{path}: the clip {name} lacks {', '.join(missing)}; null with a reason is expected")
    video = folder / value["video"] if value.get("video") else folder / "clips" / f"{name}.mp4"
    return ClipResult(
        name=name, video=video, transcript=str(value["transcript"]), values={k: value[k] for k in keys},
        reasons=value.get("reasons", {}), notes=value.get("notes", {}), series=series.get(name, {}),
        words=folder / "clips" / f"{name}.words.json",
    )  # fmt: skip


def number(value: float | None, like: float | None = None, *, signed: bool = False) -> str:
    """A figure as text: three significant digits or so; `like` gives the decimals (an interval's, its value's)."""
    if value is None:
        return "–"
    size = abs(value if like is None else like)
    places = 3 if size == 0 else max(1, min(5, 2 - math.floor(math.log10(size))))
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def value_text(entry: Entry) -> str:
    """The mean, with its sign where zero is what is wanted."""
    return number(entry.mean, signed=entry.figure.better == "zero")


def interval_text(entry: Entry) -> str:
    """`low to high` in the mean's decimals; empty without one."""
    if entry.interval is None or entry.mean is None:
        return ""
    like = entry.mean or max(map(abs, entry.interval))
    return " to ".join(number(v, like, signed=entry.figure.better == "zero") for v in entry.interval)


def truth_beside(folder: Path) -> Path | None:
    """An evaluation of the truth that lies beside this one: a folder named `truth`."""
    found = folder.resolve().parent / "truth"
    return found if (found / "metrics.json").is_file() and found != folder.resolve() else None
