"""Where the world is ours, the truth is known: does the mouth move as the generated speech demands, and does the
pointer know which word is spoken?

Both lay the transcript onto the generated speech (`eval/alignment.py`) and so need a character of the cartoon world,
whose voice the teacher has. Shape letters: T frames.
"""

from __future__ import annotations

import bisect
import difflib
import functools
import json
import math
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock
from streamchar.errors import DataError
from streamchar.eval.alignment import Alignment, align, rendition
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.mouth import correlation, envelope, openings
from streamchar.eval.sample import Sample
from streamchar.types import Speech, Word
from streamchar.world.character import Character, character
from streamchar.world.motion import ARTICULATION
from streamchar.world.splits import HELD_OUT_VOICES
from streamchar.world.viseme import mouth_track
from streamchar.world.voice import VOICES

SYNC = Figure(key="sync_ms", title="Mouth against speech", unit="ms, positive: picture late", better="zero")
SYNC_ABS = Figure(key="sync_abs_ms", title="Mouth against speech, either way", unit="ms", better="lower")
MOUTH = Figure(key="mouth_correlation", title="Mouth follows speech", unit="Pearson's r", better="higher")
POINTER_WORDS = Figure(key="pointer_words", title="Pointer error", unit="words", better="lower")
POINTER_MS = Figure(key="pointer_ms", title="Pointer error of word ends", unit="ms", better="lower")

SHIFTS = 12
"""Frames to either side within which the mouth is looked for: half a second."""
FINE = 8
"""Steps of a frame in the second search: 5.2 ms."""
LEAST_CORRELATION = 0.3
LEAST_DISTINCT = 2.75
"""Below either, the best of the shifts is chance and no time is given. Distinctness of clips of 4 to 8 s: true ones 5
to 11, four of the first weights of `toon` 2.8 to 4.5, and of 124 pictures of another text 8 % above this."""
NEARBY = 9
"""Frames to either side whose mean is taken away for it: a pause fits many a pause."""
LEAST_FRAMES = 24
STIFF = 1e-3
"""Standard deviation of the opening below which a mouth does not move: less than a pixel's flicker."""


def speaker(sample: Sample) -> Character:
    """The clip's character, with the voice that clips of the world give it."""
    if sample.character is None:
        raise ImpossibleError("the clip's character is not known: expected `character`, its seed in the cartoon world")
    return character(sample.character, n_voices=len(VOICES) - len(HELD_OUT_VOICES))


def aligned(sample: Sample) -> Alignment:
    """The transcript laid onto the clip's speech. Raises `ImpossibleError` if that cannot be done."""
    voice = speaker(sample).voice
    try:
        changed = sample.video.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"cannot read {sample.video}: {error}") from None
    return _aligned(sample.video, changed, sample.transcript, voice)


@functools.lru_cache(maxsize=2)
def _aligned(video: Path, changed: int, transcript: str, voice: int) -> Alignment:
    """Kept for the next metric of the same clip; `changed` is part of the key."""
    sound = Sample(name=video.stem, video=video, transcript=transcript).samples(clock.AUDIO_RATE)
    return align(sound, rendition(transcript, voice))


def _note(found: Alignment) -> dict[str, str]:
    text = f"confidence {found.confidence:.2f}, {100 * found.skipped:.0f} % of the transcript's sound not found"
    return {"alignment": text}


def demanded(speech: Speech, n_frames: int, strength: float, late: float = 0.0) -> Tensor:
    """(T,) the opening that the world would draw for `speech`, `late` seconds after it."""
    return mouth_track(speech, n_frames, offset=late, strength=strength).opening


def best_shift(opening_T: Tensor, speech: Speech, strength: float) -> tuple[float, float]:
    """(seconds by which the picture is late, correlation there): whole frames, then parts, then a parabola."""
    frame = 1 / clock.VIDEO_FPS

    def at(late: float) -> float:
        return correlation(opening_T, demanded(speech, opening_T.shape[0], strength, late))

    rough = max(range(-SHIFTS, SHIFTS + 1), key=lambda k: at(k * frame)) * frame
    steps = [rough + k * frame / FINE for k in range(-FINE, FINE + 1)]
    found = [at(late) for late in steps]
    k = max(range(len(steps)), key=found.__getitem__)
    if not 0 < k < len(steps) - 1:
        return steps[k], found[k]
    bend = found[k - 1] - 2 * found[k] + found[k + 1]
    part = 0.5 * (found[k - 1] - found[k + 1]) / bend if bend < 0 else 0.0
    return steps[k] + part * frame / FINE, found[k]


def distinctness(opening_T: Tensor, wanted_T: Tensor) -> float:
    """By how many standard deviations the best correlation within reach lies above those with the speech of other
    moments, more than twice as far away, round the clip's ends; both without their local means. Infinite for clips
    too short to have other moments."""
    own, told = _local(opening_T), _local(wanted_T)
    near = max(correlation(own, told.roll(k)) for k in range(-SHIFTS, SHIFTS + 1))
    away = [correlation(own, told.roll(k)) for k in range(2 * SHIFTS + 1, len(own) - 2 * SHIFTS)]
    if len(away) < LEAST_FRAMES:
        return math.inf
    return (near - statistics.fmean(away)) / max(statistics.stdev(away), 1e-6)


def _local(values_T: Tensor) -> Tensor:
    padded = F.pad(values_T[None, None], (NEARBY, NEARBY), mode="replicate")
    return values_T - F.avg_pool1d(padded, 2 * NEARBY + 1, 1)[0, 0]


class MouthTruth:
    """Mouth in the pixels against the mouth that the generated speech demands.

    Source: our own; the cartoon world's visemes (`world/viseme.py`) for the phoneme times and the loudness of the
    generated speech, against the dark of the mouth in the picture (`eval/mouth.py`). Units and directions:
    `sync_ms`, milliseconds by which the picture is late, nearer 0 is better (the mean over clips hides opposite
    errors: `sync_abs_ms` does not, lower is better); `mouth_correlation`, Pearson's r at that shift, higher is better.
    It misses the mouth's width and rounding, a delay that changes within a clip (it lowers the correlation), and the
    alignment's own error of a few milliseconds; a wrong word spoken with the right mouth counts as right only as far
    as its sound resembles the transcript.
    """

    figures = (SYNC, SYNC_ABS, MOUTH)
    version = "visemes on aligned phonemes, version 1"

    def measure(self, sample: Sample) -> Reading:
        """Series: `opening` (read), `demanded` (at no shift), `loudness`; one value a frame."""
        who, found = speaker(sample), aligned(sample)
        opening_T = torch.cat([openings(block, who) for block in sample.blocks(clock.VIDEO_FPS)])
        loudness_T = envelope(found.speech.samples)
        count = min(opening_T.shape[0], loudness_T.shape[0])
        if count < LEAST_FRAMES:
            raise ImpossibleError(f"expected at least {LEAST_FRAMES} frames with sound, got {count}")
        opening_T = opening_T[:count]
        energy = sample.direction[2] if sample.direction is not None else "medium"
        strength = ARTICULATION.get(energy, ARTICULATION["medium"])
        wanted_T = demanded(found.speech, count, strength)
        late, likeness = best_shift(opening_T, found.speech, strength)
        values: dict[str, float | None] = {
            "sync_ms": 1000 * late, "sync_abs_ms": 1000 * abs(late), "mouth_correlation": likeness,
        }  # fmt: skip
        distinct = distinctness(opening_T, wanted_T)
        reason = None
        if float(opening_T.std()) < STIFF:
            values["mouth_correlation"], reason = 0.0, "the mouth does not move"
        elif likeness < LEAST_CORRELATION or distinct < LEAST_DISTINCT:
            reason = (
                f"the mouth does not follow the speech: correlation {likeness:.2f} at best, {distinct:.1f} standard "
                f"deviations above other moments' (expected {LEAST_CORRELATION:g} and {LEAST_DISTINCT:g})"
            )
        elif abs(late) > (SHIFTS + 0.5) / clock.VIDEO_FPS:
            reason = f"the best shift lies at the edge of the search, {1000 * late:.0f} ms"
        reasons = {}
        if reason is not None:
            values |= {"sync_ms": None, "sync_abs_ms": None}
            reasons = {"sync_ms": reason, "sync_abs_ms": reason}
        series = {
            "opening": opening_T.tolist(), "demanded": wanted_T.tolist(), "loudness": loudness_T[:count].tolist(),
        }  # fmt: skip
        return Reading(values=values, reasons=reasons, series=series, notes=_note(found))


def read_words(path: Path) -> list[Word]:
    """A JSON list of [word, start, end] in seconds."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        words = [Word(text=str(text), start=float(start), end=float(end)) for text, start, end in entries]
    except OSError as error:
        raise DataError(f"cannot read the words' times {path}: {error}") from None
    except (ValueError, TypeError, json.JSONDecodeError):
        raise DataError(f"{path}: expected a JSON list of [word, start, end] in seconds") from None
    if not all(math.isfinite(w.start) and math.isfinite(w.end) for w in words):
        raise DataError(f"{path}: expected times in seconds, got one that is no number")
    return words


def spoken(words: list[Word] | tuple[Word, ...], seconds: float) -> list[int]:
    """How many words have ended at each 1/24 s from 0 to `seconds`."""
    ends = sorted(w.end for w in words)
    return [bisect.bisect_right(ends, k / clock.VIDEO_FPS + 1e-9) for k in range(int(seconds * clock.VIDEO_FPS) + 1)]


def _plain(word: Word) -> str:
    return "".join(c for c in word.text.lower() if c.isalnum())


class PointerTruth:
    """What the pointer said was spoken against what was.

    Source: our own; the pointer's word times (`Sample.words`) against those of the alignment. `pointer_words`: mean
    over every 1/24 s of the clip of the absolute difference between the numbers of words ended, in words;
    `pointer_ms`: median absolute difference between the ends of the same word, in milliseconds. Lower is better.
    It misses the pointer's position within a word, and the alignment's own error, which is of the order of 10 ms; a
    word that was left out counts as spoken where it would have been.
    """

    figures = (POINTER_WORDS, POINTER_MS)
    version = "word ends on aligned speech, version 1"

    def measure(self, sample: Sample) -> Reading:
        """Series: `words_pointer` and `words_spoken`, words ended at each 1/24 s."""
        if sample.words is None:
            raise ImpossibleError("the clip has no word times: expected `words`, a JSON list of [word, start, end]")
        told, found = read_words(sample.words), aligned(sample)
        true = found.speech.words
        seconds = found.speech.seconds
        pointer, exact = spoken(told, seconds), spoken(true, seconds)
        apart = [abs(a - b) for a, b in zip(pointer, exact, strict=True)]
        matcher = difflib.SequenceMatcher(None, [_plain(w) for w in told], [_plain(w) for w in true], autojunk=False)
        same = [(m.a + k, m.b + k) for m in matcher.get_matching_blocks() for k in range(m.size)]
        values: dict[str, float | None] = {"pointer_words": sum(apart) / len(apart), "pointer_ms": None}
        reasons = {}
        if same:
            values["pointer_ms"] = 1000 * statistics.median(abs(told[i].end - true[j].end) for i, j in same)
        else:
            reasons["pointer_ms"] = f"none of the pointer's {len(told)} words is one of the transcript's {len(true)}"
        return Reading(
            values=values, reasons=reasons, notes=_note(found),
            series={"words_pointer": [float(v) for v in pointer], "words_spoken": [float(v) for v in exact]},
        )  # fmt: skip


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """Neither needs a model: the world's teacher is part of the package."""
    return [MouthTruth(), PointerTruth()]
