"""WebVTT: readable cues, ordered times, valid text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamchar.stream.captions import CUE_CHARACTERS, cues, timestamp, vtt
from streamchar.types import Word


def spoken(text: str, *, start: float = 0.0, each: float = 0.3) -> list[Word]:
    return [
        Word(text=word, start=start + index * each, end=start + index * each + each * 0.9)
        for index, word in enumerate(text.split())
    ]


def test_a_sentence_is_a_cue() -> None:
    got = cues(spoken("The ferry leaves at seven. Please bring the tickets."))
    assert [cue.lines for cue in got] == [("The ferry leaves at seven.",), ("Please bring the tickets.",)]
    assert got[0].start == 0 and got[1].start == pytest.approx(1.5)


def test_a_short_exclamation_stays_with_what_follows() -> None:
    assert len(cues(spoken("Hi. I am here."))) == 1


def test_a_long_sentence_is_cut_and_laid_on_two_even_lines() -> None:
    text = "When the power went out the whole village came outside to look at the stars above them"
    got = cues(spoken(text, each=0.2))
    assert len(got) == 2
    first, second = got[0].lines
    assert abs(len(first) - len(second)) < 12
    assert max(len(" ".join(cue.lines)) for cue in got) <= CUE_CHARACTERS


def test_a_pause_ends_a_cue() -> None:
    assert len(cues(spoken("one two") + spoken("three four", start=3.0))) == 2


def test_a_short_cue_stays_readable() -> None:
    [cue] = cues([Word(text="Yes.", start=1.0, end=1.2)])
    assert (cue.start, cue.end) == (1.0, pytest.approx(1.8))


def test_a_resumed_part_counts_from_its_own_start() -> None:
    got = cues(spoken("the tickets", start=6.8), start=6.875)
    assert got[0].start == 0 and got[0].end == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3723.4561, "01:02:03.456")]
)
def test_timestamps(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


def test_markup_is_escaped() -> None:
    assert "a&lt;b &amp; c--&gt;d" in vtt(spoken("a<b & c-->d"))


def test_no_words_is_still_a_valid_file() -> None:
    assert vtt([]) == "WEBVTT\n"


WORDS = st.text(st.characters(categories=["L", "P"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, st.floats(0, 2), st.floats(0, 1)), max_size=60))
def test_cues_are_ordered_and_lose_nothing(parts: list[tuple[str, float, float]]) -> None:
    now, words = 0.0, []
    for text, length, gap in parts:
        words.append(Word(text=text, start=now, end=now + length))
        now += length + gap
    got = cues(words)
    assert " ".join(" ".join(cue.lines) for cue in got) == " ".join(word.text for word in words)
    assert all(cue.end > cue.start for cue in got)
    assert all(after.start >= before.end - 0.0011 for before, after in zip(got, got[1:], strict=False))
    stamps = re.findall(r"^(\S+) --> (\S+)$", vtt(words), re.M)
    assert len(stamps) == len(got)
