"""Is the speech understood? Word error rate by a named recogniser with a named normaliser.

Source: WER as in the paper's Table 1 (its recogniser is not named there). Unit: errors per reference
word, lower is better. It misses prosody, naturalness and whose voice it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from streamchar import clock
from streamchar.errors import ConfigError

RECOGNISER_RATE = 16_000
MAX_SECONDS = 30.0


class Recogniser(Protocol):
    """Turns speech into text."""

    name: str

    def __call__(self, samples_S: np.ndarray) -> str:
        """(S,) float32 at 16 kHz -> what was said."""
        ...


class Moonshine:
    """Moonshine (MIT) as ONNX files in `folder`: encoder_model.onnx and decoder_model_merged.onnx."""

    def __init__(self, folder: Path, size: str = "tiny") -> None:
        try:
            from moonshine_onnx import MoonshineOnnxModel, load_tokenizer
        except ImportError:
            raise ConfigError("speech recognition needs the extra `eval`: pip install streamchar[eval]") from None
        if not (Path(folder) / "encoder_model.onnx").is_file():
            raise ConfigError(f"expected Moonshine's encoder_model.onnx in {folder}, found none")
        self.name = f"moonshine-{size} (int8 ONNX)"
        self.model = MoonshineOnnxModel(models_dir=str(folder), model_name=f"moonshine/{size}")
        self.tokenizer = load_tokenizer()

    def __call__(self, samples_S: np.ndarray) -> str:
        if len(samples_S) > MAX_SECONDS * RECOGNISER_RATE:
            seconds = len(samples_S) / RECOGNISER_RATE
            raise ConfigError(f"expected at most {MAX_SECONDS:.0f} s of speech, got {seconds:.0f}")
        return self.tokenizer.decode_batch(self.model.generate(samples_S[None].astype(np.float32)))[0]


def to_recogniser(samples_S: Tensor) -> np.ndarray:
    """(S,) at 49,152 Hz -> (S',) at 16 kHz."""
    import soxr

    return soxr.resample(samples_S.numpy(), clock.AUDIO_RATE, RECOGNISER_RATE).astype(np.float32)


def normalise(text: str) -> str:
    """Whisper's English normaliser (spelling variants, numbers, contractions)."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise ConfigError("WER needs the extra `eval`: pip install streamchar[eval]") from None
    return EnglishTextNormalizer()(text)


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
    import jiwer

    wanted, heard = [normalise(r) for r in references], [normalise(h) for h in hypotheses]
    each = tuple(float(jiwer.wer(w, h)) for w, h in zip(wanted, heard, strict=True))
    return WordErrors(wer=float(jiwer.wer(wanted, heard)), clips=each, hypotheses=tuple(hypotheses))
