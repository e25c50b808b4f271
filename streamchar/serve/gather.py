"""How much a model that is slower than playback makes before it is heard.

A model at `factor` (seconds of playing made in a second) below 1 cannot go on without a stall unless it is ahead. Of n
chunks, with g of them made before the first is heard, chunk k is made at k C / f and wanted at g C / f + (k - 1) C.
The last one is the latest: g >= n - f (n - 1). While it gathers, the character listens and breathes; if the text is so
long that the wait would be, it gathers as much as may be, plays, and then gathers again: few pauses and no stutter.
"""

from __future__ import annotations

import math

from streamchar import clock

SURE = 1.05
"""Times real time from which a session is not expected to run dry."""
WORD_SECONDS = 0.38
"""Of one word; `toon` takes 0.34 s over 699 words."""
MOST_SECONDS = 15.0
"""A longer wait is cut into pauses."""
FEWEST = 3
"""Chunks that are worth a pause, however slow it is."""
MOST_AHEAD = 30.0
"""Seconds of speech that a slow model may be ahead of the player."""

_CHUNK = float(clock.CHUNK_SECONDS)


def is_slow(factor: float) -> bool:
    """Whether a session at this speed must gather. 0 is not measured yet."""
    return 0 < factor < SURE


def chunks_to_gather(words: int, factor: float) -> int:
    """Chunks to make before the first of `words` words is heard; 1 is none beyond the first."""
    if not is_slow(factor):
        return 1
    whole = max(1, math.ceil(words * WORD_SECONDS / _CHUNK))
    needed = whole - min(factor, 1.0) * (whole - 1)
    most = max(FEWEST, int(MOST_SECONDS * factor / _CHUNK))
    return max(1, min(whole, most, math.ceil(needed - 1e-9)))


def wait_seconds(chunks: int, factor: float) -> float:
    """Until so many chunks are made."""
    return chunks * _CHUNK / factor if factor > 0 else 0.0
