"""English text to phonemes, word by word. A leaf: the voices of the world and the transcript
tokenizer of `toon` must agree on it to the symbol.

The grapheme-to-phoneme rules are those of `hibari-tts` (lexicon, part-of-speech tagger and a small
network for unknown words; Apache-2.0). The alphabet is Kokoro's: one character a phoneme, with
stress marks, a space between words, and punctuation as pauses.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

PAUSE = "_"
"""The pad at both ends of an utterance: silence."""

ALPHABET = (
    PAUSE + " ;:,.!?—…\"()“”" + "AIOQSTWYᵊabdefhijklmnoprstuvwz" + "ɑæðʤəɚɛɜɡɪŋɔɹɾʃʧʊʌʒʔθᵻɐɒ" + "ˈˌː"
)
"""Every symbol in use; the position is the token id. Append only: trained weights depend on it."""

PUNCTUATION = frozenset(";:,.!?—…\"()“”")
STRESS = frozenset("ˈˌː")
MAX_SYMBOLS = 380
"""Symbols of one utterance that the teacher voices take at once."""

_CLAUSE = re.compile(r"(?<=[,;:—])\s+")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sentence in phonemes."""

    symbols: str
    """One character a phoneme."""
    symbol_word: tuple[int, ...]
    """For each symbol the index of its word; a space and the punctuation belong to the word before."""
    words: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def _hibari():
    from hibari.g2p import G2P
    from hibari.g2p.normalize import normalize

    return G2P(), normalize


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, long ones cut at clause marks."""
    from hibari import Hibari

    pieces: list[str] = []
    for sentence in Hibari.split_sentences(text):
        if len(sentence) <= MAX_SYMBOLS * 2 // 3:
            pieces.append(sentence)
            continue
        current = ""
        for clause in _CLAUSE.split(sentence):
            if current and len(current) + len(clause) > MAX_SYMBOLS * 2 // 3:
                pieces.append(current)
                current = clause
            else:
                current = f"{current} {clause}" if current else clause
        pieces.append(current)
    return pieces


def utterance(sentence: str) -> Utterance:
    """Phonemes of one sentence; without any word if it holds nothing speakable."""
    g2p, normalize = _hibari()
    tokens = g2p.phonemize_tokens(g2p.tokenize(normalize(sentence)))
    symbols: list[str] = []
    owner: list[int] = []
    words: list[str] = []
    text, sound = "", ""
    for index, token in enumerate(tokens):
        text += token.text
        sound += token.phonemes or ""
        if not token.whitespace and index + 1 < len(tokens):
            continue
        sound = "".join(c for c in sound if c in ALPHABET and c != PAUSE).strip()
        spoken = any(c not in PUNCTUATION and c != " " for c in sound)
        if spoken:
            words.append(text.strip())
        if sound and words:
            if symbols and spoken:
                symbols.append(" ")
                owner.append(len(words) - 2)
            symbols.extend(sound)
            owner.extend([len(words) - 1] * len(sound))
        text, sound = "", ""
    return Utterance(symbols="".join(symbols), symbol_word=tuple(max(0, o) for o in owner), words=tuple(words))


def unspeakable(text: str) -> list[str]:
    """Characters that the English rules cannot read aloud (emoji, non-Latin letters), in order of
    appearance, each once."""
    seen: dict[str, None] = {}
    for char in unicodedata.normalize("NFC", text):
        if char.isascii() or char in seen:
            continue
        kind = unicodedata.category(char)
        latin = kind.startswith("L") and "LATIN" in unicodedata.name(char, "")
        mark = kind[0] in "PZC" or char in "€£¥°½¼¾²³×÷™®©\u0301\u0300\u0308\u0303\u0302\ufe0f\u200d"
        if not latin and not mark:
            seen[char] = None
    return list(seen)


def speakable(text: str) -> str:
    """`text` without what `unspeakable` names; letters and their accents composed (the rules would break a
    word at a combining accent)."""
    text = unicodedata.normalize("NFC", text)
    bad = set(unspeakable(text))
    return "".join(" " if c in bad else c for c in text)
