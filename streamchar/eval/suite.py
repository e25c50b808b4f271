"""The suite: builds the metrics, makes the clips of a protocol, measures each clip once, and keeps what it found.

Nothing here knows a model: clips come from a `Generator` (`cli/generator.py` makes one of the pipeline and one of the
world's own drawing), or exist already. A killed run goes on: finished clips, readings and features lie in the cache.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from streamchar.errors import DataError, InputError, StreamCharError
from streamchar.eval.cache import ABOUT, CLIP, Cache, fingerprint, source_hash, write_json
from streamchar.eval.metric import (
    BatchMetric,
    ClipMetric,
    Figure,
    ImpossibleError,
    Options,
    Reading,
    SetMetric,
    Unavailable,
)
from streamchar.eval.protocol import Item, digest
from streamchar.eval.realtime import RealTime
from streamchar.eval.sample import Sample
from streamchar.types import Word

log = logging.getLogger(__name__)

REGISTRY: Mapping[str, tuple[str, ...]] = {
    "speech": ("wer", "cer", "wer_first_minute", "wer_last_minute"),
    "voice": ("speaker_similarity", "dnsmos", "distillmos"),
    "sync": ("sync_c", "sync_d", "sync_offset_frames"),
    "frechet": ("fid", "fvd", "fid_world"),
    "lpips": ("lpips",),
    "identity": ("identity", "attributes_kept"),
    "directions": ("prompt_mood", "prompt_gesture", "prompt_energy", "prompt_adherence"),
    "dynamic": ("dynamic", "dynamic_flow"),
    "drift": ("quality_drift",),
    "truth": ("sync_ms", "sync_abs_ms", "mouth_correlation", "pointer_words", "pointer_ms"),
    "vbench": (
        "human_anatomy",
        "human_identity",
        "vbench_subject_consistency",
        "vbench_background_consistency",
        "vbench_motion_smoothness",
        "vbench_dynamic_degree",
        "vbench_aesthetic_quality",
        "vbench_imaging_quality",
    ),
}
"""Modules with a function `metrics(options)`, and the keys that they give."""

REQUIRED = (
    Figure(key="wer", title="Word error rate", unit="errors per word", better="lower"),
    Figure(key="cer", title="Character error rate", unit="errors per character", better="lower"),
    Figure(key="sync_c", title="Sync-C", unit="distance", better="higher"),
    Figure(key="sync_d", title="Sync-D", unit="distance", better="lower"),
    Figure(key="sync_offset_frames", title="Sync offset", unit="frames of 25 fps", better="zero"),
    Figure(key="fid", title="FID", unit="distance", better="lower"),
    Figure(key="fvd", title="FVD", unit="distance", better="lower"),
    Figure(key="identity", title="Identity", unit="mean cosine", better="higher"),
    Figure(key="dynamic", title="Dynamic", unit="share", better="higher"),
    Figure(key="quality_drift", title="Quality drift", unit="quality", better="lower"),
    Figure(key="speaker_similarity", title="Speaker similarity", unit="cosine", better="higher"),
    Figure(key="dnsmos", title="DNSMOS", unit="1 to 5", better="higher"),
    *RealTime.figures,
)
"""Present in every metrics.json, measured or not; a metric's own figure takes the place of the one here."""

OVER_A_SET = "over a set"
NOT_CHOSEN = "not chosen (--metrics)"
Metric = ClipMetric | SetMetric | Unavailable
Watch = Callable[[str, int, int], None]
"""(what is being done, done, of how many)."""
T = TypeVar("T")


def silent(what: str, done: int, total: int) -> None:
    """Watches nothing."""


def build_metrics(options: Options, chosen: Collection[str] | None = None) -> list[Metric]:
    """All metrics, or those whose module or key is in `chosen`. Raises `InputError` for a name that nothing has."""
    known = {*REGISTRY, *(key for keys in REGISTRY.values() for key in keys), "rtf"}
    unknown = sorted(set(chosen or ()) - known)
    if unknown:
        raise InputError(f"--metrics: unknown {unknown[0]!r}; known are {', '.join(sorted(known))}")
    found: list[Metric] = []
    for module, keys in REGISTRY.items():
        if chosen is None or module in chosen or set(keys) & set(chosen):
            for metric in import_module(f"streamchar.eval.{module}").metrics(options):
                own = {f.key for f in metric.figures}
                if chosen is None or module in chosen or own & set(chosen):
                    found.append(metric)
    return found


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a generator says of the clip it wrote."""

    seconds: float
    """Playing time."""
    wall_seconds: float | None = None
    """None where no model generated it."""
    words: tuple[Word, ...] = ()
    warnings: tuple[str, ...] = ()


class Generator(Protocol):
    """Makes the clip of an item."""

    @property
    def key(self) -> str:
        """Hash of all that its clips depend on besides the item."""
        ...

    def __call__(self, item: Item, target: Path) -> Generated:
        """Write the mp4; the item's picture and voice are files, if it has any."""
        ...


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip in the cache."""

    item: Item
    video: Path
    words: tuple[tuple[str, float, float], ...]
    rtf: float | None
    no_rtf: str
    warnings: tuple[str, ...]
    load: float
    """Of the machine just before it was made."""


def make_clip(item: Item, generator: Generator, cache: Cache, machine: Mapping[str, Any]) -> Clip:
    """From the cache, or made now. Raises what the generator raises."""
    key = digest(["clip 2", generator.key, item.fingerprint])  # 2: what ABOUT holds
    found = cache.clip(key)
    if found is None:
        before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        with cache.new_clip(key) as folder:
            made = generator(item, folder / CLIP)
            write_json(folder / ABOUT, {
                "item": item.name, "seconds": made.seconds, "wall_seconds": made.wall_seconds,
                "words": [[w.text, w.start, w.end] for w in made.words], "warnings": list(made.warnings),
                "machine": dict(machine), "load": before,
            })  # fmt: skip
        found = cache.clip(key)
        if found is None:
            raise DataError(f"the cache {cache.folder} lost a clip that was just written; is the disk full?")
    video, about = found
    rtf, reason = None, "drawn by the world, not generated by a model"
    if about["wall_seconds"] is not None:
        if about["machine"] == dict(machine):
            rtf = about["wall_seconds"] / about["seconds"]
        else:
            reason = f"made earlier on another machine ({about['machine']}); give another --cache to measure it here"
    words = tuple((str(w), float(a), float(b)) for w, a, b in about["words"])
    return Clip(
        item=item, video=video, words=words, rtf=rtf, no_rtf=reason, warnings=tuple(about["warnings"]),
        load=about["load"],
    )  # fmt: skip


def make_clips(
    items: Sequence[Item],
    generator: Generator,
    cache: Cache,
    *,
    machine: Mapping[str, Any],
    watch: Watch = silent,
    what: str = "generating",
) -> tuple[list[Clip], dict[str, str]]:
    """The clips, and why the others could not be made. Raises the first failure if none could."""
    clips: list[Clip] = []
    failed: dict[str, str] = {}
    watch(what, 0, len(items))
    for index, item in enumerate(items):
        try:
            clips.append(make_clip(item, generator, cache, machine))
        except StreamCharError as error:
            if len(failed) + 1 == len(items):
                raise
            failed[item.name] = str(error)
            log.warning("%s could not be made: %s", item.name, error)
        watch(what, index + 1, len(items))
    return clips, failed


@dataclass(kw_only=True)
class Found:
    """All readings of one clip."""

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, reading: Reading) -> None:
        """A reading that is `whole`."""
        self.values.update(reading.values)
        self.reasons.update(reading.reasons)
        self.series.update({k: list(v) for k, v in reading.series.items()})
        self.notes.update(reading.notes)


def whole(reading: Reading, figures: Sequence[Figure]) -> Reading:
    """Every key of the figures with a value or a reason, whatever the metric returned, and numbers only."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for f in figures:
        value = reading.values.get(f.key)
        values[f.key] = float(value) if value is not None and math.isfinite(value) else None
        if values[f.key] is None:
            default = "the metric gave no value and no reason" if value is None else f"the metric gave {value}"
            reasons[f.key] = reading.reasons.get(f.key, default)
    curves = {k: [float(x) for x in v] for k, v in reading.series.items()}
    broken = {k: f"the curve {k} holds values that are no numbers" for k, v in curves.items() if not _finite(v)}
    series = {k: v for k, v in curves.items() if k not in broken}
    return Reading(values=values, reasons=reasons, series=series, notes={**reading.notes, **broken})


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was measured: by clip, and over the set."""

    figures: Mapping[str, tuple[Figure, str]]
    """By key, with the version of what measured it."""
    clips: Mapping[str, Found]
    whole: Found
    """Figures over the set, with their notes by key."""
    counts: Mapping[str, int]
    """Clips in a figure over the set."""
    unavailable: Mapping[str, str]
    warnings: tuple[str, ...]


class Scorer:
    """Measures samples with metrics, from the cache where it can."""

    def __init__(self, metrics: Sequence[Metric], cache: Cache, watch: Watch = silent) -> None:
        self.metrics, self.cache, self.watch = list(metrics), cache, watch
        self.warnings: list[str] = []
        self._keys = {id(m): self._identity(m) for m in self.metrics if not isinstance(m, Unavailable)}

    @staticmethod
    def _identity(metric: Metric) -> str:
        """Version and code of a metric."""
        file = getattr(sys.modules[type(metric).__module__], "__file__", None)
        code = source_hash(Path(file)) if file else ""
        return digest([type(metric).__qualname__, metric.version, code])

    @property
    def needs_reference(self) -> bool:
        return any(isinstance(m, SetMetric) for m in self.metrics)

    def score(self, samples: Sequence[Sample], references: Sequence[Sample] = ()) -> Scores:
        """All metrics on all samples; a failing one becomes a reason, never an end."""
        figures: dict[str, tuple[Figure, str]] = {f.key: (f, "none") for f in REQUIRED}
        figures |= {f.key: (f, m.version) for m in self.metrics for f in m.figures}
        sets = [m for m in self.metrics if isinstance(m, SetMetric)]
        clips: dict[str, Found] = {}
        made: dict[int, list[Tensor]] = {id(m): [] for m in sets}
        self.watch("scoring", 0, len(samples))
        for metric in self.metrics:
            if isinstance(metric, BatchMetric):
                metric.prepare([s for s in samples if self._known(metric, self._hash(s)) is None])
        for index, sample in enumerate(samples):
            clips[sample.name] = self._clip(sample, made)
            self.watch("scoring", index + 1, len(samples))
        truth: dict[int, list[Tensor]] = {id(m): [] for m in sets}
        for index, sample in enumerate(references if sets else ()):
            self.watch("reference", index, len(references))
            hashed = self._hash(sample)
            for metric in sets:
                self._features(metric, sample, hashed, truth[id(metric)])
        over_set, counts = Found(), {}
        for metric in sets:
            self._compare(metric, made[id(metric)], truth[id(metric)], over_set)
            counts |= {f.key: len(made[id(metric)]) for f in metric.figures}
        missing = {f.key: m.reason for m in self.metrics if isinstance(m, Unavailable) for f in m.figures}
        return Scores(
            figures=figures, clips=clips, whole=over_set, counts=counts, unavailable=missing,
            warnings=tuple(dict.fromkeys(self.warnings)),
        )  # fmt: skip

    def _clip(self, sample: Sample, made: dict[int, list[Tensor]]) -> Found:
        found = Found()
        hashed = self._hash(sample)
        for metric in self.metrics:
            if isinstance(metric, Unavailable):
                found.add(Reading.none(metric.figures, metric.reason))
            elif isinstance(metric, SetMetric):
                self._features(metric, sample, hashed, made[id(metric)])
                found.add(Reading.none(metric.figures, OVER_A_SET))
            else:
                found.add(self._reading(metric, sample, hashed))
        return found

    def _hash(self, sample: Sample) -> str | None:
        """None if a file of the sample cannot be read: the metrics will say so, and nothing is kept."""
        try:
            return fingerprint(sample)
        except DataError as error:
            self._warn(str(error))
            return None

    def _reading(self, metric: ClipMetric, sample: Sample, hashed: str | None) -> Reading:
        found = self._known(metric, hashed)
        if found is not None:
            return found
        result = self._try(metric, sample, lambda: metric.measure(sample))
        if isinstance(result, str):
            return Reading.none(metric.figures, result)
        result = whole(result, metric.figures)
        if hashed is not None and not isinstance(metric, RealTime):
            self.cache.keep_reading(digest([self._keys[id(metric)], hashed]), result)
        return result

    def _known(self, metric: ClipMetric, hashed: str | None) -> Reading | None:
        if hashed is None or isinstance(metric, RealTime):
            return None
        return self.cache.reading(digest([self._keys[id(metric)], hashed]))

    def _features(self, metric: SetMetric, sample: Sample, hashed: str | None, into: list[Tensor]) -> None:
        key = digest([self._keys[id(metric)], hashed])
        found = self.cache.features(key) if hashed is not None else None
        if found is None:
            result = self._try(metric, sample, lambda: metric.features(sample))
            if isinstance(result, str):
                keys = ", ".join(f.key for f in metric.figures)
                self._warn(f"{keys}: {sample.name} does not count: {result}")
                return
            found = result
            if hashed is not None:
                self.cache.keep_features(key, found)
        into.append(found)

    def _compare(self, metric: SetMetric, made: list[Tensor], truth: list[Tensor], found: Found) -> None:
        try:
            reading = metric.compare(made, truth)
        except Exception as error:  # one metric's failure must not cost the others
            if not isinstance(error, ImpossibleError):
                self._warn(f"{', '.join(f.key for f in metric.figures)}: {type(error).__name__}: {error}")
            reading = Reading.none(metric.figures, _why(error))
        found.add(replace(whole(reading, metric.figures), notes={}))
        said = "; ".join(reading.notes.values())
        for f in metric.figures:
            if said:
                found.notes[f.key] = said
            if "warning" in reading.notes:
                self._warn(f"{f.title}: {said}")

    def _try(self, metric: Metric, sample: Sample, act: Callable[[], T]) -> T | str:
        """The result, or the reason why there is none."""
        try:
            return act()
        except ImpossibleError as error:
            return str(error)
        except Exception as error:  # one metric's failure on one clip must not cost the others
            self._warn(f"{type(metric).__name__} on {sample.name}: {_why(error)}")
            log.debug("metric failed", exc_info=True)
            return _why(error)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning("%s", text)


def _why(error: Exception) -> str:
    """Our own errors explain themselves; others need their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, StreamCharError) else f"{type(error).__name__}: {text}"
