"""Transcript tokens: phonemes or characters for `toon`, a Hugging Face tokenizer for `paper`.

All keep which word each token belongs to: the pointer counts tokens, captions count words.
"""

from __future__ import annotations

import string
from typing import Any

from streamchar import phonemes
from streamchar.errors import CheckpointError, ConfigError
from streamchar.types import Transcript

PHONEME_END = len(phonemes.ALPHABET)
"""The token after the last word: silence from there on."""

_CHARACTERS = "_ " + string.ascii_lowercase + "'.,;:!?-" + string.digits


class PhonemeTokenizer:
    """Pause, phonemes of a sentence, pause, ..., end. One token a symbol of `phonemes.ALPHABET`."""

    vocab_size = len(phonemes.ALPHABET) + 1
    end_id = PHONEME_END
    reads_english_only = True

    def __call__(self, text: str) -> Transcript:
        symbols, owner, words = [phonemes.PAUSE], [-1], []
        for sentence in phonemes.split_sentences(phonemes.speakable(text)):
            utterance = phonemes.utterance(sentence)
            if not utterance.words:
                continue
            symbols += [*utterance.symbols, phonemes.PAUSE]
            owner += [o + len(words) for o in utterance.symbol_word]
            words += utterance.words
            owner.append(len(words) - 1)
        if not words:
            return Transcript(text=text, ids=(), token_word=(), words=())
        ids = tuple(phonemes.ALPHABET.index(s) for s in symbols)
        return Transcript(
            text=text, ids=(*ids, self.end_id), token_word=(*owner, len(words) - 1), words=tuple(words)
        )


class CharacterTokenizer:
    """Lower-case letters: the alternative that lost (docs/decisions.md), kept for `tiny` and ablations."""

    vocab_size = len(_CHARACTERS) + 1
    end_id = len(_CHARACTERS)
    reads_english_only = True

    def __call__(self, text: str) -> Transcript:
        words = [w for w in text.split() if any(c.lower() in string.ascii_letters + string.digits for c in w)]
        if not words:
            return Transcript(text=text, ids=(), token_word=(), words=())
        ids, owner = [0], [-1]
        for index, word in enumerate(words):
            piece = (" " if index else "") + "".join(c for c in word.lower() if c in _CHARACTERS and c != "_")
            ids += [_CHARACTERS.index(c) for c in piece]
            owner += [index] * len(piece)
        last = len(words) - 1
        return Transcript(
            text=text, ids=(*ids, 0, self.end_id), token_word=(*owner, last, last), words=tuple(words)
        )


class HubTokenizer:
    """A `transformers` tokenizer from a folder or hub id (Qwen2.5's for `paper`)."""

    reads_english_only = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.end_id = tokenizer.eos_token_id
        if self.end_id is None:
            raise ConfigError("expected a tokenizer with an end-of-text token, this one has none; set eos_token")

    @classmethod
    def from_pretrained(cls, source: str) -> HubTokenizer:
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(source))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot load the tokenizer {source!r}: {error}") from None

    def __call__(self, text: str) -> Transcript:
        words = text.split()
        if not words:
            return Transcript(text=text, ids=(), token_word=(), words=())
        coded = self.tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)
        starts, at = [], 0
        for word in words:
            starts.append(at)
            at += len(word) + 1
        owner, word = [], 0
        for begin, end in coded["offset_mapping"]:
            middle = max(begin, end - 1)
            while word + 1 < len(starts) and starts[word + 1] <= middle:
                word += 1
            owner.append(word)
        return Transcript(
            text=text, ids=(*coded["input_ids"], self.end_id), token_word=(*owner, len(words) - 1), words=tuple(words)
        )


Tokenizer = PhonemeTokenizer | CharacterTokenizer | HubTokenizer


def tokenizer(kind: str) -> Tokenizer:
    """The tokenizer that `ModelConfig.tokenizer` names."""
    if kind == "phonemes":
        return PhonemeTokenizer()
    if kind == "characters":
        return CharacterTokenizer()
    return HubTokenizer.from_pretrained(kind)
