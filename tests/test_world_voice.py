"""The world's voices and clips: exact times, determinism, speakers that clearly differ."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from streamchar import clock, phonemes
from streamchar.errors import InputError
from streamchar.world.clips import make_clip, merge_pauses, pad_to_chunks, pick_character, talk
from streamchar.world.splits import HELD_OUT_VOICES, is_held_out_character, is_held_out_sentence
from streamchar.world.text import as_sentence, extract_wordnet, sentences, wordnet_examples
from streamchar.world.voice import VOICES, _warp, join, random_voice, speak

SENTENCE = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def spoken():
    return [speak(SENTENCE, voice) for voice in range(len(VOICES))]


def test_phoneme_times_fill_the_utterance(spoken):
    for speech in spoken:
        assert speech.phonemes[0].start == 0
        assert all(a.end == b.start and a.start <= a.end for a, b in pairwise(speech.phonemes))
        assert speech.phonemes[-1].end == pytest.approx(speech.seconds, abs=1 / clock.AUDIO_RATE)
        assert len(speech.pitch) == pytest.approx(speech.seconds * 96, abs=1)
        marks = speech.phonemes
        assert marks[0].symbol == marks[-1].symbol == phonemes.PAUSE and marks[0].word == marks[-1].word == -1
        assert "".join(mark.symbol for mark in marks[1:-1]) == phonemes.utterance(SENTENCE).symbols


def test_word_times_are_monotone_and_inside(spoken):
    for speech in spoken:
        assert tuple(word.text for word in speech.words) == phonemes.utterance(SENTENCE).words
        assert all(0 < word.start < word.end < speech.seconds for word in speech.words)
        assert all(a.end <= b.start for a, b in pairwise(speech.words))


def loudness(speech, start, end):
    piece = speech.samples[round(start * clock.AUDIO_RATE) : round(end * clock.AUDIO_RATE)]
    return piece.square().mean().sqrt().item()


def test_sound_is_where_the_words_are(spoken):
    """The times are of this sound, in every voice and tempo: silence before the first word, sound in each."""
    for speech in spoken:
        heard = min(loudness(speech, word.start, word.end) for word in speech.words)
        assert heard > 0.005
        assert loudness(speech, 0, speech.words[0].start - 0.05) < 0.2 * heard
        assert loudness(speech, speech.words[-1].end + 0.1, speech.seconds) < 0.2 * heard
        assert speech.samples.dtype == torch.float32 and speech.samples.abs().max() <= 0.951


def test_speaking_is_deterministic():
    one, same, other = speak(SENTENCE, 7, seed=3), speak(SENTENCE, 7, seed=3), speak(SENTENCE, 7, seed=4)
    assert torch.equal(one.samples, same.samples) and one.phonemes == same.phonemes
    assert not torch.equal(one.samples, other.samples), "breath noise has the seed"
    assert one.phonemes == other.phonemes


def test_at_least_eight_speakers_differ_clearly_in_pitch(spoken):
    """Neighbours at least 1.2 semitones apart."""
    medians = sorted(speech.pitch[speech.pitch > 0].median().item() for speech in spoken)
    apart, last = 0, 0.0
    for median in medians:
        if median > last * 2 ** (1.2 / 12):
            apart, last = apart + 1, median
    assert apart >= 8
    assert medians[-1] / medians[0] > 3


@pytest.mark.parametrize("voice", range(len(VOICES)))
def test_the_pitch_is_that_of_the_sound(spoken, voice):
    """Voiced pieces repeat after the claimed period. (Not looked for freely: under a changed pitch the teacher's
    free-phase branch keeps a trace of the old one, docs/decisions.md.)"""
    ratios, likeness = periods(spoken[voice])
    assert np.median(likeness) > 0.6
    assert np.median(ratios) == pytest.approx(1, abs=0.03)


def periods(speech):
    """For each voiced piece of 83 ms the best period within a fifth of the claimed one, as a ratio, and the
    autocorrelation there."""
    ratios, likeness = [], []
    window = np.hanning(4096)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, 8192)) ** 2)
    for block in range(4, len(speech.pitch) - 4, 4):
        if speech.pitch[block - 4 : block + 4].min() <= 0:
            continue
        piece = speech.samples[(block - 4) * 512 : (block + 4) * 512].numpy() * window
        correlation = np.fft.irfft(np.abs(np.fft.rfft(piece, 8192)) ** 2)
        correlation = correlation / correlation[0] / (own / own[0]).clip(1e-3)
        lag = clock.AUDIO_RATE / speech.pitch[block].item()
        near = np.arange(int(0.8 * lag), int(1.2 * lag))
        best = near[correlation[near].argmax()]
        ratios.append(lag / best)
        likeness.append(correlation[best])
    return ratios, likeness


def test_tempo_scales_the_times():
    slow, fast = speak(SENTENCE, 0, tempo=0.8), speak(SENTENCE, 0, tempo=1.25)
    assert slow.seconds / fast.seconds == pytest.approx(1.25 / 0.8, rel=0.12)


def test_a_warp_moves_a_formant_and_keeps_its_height():
    bins = np.zeros((100, 2), np.float32)
    bins[40] = 1.0
    assert _warp(bins, 1.0) is bins
    for factor in (0.8, 1.25):
        moved = _warp(bins, factor, floor=-12.0)
        assert abs(int(moved[:, 0].argmax()) - 40 * factor) <= 1
    assert (_warp(bins, 0.5, floor=-12.0)[60:] == -12).all()
    assert set(np.unique(_warp(bins, 1.1, nearest=True))) <= {0.0, 1.0}


def test_random_voices_are_drawn_by_the_generator():
    assert random_voice(random.Random(3)) == random_voice(random.Random(3))
    assert random_voice(random.Random(3)) != random_voice(random.Random(4))
    assert all(0.4 < random_voice(random.Random(i)).pitch < 1.8 for i in range(50))


def test_joined_utterances_keep_their_times(spoken):
    parts, gaps = [spoken[0], spoken[2], spoken[4]], [0.3, 0.0, 0.1]
    speech = join(parts, gaps)
    offset = 0.0
    words, marks = iter(speech.words), iter(speech.phonemes)
    for part, gap in zip(parts, gaps, strict=True):
        for word in part.words:
            moved = next(words)
            assert (moved.text, moved.start) == (word.text, pytest.approx(word.start + offset, abs=1e-4))
        for mark in part.phonemes:
            assert next(marks).start == pytest.approx(mark.start + offset, abs=1e-4)
        offset += part.seconds + gap
    assert speech.seconds == pytest.approx(offset, abs=1e-4)
    assert len(speech.pitch) == pytest.approx(offset * 96, abs=1)
    assert [m.word for m in speech.phonemes if m.word >= 0][-1] == len(speech.words) - 1
    # the pause between two utterances is one token
    symbols = [symbol for symbol, _, _ in merge_pauses(speech)]
    assert symbols.count(phonemes.PAUSE) == len(parts) + 1
    assert all(a[2] == pytest.approx(b[1]) for a, b in pairwise(merge_pauses(speech)))


@pytest.mark.parametrize(("lead", "tail"), [(0.0, 0.0), (0.5, 0.25)])
def test_padding_makes_whole_chunks(spoken, lead, tail):
    speech = pad_to_chunks(spoken[0], lead, tail)
    assert len(speech.samples) % clock.SAMPLES_PER_CHUNK == 0
    assert len(speech.pitch) == len(speech.samples) // 512
    quiet = round(lead * clock.AUDIO_RATE)
    assert not speech.samples[:quiet].any()
    assert torch.equal(speech.samples[quiet : quiet + len(spoken[0].samples)], spoken[0].samples)
    assert 0 <= speech.seconds - spoken[0].seconds - lead - tail < float(clock.CHUNK_SECONDS)
    assert speech.words[0].start == pytest.approx(spoken[0].words[0].start + lead, abs=1e-4)


def test_talk_says_what_fits():
    long = talk([SENTENCE] * 20, 0, random.Random(0), limit=4)
    chunks = len(long.samples) // clock.SAMPLES_PER_CHUNK
    assert chunks <= 4 and len(long.samples) == chunks * clock.SAMPLES_PER_CHUNK
    assert long.text in (SENTENCE, " ".join([SENTENCE] * 2))
    again = talk([SENTENCE] * 20, 0, random.Random(0), limit=4)
    assert torch.equal(long.samples, again.samples)
    with pytest.raises(InputError, match=r"a sentence of at most 1\.2 s, got .* s; split it"):
        talk([SENTENCE], 0, random.Random(0), limit=1)


@pytest.mark.parametrize("text", ["", "...", "你好"])
def test_nothing_to_speak_is_refused(text):
    with pytest.raises(InputError, match="at least one English word"):
        speak(text)
    with pytest.raises(InputError, match="at least one English word"):
        make_clip(1, text)


def test_too_long_an_utterance_is_refused():
    with pytest.raises(InputError, match="at most 500 phonemes in one utterance, got .*; split the sentence"):
        speak("wonderful " * 80)


@pytest.mark.parametrize("voice", [-1, len(VOICES)])
def test_an_unknown_voice_is_refused(voice):
    with pytest.raises(InputError, match=f"expected a voice from 0 to {len(VOICES) - 1}, got {voice}"):
        speak("Hello.", voice)


# -- clips --------------------------------------------------------------------------------------------


def test_a_clip_is_a_function_of_its_seed():
    one, same, other = make_clip(11), make_clip(11), make_clip(12)
    assert torch.equal(one.speech.samples, same.speech.samples) and one.prompt == same.prompt
    assert one.speech.text != other.speech.text
    assert len(one.speech.samples) == one.chunks * clock.SAMPLES_PER_CHUNK
    assert len(one.track) == clock.frames(one.chunks)


def test_a_clip_of_a_long_text_says_all_of_it():
    text = "It was late. " * 12 + "Nobody came 🙂."
    made = make_clip(3, text)
    assert [word.text for word in made.speech.words].count("late.") == 12
    assert made.speech.words[-1].text.startswith("came")


@pytest.mark.parametrize("held_out", [False, True])
def test_splits_do_not_meet(held_out):
    assert all(is_held_out_sentence(s) == held_out for s in sentences(5, 60, held_out=held_out, template_rate=0.5))
    for seed in range(6):
        who = pick_character(seed, held_out=held_out)
        assert is_held_out_character(who.seed) == held_out
        assert who.voice not in HELD_OUT_VOICES


def test_sentences_are_drawn_by_seed_and_do_not_repeat():
    drawn = sentences(3, 200, template_rate=0.0)
    assert drawn == sentences(3, 200, template_rate=0.0) != sentences(4, 200, template_rate=0.0)
    assert len(set(drawn)) == 200
    assert all(s[0].isupper() and s[-1] in ".!?" for s in drawn)
    assert len(wordnet_examples()) > 40_000
    assert as_sentence(" a dog barks; ") == "A dog barks."


def test_wordnet_is_read_from_its_own_files(tmp_path):
    from streamchar.errors import DataError

    with pytest.raises(DataError, match="install the package wordnet-base"):
        extract_wordnet(tmp_path)
    for name in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text(
            f'00001740 03 n 01 entity | that which is; "the {name} is  here"; "too short"; "naïve not ASCII one"\n'
        )
    assert extract_wordnet(tmp_path) == [f"the {name} is here" for name in ("noun", "verb", "adj", "adv")]
