"""Against the world's truth: alignment, mouth and pointer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from streamchar import clock, phonemes
from streamchar.errors import DataError
from streamchar.eval import truth
from streamchar.eval.alignment import _Sound, align, cepstra, rendition, warp
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options
from streamchar.eval.sample import Sample
from streamchar.eval.truth import MouthTruth, PointerTruth, spoken
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk, Speech, Word
from streamchar.world.clips import Clip, make_clip
from streamchar.world.voice import join, speak

TEXT = "The old man sold seven blue lamps. Nobody came to help him carry them home."
SILENT = frozenset(" _ˈˌː") | phonemes.PUNCTUATION


def written(path: Path, frames_T3HW: Tensor, samples_S: Tensor) -> Path:
    with Muxer(path) as muxer:
        for k, part in enumerate(frames_T3HW.split(clock.FRAMES_PER_CHUNK)):
            sound = samples_S[k * clock.SAMPLES_PER_CHUNK : (k + 1) * clock.SAMPLES_PER_CHUNK]
            muxer.write(Chunk(index=k, frames=part.permute(0, 2, 3, 1).contiguous(), samples=sound))
    return path


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip(31, TEXT, held_out=True)


@pytest.fixture(scope="module")
def frames(clip: Clip) -> Tensor:
    return clip.frames()


@pytest.fixture(scope="module")
def sample(clip: Clip, frames: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("truth")
    words = folder / "words.json"
    words.write_text(json.dumps([[w.text, w.start, w.end] for w in clip.speech.words]))
    d = clip.direction
    return Sample(
        name="clip", video=written(folder / "clip.mp4", frames, clip.speech.samples), transcript=TEXT,
        character=clip.character.seed, direction=(d.mood, d.gesture, d.energy), words=words,
    )  # fmt: skip


def starts(speech: Speech) -> np.ndarray:
    return np.array([m.start for m in speech.phonemes if m.symbol not in SILENT])


@pytest.mark.parametrize(("voice", "told_voice", "tempo"), [(3, 3, 1.12), (2, 4, 0.94)], ids=["tempo", "voice"])
def test_alignment_finds_known_times(voice: int, told_voice: int, tempo: float) -> None:
    first, second = phonemes.split_sentences(TEXT)
    parts = [speak(first, voice, tempo=tempo, seed=5), speak(second, voice, tempo=tempo, seed=6)]
    made = join(parts, [0.45, 0.3])
    lead = torch.zeros(clock.AUDIO_RATE // 5)
    found = align(torch.cat([lead, made.samples]), rendition(TEXT, told_voice))
    errors = 1000 * np.abs(starts(found.speech) - starts(made) - 0.2)
    assert np.median(errors) < 12 and np.quantile(errors, 0.9) < 30
    ends = [abs(a.end - b.end - 0.2) for a, b in zip(found.speech.words, made.words, strict=True)]
    assert np.median(ends) < 0.02
    assert [w.text for w in found.speech.words] == [w.text for w in made.words]
    assert found.confidence > 0.15 and found.skipped < 0.05


def test_what_is_not_the_transcript_has_no_times() -> None:
    told = rendition(TEXT, 2)
    other = speak("Why would anyone paint a garden fence in the middle of December?", 2, seed=3)
    with pytest.raises(ImpossibleError, match="not the transcript"):
        align(other.samples, told)
    with pytest.raises(ImpossibleError, match="not the transcript"):
        align(0.1 * torch.randn(4 * clock.AUDIO_RATE, generator=torch.Generator().manual_seed(1)), told)
    with pytest.raises(ImpossibleError, match="no speech"):
        align(torch.zeros(3 * clock.AUDIO_RATE), told)
    with pytest.raises(ImpossibleError, match="at most 600 s"):
        align(torch.zeros(601 * clock.AUDIO_RATE), told)
    with pytest.raises(ImpossibleError, match="English word"):
        rendition("!!!", 2)


def test_words_left_out_are_skipped() -> None:
    told = rendition(TEXT, 2)
    half = speak(phonemes.split_sentences(TEXT)[0], 2, tempo=1.05, seed=7)
    found = align(half.samples, told)
    assert 0.3 < found.skipped < 0.7
    assert [abs(a.end - b.end) < 0.03 for a, b in zip(found.speech.words, half.words, strict=False)].count(False) <= 1
    assert found.speech.words[-1].end <= half.seconds


def test_the_path_is_exact_where_it_is_known() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    quiet = torch.zeros(40, dtype=torch.bool)
    told = _Sound(rows, quiet)
    full = np.zeros(40, np.int64), np.full(40, 40)
    pairs, cost = warp(told, told, *full)
    assert np.array_equal(pairs, np.stack([np.arange(40)] * 2, 1)) and cost < 1e-3
    doubled = _Sound(rows.repeat_interleave(2, 0), quiet.repeat(2))
    pairs, _ = warp(told, doubled, full[0], np.full(40, 80))
    assert {(int(i), int(j)) for i, j in pairs} == {(j // 2, j) for j in range(80)}
    gap = torch.cat([rows[:20], torch.zeros(15, 6), rows[20:]])
    silent = torch.zeros(55, dtype=torch.bool)
    silent[20:35] = True
    pairs, _ = warp(told, _Sound(gap, silent), full[0], np.full(40, 55))
    assert {(int(i), int(j)) for i, j in pairs} == {(i, i + 15 * (i >= 20)) for i in range(40)}


def test_silence_is_found_at_any_level() -> None:
    tone = 0.2 * torch.sin(torch.arange(clock.AUDIO_RATE) * 0.03)
    tone[clock.AUDIO_RATE // 2 :] *= 1e-3
    for level in (1.0, 0.01):
        _, silent = cepstra(tone * level)
        assert not bool(silent[5:40].any()) and bool(silent[60:90].all())


def test_true_clips_are_in_sync(sample: Sample, clip: Clip) -> None:
    reading = MouthTruth().measure(sample)
    values = reading.values
    assert values["sync_ms"] is not None and abs(values["sync_ms"]) < 15
    assert values["sync_abs_ms"] == abs(values["sync_ms"])
    assert values["mouth_correlation"] is not None and values["mouth_correlation"] > 0.9
    assert len(reading.series["opening"]) == len(reading.series["loudness"]) == len(clip.track)
    assert "confidence" in reading.notes["alignment"]


@pytest.mark.parametrize("shift", [3, -3])
def test_a_shift_is_found_with_its_sign(shift: int, sample: Sample, clip: Clip, frames: Tensor, tmp_path: Path) -> None:
    late = frames[(torch.arange(len(frames)) - shift).clamp(0, len(frames) - 1)]
    moved = replace(sample, video=written(tmp_path / "moved.mp4", late, clip.speech.samples))
    values = MouthTruth().measure(moved).values
    assert values["sync_ms"] == pytest.approx(shift * 1000 / 24, abs=20)
    assert values["mouth_correlation"] is not None and values["mouth_correlation"] > 0.9


def test_a_mouth_that_does_not_follow_has_no_time(sample: Sample, clip: Clip, frames: Tensor, tmp_path: Path) -> None:
    shut = frames[:1].expand(len(frames), -1, -1, -1)
    reading = MouthTruth().measure(replace(sample, video=written(tmp_path / "shut.mp4", shut, clip.speech.samples)))
    assert reading.values == {"sync_ms": None, "sync_abs_ms": None, "mouth_correlation": 0.0}
    assert "does not move" in reading.reasons["sync_ms"]


def test_another_moments_mouth_is_not_distinct(clip: Clip) -> None:
    wanted = truth.demanded(clip.speech, 99, 1.0)
    assert truth.distinctness(wanted.roll(2), wanted) > 1.5 * truth.LEAST_DISTINCT
    assert truth.distinctness(wanted.flip(0), wanted) < truth.LEAST_DISTINCT


def test_true_word_times_have_no_pointer_error(sample: Sample) -> None:
    reading = PointerTruth().measure(sample)
    assert reading.values["pointer_words"] is not None and reading.values["pointer_words"] < 0.05
    assert reading.values["pointer_ms"] is not None and reading.values["pointer_ms"] < 20
    counts = reading.series["words_spoken"]
    assert counts[0] == 0 and counts[-1] == len(TEXT.split())


def test_a_late_pointer_is_measured(sample: Sample, clip: Clip, tmp_path: Path) -> None:
    words = tmp_path / "late.json"
    late = [[w.text, w.start + 0.4, w.end + 0.4] for w in clip.speech.words]
    words.write_text(json.dumps(late))
    values = PointerTruth().measure(replace(sample, words=words)).values
    assert values["pointer_ms"] == pytest.approx(400, abs=15)
    seconds = clip.speech.seconds
    inside = sum(min(0.4, seconds - w.end) for w in clip.speech.words)
    assert values["pointer_words"] == pytest.approx(inside / seconds, abs=0.08)
    words.write_text(json.dumps(late[:3]))  # it stopped: the words it never named count, the others keep their place
    stopped = PointerTruth().measure(replace(sample, words=words)).values
    assert stopped["pointer_words"] is not None and stopped["pointer_words"] > 4
    assert stopped["pointer_ms"] == pytest.approx(400, abs=30)


def test_words_are_spoken_when_they_end() -> None:
    words = [Word(text="a", start=0.0, end=0.5), Word(text="b", start=0.5, end=0.75)]
    assert spoken(words, 1.0) == [0] * 12 + [1] * 6 + [2] * 7


def test_bad_input_is_named(sample: Sample, tmp_path: Path) -> None:
    assert all(isinstance(m, ClipMetric) for m in truth.metrics(Options()))
    with pytest.raises(ImpossibleError, match="character is not known"):
        MouthTruth().measure(replace(sample, character=None))
    with pytest.raises(ImpossibleError, match="no word times"):
        PointerTruth().measure(replace(sample, words=None))
    bad = tmp_path / "bad.json"
    for text in ('{"a": 1}', "[[1, 2]]", "not json", '[["a", 0, NaN]]'):
        bad.write_text(text)
        with pytest.raises(DataError, match=r"bad.json: expected"):
            PointerTruth().measure(replace(sample, words=bad))
    with pytest.raises(DataError, match="cannot read"):
        PointerTruth().measure(replace(sample, words=tmp_path / "none.json"))
