"""Speech recognisers behind one interface: who listens when a word error rate is taken.

Moonshine (default), faster-whisper, Whisper of transformers, or any command that prints what it heard. Speech of any
length goes through `transcribe`, which cuts it at pauses into pieces that the recogniser can take: nothing is dropped.

Shape letter: S samples.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from streamchar.errors import ConfigError
from streamchar.eval.metric import ImpossibleError, Options

RECOGNISER_RATE = 16_000
MAX_SECONDS = 30.0
"""What Moonshine and Whisper take at once."""
SEARCH = 10.0
"""Seconds before the limit in which the pause is looked for."""
NEAR = 3.0
"""Seconds to both sides of a wanted cut in which the pause is looked for."""
SHORTEST = 0.5
"""Seconds; shorter pieces get silence at their end, for encoders need some frames."""
SILENCE = 1e-3
"""Peak below which a piece is silence (-60 dB): recognisers invent words there."""
_HOP = 320
_MOONSHINE_FOLDER = "STREAMCHAR_MOONSHINE"
_HEADS = {36: ("tiny", 6), 52: ("base", 8)}
"""Moonshine's head size -> its name, number of layers."""


class MissingError(ConfigError):
    """A package or a model is not there: the metric is unavailable, which is no mistake of the user's."""


class Recogniser(Protocol):
    """Turns speech into text."""

    name: str
    """Model, precision, settings: the report shows it."""
    limit: float
    """Seconds that it takes at once; infinite if it cuts by itself."""

    def __call__(self, samples_S: np.ndarray) -> str:
        """(S,) float32 at 16 kHz, at most `limit` seconds -> what was said."""
        ...


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was said in one piece of a longer recording."""

    text: str
    start: float
    stop: float


def quietest(samples_S: np.ndarray, start: int, stop: int) -> int:
    """The sample of start..stop around which a quarter of a second is quietest; the last one of equals."""
    blocks = max(1, (stop - start) // _HOP)
    power = np.square(samples_S[start : min(stop, start + blocks * _HOP)], dtype=np.float64)
    power = power.reshape(blocks, -1).sum(1)
    width = min(13, blocks)
    around = np.convolve(power, np.ones(width), mode="valid")
    best = len(around) - 1 - int(np.argmin(around[::-1]))
    return min(start + best * _HOP + width * _HOP // 2, stop - 1)


def pieces(samples_S: np.ndarray, limit: float, wanted: Sequence[float] = ()) -> list[tuple[int, int]]:
    """Where to cut: spans of at most `limit` seconds that cover all samples, cut at the quietest moments.

    `wanted`: seconds near which there shall be a cut in any case.
    """
    marks = [0]
    for second in wanted:
        middle = round(second * RECOGNISER_RATE)
        low, high = middle - round(NEAR * RECOGNISER_RATE), middle + round(NEAR * RECOGNISER_RATE)
        if low > marks[-1] and high < len(samples_S):
            marks.append(quietest(samples_S, low, high))
    marks.append(len(samples_S))
    most = len(samples_S) if math.isinf(limit) else int(limit * RECOGNISER_RATE)
    spans: list[tuple[int, int]] = []
    for start, end in zip(marks, marks[1:], strict=False):
        while end - start > most:
            rest = end - start
            low = min(max(most - round(SEARCH * RECOGNISER_RATE), most // 2), rest // 2)
            high = min(most, rest - most // 10)  # no crumb at the end
            cut = quietest(samples_S, start + low, start + high)
            spans.append((start, cut))
            start = cut
        spans.append((start, end))
    return spans


def transcribe(recogniser: Recogniser, samples_S: np.ndarray, wanted: Sequence[float] = ()) -> tuple[Heard, ...]:
    """Recognise speech of any length. Pieces without sound are not shown to the recogniser: they hold no words."""
    found = []
    for start, stop in pieces(samples_S, recogniser.limit, wanted):
        piece = np.ascontiguousarray(samples_S[start:stop], dtype=np.float32)
        text = ""
        if np.abs(piece).max(initial=0.0) > SILENCE:
            lack = round(SHORTEST * RECOGNISER_RATE) - len(piece)
            text = recogniser(np.pad(piece, (0, max(0, lack)))).strip()
        found.append(Heard(text=text, start=start / RECOGNISER_RATE, stop=stop / RECOGNISER_RATE))
    return tuple(found)


def package(module: str, install: str) -> ModuleType:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(f"needs the package {module.split('.')[0]} ({error}): pip install {install}") from None


def fingerprint(*files: Path) -> str:
    """Eight digits that tell weights apart."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:8]


class Moonshine:
    """Moonshine (MIT, English) as ONNX: encoder_model.onnx and decoder_model_merged.onnx.

    `folder` None: the folder that STREAMCHAR_MOONSHINE names, else the package fetches `size` from its hub.
    """

    limit = MAX_SECONDS

    def __init__(self, folder: Path | None = None, size: str | None = None) -> None:
        if size not in (None, "tiny", "base"):
            raise ConfigError(f"expected the Moonshine size tiny or base, got {size!r}")
        if folder is None and os.environ.get(_MOONSHINE_FOLDER):
            folder = Path(os.environ[_MOONSHINE_FOLDER])
        if folder is not None:
            files = [Path(folder) / f"{part}.onnx" for part in ("encoder_model", "decoder_model_merged")]
            missing = [f.name for f in files if not f.is_file()]
            if missing:
                raise ConfigError(f"expected Moonshine's {' and '.join(missing)} in {folder}, found none")
        runner = package("moonshine_onnx", "streamchar[eval]")
        try:
            self.model = runner.MoonshineOnnxModel(
                models_dir=None if folder is None else str(folder), model_name=f"moonshine/{size or 'base'}"
            )
        except OSError as error:
            raise MissingError(
                f"cannot fetch Moonshine ({type(error).__name__}); put its ONNX files into a folder and name it in "
                f"{_MOONSHINE_FOLDER}"
            ) from None
        found = self._fit(folder)
        if size not in (None, found):
            raise ConfigError(f"expected Moonshine {size} in {folder}, found {found}")
        weights = "hub, float" if folder is None else _precision(files)
        self.name = f"moonshine-{found} ({weights} ONNX)"
        self.tokenizer = runner.load_tokenizer()

    def _fit(self, folder: Path | None) -> str:
        """Tell the runner the size that the weights have."""
        shapes = {i.name: i.shape for i in self.model.decoder.get_inputs()}
        head = shapes.get("past_key_values.0.decoder.key", [None])[-1]
        if head not in _HEADS:
            raise ConfigError(f"expected Moonshine tiny or base (head size 36 or 52) in {folder}, got head size {head}")
        self.model.head_dim = head
        size, self.model.num_layers = _HEADS[head]
        return size

    def __call__(self, samples_S: np.ndarray) -> str:
        _check_length(samples_S, self.limit)
        tokens = max(192, 10 * len(samples_S) // RECOGNISER_RATE)  # fast speech has about 6 tokens a second
        return self.tokenizer.decode_batch(self.model.generate(samples_S[None].astype(np.float32), max_len=tokens))[0]


def _precision(files: Sequence[Path]) -> str:
    quantised = any(b"MatMulInteger" in f.read_bytes() for f in files)
    return f"{'int8' if quantised else 'float'} {fingerprint(*files)}"


def _check_length(samples_S: np.ndarray, limit: float) -> None:
    if len(samples_S) > limit * RECOGNISER_RATE:
        seconds = len(samples_S) / RECOGNISER_RATE
        raise ConfigError(f"expected at most {limit:.0f} s of speech at once, got {seconds:.0f}; use transcribe()")


class FasterWhisper:
    """Whisper by CTranslate2 (package faster-whisper), English; `model` is a size, a hub id or a folder."""

    limit = MAX_SECONDS

    def __init__(self, model: str = "large-v3") -> None:
        runner = package("faster_whisper", "faster-whisper")
        self.model: Any = None
        try:
            self.model = runner.WhisperModel(model, device="auto", compute_type="default")
        except ValueError as error:  # a name it does not know
            raise ConfigError(f"faster-whisper: expected a size or a folder, got {model!r}: {error}") from None
        except (OSError, RuntimeError) as error:
            if Path(model).is_dir():
                raise ConfigError(f"expected a CTranslate2 Whisper in {model}: {_short(error)}") from None
            raise MissingError(f"cannot fetch faster-whisper's {model}: {_short(error)}") from None
        folder = Path(model)
        known = f", {fingerprint(folder / 'model.bin')}" if (folder / "model.bin").is_file() else ""
        label = folder.name if folder.is_dir() else model
        self.name = f"faster-whisper {runner.__version__} {label} (beam 5, temperature 0{known})"

    def __call__(self, samples_S: np.ndarray) -> str:
        _check_length(samples_S, self.limit)
        segments, _ = self.model.transcribe(
            samples_S.astype(np.float32), language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return " ".join(s.text.strip() for s in segments)


class Whisper:
    """Whisper of transformers, English, greedy; `model` is a hub id (openai/whisper-large-v3) or a folder."""

    limit = MAX_SECONDS

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoProcessor, WhisperConfig, WhisperForConditionalGeneration

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = torch.float16 if self.device == "cuda" else torch.float32
        try:
            WhisperConfig.from_pretrained(model)  # one file first: without a network each takes half a minute to fail
            self.processor = AutoProcessor.from_pretrained(model)
            self.model: Any = WhisperForConditionalGeneration.from_pretrained(model, dtype=kind)
        except (OSError, ValueError) as error:
            if Path(model).is_dir():
                raise ConfigError(
                    f"expected a Whisper checkpoint with its processor in {model}: {_short(error)}"
                ) from None
            raise MissingError(f"cannot fetch {model!r} from the hub: {_short(error)}") from None
        self.model.to(self.device).eval()
        weights = Path(model) / "model.safetensors"
        commit = getattr(self.model.config, "_commit_hash", None) or ""
        known = f", {fingerprint(weights) if weights.is_file() else commit[:8]}".removesuffix(", ")
        self.name = f"{Path(model).name if Path(model).is_dir() else model} (greedy, {str(kind)[6:]}{known})"

    def __call__(self, samples_S: np.ndarray) -> str:
        import torch

        _check_length(samples_S, self.limit)
        features = self.processor(
            samples_S, sampling_rate=RECOGNISER_RATE, return_tensors="pt", return_attention_mask=True
        ).to(self.device, dtype=self.model.dtype)
        # models for English only have no language to choose
        many = getattr(self.model.generation_config, "is_multilingual", False)
        chosen = {"language": "en", "task": "transcribe"} if many else {}
        with torch.inference_mode():
            tokens = self.model.generate(**features, do_sample=False, num_beams=1, **chosen)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


class Command:
    """Any program that prints what it heard: `program --file {wav}` gets a 16 kHz mono file in place of {wav}."""

    limit = math.inf

    def __init__(self, line: str) -> None:
        try:
            self.words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f"cannot read the recogniser command {line!r}: {error}") from None
        if not any("{wav}" in w for w in self.words):
            raise ConfigError(f"expected {{wav}} in the recogniser command (where the file's name goes), got {line!r}")
        if shutil.which(self.words[0]) is None:
            raise ConfigError(f"expected a program to recognise speech, found no {self.words[0]!r}")
        self.name = f"command: {line}"

    def __call__(self, samples_S: np.ndarray) -> str:
        import soundfile

        with tempfile.TemporaryDirectory(prefix="streamchar-") as folder:
            wav = Path(folder) / "speech.wav"
            soundfile.write(wav, samples_S, RECOGNISER_RATE, subtype="PCM_16")
            words = [w.replace("{wav}", str(wav)) for w in self.words]
            patience = 600 + 10 * len(samples_S) / RECOGNISER_RATE
            try:
                done = subprocess.run(words, capture_output=True, timeout=patience, check=False)
            except subprocess.TimeoutExpired:
                raise ImpossibleError(f"the recogniser {self.words[0]} said nothing for {patience:.0f} s") from None
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ImpossibleError(f"the recogniser {self.words[0]} ended with {done.returncode}: {''.join(last)[:200]}")
        return " ".join(done.stdout.decode("utf-8", errors="replace").split())


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def recogniser(options: Options) -> Recogniser:
    """The one that `options.recogniser` names.

    Raises `ConfigError` for a wrong name or folder, `MissingError` if its package or weights are not there.
    """
    kind, _, rest = options.recogniser.partition(":")
    folder = options.recogniser_folder
    if kind in ("whisper", "faster-whisper") and rest and folder is not None:
        raise ConfigError(f"expected one model to recognise speech, got {options.recogniser!r} and the folder {folder}")
    kinds = {
        "moonshine": lambda: Moonshine(folder, rest or None),
        "faster-whisper": lambda: FasterWhisper(str(folder or rest or "large-v3")),
        "whisper": lambda: Whisper(str(folder or rest)),
        "command": lambda: Command(rest),
    }
    unnamed = not rest and (kind == "command" or (kind == "whisper" and folder is None))
    if kind not in kinds or unnamed:
        raise ConfigError(
            "expected a recogniser: moonshine[:tiny|base], faster-whisper[:SIZE or FOLDER], whisper:HUB_ID or FOLDER, "
            f"command:PROGRAM ARGS {{wav}}; got {options.recogniser!r}"
        )
    return kinds[kind]()
