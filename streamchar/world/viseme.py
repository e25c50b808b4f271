"""Mouth shapes from phoneme times: dominance-weighted targets, as in Cohen and Massaro's coarticulation.

Every phoneme pulls each mouth parameter towards its own target with a weight that decays around its
centre, faster after it than before (the mouth anticipates). Lip closure is not left to the blend:
m, b and p shut the mouth for at least one frame, whatever their neighbours want. How far the jaw goes also
follows loudness, as it does in people: a stressed syllable opens wider than a mumbled one.

Shape letters: T frames, K phonemes near a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.clock import AUDIO_RATE, VIDEO_FPS
from streamchar.errors import DataError
from streamchar.types import Phoneme, Speech

# target: opening, width (-1 narrow .. 1 spread), round, teeth, tongue; weights: of opening, of shape
_Target = tuple[float, float, float, float, float, float, float]
REST: _Target = (0.0, 0.0, 0.0, 0.2, 0.0, 1.0, 0.6)
_VOWELS: dict[str, _Target] = {
    "ɑ": (1.00, -0.05, 0.05, 0.45, 0.15, 1.0, 0.7), "a": (0.95, 0.15, 0.0, 0.5, 0.2, 1.0, 0.7), "æ": (0.88, 0.55, 0.0, 0.75, 0.2, 1.0, 0.8),
    "ɛ": (0.62, 0.50, 0.0, 0.70, 0.3, 0.9, 0.7), "ə": (0.36, 0.05, 0.1, 0.45, 0.2, 0.6, 0.4), "ʌ": (0.64, 0.05, 0.0, 0.45, 0.2, 0.9, 0.5),
    "ɜ": (0.42, -0.20, 0.5, 0.45, 0.3, 0.9, 0.8), "i": (0.30, 0.95, 0.0, 0.95, 0.3, 0.9, 1.0), "ɪ": (0.38, 0.60, 0.0, 0.80, 0.3, 0.8, 0.7),
    "u": (0.30, -0.80, 1.0, 0.05, 0.0, 0.9, 1.1), "ʊ": (0.36, -0.50, 0.75, 0.15, 0.1, 0.8, 0.9), "ɔ": (0.78, -0.45, 0.75, 0.20, 0.1, 1.0, 0.9),
    "o": (0.60, -0.60, 0.9, 0.10, 0.1, 1.0, 1.0), "e": (0.48, 0.70, 0.0, 0.80, 0.3, 0.9, 0.8),
}  # fmt: skip
_CONSONANTS: dict[str, _Target] = {
    "m": (0.0, 0.0, 0.0, 0.1, 0.0, 1.6, 0.3), "f": (0.10, 0.15, 0.0, 1.0, 0.0, 1.4, 0.7), "θ": (0.26, 0.15, 0.0, 0.7, 1.0, 1.1, 0.6),
    "t": (0.20, 0.20, 0.0, 0.85, 0.5, 0.9, 0.35), "s": (0.12, 0.45, 0.0, 1.0, 0.1, 1.1, 0.6), "ʃ": (0.20, -0.45, 0.85, 0.9, 0.0, 1.1, 1.0),
    "l": (0.34, 0.15, 0.0, 0.6, 0.9, 0.8, 0.4), "ɹ": (0.28, -0.45, 0.65, 0.4, 0.2, 0.8, 0.9), "k": (0.30, 0.10, 0.0, 0.5, 0.1, 0.6, 0.2),
    "h": (0.42, 0.05, 0.0, 0.4, 0.1, 0.4, 0.15), "w": (0.16, -0.90, 1.0, 0.0, 0.0, 1.2, 1.4), "j": (0.26, 0.75, 0.0, 0.9, 0.3, 0.9, 0.9),
}  # fmt: skip
_SAME_AS = {
    "ᵊ": "ə", "ɐ": "ʌ", "ɚ": "ɜ", "ᵻ": "ɪ", "ɒ": "ɔ", "y": "u", "ɨ": "ɪ", "b": "m", "p": "m", "v": "f", "ð": "θ", "d": "t", "n": "t", "ɾ": "t",
    "T": "t", "z": "s", "ʒ": "ʃ", "ʤ": "ʃ", "ʧ": "ʃ", "ŋ": "k", "ɡ": "k", "g": "k", "ʔ": "k", "x": "k", "r": "ɹ", "ɫ": "l",
}  # fmt: skip
_DIPHTHONGS = {"A": "eɪ", "I": "aɪ", "O": "oʊ", "Q": "əʊ", "W": "aʊ", "Y": "ɔɪ"}
BILABIALS = frozenset("mbp")
LABIODENTALS = frozenset("fv")
STRESS = frozenset("ˈˌ")
MODIFIERS = STRESS | frozenset("ːʰʲ")

REACH = 12  # phonemes considered around a frame: more than any dominance spans
BEFORE, AFTER = 0.085, 0.065  # seconds of decay before and after a phoneme's centre
LEAD = 0.02  # seconds by which lips run ahead of the sound, on top of the asymmetry

LOUDNESS_STEP = 512  # samples
LOUDNESS_BLUR = 0.035  # seconds, deviation of the Gaussian that smooths power
LOUDNESS_SLOPE = 16.0  # decibels above the speech's mean that double the opening, before the limits
LOUDNESS_LIMITS = (0.35, 1.3)
LOUDNESS_FLOOR = 35.0  # decibels below the loudest moment: silence, not counted in the mean


@dataclass(frozen=True, kw_only=True)
class MouthTrack:
    """Mouth per frame; every field (T,)."""

    opening: Tensor
    """[0, 1]: 0 closed, 1 as wide as this character's jaw goes. The ground truth of all lip metrics."""
    width: Tensor
    """[-1, 1]: narrow to spread."""
    round: Tensor
    """[0, 1]: lips pushed forward."""
    teeth: Tensor
    tongue: Tensor
    press: Tensor
    """[0, 1]: lips pressed together (m, b, p)."""


def _targets(phoneme: Phoneme) -> list[tuple[_Target, float, float, float]]:
    """(target, centre, half duration, weight) of a phoneme; a diphthong has two."""
    start, end = phoneme.start, phoneme.end
    symbols = [c for c in phoneme.symbol if c not in MODIFIERS]
    symbol = symbols[0]
    if symbol in _DIPHTHONGS:
        first, second = _DIPHTHONGS[symbol]
        a, b = start + 0.30 * (end - start), start + 0.82 * (end - start)
        half = 0.25 * (end - start)
        return [(_VOWELS[first], a, half, 1.0), (_VOWELS[second], b, half, 0.8)]
    base = _SAME_AS.get(symbol, symbol)
    half = 0.5 * (end - start)
    if base in _VOWELS:
        return [(_VOWELS[base], start + 0.9 * half, half, 1.0)]
    if base in _CONSONANTS:
        return [(_CONSONANTS[base], start + half, half, 1.0)]
    if symbol.isalpha():
        raise DataError(f"no mouth shape for phoneme {phoneme.symbol!r}; expected the Kokoro/misaki alphabet: add it to world/viseme.py")
    if end - start < 0.09:  # a word boundary, not a pause: speech flows over it
        return []
    return [(REST, start + half, half, 1.3)]


def _sounding(phonemes: tuple[Phoneme, ...]) -> list[Phoneme]:
    """Phonemes with the time of bare marks given away: stress to the sound after it, length to the one before."""
    out: list[Phoneme] = []
    start: float | None = None
    for p in phonemes:
        if all(c in MODIFIERS for c in p.symbol):
            if p.symbol in STRESS:
                start = p.start if start is None else start
            elif out:
                out[-1] = replace(out[-1], end=p.end)
            continue
        out.append(p if start is None else replace(p, start=start))
        start = None
    return out


def _blend(speech: Speech, times_T: Tensor) -> Tensor:
    """Dominance-weighted targets at the given times -> (T, 5)."""
    rows = [row for phoneme in _sounding(speech.phonemes) for row in _targets(phoneme)]
    last = max((p.end for p in speech.phonemes), default=0.0)
    first = min((p.start for p in speech.phonemes), default=0.0)
    rows = [(REST, first - 0.16, 0.06, 1.6), *sorted(rows, key=lambda r: r[1]), (REST, last + 0.16, 0.06, 1.6)]
    target = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    centre, half, weight = (torch.tensor([r[i] for r in rows], dtype=torch.float64) for i in (1, 2, 3))
    near = torch.searchsorted(centre, times_T)[:, None] + torch.arange(-REACH // 2, REACH // 2)
    valid = (near >= 0) & (near < len(rows))
    near = near.clamp(0, len(rows) - 1)
    away = times_T[:, None] - centre[near]
    decay = torch.where(away < 0, BEFORE, AFTER)
    reach = ((away.abs() - 0.5 * half[near]).clamp(min=0) / decay) ** 1.5
    # relative to the strongest: far from everything (a long silence) the nearest target rules
    log_dominance = (-2.2 * reach).masked_fill(~valid, -torch.inf)
    dominance = torch.exp(log_dominance - log_dominance.max(1, keepdim=True).values) * weight[near]
    opening_weight, shape_weight = dominance * target[near, 5], dominance * target[near, 6]
    out = []
    for column in range(5):
        w = opening_weight if column in (0, 3, 4) else shape_weight
        out.append((w * target[near, column]).sum(1) / w.sum(1))
    return torch.stack(out, 1)


def _closure(speech: Speech, times_T: Tensor, symbols: frozenset[str]) -> Tensor:
    """How far a set of closing consonants holds the lips: 1 within a plateau, 0 outside -> (T,)."""
    out = torch.zeros_like(times_T)
    step = 1.0 / VIDEO_FPS if len(times_T) < 2 else float(times_T[1] - times_T[0])
    for p in speech.phonemes:
        if not any(c in symbols for c in p.symbol):
            continue
        centre = 0.5 * (p.start + p.end)
        plateau = max(0.501 * step, 0.36 * (p.end - p.start))  # always holds one frame time
        low = int(torch.searchsorted(times_T, centre - plateau - 0.05))
        high = int(torch.searchsorted(times_T, centre + plateau + 0.05, right=True))
        part = 1 - ((times_T[low:high] - centre).abs() - plateau).clamp(min=0) / 0.05
        out[low:high] = torch.maximum(out[low:high], part)
    return out


def _effort(speech: Speech, times_T: Tensor) -> Tensor:
    """Factor of the opening from how loud the speech is around each time, 1 at its mean loudness -> (T,)."""
    power = speech.samples[: speech.samples.shape[0] // LOUDNESS_STEP * LOUDNESS_STEP].double()
    power = power.reshape(-1, LOUDNESS_STEP).square().mean(1)
    if power.numel() == 0 or not bool(power.any()):
        return torch.ones_like(times_T)
    rate = AUDIO_RATE / LOUDNESS_STEP
    reach = round(3 * LOUDNESS_BLUR * rate)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / (LOUDNESS_BLUR * rate)).double().square())
    smooth = F.conv1d(power[None, None], (kernel / kernel.sum())[None, None], padding=reach)[0, 0]
    decibels = 10 * torch.log10(smooth + 1e-9)
    mean = decibels[decibels > decibels.max() - LOUDNESS_FLOOR].mean()
    here = decibels[(times_T * rate).round().long().clamp(0, len(decibels) - 1)]
    return (1 + (here - mean) / LOUDNESS_SLOPE).clamp(*LOUDNESS_LIMITS)


def mouth_track(speech: Speech, n_frames: int, fps: float = VIDEO_FPS, *, offset: float = 0.0, strength: float = 1.0) -> MouthTrack:
    """Mouth parameters of `n_frames` frames; frame i shows time i / fps - offset of the speech.

    `strength` scales the opening (how big a character articulates). Silence shows a closed mouth.
    Raises DataError on a phoneme outside the alphabet.
    """
    times = torch.arange(n_frames, dtype=torch.float64) / fps - offset
    if not speech.phonemes:
        zero = torch.zeros(n_frames)
        return MouthTrack(opening=zero, width=zero, round=zero, teeth=zero + REST[3], tongue=zero, press=zero)
    blend = _blend(speech, times + LEAD)
    press = _closure(speech, times, BILABIALS)
    tuck = _closure(speech, times, LABIODENTALS)
    opening = (blend[:, 0] * _effort(speech, times) * strength).clamp(0, 1)
    opening = torch.minimum(opening, 1 - 0.88 * tuck) * (1 - press)
    return MouthTrack(
        opening=opening.float(), width=(blend[:, 1] * (1 - 0.5 * press)).clamp(-1, 1).float(),
        round=blend[:, 2].clamp(0, 1).float(), teeth=blend[:, 3].clamp(0, 1).float(),
        tongue=blend[:, 4].clamp(0, 1).float(), press=press.float(),
    )  # fmt: skip
