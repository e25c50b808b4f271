"""49,152 Hz to 48,000 Hz without a seam (design section 8).

A polyphase windowed-sinc filter at the exact ratio 125/128. Every 128 samples in become 125 samples
out, so a chunk of 67,584 becomes exactly 66,000. The filter is symmetric and its delay is taken out:
output sample m is the signal at m / 48,000 s, not later. The price is a look-ahead of 64 samples: the
last 125 samples of what was pushed wait for the next push or for `flush`.

Shape letters: S samples, N frames of 128 samples, K filter support of one frame, P phases (125).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from streamchar.clock import AUDIO_RATE, MUX_RATE, RESAMPLE_DOWN, RESAMPLE_UP

HALF_TAPS = 64  # input samples on each side of an output sample
HELD_BACK = RESAMPLE_UP  # output samples that wait for their look-ahead

_CUTOFF = 22_900.0  # Hz: middle of the transition; -0.1 dB at 21.9 kHz, -80 dB at 24 kHz
_BETA = 8.6  # Kaiser window: about -90 dB beside the main lobe
_SUPPORT = RESAMPLE_DOWN + 2 * HALF_TAPS


@lru_cache(maxsize=1)
def _bank() -> Tensor:
    """(K, P) float64: column p holds the taps of the p-th of 125 outputs over a frame's support.

    Row k stands for the input sample at k - HALF_TAPS relative to the frame's first one.
    """
    place_K = torch.arange(_SUPPORT, dtype=torch.float64) - HALF_TAPS
    centre_P = torch.arange(RESAMPLE_UP, dtype=torch.float64) * RESAMPLE_DOWN / RESAMPLE_UP
    away_KP = place_K[:, None] - centre_P[None, :]
    window_KP = torch.i0(_BETA * (1 - (away_KP / HALF_TAPS) ** 2).clamp(min=0).sqrt()) / math.exp(_BETA)
    window_KP = window_KP.where(away_KP.abs() < HALF_TAPS, torch.zeros_like(window_KP))
    taps_KP = torch.sinc(away_KP * 2 * _CUTOFF / AUDIO_RATE) * window_KP
    return taps_KP / taps_KP.sum(0, keepdim=True)  # gain 1 at 0 Hz in every phase


def resampled_length(samples: int) -> int:
    """Samples at 48,000 Hz that `samples` at 49,152 Hz become."""
    return -(-samples * RESAMPLE_UP // RESAMPLE_DOWN)


class Resampler:
    """Streaming 49,152 Hz -> 48,000 Hz: `push` piece by piece, then `flush` once.

    What comes out in all is `resample` of what went in, however it was cut. After n chunks,
    66,000 n - 125 samples are out; `flush` gives the last 125.
    """

    def __init__(self) -> None:
        self._pending = torch.zeros(HALF_TAPS, dtype=torch.float64)  # silence before the first sample
        self._pushed = 0
        self._pulled = 0

    def push(self, samples: Tensor) -> Tensor:
        """(S,) at 49,152 Hz -> (S',) float32 at 48,000 Hz: all that can be known by now."""
        self._pushed += samples.shape[-1]
        return self._advance(samples.detach().to("cpu", torch.float64))

    def flush(self) -> Tensor:
        """The rest, as if silence followed. The resampler is then as new."""
        rest = resampled_length(self._pushed) - self._pulled
        tail = self._advance(torch.zeros(_SUPPORT + RESAMPLE_DOWN, dtype=torch.float64))[:rest]
        self.__init__()
        return tail

    def _advance(self, samples: Tensor) -> Tensor:
        pending = torch.cat([self._pending, samples])
        count = max(0, (pending.shape[0] - _SUPPORT) // RESAMPLE_DOWN + 1)
        if count:
            frames_NK = pending.unfold(0, _SUPPORT, RESAMPLE_DOWN)
            out = (frames_NK @ _bank()).reshape(-1).float()
        else:
            out = torch.zeros(0)
        self._pending = pending[count * RESAMPLE_DOWN :].clone()
        self._pulled += out.shape[0]
        return out


def resample(samples: Tensor) -> Tensor:
    """A whole signal (S,) at 49,152 Hz -> (ceil(125 S / 128),) float32 at 48,000 Hz."""
    resampler = Resampler()
    return torch.cat([resampler.push(samples), resampler.flush()])


assert AUDIO_RATE * RESAMPLE_UP == MUX_RATE * RESAMPLE_DOWN
