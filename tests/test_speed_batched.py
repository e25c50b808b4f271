"""Several streams in one step equal the same streams one by one."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from streams import LONG, SAMPLER, play, start, tiny_models

from streamchar.errors import ConfigError, InputError
from streamchar.flow.sampler import RenoiseSampler
from streamchar.flow.schedule import Schedule
from streamchar.stream.batched import Meeting, generate_chunks
from streamchar.stream.chunk import generate_chunk

CLOSE = 1e-5


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def away(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_streams_at_different_places_equal_one_by_one(models):
    """Other texts, voices, cursors, windows, chunk numbers (so other segments), samplers and guidance."""
    *_, (old, later) = play(models, start(models, LONG[:60], seed=7), 2)
    states = [
        start(models, seed=1),
        replace(later, cursor=later.cursor + 2.5),
        start(models, "no.", seed=2, voice=None, guidance=2.0),
        start(models, LONG[:30], seed=3, prompt="sad"),
    ]
    samplers = [SAMPLER, SAMPLER, SAMPLER, RenoiseSampler(schedule=Schedule(steps=3, shift=5.0), temperature=0.7)]
    memories = [None, old.memory, None, None]
    transcripts = [models.tokenizer(state.text) for state in states]
    with torch.inference_mode():
        expected = [
            generate_chunk(models, state, sampler, transcript=transcript, memory=memory)
            for state, sampler, transcript, memory in zip(states, samplers, transcripts, memories, strict=True)
        ]
        shapes = []
        hook = models.dit.blocks[0].register_forward_pre_hook(lambda _, args: shapes.append(args[0][0].shape[0]))
        got = generate_chunks(models, states, samplers, transcripts=transcripts, memories=memories)
        hook.remove()
    assert max(shapes) == 4, "they did not run together"
    for (a, after_a), (b, after_b) in zip(got, expected, strict=True):
        assert a.video.shape == b.video.shape and a.audio.shape == b.audio.shape
        assert max(away(a.video, b.video), away(a.audio, b.audio)) < CLOSE
        assert abs(after_a.cursor - after_b.cursor) < 1e-3
        assert a.words == b.words and after_a.borders == after_b.borders


def test_one_stream_is_the_plain_chunk_to_the_bit(models):
    state = start(models)
    transcript = models.tokenizer(state.text)
    with torch.inference_mode():
        plain, _ = generate_chunk(models, state, SAMPLER, transcript=transcript)
        ((made, _),) = generate_chunks(models, [state], [SAMPLER], transcripts=[transcript])
    assert torch.equal(made.video, plain.video) and torch.equal(made.audio, plain.audio)


def test_a_stream_does_not_feel_its_neighbour(models):
    """What shares the step may be anything: another neighbour changes nothing."""
    state = start(models, seed=1)
    results = []
    for text, still in ((LONG[:50], 1.0), ("oh dear.", 100.0)):
        other = start(models, text, seed=9)
        other = replace(other, still=still * other.still)
        states = [state, other]
        with torch.inference_mode():
            results.append(
                generate_chunks(models, states, [SAMPLER] * 2, transcripts=[models.tokenizer(s.text) for s in states])
            )
    (one, *_), (same, *_) = results
    assert max(away(same[0].video, one[0].video), away(same[0].audio, one[0].audio)) < CLOSE
    assert away(results[1][1][0].video, results[0][1][0].video) > 1e-2


def test_gradients_go_through_the_batch(models):
    states = [start(models, seed=1), start(models, LONG[:20], seed=2)]
    stills = [state.still.clone().requires_grad_() for state in states]
    states = [replace(state, still=still) for state, still in zip(states, stills, strict=True)]
    with torch.enable_grad():
        made = generate_chunks(models, states, [SAMPLER] * 2, transcripts=[models.tokenizer(s.text) for s in states])
        made[1][0].video.square().mean().backward()
    assert stills[1].grad is not None and stills[1].grad.any()
    assert stills[0].grad is None or not stills[0].grad.any()
    models.dit.zero_grad()
    models.orchestrator.zero_grad()


def test_a_failure_ends_all_and_is_the_one_that_is_raised(models):
    states = [start(models, seed=1), start(models, seed=2)]
    states[1] = replace(states[1], still=torch.zeros(1, 3, 1, 4, 4))
    transcripts = [models.tokenizer(state.text) for state in states]
    with torch.inference_mode(), pytest.raises(InputError, match="ref: expected latents"):
        generate_chunks(models, states, [SAMPLER] * 2, transcripts=transcripts)
    states[1] = start(models, seed=2)
    broken = patch("streamchar.stream.batched.stacked", side_effect=ValueError("broken"))
    with torch.inference_mode(), broken, pytest.raises(ValueError, match="broken"):
        generate_chunks(models, states, [SAMPLER] * 2, transcripts=transcripts)
    with pytest.raises(ConfigError, match="got 2 states, 1 samplers"):
        generate_chunks(models, states, [SAMPLER], transcripts=transcripts)


def test_a_meeting_of_one_does_not_wait():
    meeting = Meeting(2, lambda requests: [request + 1 for request in requests])
    meeting.leave()
    assert meeting.ask(0, 1) == 2 and meeting.rounds == [1]
