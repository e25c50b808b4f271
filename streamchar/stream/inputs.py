"""What a user hands in, turned into checked values or one clear `InputError` (design section 7).

Shape letters: C channels, H height, W width, S samples.
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError, InvalidDataError
from PIL import Image, ImageOps
from torch import Tensor

from streamchar.clock import AUDIO_RATE
from streamchar.errors import InputError
from streamchar.types import Transcript

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 4 << 20  # about 80 hours of speech
MAX_PIXELS = 64_000_000
MIN_SIDE = 32
MIN_VOICE_SECONDS = 0.5
SILENCE_PEAK = 1e-3  # -60 dB of full scale
MAX_SEED = 2**63 - 1
_LISTED = 12


def read_text(text: str | None, file: str | Path | None) -> str:
    """The transcript, from the argument or from a UTF-8 file (`-` is standard input)."""
    if (text is None) == (file is None):
        raise InputError("give the text either as an argument or with --file, " + ("not both" if text else "got none"))
    if text is None:
        text = _read_file(str(file))
    text = " ".join(text.replace("\ufeff", "").split())
    if not text:
        raise InputError(f"the text is empty{f' ({file})' if file else ''}; give at least one word to say")
    control = sorted({f"U+{ord(mark):04X}" for mark in text if unicodedata.category(mark) in ("Cc", "Cs")})
    if control:
        raise InputError(f"the text holds control characters ({', '.join(control[:_LISTED])}); is it a text file?")
    return text


def _read_file(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        else:
            with open(file, "rb") as source:
                data = source.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the text file {file}: {_reason(error)}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"the text file {file} is larger than {MAX_TEXT_BYTES >> 20} MiB; split it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the text file {file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def describe(characters: Sequence[str]) -> str:
    """Characters for a message: themselves, with code points where a terminal may not show them."""
    shown = [repr(mark) if mark.isascii() else f"{mark} (U+{ord(mark[0]):04X})" for mark in characters[:_LISTED]]
    rest = len(characters) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def check_speakable(
    text: str, tokenize: Callable[[str], Transcript], unspeakable: Callable[[str], Sequence[str]]
) -> Transcript:
    """The transcript of `text`, or an `InputError` that lists what the model cannot speak."""
    bad = list(dict.fromkeys(unspeakable(text)))
    if bad:
        raise InputError(f"this model cannot speak: {describe(bad)}; leave it out or write it in Latin letters")
    transcript = tokenize(text)
    if not transcript.ids or not any(mark.isalnum() for word in transcript.words for mark in word):
        raise InputError(f"nothing in the text can be spoken, got {text[:40]!r}; give at least one word")
    return transcript


def read_character(value: str, height: int, width: int) -> Tensor | int:
    """`--character`: a whole number is a seed; anything else is an image file ("./7" is a file too)."""
    if re.fullmatch(r"[+-]?\d+", value.strip(), re.ASCII):
        seed = int(value)
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"a character's seed must be from 0 to 2**63 - 1, got {value}")
        return seed
    if not value.strip() or not Path(value).exists():
        raise InputError(f"--character must be a seed (a whole number) or an image file; there is no file {value!r}")
    return read_image(value, height, width)


def read_image(path: str | Path, height: int, width: int) -> Tensor:
    """A picture -> (3, 1, H, W) in [-1, 1]: turned upright, cropped in the centre, scaled.

    The size is read from the header and checked before anything is decoded.
    """
    most = f"at most {MAX_PIXELS // 1_000_000} megapixels"
    too_large = InputError(f"the image {path} is too large: {most}; scale it down")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large
            if min(image.size) < MIN_SIDE:
                raise InputError(
                    f"the image {path} is too small: at least {MIN_SIDE} pixels a side, "
                    f"got {image.width}x{image.height}"
                )
            image.draft("RGB", (2 * width, 2 * height))  # JPEG decodes smaller at once
            upright = ImageOps.exif_transpose(image)
            picture = ImageOps.fit(_opaque(upright), (width, height), Image.Resampling.LANCZOS)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except FileNotFoundError as error:
        raise InputError(f"there is no image file {path}") from error
    except Exception as error:  # a broken file raises what its decoder likes: SyntaxError, struct.error, ...
        raise InputError(f"cannot read the image {path}: {_brief(error)}; give a PNG, JPEG or WebP file") from error
    pixels_HWC = torch.from_numpy(np.asarray(picture, dtype=np.uint8).copy())
    return (pixels_HWC.permute(2, 0, 1).float() / 127.5 - 1)[:, None].contiguous()


def _brief(error: Exception) -> str:
    return "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error).splitlines()[0][:100]


def _opaque(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, 16-bit grey keeps its range."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 65_535 if image.mode.startswith("I") else max(1.0, float(np.nanmax(values)))
        image = Image.fromarray((np.nan_to_num(values / scale).clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_voice(path: str | Path, *, max_seconds: float) -> Tensor:
    """Reference audio of any format -> (S,) float32 mono at 49,152 Hz, its first `max_seconds`.

    Raises `InputError` for what is not audio, is shorter than half a second, or is silent.
    """
    limit = int(max_seconds * AUDIO_RATE)
    try:
        with open(path, "rb") as source:
            samples, more = _decode(source, limit)
    except InputError as error:
        raise InputError(f"the reference audio {path} {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"there is no audio file {path}") from error
    except (FFmpegError, OSError, ValueError) as error:
        reason = "not an audio file" if isinstance(error, InvalidDataError) else _reason(error)
        raise InputError(f"cannot read the reference audio {path}: {reason}; give a WAV, FLAC, MP3, ...") from error
    seconds = samples.shape[0] / AUDIO_RATE
    if seconds < MIN_VOICE_SECONDS:
        raise InputError(f"the reference audio {path} must last at least {MIN_VOICE_SECONDS} s, got {seconds:.2f} s")
    if not bool(torch.isfinite(samples).all()):
        raise InputError(f"the reference audio {path} holds values that are not numbers; export it again")
    if float(samples.abs().max()) < SILENCE_PEAK:
        raise InputError(f"the reference audio {path} is silent (peak below -60 dB); give a recording of a voice")
    if more:
        logger.warning("of the reference audio only the first %.1f s are used", max_seconds)
    return samples


def _decode(source: object, limit: int) -> tuple[Tensor, bool]:
    """At most `limit` samples of the first sound track, and whether there was more.

    Decoding stops at the limit, so an endless file costs no more. The file is handed over open and no
    protocol is allowed: a playlist cannot make the decoder open other files.
    """
    options = {"protocol_whitelist": "none"}
    with av.open(source, container_options=options, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise InputError("has no sound in it")
        resampler = av.AudioResampler(format="fltp", rate=AUDIO_RATE)
        pieces: list[np.ndarray] = []
        total = 0
        for frame in container.decode(container.streams.audio[0]):
            frame.pts = None
            for part in resampler.resample(frame):
                pieces.append(part.to_ndarray().mean(0))  # mono: the mean cannot exceed full scale
                total += pieces[-1].shape[0]
            if total > limit:
                break
        else:
            pieces += [part.to_ndarray().mean(0) for part in resampler.resample(None)]
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return torch.from_numpy(samples[:limit].astype(np.float32)), samples.shape[0] > limit
