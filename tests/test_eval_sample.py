"""Reading videos for measuring: rates, sound, transcripts."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from streamchar import clock
from streamchar.errors import DataError
from streamchar.eval.sample import Sample, read_samples
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks whose brightness counts frames, with a click 1 s in."""
    path = tmp_path_factory.mktemp("video") / "count.mp4"
    samples = torch.zeros(2 * clock.SAMPLES_PER_CHUNK)
    samples[clock.AUDIO_RATE : clock.AUDIO_RATE + 400] = 0.8
    with Muxer(path) as muxer:
        for k in range(2):
            level = torch.arange(33 * k, 33 * k + 33) * 3 + 20
            frames = level[:, None, None, None].expand(33, 64, 64, 3).to(torch.uint8).contiguous()
            part = samples[clock.SAMPLES_PER_CHUNK * k : clock.SAMPLES_PER_CHUNK * (k + 1)]
            muxer.write(Chunk(index=k, frames=frames, samples=part, last=k == 1))
    return path


def numbers(frames: torch.Tensor) -> list[int]:
    return ((frames.float().mean((1, 2, 3)) - 20) / 3).round().int().tolist()


def test_frames_at_own_rate_and_resampled(video: Path) -> None:
    sample = Sample(name="count", video=video, transcript="x")
    assert numbers(sample.frames()) == list(range(66))
    doubled = numbers(sample.frames(48))
    assert doubled[:6] == [0, 1, 1, 2, 2, 3] and len(doubled) in (131, 132, 133)
    at_25 = numbers(sample.frames(25))
    assert len(at_25) == 69 and all(b - a in (0, 1) for a, b in zip(at_25, at_25[1:], strict=False))


def test_blocks_are_the_frames(video: Path) -> None:
    sample = Sample(name="count", video=video, transcript="x")
    assert torch.equal(torch.cat(list(sample.blocks(Fraction(25), length=7))), sample.frames(25))
    assert numbers(sample.frames(start=1.0, stop=1.25)) == [24, 25, 26, 27, 28, 29]


def test_sound_lies_where_it_was(video: Path) -> None:
    sample = Sample(name="count", video=video, transcript="x")
    sound = sample.samples(16_000)
    assert abs(sound.shape[0] - 2.75 * 16_000) < 400
    assert abs(int(sound.abs().gt(0.3).nonzero()[0]) - 16_000) < 80
    assert abs(sample.seconds - 2.75) < 0.05


def test_transcripts_and_videos_must_match(video: Path, tmp_path: Path) -> None:
    lines = tmp_path / "t.jsonl"
    lines.write_text(json.dumps({"name": "count", "transcript": "one", "character": 3, "other": 1}) + "\n")
    (sample,) = read_samples(video.parent, lines, reference=video.parent)
    assert sample.character == 3 and sample.reference == video
    lines.write_text('{"name": "else", "transcript": "one"}\n')
    with pytest.raises(DataError, match="do not match"):
        read_samples(video.parent, lines)
    with pytest.raises(DataError, match="found none"):
        read_samples(tmp_path / "nothing", lines)
    lines.write_text('{"transcript": "one"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_samples(video.parent, lines)
    good = {"name": "count", "transcript": "one"}
    for key, value in {
        "transcript": 3, "character": "3", "prompt": ["happy"], "direction": 5, "voice": 1, "picture": {}, "words": [],
        "rtf": "fast",
    }.items():  # fmt: skip
        lines.write_text(json.dumps(good | {key: value}) + "\n")
        with pytest.raises(DataError, match=rf"t.jsonl, line 1: {key} must be .*, got"):
            read_samples(video.parent, lines)
    for text in ("[1]", "3", '{"name": '):
        lines.write_text(text + "\n")
        with pytest.raises(DataError, match='line 1: expected {"name"'):
            read_samples(video.parent, lines)
    lines.write_text(2 * (json.dumps(good) + "\n"))
    with pytest.raises(DataError, match="line 2: .* count has been before"):
        read_samples(video.parent, lines)


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read"):
        Sample(name="a", video=path, transcript="x").frames()
