"""One muxer a stream: exact counts, aligned tracks, no half-written file.

Samples are counted three ways: what the encoder was given (`Muxer.samples`), what the container says
(packet durations from time 0 on, and the track's duration), and what a decoder returns.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av
import numpy as np
import pytest
import soundfile
import torch

from streamchar.clock import AUDIO_RATE, FRAMES_PER_CHUNK, MUX_RATE, SAMPLES_PER_CHUNK
from streamchar.errors import InputError, StateError
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk

SIZE = 64
AAC_FRAME = 1024


def make_chunk(index: int) -> Chunk:
    """A grey ramp that tells the frame, and a sine that runs through all chunks."""
    level = (torch.arange(FRAMES_PER_CHUNK) + index * FRAMES_PER_CHUNK) % 200 + 20
    frames = level[:, None, None, None].expand(-1, SIZE, SIZE, 3).to(torch.uint8)
    time = (torch.arange(SAMPLES_PER_CHUNK, dtype=torch.float64) + index * SAMPLES_PER_CHUNK) / AUDIO_RATE
    return Chunk(index=index, frames=frames, samples=(0.5 * torch.sin(2 * math.pi * 333 * time)).float())


def write(target: Path | io.BytesIO, chunks: int, first: int = 0) -> Muxer:
    with Muxer(target) as muxer:
        for index in range(first, first + chunks):
            muxer.write(make_chunk(index))
    return muxer


def decode(source: Path | io.BytesIO) -> tuple[list[av.VideoFrame], np.ndarray]:
    target = str(source) if isinstance(source, Path) else source
    with av.open(target) as container:
        frames = list(container.decode(video=0))
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with av.open(target) as container:
        sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    return frames, sound


def packet_samples(source: Path | io.BytesIO) -> int:
    """Samples that the container places at or after time 0."""
    with av.open(str(source) if isinstance(source, Path) else source) as container:
        track = container.streams.audio[0]
        tick = track.time_base
        assert tick is not None
        spans = [(p.pts, p.duration) for p in container.demux(track) if p.pts is not None and p.duration]
    return int(sum(duration for pts, duration in spans if pts >= 0) * tick * MUX_RATE)


@pytest.mark.parametrize("chunks", [1, 3, 8])
def test_mp4_counts(tmp_path: Path, chunks: int) -> None:
    path = tmp_path / "a.mp4"
    muxer = write(path, chunks)
    assert (muxer.frames, muxer.samples, muxer.rate) == (33 * chunks, 66_000 * chunks, 48_000)
    frames, sound = decode(path)
    assert len(frames) == 33 * chunks
    assert packet_samples(path) == 66_000 * chunks
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert video.average_rate == 24 and video.codec_context.pix_fmt == "yuv420p"
        assert audio.duration is not None and audio.time_base is not None
        assert video.duration is not None and video.time_base is not None
        assert audio.duration * audio.time_base == Fraction(66_000 * chunks, 48_000)
        assert video.duration * video.time_base == Fraction(33 * chunks, 24)
    # a decoder hands out whole AAC frames: the track's end lies in the last one
    assert 0 <= len(sound) - 66_000 * chunks < AAC_FRAME


def test_mp4_timestamps_come_from_the_index(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 3)
    frames, _ = decode(tmp_path / "a.mp4")
    times = [Fraction(frame.pts or 0) * (frame.time_base or 0) for frame in frames]
    assert times == [Fraction(index, 24) for index in range(99)]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_and_picture_are_where_they_were(tmp_path: Path, suffix: str) -> None:
    """Sound to the sample (best lag 0) across every seam, each frame in its place."""
    path = tmp_path / f"a{suffix}"
    write(path, 3)
    frames, sound = decode(path)
    want = 0.5 * np.sin(2 * np.pi * 333 * np.arange(3 * 66_000) / MUX_RATE)
    inner = slice(3000, -3000)
    error = sound[: len(want)][inner] - want[inner]
    assert np.abs(error).max() < 0.02  # one sample late would be 0.022 all along; a click far more
    levels = [int(frame.to_ndarray(format="rgb24").mean().round()) for frame in frames]
    assert np.abs(np.array(levels) - (np.arange(99) % 200 + 20)).max() <= 2


def test_webm_decodes_to_the_exact_count(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    write(path, 2)
    frames, sound = decode(path)
    assert (len(frames), len(sound)) == (66, 132_000)


def test_wav_keeps_the_models_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    muxer = write(path, 2)
    samples, rate = soundfile.read(path, dtype="float32")
    assert (rate, len(samples), muxer.samples, muxer.frames) == (49_152, 2 * 67_584, 2 * 67_584, 66)
    want = torch.cat([make_chunk(0).samples, make_chunk(1).samples]).numpy()
    assert np.abs(samples - want).max() < 1e-4


def test_colours_survive(tmp_path: Path) -> None:
    colours = torch.tensor([[220, 40, 40], [40, 200, 60], [30, 60, 210], [250, 220, 30]], dtype=torch.uint8)
    frame = colours.repeat_interleave(16, 0)[:, None].expand(64, 64, 3)
    with Muxer(tmp_path / "a.mp4") as muxer:
        muxer.add(frame[None].repeat(6, 1, 1, 1), torch.zeros(SAMPLES_PER_CHUNK))
    picture = decode(tmp_path / "a.mp4")[0][3].to_ndarray(format="rgb24")
    assert np.abs(picture[8::16, 32].astype(int) - colours.numpy()).max() < 12


def test_the_same_stream_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in (".mp4", ".webm", ".wav"):
        write(tmp_path / f"a{suffix}", 2)
        write(tmp_path / f"b{suffix}", 2)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


class Pipe(io.RawIOBase):
    """A writable object that cannot seek, like a socket."""

    def __init__(self) -> None:
        self.bytes = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.bytes += data
        return len(data)


@pytest.mark.parametrize("fragment", ["mp4", "webm"])
def test_a_byte_stream_plays_while_it_grows(fragment: str) -> None:
    pipe = Pipe()
    with Muxer(cast(IO[bytes], pipe), fragment=fragment) as muxer:
        muxer.write(make_chunk(0))
        muxer.write(make_chunk(1))
        muxer.write(make_chunk(2))
        partial = io.BytesIO(bytes(pipe.bytes))
    assert len(decode(partial)[0]) >= 2 * FRAMES_PER_CHUNK  # all but the tail of the third chunk
    frames, sound = decode(io.BytesIO(bytes(pipe.bytes)))
    assert len(frames) == 99
    assert 0 <= len(sound) - 3 * 66_000 < AAC_FRAME
    assert packet_samples(io.BytesIO(bytes(pipe.bytes))) == 3 * 66_000 or fragment == "webm"
    want = 0.5 * np.sin(2 * np.pi * 333 * np.arange(3 * 66_000) / MUX_RATE)
    assert np.abs(sound[: len(want)] - want)[3000:-3000].max() < 0.02


def test_a_resumed_part_starts_at_zero(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 1, first=5)
    frames, _ = decode(tmp_path / "a.mp4")
    assert frames[0].pts == 0 and len(frames) == 33


def test_chunks_must_follow_each_other(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="expected chunk 1"), Muxer(tmp_path / "a.mp4") as muxer:
        muxer.write(make_chunk(0))
        muxer.write(make_chunk(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".wav"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_stream_leaves_the_old_file(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(error), Muxer(path) as muxer:
        muxer.write(make_chunk(0))
        assert len(list(tmp_path.iterdir())) == 2
        raise error
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to write"), Muxer(tmp_path / "a.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/a.mp4", "does not exist"),
        ("folder.mp4", "is a folder"),
        ("a.avi", "must end in"),
        ("a", "no ending"),
        ("x" * 300 + ".mp4", "cannot write"),
    ],
)
def test_bad_targets_say_why(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=reason):
        write(tmp_path / name, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    muxer = Muxer(tmp_path / "a.mp4")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(muxer._sink, "add", full)
    with pytest.raises(InputError, match="No space left"):
        muxer.write(make_chunk(0))
    assert list(tmp_path.iterdir()) == []


def test_loud_sound_is_clipped_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Muxer(tmp_path / "a.wav") as muxer:
        muxer.add(make_chunk(0).frames, torch.full((SAMPLES_PER_CHUNK,), 1.5))
    assert "full scale" in caplog.text
    assert soundfile.read(tmp_path / "a.wav")[0].max() <= 1
