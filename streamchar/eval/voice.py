"""Whose voice is it, and how good does it sound? Speaker similarity, DNSMOS, DistillMOS.

Networks of others judge the sound as it is in the file, at 16 kHz: their weights come with the packages or from the
user. Sound above 8 kHz is heard by none of them.

Shape letters: S samples, T frames of 10 ms, D dimensions of an embedding.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from streamchar.errors import ConfigError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.recognisers import RECOGNISER_RATE, SILENCE, MissingError, fingerprint, package, pieces
from streamchar.eval.sample import Sample
from streamchar.eval.speech import sound

RATE = RECOGNISER_RATE
BINS = 80
_LENGTH, _HOP, _FFT = 400, 160, 512
_PREEMPHASIS = 0.97
_LOWEST = 20.0
QUIET = 40.0
"""Decibels below the loud parts at which a frame is no speech."""
LEAST = 0.5
"""Seconds of speech: an embedding of less says nothing."""
PIECE = 20.0
"""Seconds that one embedding is made of; longer speech is cut at pauses and averaged."""
DISTILL_SAMPLES, DISTILL_HOP = 122_880, 16_000
"""DistillMOS's window (7.68 s) and the most that it is moved on by, in clips of at most DENSE seconds."""
DENSE = 60.0


@functools.lru_cache(maxsize=4)
def mel_bank(bins: int = BINS) -> Tensor:
    """(bins, 257) triangles, equally wide in mel (Kaldi's: 1127 ln(1 + f / 700)) from 20 Hz to 8 kHz."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    edges = mel(torch.tensor([_LOWEST, RATE / 2], dtype=torch.float64))
    points = torch.linspace(float(edges[0]), float(edges[1]), bins + 2, dtype=torch.float64)
    at = mel(torch.arange(_FFT // 2 + 1, dtype=torch.float64) * RATE / _FFT)
    low, peak, high = points[:-2, None], points[1:-1, None], points[2:, None]
    rise, fall = (at - low) / (peak - low), (high - at) / (high - peak)
    bank = torch.minimum(rise, fall).clamp(min=0)
    bank[:, -1] = 0  # Kaldi leaves Nyquist out
    return bank.float()


def fbank(samples_S: Tensor, bins: int = BINS) -> Tensor:
    """(S,) at 16 kHz in [-1, 1] -> (T, bins) log mel energies as Kaldi makes them for WeSpeaker.

    25 ms frames every 10 ms, whole ones only; 16-bit scale, mean removed, pre-emphasis 0.97, Hamming, no dither.
    """
    if samples_S.shape[0] < _LENGTH:
        return torch.zeros(0, bins)
    frames = (samples_S.float() * 32768.0).unfold(0, _LENGTH, _HOP)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hamming_window(_LENGTH, periodic=False)
    power = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=_FFT).abs().square()
    return (power @ mel_bank(bins).T).clamp(min=torch.finfo(torch.float32).eps).log()


def speaking(samples_S: Tensor) -> Tensor:
    """(T,) bool, one for each frame of `fbank`: not more than 40 dB under the loud parts of the recording."""
    if samples_S.shape[0] < _LENGTH:
        return torch.zeros(0, dtype=torch.bool)
    power = samples_S.float().unfold(0, _LENGTH, _HOP).square().mean(1)
    return power > max(float(power.quantile(0.95)) * 10 ** (-QUIET / 10), SILENCE**2 / 2)


class SpeakerEncoder(Protocol):
    """Turns speech into a point; the nearer two points, the more alike the voices."""

    name: str

    def __call__(self, samples_S: Tensor) -> Tensor:
        """(S,) at 16 kHz -> (D,) of length 1."""
        ...


class WeSpeaker:
    """A WeSpeaker network as ONNX (ResNet34 of VoxCeleb, CC-BY-4.0): (1, T, 80) features -> an embedding."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        if not file.is_file():
            raise ConfigError(f"expected WeSpeaker's ONNX file at {file}, found none")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no common root
            raise ConfigError(f"cannot read {file} as ONNX: {str(error).splitlines()[0][:200]}") from None
        entries = self.session.get_inputs()
        shape = entries[0].shape
        if len(entries) != 1 or len(shape) != 3 or shape[-1] != BINS:
            raise ConfigError(f"expected a speaker network for (batch, frames, {BINS}) features, got {shape} in {file}")
        self.entry = entries[0].name
        self.name = f"WeSpeaker {file.name} {fingerprint(file)}"

    def __call__(self, samples_S: Tensor) -> Tensor:
        # frames without speech shift the mean that is taken off: with 5 s of silence at its end a clip is as much like
        # itself as 0.54 (here: 1.00)
        features = fbank(samples_S)[speaking(samples_S)]
        features = features - features.mean(0)
        found = self.session.run(None, {self.entry: features[None].numpy()})[0]
        return torch.nn.functional.normalize(torch.from_numpy(np.asarray(found, np.float32).reshape(-1)), dim=0)


class Resemblyzer:
    """GE2E by the package resemblyzer (Apache-2.0), with its own detection of speech."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks SciPy for an old name
            self.package: Any = package(
                "resemblyzer", "webrtcvad-wheels librosa && pip install --no-deps resemblyzer; or give WeSpeaker's ONNX"
            )
        self.encoder = self.package.VoiceEncoder("cpu", verbose=False)
        self.name = f"Resemblyzer {version('resemblyzer')}"

    def __call__(self, samples_S: Tensor) -> Tensor:
        speech = self.package.preprocess_wav(samples_S.numpy(), source_sr=RATE)
        if len(speech) < LEAST * RATE:
            raise ImpossibleError(f"expected {LEAST:g} s of speech, found {len(speech) / RATE:.2f}")
        return torch.nn.functional.normalize(torch.from_numpy(self.encoder.embed_utterance(speech)), dim=0)


class SpeakerSimilarity:
    """Is it the voice of the reference audio? Cosine between the clip's and the voice's embedding.

    Source: WeSpeaker ResNet34 (VoxCeleb) or Resemblyzer (GE2E); see `version`. Unit: cosine, -1 to 1; higher is
    better. The scale is the network's: compare only within one `version`. Speech over 20 s is cut at pauses, and the
    embedding is the mean of the pieces', weighted by length; `series` has each piece's own similarity.
    It misses what is said and how well it sounds: it hears timbre and pitch, and the channel (codec, noise, room) too.
    """

    figures = (Figure(key="speaker_similarity", title="Speaker similarity", unit="cosine", better="higher"),)

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self.encoder = encoder
        self.version = f"{encoder.name}; up to {PIECE:g} s at once, cut at pauses; 16 kHz"
        self._voices: dict[Path, Tensor] = {}

    def measure(self, sample: Sample) -> Reading:
        """Raise `ImpossibleError` if there is no voice to be like, or too little speech."""
        if sample.voice is None:
            raise ImpossibleError("no reference voice is known for this clip")
        wanted = self._voices.get(sample.voice)
        if wanted is None:
            voice = Sample(name=sample.voice.stem, video=sample.voice, transcript="")
            wanted, _ = self._embed(voice, f"the reference voice {sample.voice.name}")
            self._voices = {sample.voice: wanted}  # clips of one voice often follow each other
        own, parts = self._embed(sample, "the clip")
        curve = [float(part @ wanted) for part in parts]
        series = {"speaker_similarity": curve} if len(curve) > 1 else {}
        return Reading(values={"speaker_similarity": float(own @ wanted)}, series=series)

    def _embed(self, sample: Sample, what: str) -> tuple[Tensor, list[Tensor]]:
        """Of all speech, and of each piece with enough of it."""
        samples_S = _sounding(sample, what)
        parts, weights = [], []
        for start, stop in pieces(samples_S.numpy(), PIECE):
            piece = samples_S[start:stop]
            seconds = float(speaking(piece).sum()) * _HOP / RATE
            if seconds >= LEAST and float(piece.abs().max()) > SILENCE:
                with contextlib.suppress(ImpossibleError):  # it found less speech than we did
                    parts.append(self.encoder(piece))
                    weights.append(seconds)
        if not parts:
            raise ImpossibleError(f"{what} has less than {LEAST:g} s of speech")
        whole = torch.stack(parts).T @ torch.tensor(weights)
        return torch.nn.functional.normalize(whole, dim=0), parts


def _sounding(sample: Sample, what: str = "the clip") -> Tensor:
    """(S,) at 16 kHz. Raises `ImpossibleError` if there is none, or silence only."""
    samples_S = sound(sample, RATE)
    if samples_S is None:
        raise ImpossibleError(f"{what} has no sound")
    if samples_S.shape[0] == 0 or float(samples_S.abs().max()) <= SILENCE:
        raise ImpossibleError(f"{what} is silent")
    return samples_S


class Dnsmos:
    """How clean does it sound? DNSMOS P.835, overall quality (OVRL).

    Source: Microsoft's network for noise suppression (Reddy et al. 2022), package speechmos. Unit: predicted mean
    opinion score, 1 to 5; higher is better. It hears windows of 9.01 s, one a second, and takes their mean (shorter
    clips are repeated up to that length); up to the last second goes unheard. Levels beyond full scale are clipped, as
    a player does.
    It misses what is said, whose voice it is and prosody: it was made to hear noise and what removing it leaves behind.
    """

    figures = (Figure(key="dnsmos", title="DNSMOS P.835 OVRL", unit="MOS 1-5", better="higher"),)

    def __init__(self) -> None:
        self.package: Any = package("speechmos.dnsmos", "speechmos librosa requests")
        self.version = f"speechmos {version('speechmos')} dnsmos ovrl_mos; 16 kHz"

    def measure(self, sample: Sample) -> Reading:
        """Raise `ImpossibleError` for a clip without sound."""
        samples_S = _sounding(sample).clamp(-1, 1)
        return Reading(values={"dnsmos": float(self.package.run(samples_S.numpy(), RATE)["ovrl_mos"])})


class DistillMos:
    """How natural does it sound? DistillMOS.

    Source: Microsoft's distilled XLS-R speech quality network (Stahl and Gamper 2025), package distillmos. Unit:
    predicted mean opinion score, 1 to 5; higher is better. It hears windows of 7.68 s at most 1 s apart (over a minute:
    one after the other, for a window takes up to a second) and takes their mean; shorter clips are followed by
    silence, as the package does. `series` has each window's score if there are several.
    It misses what is said and whose voice it is; each window is brought to one loudness, so that level does not count.
    """

    figures = (Figure(key="distillmos", title="DistillMOS", unit="MOS 1-5", better="higher"),)

    def __init__(self) -> None:
        with _reader_left_out():
            module = package("distillmos", "distillmos")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
            self.model: Callable[[Tensor], Tensor] = module.ConvTransformerSQAModel().eval()
        self.version = f"distillmos {version('distillmos')}; 16 kHz"

    @torch.inference_mode()
    def windows(self, samples_S: Tensor) -> list[float]:
        """(S,) at 16 kHz -> each window's score."""
        more = max(0, samples_S.shape[0] - DISTILL_SAMPLES)
        hop = DISTILL_HOP if samples_S.shape[0] <= DENSE * RATE else DISTILL_SAMPLES
        # the package's own windows, one at a time: five minutes at once need many gigabytes
        starts = [int(c * more) for c in np.linspace(0, 1, math.ceil(more / hop) + 1)]
        return [float(self.model(samples_S[None, s : s + DISTILL_SAMPLES])) for s in starts]

    def measure(self, sample: Sample) -> Reading:
        """Raise `ImpossibleError` for a clip without sound."""
        scores = self.windows(_sounding(sample))
        series = {"distillmos": scores} if len(scores) > 1 else {}
        return Reading(values={"distillmos": sum(scores) / len(scores)}, series=series)


@contextlib.contextmanager
def _reader_left_out() -> Iterator[None]:
    """distillmos imports torchaudio for its command line only; where that has no build for this torch, do without."""
    try:
        import torchaudio  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        sys.modules["torchaudio"] = ModuleType("torchaudio")
        try:
            yield
        finally:
            del sys.modules["torchaudio"]
    else:
        yield


def speaker_encoder(options: Options) -> SpeakerEncoder:
    """WeSpeaker if `options.speaker` names it, else Resemblyzer. Raises `MissingError` if neither is there."""
    return WeSpeaker(options.speaker) if options.speaker is not None else Resemblyzer()


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """The metrics of this module. Raises `ConfigError` for a speaker network that cannot be read."""
    found: list[ClipMetric | SetMetric | Unavailable] = []
    makers: tuple[tuple[tuple[Figure, ...], Callable[[], ClipMetric]], ...] = (
        (SpeakerSimilarity.figures, lambda: SpeakerSimilarity(speaker_encoder(options))),
        (Dnsmos.figures, Dnsmos),
        (DistillMos.figures, DistillMos),
    )
    for figures, make in makers:
        try:
            found.append(make())
        except MissingError as error:
            found.append(Unavailable(figures=figures, reason=str(error)))
    return found
