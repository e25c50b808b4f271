"""Pictures of a clip for the report: a strip of frames, a spectrogram, both as data URIs on one time axis."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from streamchar.errors import DataError
from streamchar.eval.sample import Sample

FRAMES = 10
STRIP_HEIGHT = 112
COLUMNS, ROWS = 960, 96
"""Size of a spectrogram."""
RATE = 16_000
WINDOW, HOP = 512, 128
RANGE = 70.0
"""Decibels below the loudest that are shown."""
FLOOR = 1e-3
"""Sound below this amplitude is drawn as silence, however quiet the whole clip is."""
STOPS = ((10, 10, 28), (48, 22, 92), (128, 36, 122), (214, 76, 92), (250, 158, 90), (252, 246, 200))
"""The colours from silence to the loudest."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """The pictures of one clip; empty texts where there is nothing to show, `fault` says why."""

    seconds: float
    strip: str = ""
    spectrogram: str = ""
    fault: str = ""


def data_uri(image: Image.Image, quality: int = 80) -> str:
    """A JPEG inside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def film(video: Path, *, sound: bool = True) -> Film:
    """What a report shows of a video; a file that cannot be read becomes a sentence, not an exception."""
    sample = Sample(name=video.stem, video=video, transcript="")
    try:
        seconds = sample.seconds
        strip = data_uri(contact_strip(sample))
    except DataError as error:
        return Film(seconds=0.0, fault=f"no pictures: {error}")
    if not sound:
        return Film(seconds=seconds, strip=strip)
    try:
        drawn = data_uri(spectrogram(sample.samples(RATE)))
    except DataError as error:
        return Film(seconds=seconds, strip=strip, fault=f"no spectrogram: {error}")
    return Film(seconds=seconds, strip=strip, spectrogram=drawn)


def contact_strip(sample: Sample, count: int = FRAMES, height: int = STRIP_HEIGHT) -> Image.Image:
    """`count` frames side by side, from the middles of as many equal parts of the clip."""
    rate = Fraction(2 * count) / Fraction(sample.seconds).limit_denominator(10_000)
    found: list[Image.Image] = []
    tick = 0
    for block in sample.blocks(rate, length=4):
        for frame in block:
            if tick % 2 and len(found) < count:
                image = Image.fromarray(frame.permute(1, 2, 0).numpy())
                width = max(1, round(image.width * height / image.height))
                found.append(image.resize((width, height), Image.Resampling.LANCZOS))
            tick += 1
    if not found:
        raise DataError(f"{sample.video}: expected at least one picture, found none")
    strip = Image.new("RGB", (sum(i.width for i in found), height))
    x = 0
    for image in found:
        strip.paste(image, (x, 0))
        x += image.width
    return strip


def loudness_by_pitch(samples_S: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """(S,) at 16 kHz -> (rows, columns) in [0, 1], high pitch on top, the frequency axis in mel."""
    if samples_S.shape[0] < WINDOW:
        raise DataError(f"expected at least {WINDOW} samples of sound, got {samples_S.shape[0]}")
    power_FT = torch.stft(
        samples_S, WINDOW, HOP, window=torch.hann_window(WINDOW), center=True, pad_mode="constant", return_complex=True
    ).abs().square()  # fmt: skip
    power_FT = F.adaptive_max_pool1d(power_FT[None], columns)[0] if power_FT.shape[1] > columns else power_FT
    top = 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700))
    hertz_R = 700 * (10 ** (torch.linspace(0, float(top), rows) / 2595) - 1)
    place_R = hertz_R / (RATE / 2) * (power_FT.shape[0] - 1)
    low_R = place_R.floor().long().clamp(max=power_FT.shape[0] - 2)
    part_R1 = (place_R - low_R)[:, None]
    mel_RT = power_FT[low_R] * (1 - part_R1) + power_FT[low_R + 1] * part_R1
    loudest = max(float(mel_RT.max()), (FLOOR * WINDOW / 4) ** 2)
    decibels_RT = 10 * torch.log10(mel_RT / loudest + 1e-12)
    shown_RT = (decibels_RT / RANGE + 1).clamp(0, 1).flip(0)
    return F.interpolate(shown_RT[None, None], (rows, columns), mode="bilinear", align_corners=False)[0, 0]


def spectrogram(samples_S: Tensor) -> Image.Image:
    """The sound as a picture, time to the right."""
    level_RC = loudness_by_pitch(samples_S)
    stops_N3 = torch.tensor(STOPS, dtype=torch.float32)
    place_RC = level_RC * (len(STOPS) - 1)
    low_RC = place_RC.floor().long().clamp(max=len(STOPS) - 2)
    colour_RC3 = torch.lerp(stops_N3[low_RC], stops_N3[low_RC + 1], (place_RC - low_RC)[..., None])
    return Image.fromarray(colour_RC3.round().to(torch.uint8).numpy())


def read_words(path: Path) -> list[tuple[str, float, float]]:
    """[word, start, end] of a clip; nothing if there is no such file. Raises `DataError`."""
    if not path.is_file():
        return []
    try:
        return [(str(w), float(a), float(b)) for w, a, b in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: expected a list of [word, start, end], got {error}") from None
