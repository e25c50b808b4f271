"""Transcript tokens: words and tokens agree, and what is spoken is tokenized as what was trained on."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from streamchar import phonemes
from streamchar.config.presets import PRESETS
from streamchar.data.prepare import END_ID, tokens_of
from streamchar.errors import CheckpointError, ConfigError
from streamchar.orchestrator.tokenizer import PHONEME_END, CharacterTokenizer, HubTokenizer, PhonemeTokenizer, tokenizer
from streamchar.types import TranscriptTokenizer
from streamchar.world.clips import merge_pauses, talk
from streamchar.world.text import from_template, sentences

property_test = settings(deadline=None, derandomize=True, max_examples=40)
texts = st.lists(
    st.sampled_from("Hello there. I am 42! Well-known... (yes) don't — 🙂 café ? x".split()), min_size=1, max_size=15
).map(" ".join)


def hub():
    """A byte-level tokenizer with a few merges, as Qwen's is one."""
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "t"), ("Ġt", "he"), ("Ġ", "hello")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<end>"]
    made = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


KINDS = [PhonemeTokenizer(), CharacterTokenizer(), HubTokenizer(hub())]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)
@property_test
@given(text=texts)
def test_words_and_tokens_are_consistent(kind, text):
    made = kind(text)
    assert made.text == text
    assert len(made.ids) == len(made.token_word) == len(made)
    if not made.words:
        assert made.ids == ()
        return
    assert all(0 <= i < kind.vocab_size for i in made.ids)
    assert made.ids[-1] == kind.end_id and kind.end_id not in made.ids[:-1]
    owners = [w for w in made.token_word if w >= 0]
    assert owners == sorted(owners)
    assert set(owners) == set(range(len(made.words))), "every word has tokens, so that it can be heard"
    assert list(made.token_word[: len(made) - len(owners)]) == [-1] * (len(made) - len(owners))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)
def test_a_longer_text_keeps_the_tokens_of_the_shorter(kind):
    """Text may grow while it is spoken: only the end token makes place."""
    short, long = kind("Hello there. How are you?"), kind("Hello there. How are you? I am fine.")
    same = len(short) - (2 if isinstance(kind, CharacterTokenizer) else 1)  # letters have no pause between sentences
    assert long.ids[:same] == short.ids[:same]
    assert long.token_word[:same] == short.token_word[:same]
    assert long.words[: len(short.words)] == short.words


@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("text", ["", " ", "...", "🙂", "— !"])
def test_nothing_to_speak(kind, text):
    assert (kind(text).ids, kind(text).words) == ((), ())


def test_phonemes_by_hand():
    made = PhonemeTokenizer()("The cat. Sat!")
    symbols = [phonemes.ALPHABET[i] for i in made.ids[:-1]]
    assert "".join(symbols) == "_ðə kˈæt._sˈæt!_"
    assert made.token_word == (-1, 0, 0, 0, *[1] * 6, *[2] * 6, 2)
    assert made.words == ("The", "cat.", "Sat!")
    assert made.ids[-1] == PHONEME_END == END_ID


def test_what_cannot_be_spoken_is_left_out():
    assert PhonemeTokenizer()("The 🙂 cat.").ids == PhonemeTokenizer()("The cat.").ids


def test_characters_by_hand():
    made = CharacterTokenizer()("Hi, you 🙂")
    assert made.words == ("Hi,", "you")
    assert made.token_word == (-1, 0, 0, 0, 1, 1, 1, 1, 1, 1)


def test_hub_tokens_belong_to_the_word_they_stand_in():
    made = HubTokenizer(hub())(" hello  the hello\n")
    assert made.words == ("hello", "the", "hello")
    assert made.token_word == (0, 1, 2, 2)


def test_hub_tokenizers_load_from_a_folder(tmp_path):
    hub().save_pretrained(tmp_path)
    assert tokenizer(str(tmp_path))("hello the").ids == HubTokenizer(hub())("hello the").ids


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        tokenizer(str(tmp_path / "nothing"))
    endless = hub()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="end-of-text token"):
        HubTokenizer(endless)


def test_presets_name_tokenizers_that_fit():
    for name in ("toon", "tiny"):
        config = PRESETS[name]()
        made = tokenizer(config.tokenizer)
        assert isinstance(made, TranscriptTokenizer)
        assert made.vocab_size <= config.orchestrator.vocab_size


# -- training and inference agree -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_spoken_clips_have_the_tokens_of_their_text(seed):
    """To the symbol: a clip's timed tokens are what the tokenizer makes of its whole text."""
    rng = random.Random(seed)
    speech = talk(sentences(seed, rng.randint(2, 5), template_rate=0.4), rng.randrange(10), rng)
    made = PhonemeTokenizer()(speech.text)
    ids, starts = tokens_of(speech)
    assert made.ids == tuple(ids.tolist())
    assert (starts.diff() >= 0).all() and starts[0] == 0
    assert made.words == tuple(word.text for word in speech.words)
    # and each token is of the word that was being said
    marks = [mark for i, mark in enumerate(speech.phonemes) if mark.symbol != phonemes.PAUSE]
    said = [w for i, w in zip(made.ids, made.token_word, strict=True) if i not in (0, END_ID)]
    assert said == [mark.word for mark in marks]
    assert len(merge_pauses(speech)) + 1 == len(made)


def test_training_sentences_are_single_sentences():
    """One in 3,700 of WordNet's examples is two sentences: a pause that training does not see. No more."""
    rng = random.Random(0)
    drawn = [*sentences(1, 3000, template_rate=0.0), *(from_template(rng) for _ in range(300))]
    count = Counter(len(phonemes.split_sentences(phonemes.speakable(text))) for text in drawn)
    assert count[1] >= len(drawn) - 5
