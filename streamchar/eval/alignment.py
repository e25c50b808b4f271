"""When was each phoneme of generated speech spoken? Alignment with the teacher's own rendition of the transcript.

The teacher voice says the transcript in the character's voice, with exact phoneme times; dynamic time warping between
the two sounds carries those times over. A generated voice imitates that very teacher, so the two differ in tempo and
pauses more than in sound. Speech whose path is no cheaper than that of the transcript's phonemes in another order is
not this transcript, and has no times.

Shape letters: S samples, F frames of the rendition, G frames of the generated speech, C coefficients, W band.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock, phonemes
from streamchar.errors import InputError
from streamchar.eval.metric import ImpossibleError
from streamchar.types import Phoneme, Speech
from streamchar.world.voice import Voice, join, speak

HOP = 512
"""Samples between frames: 96 frames a second at 49,152 Hz, four to a picture."""
RATE = clock.AUDIO_RATE / HOP
SPAN = 2048
"""Samples of a frame."""
MELS = 40
HIGHEST = 8000.0
"""Hz."""
CEPSTRA = 14
FLOOR_DB = 45.0
"""Below the loud parts: quieter sounds are silence, whatever the codec made of it."""
SILENT_DB = 32.0
"""Below the loud parts: a frame in which the path may wait."""
COARSE = 4
"""Frames that are one in the first pass."""
BAND = 64
"""Frames to either side of the first pass's path in which the second looks: 0.67 s."""

WAIT = 0.15
"""Cost of a silent frame that has no counterpart; an ordinary match costs about 0.5, a wrong one 1."""
SKIP = 1.1
"""Of a sounding one: words left out or said twice cost more than any match, but not everything."""
STRETCH = 0.1
"""Added to a step that pairs one frame with two: tempo between half and double, and not for nothing."""
ORDERS = 3
"""Other orders of the phonemes that the path is compared with."""
LEAST = 0.15
"""Confidence below which there is no alignment: other sentences by the same voice have 0.05 to 0.12, the right ones
0.45 to 1, and 0.2 under noise as loud as the speech."""
SURE = 0.3
"""Confidence below which the voice may be another: its resonances are looked for."""
TRACTS = (0.76, 0.87, 1.15, 1.32)
"""Factors on the rendition's resonances; the world's voices lie within 0.8 to 1.22."""
MAX_SECONDS = 600
"""The first pass keeps a byte for every pair of coarse frames: 0.2 GB for ten minutes."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The transcript laid onto generated speech."""

    speech: Speech
    """The generated samples with the phoneme and word times found in them."""
    confidence: float
    """1 - cost of the path / cost with the phonemes in another order: about 0 for babble."""
    skipped: float
    """Share of the rendition's sounding frames that have no counterpart: what was left out."""


@functools.lru_cache(maxsize=8)
def _filters(tract: float) -> Tensor:
    """(MELS, SPAN // 2 + 1) triangles of equal width in mel, moved to `tract` times their frequencies."""
    top = 2595 * math.log10(1 + HIGHEST / 700)
    edges = tract * 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = torch.arange(SPAN // 2 + 1) * (clock.AUDIO_RATE / SPAN)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


def cepstra(samples_S: Tensor, tract: float = 1.0) -> tuple[Tensor, Tensor]:
    """(G, CEPSTRA) mel cepstra and (G,) is it silence? Frame g is centred on sample `HOP` g.

    `tract`: factor on the speaker's resonances to be taken out."""
    spectrum = torch.stft(
        samples_S.float(), SPAN, HOP, window=torch.hann_window(SPAN), center=True, pad_mode="constant",
        return_complex=True,
    )  # fmt: skip
    mel_MG = _filters(tract) @ spectrum.abs().square()
    power_G = mel_MG.sum(0)
    loud = float(power_G.sort().values[int(0.9 * (len(power_G) - 1))])
    if loud <= 1e-8:
        return torch.zeros(len(power_G), CEPSTRA), torch.ones(len(power_G), dtype=torch.bool)
    log_GM = torch.log(mel_MG.T + loud / MELS * 10 ** (-FLOOR_DB / 10))
    order = torch.arange(CEPSTRA)[:, None] * (torch.arange(MELS) + 0.5)[None] * (math.pi / MELS)
    return log_GM @ torch.cos(order).T, power_G < loud * 10 ** (-SILENT_DB / 10)


def _standard(rows_GC: Tensor, silent_G: Tensor) -> Tensor:
    """Zero mean and unit variance over what sounds: takes the voice's own colour and level away."""
    sounding = rows_GC[~silent_G] if int((~silent_G).sum()) > 1 else rows_GC
    return (rows_GC - sounding.mean(0)) / sounding.std(0).clamp(min=1e-3)


def features(cepstra_GC: Tensor, silent_G: Tensor) -> Tensor:
    """(G, 2 CEPSTRA): the cepstra and how they change, standardised."""
    ramp = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]) / 10
    padded = F.pad(cepstra_GC.T[None], (2, 2), mode="replicate")
    change_GC = F.conv1d(padded, ramp.view(1, 1, -1).expand(CEPSTRA, 1, -1), groups=CEPSTRA)[0].T
    return _standard(torch.cat([cepstra_GC, change_GC], 1), silent_G)


def _pooled(rows_GC: Tensor, silent_G: Tensor) -> tuple[Tensor, Tensor]:
    """`COARSE` frames in one; silent if all are."""
    count = -(-len(rows_GC) // COARSE) * COARSE
    rows = F.pad(rows_GC.T[None], (0, count - len(rows_GC)), mode="replicate")[0].T
    silent = F.pad(silent_G.float()[None], (0, count - len(silent_G)), value=1.0)[0] > 0.5
    silent = silent.view(-1, COARSE).all(1)
    return _standard(rows.view(-1, COARSE, rows.shape[1]).mean(1), silent), silent


class _Sound:
    """Rows to be warped, as numpy."""

    def __init__(self, rows_GC: Tensor, silent_G: Tensor) -> None:
        self.rows = rows_GC.numpy().astype(np.float32)
        self.squares = np.square(self.rows).sum(1)
        self.wait = np.where(silent_G.numpy(), WAIT, SKIP)

    def __len__(self) -> int:
        return len(self.rows)

    def away(self, row_C: np.ndarray, square: float, low: int, high: int) -> np.ndarray:
        """Distance of rows low..high-1 from `row_C`: 1 on average for unrelated ones."""
        inner = self.rows[low:high] @ row_C
        squared = np.maximum(self.squares[low:high] + square - 2 * inner, 0)
        return np.sqrt(squared / (2 * self.rows.shape[1])).astype(np.float64)


def _laid(values: np.ndarray, low: int, wanted_low: int, wanted_high: int) -> np.ndarray:
    """Columns wanted_low..wanted_high-1 of a row that begins at column `low`; infinite outside."""
    out = np.full(wanted_high - wanted_low, np.inf)
    first, last = max(low, wanted_low), min(low + len(values), wanted_high)
    if last > first:
        out[first - wanted_low : last - wanted_low] = values[first - low : last - low]
    return out


_MATCH, _LONG, _SHORT, _LEAVE, _PAUSE = range(5)


def warp(told: _Sound, made: _Sound, low_F: np.ndarray, high_F: np.ndarray) -> tuple[np.ndarray, float]:
    """Cheapest path through (told, made): (N, 2) pairs of frames that match, and the mean cost of a frame.

    Row i of told is laid on columns low_F[i]..high_F[i] of made (1-based; column 0 is before any frame; row 0 too).
    Steps: one to one, one to two, two to one, and waits in either sound that cost little where it is silent.
    """
    pauses = np.concatenate([[0.0], np.cumsum(made.wait)])
    before = older = np.full(1, np.inf)  # above row 0 there is nothing
    before_low = older_low = 0
    last_cost, steps = np.array([]), []
    for i in range(len(told) + 1):
        low, high = (0, int(high_F[0]) + 1) if i == 0 else (int(low_F[i - 1]), int(high_F[i - 1]) + 1)
        if i == 0:
            best, step, cost = np.full(high, np.inf), np.zeros(high, np.int8), np.full(high, np.inf)
            best[0] = 0.0
        else:
            cost = _laid(
                made.away(told.rows[i - 1], told.squares[i - 1], max(low - 1, 0), high - 1), max(low, 1), low, high
            )
            beside = _laid(cost, low + 1, low, high)  # of the same row, a column earlier
            above = _laid(last_cost, before_low, low, high)
            ways = np.stack([
                _laid(before, before_low + 1, low, high) + 2 * cost,
                _laid(before, before_low + 2, low, high) + 1.5 * (cost + beside) + STRETCH,
                _laid(older, older_low + 1, low, high) + 1.5 * (cost + above) + STRETCH,
                _laid(before, before_low, low, high) + told.wait[i - 1],
            ])  # fmt: skip
            step = ways.argmin(0).astype(np.int8)
            best = ways[step, np.arange(high - low)]
        # a wait in `made` comes from the left in the same row: a running minimum of what is left after its cost
        running = np.minimum.accumulate(best - pauses[low:high]) + pauses[low:high]
        step[running < best - 1e-9] = _PAUSE
        steps.append((low, step))
        older, older_low, before, before_low, last_cost = before, before_low, running, low, cost
    total = before[len(made) - before_low]
    return _traced(steps, len(told), len(made)), float(total) / (len(told) + len(made))


def _traced(steps: list[tuple[int, np.ndarray]], i: int, j: int) -> np.ndarray:
    pairs: list[tuple[int, int]] = []
    while i > 0 or j > 0:
        low, row = steps[i]
        step = row[j - low]
        if step == _PAUSE:
            j -= 1
        elif step == _LEAVE:
            i -= 1
        else:
            pairs.append((i - 1, j - 1))
            if step == _LONG:
                pairs.append((i - 1, j - 2))
            elif step == _SHORT:
                pairs.append((i - 2, j - 1))
            i, j = i - (2 if step == _SHORT else 1), j - (2 if step == _LONG else 1)
    return np.array(pairs[::-1], np.int64).reshape(-1, 2)


def _whole(told: _Sound, made: _Sound) -> tuple[np.ndarray, float]:
    """The path without a band."""
    return warp(told, made, np.zeros(len(told), np.int64), np.full(len(told), len(made)))


def _band(pairs: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns (1-based) of each fine row within `BAND` frames, either way, of a coarse path."""
    at = np.arange(rows + 1)
    ends = np.concatenate([[[-1, -1]], pairs, [[-(-rows // COARSE), -(-columns // COARSE)]]]) * COARSE
    earliest = ends[np.maximum(np.searchsorted(ends[:, 0], at - BAND, side="right") - 1, 0), 1]
    latest = ends[np.minimum(np.searchsorted(ends[:, 0], at + BAND, side="left"), len(ends) - 1), 1]
    low = np.clip(earliest - BAND, 0, columns)
    high = np.clip(latest + BAND + COARSE, 0, columns)
    low, high = low[1:], np.maximum.accumulate(high)[1:]
    high[-1] = columns
    return np.minimum.accumulate(low[::-1])[::-1], high


def _knots(pairs: np.ndarray, silent_F: np.ndarray, silent_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the rendition and where they lie in the generated speech, for interpolation.

    Silence matches silence anywhere: there the map keeps step with the sound on either side, and what is left over
    lies in the middle.
    """
    sure = pairs[~(silent_F[pairs[:, 0]] & silent_G[pairs[:, 1]])]
    frames, where = np.unique(sure[:, 0], return_inverse=True)
    at = np.bincount(where, sure[:, 1]) / np.bincount(where)
    frames = np.concatenate([[frames[0] - 1e6], frames, [frames[-1] + 1e6]])
    at = np.concatenate([[at[0] - 1e6], at, [at[-1] + 1e6]])
    told, made = np.diff(frames), np.diff(at)
    kept = np.minimum(told, made) / 2
    gap = told > 1.5
    extra_told = np.concatenate([frames[:-1][gap] + kept[gap], frames[1:][gap] - kept[gap]])
    extra_made = np.concatenate([at[:-1][gap] + kept[gap], at[1:][gap] - kept[gap]])
    order = np.lexsort((np.concatenate([at, extra_made]), np.concatenate([frames, extra_told])))
    return np.concatenate([frames, extra_told])[order], np.concatenate([at, extra_made])[order]


def _reordered(cepstra_FC: Tensor, silent_F: Tensor, marks: tuple[Phoneme, ...], seed: int) -> tuple[Tensor, Tensor]:
    """The rendition with its phonemes in another order: what no speech says."""
    cuts = sorted({round(m.start * RATE) for m in marks} | {0, len(cepstra_FC)})
    pieces = [torch.arange(a, min(b, len(cepstra_FC))) for a, b in zip(cuts, cuts[1:], strict=False)]
    random.Random(seed).shuffle(pieces)
    order = torch.cat(pieces)
    return cepstra_FC[order], silent_F[order]


@dataclass(frozen=True, kw_only=True)
class _FirstPass:
    told_FC: Tensor
    silent_F: Tensor
    pairs: np.ndarray
    confidence: float


def _first_pass(told: Speech, coarse: _Sound, tract: float) -> _FirstPass:
    """The coarse path, and how much cheaper it is than with the phonemes in other orders."""
    raw, silent = cepstra(told.samples, tract)
    told_FC = features(raw, silent)
    pairs, cost = _whole(_Sound(*_pooled(told_FC, silent)), coarse)
    others = 0.0
    for seed in range(ORDERS):
        mixed, hushed = _reordered(raw, silent, told.phonemes, seed)
        others += _whole(_Sound(*_pooled(features(mixed, hushed), hushed)), coarse)[1] / ORDERS
    return _FirstPass(told_FC=told_FC, silent_F=silent, pairs=pairs, confidence=1 - cost / max(others, 1e-9))


def rendition(transcript: str, voice: Voice | int) -> Speech:
    """The teacher says `transcript`, without pauses but its own. Raises `ImpossibleError` if it cannot."""
    try:
        parts = [t for t in phonemes.split_sentences(phonemes.speakable(transcript)) if phonemes.utterance(t).words]
        if not parts:
            raise InputError(f"expected a transcript with at least one English word, got {transcript[:60]!r}")
        return join([speak(part, voice) for part in parts])
    except InputError as error:
        raise ImpossibleError(f"the teacher voice cannot say the transcript: {error}") from None


def align(samples_S: Tensor, told: Speech) -> Alignment:
    """Lay the times of `told`, a rendition of the transcript, onto (S,) generated speech at 49,152 Hz.

    Raises `ImpossibleError` if the speech is silent, too long, or not this transcript.
    """
    seconds = samples_S.shape[0] / clock.AUDIO_RATE
    if max(seconds, told.seconds) > MAX_SECONDS:
        raise ImpossibleError(
            f"alignment takes at most {MAX_SECONDS} s of speech, got {seconds:.0f} s for a text of {told.seconds:.0f} s"
        )
    made_raw, made_silent = cepstra(samples_S)
    if bool(made_silent.all()):
        raise ImpossibleError("there is no speech in the sound")
    made_GC = features(made_raw, made_silent)
    coarse = _Sound(*_pooled(made_GC, made_silent))
    tries = [_first_pass(told, coarse, 1.0)]
    if tries[0].confidence < SURE:
        tries += [_first_pass(told, coarse, tract) for tract in TRACTS]
    found = max(tries, key=lambda t: t.confidence)
    if found.confidence < LEAST or len(found.pairs) == 0:
        raise ImpossibleError(
            f"the speech is not the transcript: aligned with it, it is only {100 * max(found.confidence, 0):.0f} % "
            f"nearer than with the same phonemes in another order (expected at least {100 * LEAST:.0f} %)"
        )
    told_FC, told_silent = found.told_FC, found.silent_F
    band = _band(found.pairs, len(told_FC), len(made_GC))
    pairs, _ = warp(_Sound(told_FC, told_silent), _Sound(made_GC, made_silent), *band)
    frames, at = _knots(pairs, told_silent.numpy(), made_silent.numpy())

    def moved(time: float) -> float:
        return float(np.clip(np.interp(time * RATE, frames, at) / RATE, 0, seconds))

    marks = tuple(replace(m, start=moved(m.start), end=moved(m.end)) for m in told.phonemes)
    words = tuple(replace(w, start=moved(w.start), end=moved(w.end)) for w in told.words)
    sounding = (~told_silent).numpy()
    matched = np.zeros(len(sounding), bool)
    matched[pairs[:, 0]] = True
    return Alignment(
        speech=Speech(samples=samples_S, text=told.text, phonemes=marks, words=words, pitch=torch.zeros(0)),
        confidence=found.confidence,
        skipped=float((sounding & ~matched).sum() / max(1, sounding.sum())),
    )
