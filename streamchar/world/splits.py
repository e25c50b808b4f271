"""What is never trained on: a tenth of the characters, of the voices and of the sentences.

Fixed once, by a hash of the seed or of the text: it depends on no list, no order and no library's
random generator, so a new sentence or a new machine cannot move anything across the line.
"""

from __future__ import annotations

import hashlib

HELD_OUT_SHARE = 10
"""One in this many is held out."""

HELD_OUT_VOICES: frozenset[int] = frozenset({10, 11})
"""Voice variants heard only in evaluation, as indices into `voice.VOICES`."""


def _bucket(kind: str, value: str) -> int:
    digest = hashlib.sha256(f"streamchar/{kind}/{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE


def is_held_out_character(seed: int) -> bool:
    """Whether the character of this seed is kept for evaluation."""
    return _bucket("character", str(int(seed))) == 0


def is_held_out_sentence(text: str) -> bool:
    """Whether this sentence is kept for evaluation; case, spacing and punctuation do not matter."""
    letters = "".join(c if c.isalnum() else " " for c in text.casefold())
    return _bucket("sentence", " ".join(letters.split())) == 0
