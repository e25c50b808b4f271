"""Is the speech understood? Word error rate by a named recogniser with a named normaliser.

Source: WER as in the paper's Table 1 (its recogniser is not named there). Unit: errors per reference
word, lower is better. It misses prosody, naturalness and whose voice it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from torch import Tensor

from streamchar import clock
from streamchar.errors import DataError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.recognisers import (
    RECOGNISER_RATE,
    Heard,
    MissingError,
    Moonshine,
    Recogniser,
    package,
    recogniser,
    transcribe,
)
from streamchar.eval.sample import Sample

__all__ = [
    "Moonshine", "Recogniser", "WordErrorRate", "WordErrors", "metrics", "normalise", "recogniser", "sound",
    "to_recogniser", "word_errors",
]  # fmt: skip

MINUTE = 60.0
LONG = 2 * MINUTE
"""Seconds from which on the first and the last minute are different ones."""
UNSURE = 0.02
"""How far the words missing at a cut may change a minute's WER before it is not given."""
FIGURES = (
    Figure(key="wer", title="Word error rate", unit="errors per word", better="lower"),
    Figure(key="cer", title="Character error rate", unit="errors per character", better="lower"),
    Figure(key="wer_first_minute", title="WER, first minute", unit="errors per word", better="lower"),
    Figure(key="wer_last_minute", title="WER, last minute", unit="errors per word", better="lower"),
)


def to_recogniser(samples_S: Tensor) -> np.ndarray:
    """(S,) at 49,152 Hz -> (S',) at 16 kHz."""
    import soxr

    return soxr.resample(samples_S.numpy(), clock.AUDIO_RATE, RECOGNISER_RATE).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _normaliser() -> Any:
    return package("whisper_normalizer.english", "streamchar[eval]").EnglishTextNormalizer()


def normalise(text: str) -> str:
    """Whisper's English normaliser (spelling variants, numbers, contractions); it leaves a dot of "...", we do not."""
    return " ".join(word for word in _normaliser()(text).split() if any(c.isalnum() for c in word))


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """Errors over a set of clips."""

    wer: float
    """Pooled: all errors over all reference words."""
    clips: tuple[float, ...]
    """Of each clip."""
    hypotheses: tuple[str, ...]


def word_errors(references: list[str], hypotheses: list[str]) -> WordErrors:
    """WER of recognised texts against what should have been said."""
    jiwer = package("jiwer", "streamchar[eval]")
    wanted, heard = [normalise(r) for r in references], [normalise(h) for h in hypotheses]
    each = tuple(float(jiwer.wer(w, h)) for w, h in zip(wanted, heard, strict=True))
    return WordErrors(wer=float(jiwer.wer(wanted, heard)), clips=each, hypotheses=tuple(hypotheses))


def sound(sample: Sample, rate: int) -> Tensor | None:
    """(S,) mono at `rate` Hz; None if the file has no sound at all. A damaged file raises `DataError`."""
    try:
        return sample.samples(rate)
    except DataError:
        try:
            with av.open(str(sample.video)) as container:
                silent = not container.streams.audio
        except (FFmpegError, OSError):
            silent = False
        if silent:
            return None
        raise


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Errors of a part of a transcript. Words missing at its edges may belong to it or not."""

    errors: int
    words: int
    edge: int

    @property
    def wer(self) -> float:
        """With the words at the edges. Raises `ImpossibleError` if they would decide it."""
        if not self.words:
            raise ImpossibleError("no word of the transcript was heard in it")
        whole = (self.errors + self.edge) / (self.words + self.edge)
        if whole - self.errors / self.words > UNSURE:
            raise ImpossibleError(f"{self.edge} words are missing at its edge: before or after it, nothing tells")
        return whole


def tally(alignment: Sequence[Any], start: int, stop: int, total: int) -> Tally:
    """The part of jiwer's alignment that the heard words start..stop of `total` take part in."""
    errors = words = edge = 0
    for chunk in alignment:
        wanted = chunk.ref_end_idx - chunk.ref_start_idx
        at = chunk.hyp_start_idx
        if chunk.type == "delete":  # lies between the heard words at - 1 and at
            if start < at < stop or (start < stop and at in (0, total) and at in (start, stop)):
                errors, words = errors + wanted, words + wanted
            elif at in (start, stop):
                edge += wanted
            continue
        own = max(0, min(stop, chunk.hyp_end_idx) - max(start, chunk.hyp_start_idx))
        errors += own if chunk.type in ("substitute", "insert") else 0
        words += own if chunk.type in ("substitute", "equal") else 0
    return Tally(errors=errors, words=words, edge=edge)


class WordErrorRate:
    """Word and character error rate of what a recogniser hears, against the transcript.

    Source: WER as in the paper's Table 1; Levenshtein by jiwer, both texts through Whisper's English normaliser.
    Unit: errors per reference word (0.035 is 3.5 %) or character, blanks included; lower is better, and it exceeds 1
    if more is added than was wanted. A clip over two minutes also has the WER of its first and last minute: the speech
    is cut at a pause near the minute, and jiwer's alignment says which words of the transcript were heard there.
    It misses prosody, naturalness and whose voice it is; the recogniser's own errors are in it, and it forgives what
    its language model guesses. English only. The mean over clips is not the pooled rate: short clips weigh as much.
    """

    figures = FIGURES

    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser = recogniser
        self.jiwer: Any = package("jiwer", "streamchar[eval]")
        normalise("")
        self.version = (
            f"{recogniser.name}; up to {recogniser.limit:g} s at once, cut at pauses; jiwer {version('jiwer')}; "
            f"whisper-normalizer {version('whisper-normalizer')} EnglishTextNormalizer"
        )

    def measure(self, sample: Sample) -> Reading:
        """Raise `ImpossibleError` if nothing is left of the transcript."""
        wanted = normalise(sample.transcript)
        if not wanted:
            raise ImpossibleError(f"expected a transcript with words, got {sample.transcript[:60]!r}")
        samples_S = sound(sample, RECOGNISER_RATE)
        heard: tuple[Heard, ...] = ()
        seconds = 0.0
        if samples_S is not None:
            seconds = samples_S.shape[0] / RECOGNISER_RATE
            cuts = (MINUTE, seconds - MINUTE) if seconds >= LONG else ()
            heard = transcribe(self.recogniser, samples_S.numpy(), cuts)
        sections = _sections(heard, seconds)
        words = [normalise(" ".join(h.text for h in part)).split() for part in sections]
        found = self.jiwer.process_words(wanted, " ".join(w for part in words for w in part))
        values: dict[str, float | None] = {
            "wer": float(found.wer),
            "cer": float(self.jiwer.cer(wanted, " ".join(w for part in words for w in part))),
        }
        reasons: dict[str, str] = {}
        total = sum(len(part) for part in words)
        for key, start, stop in (
            ("wer_first_minute", 0, len(words[0])), ("wer_last_minute", total - len(words[-1]), total)
        ):  # fmt: skip
            values[key] = None
            if len(sections) == 1:
                reasons[key] = f"expected at least {LONG:.0f} s of speech, got {seconds:.1f}"
                continue
            try:
                values[key] = tally(found.alignments[0], start, stop, total).wer
            except ImpossibleError as error:
                reasons[key] = str(error)
        text = " ".join(h.text for h in heard if h.text)
        notes = {
            "heard": text,
            "errors": f"{found.substitutions} wrong, {found.deletions} missing, {found.insertions} added "
            f"of {len(wanted.split())} words",
        }
        if samples_S is None:
            notes["sound"] = "the file has no sound: nothing was heard"
        elif not text:
            notes["sound"] = "no speech was heard"
        return Reading(values=values, reasons=reasons, notes=notes)


def _sections(heard: tuple[Heard, ...], seconds: float) -> list[tuple[Heard, ...]]:
    """First minute, what is between, last minute; all in one if that is too short."""
    if seconds < LONG:
        return [heard]
    first = min((h.stop for h in heard), key=lambda t: abs(t - MINUTE))
    last = max(first, min((h.start for h in heard), key=lambda t: abs(t - (seconds - MINUTE))))
    return [
        tuple(h for h in heard if h.stop <= first),
        tuple(h for h in heard if first <= h.start < last),
        tuple(h for h in heard if h.start >= last),
    ]


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """The metrics of this module. Raises `ConfigError` for a recogniser that does not exist."""
    try:
        return [WordErrorRate(recogniser(options))]
    except MissingError as error:
        return [Unavailable(figures=FIGURES, reason=f"{options.recogniser}: {error}")]
