"""English text to phonemes: the alphabet is frozen, every symbol has its word, and what cannot be said is named."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.phonemes import (
    ALPHABET,
    MAX_SYMBOLS,
    PAUSE,
    PUNCTUATION,
    speakable,
    split_sentences,
    unspeakable,
    utterance,
)

property_test = settings(deadline=None, derandomize=True, max_examples=60)
words = st.sampled_from("a I the fox runs quickly don't well-known Smith 42 3rd O'Neil zyxwv hmm £5".split())
sentences = st.lists(words, min_size=1, max_size=12).map(" ".join)

FROZEN = "_ ;:,.!?—…\"()“”AIOQSTWYᵊabdefhijklmnoprstuvwzɑæðʤəɚɛɜɡɪŋɔɹɾʃʧʊʌʒʔθᵻɐɒˈˌː"


def test_the_alphabet_only_grows_at_its_end():
    """Token ids are positions: trained weights would read other sounds."""
    assert ALPHABET.startswith(FROZEN)
    assert len(set(ALPHABET)) == len(ALPHABET)
    assert ALPHABET[0] == PAUSE


@property_test
@given(sentence=sentences, mark=st.sampled_from(["", ".", "?!", "…", " — "]))
def test_every_symbol_belongs_to_a_word(sentence, mark):
    made = utterance(sentence + mark)
    assert len(made.symbols) == len(made.symbol_word)
    assert set(made.symbols) <= set(ALPHABET) - {PAUSE}
    assert list(made.symbol_word) == sorted(made.symbol_word)
    assert set(made.symbol_word) == set(range(len(made.words)))
    sounds = [s for s in made.symbols if s not in PUNCTUATION and s != " "]
    assert sounds, "a word that is heard"
    for symbol, owner, after in zip(made.symbols, made.symbol_word, made.symbol_word[1:], strict=False):
        assert owner == after or symbol == " ", "words change at a space, which belongs to the word before"


def test_words_are_as_written():
    made = utterance("“Hello,” said Mr. O'Neil — twice…")
    assert [word.strip("“”,…— ") for word in made.words] == ["Hello", "said", "Mr", "O'Neil", "twice"]
    assert utterance("I ate 3 apples.").words == ("I", "ate", "3", "apples.")


def test_known_pronunciations():
    assert utterance("hello").symbols == "həlˈO" or utterance("hello").symbols.startswith("h")
    assert utterance("The cat sat.").symbols == "ðə kˈæt sˈæt."


@pytest.mark.parametrize("text", ["", "   ", "...", "—", "()", "\n", "?!"])
def test_nothing_to_say(text):
    made = utterance(text)
    assert (made.symbols, made.symbol_word, made.words) == ("", (), ())


def test_sentences_are_split_and_long_ones_cut_at_clauses():
    assert split_sentences("One two. Three, four! Five?") == ["One two.", "Three, four!", "Five?"]
    assert split_sentences("Mr. Smith went to the U.S. embassy.") == ["Mr. Smith went to the U.S. embassy."]
    long = ", ".join(f"clause number {i} of this long sentence" for i in range(30)) + "."
    pieces = split_sentences(long)
    assert " ".join(pieces) == long
    assert len(pieces) > 3 and all(len(p) <= MAX_SYMBOLS * 2 // 3 for p in pieces)
    assert split_sentences("") == split_sentences(" \n ") == []


@property_test
@given(parts=st.lists(sentences, min_size=1, max_size=4))
def test_splitting_loses_nothing(parts):
    text = " ".join(f"{p}." for p in parts)
    assert " ".join(split_sentences(text)).split() == text.split()


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("plain ASCII, with marks!", ""),
        ("naïve café, Müller, Łódź, señor, straße", ""),
        ("cafe\u0301", ""),  # an accent of its own
        ("“quotes” — dashes… ‘and’ so on", ""),
        ("12 % of £5, 20 °C, ½ ™", ""),
        ("hi 😀 there 👍🏽", "😀👍🏽"),
        ("family 👨\u200d👩\u200d👧", "👨👩👧"),
        ("Привет, Привет", "Привет"),
        ("你好，世界。", "你好世界"),
        ("こんにちは", "こんにちは"),
        ("שלום مرحبا", "שלוםمرحبا"),
        ("αβγ", "αβγ"),
        ("", ""),
    ],
)
def test_unspeakable_names_each_character_once(text, bad):
    assert unspeakable(text) == list(dict.fromkeys(bad))
    assert unspeakable(speakable(text)) == []


def test_speakable_keeps_words_apart():
    assert speakable("one😀two") == "one two"
    assert speakable("plain text") == "plain text"


def test_a_combining_accent_stays_in_its_word():
    composed, apart = "The caf\u00e9 is here.", "The cafe\u0301 is here."
    assert utterance(speakable(apart)) == utterance(composed)
    assert len(utterance(composed).words) == 4


@property_test
@given(text=st.text(max_size=40))
def test_any_text_is_read_or_refused_without_a_crash(text):
    clean = speakable(text)
    assert unspeakable(clean) == []
    for sentence in split_sentences(clean):
        made = utterance(sentence)
        assert len(made.symbols) == len(made.symbol_word)
        assert set(made.symbols) <= set(ALPHABET)
