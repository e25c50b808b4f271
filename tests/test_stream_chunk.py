"""The chunk step: resumed == uninterrupted, memory is only an economy, gradients, guidance, the window's limits,
and how a stream ends."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from streams import CONFIG, LONG, SAMPLER, SHORT, equal, paced, play, start, tiny_models
from torch import Tensor

from streamchar import clock
from streamchar.flow.sampler import EulerSampler, RenoiseSampler
from streamchar.flow.schedule import Schedule
from streamchar.orchestrator.packing import TAIL
from streamchar.stream.chunk import generate_chunk, word_spans
from streamchar.stream.memory import slide
from streamchar.stream.state import StreamState
from streamchar.types import Transcript

LIMITS = CONFIG.orchestrator


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture
def pace(models):
    """`pace(8.0)`: 8 tokens a chunk from here on."""
    with ExitStack() as stack:
        yield lambda rate: stack.enter_context(paced(models, rate))


def same_stream(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for (a, after_a), (b, after_b) in zip(one, other, strict=True):
        assert equal((a.video, a.audio, a.words, a.last), (b.video, b.audio, b.words, b.last)), a.index
        assert equal(after_a, after_b), a.index


# -- a state is all there is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate", "guidance"),
    [
        (LONG[:75], 5.5, 1.0),  # the history overflows
        (LONG[:200], 15.0, 1.0),  # the transcript window runs short
        (LONG[:75], 5.5, 2.0),
    ],
)
def test_resumed_equals_uninterrupted(models, pace, tmp_path, text, rate, guidance):
    """Saved, loaded and without its memory after every few chunks, across the window's slide."""
    pace(rate)
    state = start(models, text, guidance=guidance)
    whole = list(play(models, state))
    assert len(whole) > 12
    assert whole[-1][1].window_start > 0, "the window must have moved in this test"
    pieces = []
    for count in (1, 1, 3, 6, 1, 20):
        pieces += play(models, state, count)
        pieces[-1][1].save(tmp_path / "state")
        state = StreamState.load(tmp_path / "state")
    same_stream(whole, pieces)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_dropped_memory_changes_nothing(models, pace, guidance):
    pace(6.0)
    state = start(models, LONG[:90], guidance=guidance)
    same_stream(play(models, state), play(models, state, keep_memory=False))


def test_a_chunk_leaves_its_state_alone(models, pace):
    pace(8.0)
    state = start(models, LONG)
    for made, after in play(models, state, 3):
        before = copy_of(state)
        with torch.inference_mode():
            generate_chunk(models, state, SAMPLER, transcript=models.tokenizer(LONG), memory=None)
        assert equal(state, before)
        assert made.index == before.chunk
        state = after


def copy_of(state):
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return replace(state, **{name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})


def test_a_memory_is_not_used_for_what_it_does_not_hold(models, pace):
    """Text grown or edited, guidance switched on or off, another prompt: as if there were no memory."""
    pace(6.0)
    state = start(models, LONG[:60])
    *_, (made, state) = play(models, state, 2)
    edited = state.text[:-5] + "zzzzz"
    assert len(models.tokenizer(edited)) == len(models.tokenizer(state.text))
    for changes in ({"text": LONG[:120]}, {"text": edited}, {"guidance": 2.0}, {"prompt": "sad"}):
        changed = replace(state, **changes)
        transcript = models.tokenizer(changed.text)
        with torch.inference_mode():
            kept, _ = generate_chunk(models, changed, SAMPLER, transcript=transcript, memory=made.memory)
            dropped, _ = generate_chunk(models, changed, SAMPLER, transcript=transcript)
            plain, _ = generate_chunk(models, state, SAMPLER, transcript=models.tokenizer(state.text))
        assert torch.equal(kept.video, dropped.video) and torch.equal(kept.audio, dropped.audio), changes
        assert not torch.equal(kept.audio, plain.audio), changes
    guided = replace(state, guidance=2.0)
    with torch.inference_mode():
        memory = generate_chunk(models, guided, SAMPLER, transcript=models.tokenizer(state.text))[0].memory
        off, _ = generate_chunk(models, state, SAMPLER, transcript=models.tokenizer(state.text), memory=memory)
    assert torch.equal(off.audio, plain.audio)


def test_what_is_fed_forward(models, pace):
    """Motion is the chunk before, the sink is chunk 1, history is what was said in order."""
    pace(4.0)
    played = list(play(models, start(models, LONG[:70])))
    first = played[0][0]
    for (made, after), (before, _) in zip(played[1:], played, strict=False):
        assert torch.equal(after.sink, first.video)
        assert torch.equal(after.motion, made.video)
        assert torch.equal(after.history[:, -2 * TAIL : -TAIL], before.audio)
        assert torch.equal(after.history[:, -TAIL:], made.audio)
        assert after.history.shape[1] == TAIL * after.history_chunks


# -- randomness, guidance, conditions --------------------------------------------------------------


@pytest.mark.parametrize("kind", [EulerSampler, RenoiseSampler])
def test_seeds(models, kind):
    sampler = kind(schedule=Schedule(steps=2, shift=5.0))
    (one, _), (same, _), (other, _) = (
        next(play(models, start(models, seed=seed), sampler=sampler)) for seed in (5, 5, 6)
    )
    assert torch.equal(one.video, same.video) and torch.equal(one.audio, same.audio)
    assert not torch.equal(one.video, other.video) and not torch.equal(one.audio, other.audio)


def test_guidance_of_one_runs_no_second_model(models):
    state = start(models)
    (plain, _), *_ = play(models, state, 1)
    assert plain.memory.blank is None
    calls = []
    hook = models.dit.head.register_forward_pre_hook(lambda *_: calls.append(1))
    list(play(models, state, 1))
    count = len(calls)
    list(play(models, replace(state, guidance=1.5), 1))
    hook.remove()
    assert (count, len(calls) - count) == (SAMPLER.schedule.steps, 2 * SAMPLER.schedule.steps)
    (barely, _), *_ = play(models, replace(state, guidance=1 + 1e-6), 1)
    torch.testing.assert_close(barely.video, plain.video, rtol=0, atol=1e-4)


def test_guidance_is_linear_in_one_step(models):
    """x = noise - (u + g (v - u)): the chunk at 2 lies as far beyond the one at 1 as that beyond 0."""
    sampler = EulerSampler(schedule=Schedule(steps=1, shift=5.0))
    zero, one, two = (
        next(play(models, start(models, guidance=g), sampler=sampler))[0] for g in (0.0, 1.0, 2.0)
    )
    for a, b, c in ((zero.video, one.video, two.video), (zero.audio, one.audio, two.audio)):
        assert (b - a).abs().max() > 1e-3
        torch.testing.assert_close(c - b, b - a, rtol=1e-3, atol=1e-4)


def test_every_condition_counts(models, pace):
    pace(6.0)
    *_, (_, state) = play(models, start(models, LONG[:60]), 2)

    def next_audio_video(changed):
        made, _ = next(play(models, changed))
        return made.audio, made.video

    audio, video = next_audio_video(state)
    for name in ("still", "voice", "sink", "motion", "history"):
        a, v = next_audio_video(replace(state, **{name: getattr(state, name).flip(1)}))
        assert not torch.equal(v, video), name
        assert not torch.equal(a, audio), name
    for changes in ({"voice": None}, {"prompt": "sad"}, {"text": LONG[10:70]}, {"cursor": state.cursor + 3}):
        a, _ = next_audio_video(replace(state, **changes))
        assert not torch.equal(a, audio), changes


def test_gradients_reach_both_models_and_the_chunks_before(models, pace):
    """Stage 4 trains through the very step that inference uses."""
    pace(6.0)
    transcript = models.tokenizer(LONG[:40])
    with torch.enable_grad():
        state, memory, audios = start(models, LONG[:40]), None, []
        for _ in range(3):
            made, state = generate_chunk(models, state, SAMPLER, transcript=transcript, memory=memory)
            memory = made.memory
            for latents in (made.audio, made.video):
                latents.retain_grad()
                audios.append(latents)
        (made.video.square().mean() + made.audio.square().mean()).backward()
    assert all(latents.grad is not None and latents.grad.any() for latents in audios)
    for name, parameter in models.dit.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    for name, parameter in models.orchestrator.named_parameters():
        # where the pointer ends does not touch the latents: the cursor is a number
        if not name.startswith(("pointer.offset", "pointer.confidence", "pointer.latest")):
            assert parameter.grad is not None and parameter.grad.any(), name
    models.dit.zero_grad()
    models.orchestrator.zero_grad()


# -- the window ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [2.0, 8.0, 20.0, 31.0])
def test_the_window_keeps_its_limits_and_its_look_ahead(models, pace, rate):
    """Slow and fast speakers: never more history or text than training saw, never less text than the
    next chunk may need, and the transcript is spoken to its end."""
    pace(rate)
    state = start(models, LONG[: int(rate * 16)])
    total = len(models.tokenizer(state.text))
    for made, after in play(models, state):
        window = made.memory.window
        assert window.chunks <= clock.MAX_HISTORY_CHUNKS
        assert len(window.ids) <= LIMITS.max_transcript
        stop = window.start + len(window.ids)
        assert stop >= min(state.cursor + LIMITS.look_ahead, total) - 1  # the window starts at whole tokens
        assert window.start <= state.cursor
        state = after
    assert state.cursor >= total - 1.5 and not made.stalled


def test_tokens_leave_with_the_chunks_that_spoke_them():
    """After a slide the window begins with the token under way when its first chunk began."""
    state = StreamState(
        model="m", text="", prompt="", seed=0, steps=1, still=torch.zeros(1), cursor=60.4,
        history=torch.arange(11 * TAIL, dtype=torch.float32).reshape(1, -1, 1),
        borders=tuple(5.5 * k for k in range(11)),
    )
    transcript = Transcript(text="", ids=(1,) * 200, token_word=(0,) * 200, words=("w",))
    moved = slide(state, transcript, 32, 200)
    assert moved.borders == state.borders[-5:]
    assert moved.window_start == int(5.5 * 6)
    assert torch.equal(moved.history, state.history[:, -5 * TAIL :])
    short = replace(state, history=state.history[:, : 10 * TAIL], borders=state.borders[:10])
    assert slide(short, transcript, 32, 200) is short


# -- words and the end -----------------------------------------------------------------------------


def test_every_word_is_heard_once_in_order(models, pace):
    pace(7.3)
    state = start(models, LONG[:90])
    words, seconds = [], 0.0
    for made, after in play(models, state):
        seconds = after.chunk * float(clock.CHUNK_SECONDS)
        for word in made.words:
            assert made.index * float(clock.CHUNK_SECONDS) <= word.end <= seconds + 1e-6
        words += made.words
    assert tuple(word.text for word in words) == models.tokenizer(state.text).words
    assert after.next_word == len(words)
    assert all(word.start <= word.end for word in words)
    assert all(a.start <= b.start and a.end <= b.end for a, b in zip(words, words[1:], strict=False))
    # 7.3 tokens in 1.375 s: a word's letters take their time
    long_word = next(word for word in words if word.text == "quick")
    assert long_word.end - long_word.start == pytest.approx(5 / 7.3 * 1.375, abs=0.2)


def test_word_spans():
    transcript = Transcript(
        text="a bc", ids=tuple(range(7)), token_word=(-1, 0, 1, 1, 1, 1, 1), words=("a", "bc")
    )
    assert word_spans(transcript) == [(1, 2), (2, 5)]  # the last pause and the end are no part of "bc"


def test_it_stops_when_the_transcript_is_spoken(models, pace):
    pace(1000.0)
    ((made, after),) = play(models, start(models))
    assert made.last and after.finished and not made.stalled
    assert tuple(w.text for w in made.words) == models.tokenizer(SHORT).words


def test_the_cursor_never_goes_back(models, pace):
    pace(-3.0)
    state = start(models, LONG[:40], cursor=10.0)
    for _, after in play(models, state):
        assert after.cursor == 10.0
