"""Does a long video stay as good as it began? Quality drift."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.quality import AbsentError, QualityModel, quality_model
from streamchar.eval.sample import Sample

RATE = 4
"""Frames a second that are judged."""
WINDOW_SECONDS = 5
SEGMENT_SECONDS = 30


def _figure(unit: str) -> Figure:
    return Figure(key="quality_drift", title="Quality drift", unit=unit, better="lower")


def segment_drifts(values: Sequence[float], rate: int = RATE) -> list[float]:
    """|mean of a segment's last 5 s - mean of the first 5 s| for each segment of 30 s of `values`, `rate` a second.

    The last segment may be shorter than 30 s: it counts with its last 5 s, even where these begin in the segment
    before. Raises `ImpossibleError` below 10 s, where the last 5 s would be the first in part.
    """
    window, segment, count = WINDOW_SECONDS * rate, SEGMENT_SECONDS * rate, len(values)
    if count < 2 * window:
        raise ImpossibleError(
            f"quality drift compares the first and the last {WINDOW_SECONDS} s: expected at least "
            f"{2 * WINDOW_SECONDS} s of video, got {count / rate:g} s"
        )
    ends = [*range(segment, count, segment), count]
    # fsum: windows of equal values have equal means whatever the order
    first = math.fsum(values[:window]) / window
    return [abs(math.fsum(values[end - window : end]) / window - first) for end in ends]


class QualityDrift:
    """Largest change of quality over a video.

    Source: the paper, section 5.1 (after Rolling Forcing, arXiv 2509.25161): every 30 s the absolute difference
    between the quality of that segment's last 5 s and of the video's first 5 s; the maximum is the figure. Made exact:
    segments are 0-30 s, 30-60 s, ...; the last one may be shorter and counts with its last 5 s; a video of 10 to 30 s
    is one segment; under 10 s there is no value. A window's quality is the mean over 4 frames a second.
    The paper names no quality model; `eval/quality.py` has ours and others, and figures of different models cannot be
    compared. Unit: of the quality model. Lower is better; 0 is a video that ends as it began.
    It misses changes that come and go between the windows, quality that was poor from the start, and whatever the
    quality model misses.
    """

    def __init__(self, model: QualityModel) -> None:
        self.model = model
        self.figures = (_figure(model.unit),)
        self.version = f"quality {model.name}: {model.version}; {RATE} frames/s"

    def measure(self, sample: Sample) -> Reading:
        """Series: `quality`, one value a second; `quality_drift`, one a segment."""
        values: list[float] = []
        judge = None
        for block in sample.blocks(RATE, length=WINDOW_SECONDS * RATE):
            if judge is None:
                if block.shape[0] < WINDOW_SECONDS * RATE:
                    segment_drifts([0.0] * block.shape[0])  # too short: says so
                judge = self.model.judge(block)
            for second in block.split(RATE):
                values += judge(second).tolist()
        if not all(map(math.isfinite, values)):
            raise ImpossibleError(f"quality model {self.model.name} gave a value that is no number")
        drifts = segment_drifts(values)
        seconds = [float(s.mean()) for s in torch.tensor(values, dtype=torch.float64).split(RATE)]
        return Reading(values={self.figures[0].key: max(drifts)}, series={"quality": seconds, "quality_drift": drifts})


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """Raises `ConfigError` for an unknown quality model."""
    try:
        return [QualityDrift(quality_model(options.quality))]
    except AbsentError as error:
        return [Unavailable(figures=(_figure(f"quality {options.quality}"),), reason=str(error))]
