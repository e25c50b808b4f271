"""Voices of the cartoon world: one licence-clean teacher, many clearly different speakers.

`hibari-tts` (Apache-2.0) predicts, for each 12.5 ms frame, a harmonic and a noise spectrum and the
fundamental frequency apart from each other. A speaker here is a change of pitch, pitch range, vocal
tract length (a warp of the spectra's frequency axis), tempo and breathiness, made before synthesis,
so it sounds clean. Phoneme times are exact: the graph's own durations are added to its outputs.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from streamchar import clock, phonemes
from streamchar.errors import InputError
from streamchar.types import Filters, Phoneme, Speech, Word

TEACHER_RATE = 24_000
TEACHER_HOP = 300  # samples of one spectral frame
DURATION_UNIT = 0.025  # seconds of one duration step
PITCH_RATE = 96  # Hz of `Speech.pitch`
_DURATIONS = "/Clip_output_0"


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker as a change of the teacher."""

    name: str
    pitch: float = 1.0
    """Factor on the fundamental frequency."""
    pitch_range: float = 1.0
    """Factor on its excursions around the mean (0 = monotone)."""
    tract: float = 1.0
    """Factor on formant frequencies: below 1 a longer vocal tract."""
    tempo: float = 1.0
    breath: float = 0.0
    """Added to the log magnitude of the noise part."""
    tilt: float = 0.0
    """Change of the log magnitude from 0 to 12 kHz."""


VOICES: tuple[Voice, ...] = (
    Voice(name="heart"),
    Voice(name="contralto", pitch=0.82, tract=0.95, tempo=0.95, pitch_range=0.9),
    Voice(name="baritone", pitch=0.58, tract=0.86, tempo=1.0),
    Voice(name="bass", pitch=0.47, tract=0.80, tempo=0.93, pitch_range=0.8),
    Voice(name="boy", pitch=1.35, tract=1.16, tempo=1.08, pitch_range=1.2),
    Voice(name="girl", pitch=1.62, tract=1.22, tempo=1.02, pitch_range=1.1),
    Voice(name="robot", pitch=0.70, tract=1.0, tempo=0.97, pitch_range=0.1),
    Voice(name="elder", pitch=0.74, tract=0.91, tempo=0.88, breath=0.7, pitch_range=1.25),
    Voice(name="imp", pitch=1.25, tract=0.90, tempo=1.1, pitch_range=1.5),
    Voice(name="giantess", pitch=0.92, tract=0.84, tempo=0.92, tilt=-0.8),
    Voice(name="tenor", pitch=0.67, tract=0.92, tempo=1.04, pitch_range=1.1),
    Voice(name="sprite", pitch=1.18, tract=1.10, tempo=0.98, pitch_range=0.8),
)
"""The last two are held out of training (`world/splits.py`)."""


def random_voice(rng: random.Random) -> Voice:
    """A speaker of no name: the codec must carry voices that no preset has."""
    pitch = log_uniform(rng, 0.45, 1.75)
    tract = min(1.3, max(0.76, pitch**0.3 * log_uniform(rng, 0.9, 1.12)))
    return Voice(
        name="random", pitch=pitch, tract=tract, pitch_range=rng.uniform(0.1, 1.6), tempo=rng.uniform(0.85, 1.15),
        breath=rng.choice([0.0, 0.0, rng.uniform(0, 1)]), tilt=rng.uniform(-1, 0.6),
    )


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "streamchar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:  # a read-only home: the graph is then made anew for every process
        own = Path(tempfile.gettempdir()) / f"streamchar-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        own.mkdir(mode=0o700, exist_ok=True)
        return own


def _timed_graph(path: str) -> Path:
    """The teacher's ONNX graph with its durations as a further output, made once."""
    import onnx

    target = _cache_folder() / f"hibari-timed-{Path(path).stat().st_size}.onnx"
    if not target.exists():
        graph = onnx.load(path)
        graph.graph.node.append(
            onnx.helper.make_node("Cast", [_DURATIONS], ["duration"], to=onnx.TensorProto.INT64)
        )
        graph.graph.output.append(
            onnx.helper.make_tensor_value_info("duration", onnx.TensorProto.INT64, None)
        )
        part = target.with_suffix(f".{os.getpid()}.part")
        onnx.save(graph, str(part))
        os.replace(part, target)
    return target


@functools.lru_cache(maxsize=1)
def _teacher():
    import onnxruntime as ort
    from hibari import Hibari

    hibari = Hibari(g2p=object())
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(_timed_graph(hibari.model_path)), options, providers=["CPUExecutionProvider"]
    )
    return hibari.vocab, session


def _warp(bins_KF: np.ndarray, factor: float, *, nearest: bool = False, floor: float | None = None) -> np.ndarray:
    """Move the content of frequency f to `factor` f; above the source's band, `floor`."""
    if factor == 1.0:
        return bins_KF
    count = bins_KF.shape[0]
    source = np.arange(count) / factor
    if nearest:
        return bins_KF[np.minimum(np.rint(source).astype(int), count - 1)]
    low = np.minimum(source.astype(int), count - 2)
    part = np.minimum(source - low, 1.0)[:, None].astype(np.float32)
    out = bins_KF[low] * (1 - part) + bins_KF[low + 1] * part
    if floor is not None:
        out[source > count - 1] = floor
    return out


def _bend_pitch(f0_F: np.ndarray, voice: Voice) -> np.ndarray:
    voiced = f0_F > 40.0
    if not voiced.any():
        return f0_F
    log = np.log(f0_F[voiced])
    mean = log.mean()
    out = f0_F.copy()
    out[voiced] = np.clip(np.exp(mean + (log - mean) * voice.pitch_range) * voice.pitch, 50.0, 600.0)
    return out


def _synthesize(
    outputs: list[np.ndarray], voice: Voice, seed: int, with_filters: bool
) -> tuple[np.ndarray, np.ndarray, Filters | None]:
    """Spectra of the teacher in `voice` -> (samples at 24 kHz, f0 at 80 Hz, if asked for what they were made with)."""
    from hibari import dsp

    lh, theta, ln, lr, phi, f0 = (o[0] for o in outputs[:6])
    f0 = _bend_pitch(f0, voice)
    slope = (voice.tilt * np.linspace(0, 1, lh.shape[0], dtype=np.float32))[:, None]
    lh = _warp(lh, voice.tract, floor=-12.0) + slope
    ln = _warp(ln, voice.tract, floor=-12.0) + slope + voice.breath
    lr = _warp(lr, voice.tract, floor=-12.0) + slope
    theta, phi = _warp(theta, voice.tract), _warp(phi, voice.tract, nearest=True)
    samples = dsp.synth(lh, theta, ln, lr, phi, f0, np.random.default_rng(seed))
    return samples, f0, _filters(lh, theta, ln, lr) if with_filters else None


def _filters(lh: np.ndarray, theta: np.ndarray, ln: np.ndarray, lr: np.ndarray) -> Filters:
    # the branch of `lr` has a phase of its own, partly held from frame to frame: half the power of as many Gaussian
    # numbers if it were not, twice if it were; measured, unvoiced sounds are right when it counts as they do
    noise = 0.5 * np.logaddexp(2 * ln, 2 * lr)
    phase = np.pi * np.tanh(theta)
    return Filters(
        harmonic=torch.from_numpy(lh), phase=torch.from_numpy(phase), noise=torch.from_numpy(noise)
    )


def speak(
    text: str, voice: Voice | int = 0, *, tempo: float = 1.0, seed: int = 0, with_filters: bool = False
) -> Speech:
    """Say one sentence (or clause) with exact phoneme and word times; `with_filters` keeps the teacher's spectra.

    Raises `InputError` if `text` holds nothing to speak or is too long for one utterance.
    """
    import soxr

    if isinstance(voice, int):
        if not 0 <= voice < len(VOICES):
            raise InputError(f"expected a voice from 0 to {len(VOICES) - 1}, got {voice}")
        voice = VOICES[voice]
    utterance = phonemes.utterance(text)
    vocab, session = _teacher()
    known = [(c, w) for c, w in zip(utterance.symbols, utterance.symbol_word, strict=True) if c in vocab]
    if not known:
        raise InputError(f"expected a sentence with at least one English word, got {text!r}")
    if len(known) > 500:
        raise InputError(f"expected at most 500 phonemes in one utterance, got {len(known)}; split the sentence")
    ids = np.array([[0, *(vocab[c] for c, _ in known), 0]], np.int64)
    outputs = session.run(None, {"ids": ids, "speed": np.array([voice.tempo * tempo], np.float32)})
    samples, f0, filters = _synthesize(outputs, voice, seed, with_filters)
    times = np.concatenate([[0.0], np.cumsum(outputs[6].ravel() * DURATION_UNIT)])
    symbols = [(phonemes.PAUSE, -1), *known, (phonemes.PAUSE, -1)]
    marks = tuple(
        Phoneme(symbol=s, start=float(times[i]), end=float(times[i + 1]), word=w) for i, (s, w) in enumerate(symbols)
    )
    samples = soxr.resample(samples, TEACHER_RATE, clock.AUDIO_RATE, quality="HQ").astype(np.float32)
    count = round(times[-1] * clock.AUDIO_RATE)
    samples = np.pad(samples, (0, max(0, count - len(samples))))[:count]
    gain = _gain(samples)
    frames = max(1, round(times[-1] * PITCH_RATE))
    at = (np.arange(frames) + 0.5) / PITCH_RATE * (TEACHER_RATE / TEACHER_HOP) - 0.5
    pitch = f0[np.clip(np.rint(at).astype(int), 0, len(f0) - 1)]
    return Speech(
        samples=torch.from_numpy((samples * gain).astype(np.float32)),
        text=text,
        phonemes=marks,
        words=_words(utterance.words, marks),
        pitch=torch.from_numpy(np.where(pitch > 40, pitch, 0).astype(np.float32)),
        filters=None if filters is None else _louder(filters, gain),
    )


def _gain(samples: np.ndarray) -> float:
    """What brings speech to one loudness: 0.08 RMS over its sounding parts, peaks under 0.95."""
    loud = np.abs(samples) > 0.01
    rms = float(np.sqrt(np.mean(samples[loud] ** 2))) if loud.any() else 1.0
    peak = float(np.abs(samples).max()) or 1.0
    return min(0.08 / rms, 0.95 / peak)


def _louder(filters: Filters, gain: float) -> Filters:
    more = float(np.log(gain))
    return Filters(harmonic=filters.harmonic + more, phase=filters.phase, noise=filters.noise + more)


def _words(texts: tuple[str, ...], marks: tuple[Phoneme, ...]) -> tuple[Word, ...]:
    """Words with the time from their first sounding phoneme to their last."""
    out = []
    for index, text in enumerate(texts):
        own = [m for m in marks if m.word == index and m.symbol not in phonemes.PUNCTUATION and m.symbol != " "]
        if own:
            out.append(Word(text=text, start=own[0].start, end=own[-1].end))
        else:
            last = out[-1].end if out else 0.0
            out.append(Word(text=text, start=last, end=last))
    return tuple(out)


def join(parts: list[Speech], gaps: list[float] | None = None) -> Speech:
    """Utterances one after the other, with `gaps[i]` seconds of silence after part i."""
    gaps = gaps or [0.0] * len(parts)
    samples, marks, words, pitch, offset, base = [], [], [], [], 0.0, 0
    for part, gap in zip(parts, gaps, strict=True):
        marks += [
            Phoneme(symbol=m.symbol, start=m.start + offset, end=m.end + offset, word=m.word + base if m.word >= 0 else -1)
            for m in part.phonemes
        ]
        words += [Word(text=w.text, start=w.start + offset, end=w.end + offset) for w in part.words]
        silence = round(gap * clock.AUDIO_RATE)
        samples += [part.samples, torch.zeros(silence)]
        offset += (part.samples.shape[0] + silence) / clock.AUDIO_RATE
        base += len(part.words)
        pitch.append(part.pitch)
        pitch.append(torch.zeros(max(0, round(offset * PITCH_RATE) - sum(p.shape[0] for p in pitch))))
    return Speech(
        samples=torch.cat(samples),
        text=" ".join(p.text for p in parts),
        phonemes=tuple(marks),
        words=tuple(words),
        pitch=torch.cat(pitch),
    )
