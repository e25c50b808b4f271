"""How sure is a mean? Percentile bootstrap over clips.

Source: Efron's percentile interval. It resamples clips, so it says how the mean would vary with other clips of the
same kind; it knows nothing of other seeds of the same clips, nor of a metric's own error. The mean and its interval
are over clips, each weighing the same, also for WER: a rate pooled over words is another figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def mean(values: Sequence[float]) -> float:
    """Over the clips that count."""
    return float(np.mean(np.asarray(values, np.float64)))


def interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean; None for fewer than two clips, which say nothing about others."""
    if len(values) < 2:
        return None
    draw = np.random.default_rng(seed)
    data = np.asarray(values, np.float64)
    means = data[draw.integers(0, len(data), (resamples, len(data)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
