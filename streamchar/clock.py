"""All rates of the product, in one place (paper section 3.3 and 4.1).

Integers and fractions only: a presentation time is computed from an index, never accumulated, so a
stream of n chunks has exactly 33 n frames and 67,584 n samples, for any n.
"""

from __future__ import annotations

from fractions import Fraction

VIDEO_FPS = 24
VIDEO_STRIDE = 4  # RGB frames per video latent, after the first
VIDEO_LATENTS_PER_CHUNK = 9
FRAMES_PER_CHUNK = 1 + (VIDEO_LATENTS_PER_CHUNK - 1) * VIDEO_STRIDE  # 33: the causal VAE's first-frame rule

AUDIO_RATE = 49_152
AUDIO_STRIDE = 2048
AUDIO_LATENT_RATE = Fraction(AUDIO_RATE, AUDIO_STRIDE)  # 24 Hz, one latent per video frame
AUDIO_LATENTS_PER_CHUNK = FRAMES_PER_CHUNK  # 33
SAMPLES_PER_CHUNK = AUDIO_LATENTS_PER_CHUNK * AUDIO_STRIDE  # 67,584

AUDIO_PER_VIDEO_LATENT = 4  # audio latents per video latent: 24 Hz against 6 Hz

CHUNK_SECONDS = Fraction(FRAMES_PER_CHUNK, VIDEO_FPS)  # 11/8 s = 1.375 s

MUX_RATE = 48_000  # what AAC and Opus can carry
RESAMPLE_UP, RESAMPLE_DOWN = 125, 128  # 49,152 * 125 / 128 = 48,000
MUX_SAMPLES_PER_CHUNK = SAMPLES_PER_CHUNK * RESAMPLE_UP // RESAMPLE_DOWN  # 66,000

HISTORY_SECONDS = 15  # history audio seen by the orchestrator (paper section 5.1)
WINDOW_SECONDS = 20  # the longest history plus look-ahead that training sees
MAX_HISTORY_CHUNKS = int(Fraction(HISTORY_SECONDS) / CHUNK_SECONDS)  # 10

SIZE_STEP = 32  # sides of a picture: a 16x VAE under 2x2 patches
LONG_SIDE, SHORT_SIDE = 1280, 720  # the largest picture, lying or standing


def frames(chunks: int) -> int:
    """RGB frames in `chunks` chunks."""
    return chunks * FRAMES_PER_CHUNK


def samples(chunks: int) -> int:
    """Audio samples at 49,152 Hz in `chunks` chunks."""
    return chunks * SAMPLES_PER_CHUNK


def frame_time(index: int) -> Fraction:
    """Presentation time of RGB frame `index`, in seconds."""
    return Fraction(index, VIDEO_FPS)


def chunks_for(seconds: float | Fraction) -> int:
    """The least number of chunks that lasts at least `seconds`."""
    return max(1, -int(-Fraction(seconds).limit_denominator(10**9) // CHUNK_SECONDS))


assert AUDIO_LATENT_RATE == VIDEO_FPS
assert SAMPLES_PER_CHUNK * RESAMPLE_UP % RESAMPLE_DOWN == 0
assert Fraction(SAMPLES_PER_CHUNK, AUDIO_RATE) == CHUNK_SECONDS
