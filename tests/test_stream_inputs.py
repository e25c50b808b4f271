"""User inputs: what is taken, and the one clear line for what is not."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from streamchar.clock import AUDIO_RATE
from streamchar.errors import InputError
from streamchar.stream.inputs import check_speakable, read_character, read_image, read_text, read_voice
from streamchar.types import Transcript


def letters(text: str) -> Transcript:
    words = tuple(text.split())
    return Transcript(text=text, ids=tuple(range(len(text))), token_word=(0,) * len(text), words=words)


def beyond_ascii(text: str) -> list[str]:
    return [mark for mark in text if not mark.isascii()]


# --- text


def test_text_from_the_argument_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffHello\r\n  there,\nworld.\n".encode())
    assert read_text("  Hello there ", None) == "Hello there"
    assert read_text(None, tmp_path / "a.txt") == "Hello there, world."


def test_text_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello.")))
    assert read_text(None, "-") == "Hello."


@pytest.mark.parametrize(
    ("text", "file", "reason"),
    [
        (None, None, "either as an argument or with --file, got none"),
        ("a", "b", "not both"),
        ("", None, "the text is empty"),
        (" \n\t", None, "the text is empty"),
        (None, "missing.txt", "No such file"),
        (None, ".", "Is a directory"),
        (None, "empty.txt", "the text is empty"),
        (None, "latin1.txt", "not UTF-8"),
        (None, "binary.txt", "control characters"),
    ],
)
def test_bad_text(tmp_path: Path, text: str | None, file: str | None, reason: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    with pytest.raises(InputError, match=reason):
        read_text(text, tmp_path / file if file else None)


def test_what_cannot_be_spoken_is_listed_once() -> None:
    with pytest.raises(InputError) as caught:
        check_speakable("Hi 😀😀 你好", letters, beyond_ascii)
    assert "😀 (U+1F600), 你 (U+4F60), 好 (U+597D)" in str(caught.value)


@pytest.mark.parametrize("text", ["...", "?! -- ,"])
def test_nothing_speakable(text: str) -> None:
    with pytest.raises(InputError, match="nothing in the text can be spoken"):
        check_speakable(text, letters, beyond_ascii)


def test_speakable_text_becomes_its_transcript() -> None:
    assert check_speakable("Hello there.", letters, beyond_ascii).words == ("Hello", "there.")


# --- character


def two_halves(width: int, height: int) -> Image.Image:
    """Red above, blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = 255
    pixels[height // 2 :, :, 2] = 255
    return Image.fromarray(pixels)


def test_an_image_is_cropped_in_the_centre_and_scaled(tmp_path: Path) -> None:
    two_halves(300, 100).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png", 64, 64)
    assert picture.shape == (3, 1, 64, 64) and picture.dtype == torch.float32
    assert picture.min() >= -1 and picture.max() <= 1
    assert torch.equal(picture[:, 0, 5, 5], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(picture[:, 0, -5, 5], torch.tensor([-1.0, -1.0, 1.0]))


def test_a_camera_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    two_halves(640, 640).save(tmp_path / "a.jpg", exif=exif)
    picture = read_image(tmp_path / "a.jpg", 64, 64)
    assert picture[2, 0, 5, 5] > 0.9 and picture[0, 0, -5, 5] > 0.9


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_pixel_is_read(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (64, 64), 128)
    made = {
        "I;16": lambda: Image.fromarray(np.full((64, 64), 32_896, np.uint16)),
        "RGBA": lambda: Image.new("RGBA", (64, 64), (0, 0, 0, 127)),
        "1": lambda: Image.new("1", (64, 64), 1),
        "P": lambda: image.quantize(4),
        "CMYK": lambda: image.convert("RGB").convert("CMYK"),
    }
    image = made.get(mode, lambda: image.convert(mode))()
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(name)
    expected = 1.0 if mode == "1" else 0.0
    assert (read_image(name, 32, 32) - expected).abs().max() < 0.02


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.png", b"", "not an image"),
        ("a.png", b"hello", "not an image"),
        ("huge.png", png_header(9000, 9000), "too large"),
        ("bomb.png", png_header(60_000, 60_000), "too large"),
        ("wide.png", png_header(10_000, 8), "too small"),
        ("dot.png", png_header(1, 1), "too small"),
        ("empty.png", png_header(64, 64), "cannot read the image"),
    ],
)
def test_bad_images(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason):
        read_image(tmp_path / name, 64, 64)


def test_a_cut_off_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    for suffix in ("png", "jpg"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(InputError, match="cannot read the image"):
            read_image(path, 64, 64)


def test_a_character_is_a_seed_or_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    two_halves(64, 64).save("7", format="png")
    assert read_character("7", 32, 32) == 7
    assert isinstance(read_character("./7", 32, 32), torch.Tensor)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("-1", "from 0"), ("9" * 30, "from 0"), ("anna.png", "no file 'anna.png'"), ("", "no file"), ("٣", "no file")],
)
def test_bad_characters(value: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_character(value, 32, 32)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the image"):
        read_character(str(tmp_path), 32, 32)


# --- reference audio


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 16_000), ("flac", 44_100), ("ogg", 48_000), ("mp3", 22_050)])
def test_any_format_becomes_mono_at_49152(tmp_path: Path, suffix: str, rate: int) -> None:
    mono = tone(2.0, rate)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([mono, mono], 1), rate)
    samples = read_voice(tmp_path / f"a.{suffix}", max_seconds=3)
    assert samples.dtype == torch.float32 and abs(len(samples) - 2 * AUDIO_RATE) < 0.1 * AUDIO_RATE
    inner = samples[20_000:70_000].double()
    assert inner.abs().max() == pytest.approx(0.5, abs=0.02)
    peak = torch.fft.rfft(inner).abs().argmax() * AUDIO_RATE / len(inner)
    assert float(peak) == pytest.approx(440, abs=1)


def test_opposite_channels_are_mixed(tmp_path: Path) -> None:
    left, right = tone(1, 48_000), np.zeros(48_000, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 48_000, subtype="FLOAT")
    assert read_voice(tmp_path / "a.wav", max_seconds=3).abs().max() == pytest.approx(0.25, abs=0.01)


def test_a_long_recording_is_cut_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", tone(10, 48_000), 48_000)
    assert len(read_voice(tmp_path / "a.wav", max_seconds=3)) == 3 * AUDIO_RATE
    assert "first 3.0 s" in caplog.text


def test_bad_audio(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    soundfile.write(tmp_path / "short.wav", tone(0.3, 16_000), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    broken = tone(1, 16_000)
    broken[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 16_000, subtype="FLOAT")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    for name, reason in {
        "text.wav": "not an audio file",
        "empty.wav": "not an audio file",
        "list.m3u8": "not an audio file",
        "short.wav": "at least 0.5 s, got 0.30 s",
        "silent.wav": "silent",
        "nan.wav": "not numbers",
        "picture.png": "has no sound",
        "missing.wav": "there is no audio file",
        ".": "Is a directory",
    }.items():
        with pytest.raises(InputError, match=reason):
            read_voice(tmp_path / name, max_seconds=3)
