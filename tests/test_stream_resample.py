"""49,152 -> 48,000 Hz: exact counts, streamed == batch, no delay, a clean spectrum."""

from __future__ import annotations

import math

import pytest
import torch

from streamchar.clock import AUDIO_RATE, MUX_RATE, MUX_SAMPLES_PER_CHUNK, SAMPLES_PER_CHUNK
from streamchar.stream.resample import HELD_BACK, Resampler, resample, resampled_length


def tone(hz: float, samples: int, rate: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(samples, dtype=torch.float64) / rate)


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_a_chunk_is_66000_samples(chunks: int) -> None:
    resampler = Resampler()
    counts = [resampler.push(torch.randn(SAMPLES_PER_CHUNK)).shape[0] for _ in range(chunks)]
    assert counts == [MUX_SAMPLES_PER_CHUNK - HELD_BACK] + [MUX_SAMPLES_PER_CHUNK] * (chunks - 1)
    assert sum(counts) + resampler.flush().shape[0] == 66_000 * chunks


def test_streamed_equals_batch_however_it_is_cut() -> None:
    torch.manual_seed(0)
    signal = torch.randn(3 * SAMPLES_PER_CHUNK)
    whole = resample(signal)
    for size in (SAMPLES_PER_CHUNK, 2048, 1001):
        resampler = Resampler()
        pieces = [resampler.push(piece) for piece in signal.split(size)] + [resampler.flush()]
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize("samples", [0, 1, 127, 128, 129, 67_583])
def test_any_length_comes_out_whole(samples: int) -> None:
    assert resample(torch.randn(samples)).shape == (resampled_length(samples),)


def test_flush_makes_it_new() -> None:
    resampler, signal = Resampler(), torch.randn(5000)
    first = torch.cat([resampler.push(signal), resampler.flush()])
    second = torch.cat([resampler.push(signal), resampler.flush()])
    assert torch.equal(first, second)


@pytest.mark.parametrize("hz", [100.0, 1000.0, 8000.0, 18_000.0])
def test_a_tone_stays_in_place(hz: float) -> None:
    """Gain 1 and no delay: the output is the same sine sampled at 48,000 Hz, to -70 dB."""
    got = resample(tone(hz, 3 * SAMPLES_PER_CHUNK, AUDIO_RATE)).double()
    want = tone(hz, got.shape[0], MUX_RATE)
    inner = slice(200, -200)
    assert (got - want)[inner].abs().max() < 3e-4


def test_what_48_khz_cannot_hold_is_removed() -> None:
    got = resample(tone(24_300.0, SAMPLES_PER_CHUNK, AUDIO_RATE))
    assert got[200:-200].abs().max() < 1e-3


def test_a_click_is_found_where_it_was() -> None:
    signal = torch.zeros(2 * SAMPLES_PER_CHUNK)
    signal[SAMPLES_PER_CHUNK] = 1.0  # the first sample of chunk 1
    assert int(resample(signal).argmax()) == MUX_SAMPLES_PER_CHUNK
