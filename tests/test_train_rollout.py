"""Rollouts: scores that are the session's, streams that are what is played, ablations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamchar.errors import ConfigError
from streamchar.flow.sampler import RenoiseSampler
from streamchar.flow.schedule import Schedule as Steps
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.session import sampler_of
from streamchar.train.loop import generator
from streamchar.train.rollout import RolloutTerms, Tap
from streamchar.train.streams import begin, transcript_of, true_cursor
from tests.distillation import (  # noqa: F401 - fixtures
    CONFIG,
    STAGES,
    J,
    clip,
    distill,
    first_clip,
    loaded_teacher,
    made_folders,
    plain_run,
    rollout,
)
from tests.streams import equal, paced

pytestmark = pytest.mark.usefixtures("plain")


def test_the_tap_changes_nothing_and_keeps_one_step():
    """The sampler's own result to the bit; the estimate depends on the weights through its step alone."""
    weight = torch.ones((), requires_grad=True)

    def field(x, sigma, last):
        return tuple(weight * sigma * torch.tanh(part) for part in x)

    noise = (torch.randn(1, 4, generator=torch.Generator().manual_seed(0)),)
    for kind in range(4):
        sampler = RenoiseSampler(schedule=Steps(steps=4, shift=5.0))
        plainly = sampler(field, noise, torch.Generator().manual_seed(1))
        tap = Tap(sampler, kind)
        made = tap(field, noise, torch.Generator().manual_seed(1))
        assert torch.equal(made[0], plainly[0]) and not made[0].requires_grad
        (tap.estimate[0].sum()).backward()
        assert weight.grad is not None and weight.grad.abs() > 0
        weight.grad = None
    assert torch.equal(tap.estimate[0], plainly[0])


def test_a_rollout_is_what_a_session_plays(folders, teacher):
    """With gradient, with the memory kept, and by `generate_chunk` alone: the same states to the bit."""
    objective = rollout(folders, teacher)
    clip, student = first_clip(objective), objective.student()
    with paced(objective.student(), 3.0):
        graph = objective.roll(clip, 4, 1, seed=5)
        state, memory = begin(student, clip, seed=5), None
        with torch.no_grad():
            quiet = objective.roll(clip, 4, 1, seed=5)
            for _ in range(4):
                with objective.mixed():
                    made, state = generate_chunk(
                        student, state, sampler_of(student, state), transcript=transcript_of(clip), memory=memory
                    )
                memory = made.memory
    assert equal(graph[-1].after, quiet[-1].after) and equal(quiet[-1].after, state)
    assert [chunk.before.chunk for chunk in graph] == [1, 2, 3], "the last three"
    assert all(part.requires_grad for part in graph[-1].estimate) and not state.motion.requires_grad
    for one, other in zip(graph, quiet, strict=True):
        assert equal(tuple(part.detach() for part in one.estimate), other.estimate)
    assert torch.equal(graph[0].before.sink, graph[0].before.motion), "chunk 1 is both to chunk 2"
    assert torch.equal(graph[1].before.sink, graph[0].before.sink) and equal(graph[1].before, graph[0].after)


def test_a_finished_stream_ends_its_rollout(folders, teacher):
    objective = rollout(folders, teacher)
    clip = first_clip(objective)
    with paced(objective.student(), len(clip.tokens) / 2), torch.no_grad():
        played = objective.roll(clip, 4, 3, seed=1)
    assert len(played) == 2 and played[-1].after.finished


def test_a_batch_of_rollouts_is_scored_as_each_alone(folders, teacher):
    """Rollouts of different lengths, padded, one with its first chunk (no motion, no sink) among the scored."""
    objective = rollout(folders, teacher)
    clips = [objective.data.shards[objective.data.index[0][0]][i] for i in (0, 1)]
    with paced(objective.student(), 3.0), torch.no_grad():
        pairs = [(clips[0], objective.roll(clips[0], 4, 3, seed=1)), (clips[1], objective.roll(clips[1], 2, 3, seed=2))]
        both = objective.packed(pairs)
        assert both.group.tolist() == [0, 0, 0, 1, 1]
        assert both.conditions.has_motion.tolist() == both.conditions.has_sink.tolist() == [True] * 3 + [False, True]
        draw = torch.Generator().manual_seed(0)
        h, w = CONFIG.latent_size
        x = (torch.randn(5, CONFIG.dit.video_channels, 9, h, w, generator=draw), torch.randn(5, J, 64, generator=draw))
        sigma = torch.tensor([0.7, 0.7, 0.7, 0.4, 0.4])
        together, _ = objective.real(both, x, sigma)
        for index, part in ((0, slice(0, 3)), (1, slice(3, 5))):
            alone, _ = objective.real(objective.packed([pairs[index]]), tuple(t[part] for t in x), sigma[part])
            for got, expected in zip(alone, together, strict=True):
                torch.testing.assert_close(got, expected[part], rtol=1e-3, atol=1e-4)


def test_the_teachers_score_is_what_its_session_computes(folders, teacher):
    """Velocities of `generate_chunk`, guidance and all, against those that a rollout is scored by: each of
    the last three chunks, from keys in a cache against all in one pass."""
    objective = rollout(folders, teacher)
    clip = first_clip(objective)
    with paced(objective.student(), 3.0), torch.no_grad():
        played = objective.roll(clip, 4, 3, seed=1)
        context = objective.packed([(clip, played)])
        draw, seen = torch.Generator().manual_seed(0), []
        h, w = CONFIG.latent_size
        x = (torch.randn(3, CONFIG.dit.video_channels, 9, h, w, generator=draw), torch.randn(3, J, 64, generator=draw))
        real, _ = objective.real(context, x, torch.full((3,), 0.7))
        for i, chunk in enumerate(played):

            def spy(field, noise, generator, i=i):
                seen.append(field(tuple(part[i : i + 1] for part in x), 0.7, True))
                return tuple(part[i : i + 1] for part in x)

            state = replace(chunk.before, guidance=2.0)
            generate_chunk(teacher, state, spy, transcript=transcript_of(clip))
    for got, parts in zip(real, zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts), rtol=1e-3, atol=1e-4)


def test_rollouts_grow(folders):
    terms = RolloutTerms(follow=2, chunks=4, shortest=2, grow=10)
    assert [terms.length(step) for step in (0, 29, 30, 59, 60, 1000)] == [2, 2, 3, 3, 4, 4]
    assert RolloutTerms(chunks=1).length(0) == 1
    with pytest.raises(ConfigError, match="at least 1 chunk"):
        RolloutTerms(chunks=0)


def test_without_the_sink(folders, teacher):
    for make in STAGES.values():
        for sink in (True, False):
            objective = make(folders, teacher, sink=sink, **({} if make is rollout else {"first_chunk": 0.0}))
            with paced(objective.student(), 3.0), torch.no_grad():
                context, _ = objective.sample(0, 0, generator(0, 0))
            assert (context.conditions.sink is not None) == sink and context.conditions.motion is not None
            assert objective.student().sink == sink


def test_without_history(folders, teacher):
    one = distill(folders, teacher, history=False, first_chunk=0.0)
    context = one.context(one.windows(0, generator(0, 0)), generator(0, 1))
    assert context.speech.chunks == 1 and context.conditions.motion is not None, "nothing said before the chunk"
    objective = rollout(folders, teacher, history=False)
    with paced(objective.student(), 3.0), torch.no_grad():
        clip = first_clip(objective)
        played = objective.roll(clip, 4, 3, seed=1)
        context = objective.packed([(clip, played)])
    assert all(chunk.before.history is None for chunk in played) and played[-1].before.cursor > 5
    assert context.speech.noisy.shape[:2] == (3, 1) and context.picks.tolist() == [0, 1, 2]
    assert context.group.tolist() == [0, 0, 0], "still scored together"
    assert context.speech.text[-1, 0] == clip.tokens[int(played[-1].before.cursor)]


def test_the_transcript_is_cut_by_the_pointer_or_by_the_clock(folders, teacher):
    cut = {}
    for pointer in (True, False):
        objective = rollout(folders, teacher, pointer=pointer)
        clip = first_clip(objective)
        with paced(objective.student(), 3.0), torch.no_grad():
            context = objective.packed([(clip, objective.roll(clip, 4, 3, seed=1))])
        cut[pointer] = context.speech.cursor[0]
        assert context.picks.tolist() == [1, 2, 3] and context.speech.history.shape[1] == 4 * J
    torch.testing.assert_close(cut[True], torch.tensor([0.0, 3.0, 6.0, 9.0]))
    torch.testing.assert_close(cut[False], torch.from_numpy(true_cursor(clip, torch.arange(4).numpy())).float())


def test_the_text_ends_behind_the_spoken_end(folders, teacher):
    """Up to the look-ahead and no further, as in training."""
    objective = rollout(folders, teacher)
    long = clip(4, 9)
    long = replace(long, tokens=torch.randint(1, 72, (200,)).to(torch.int16), token_start=torch.arange(200) * 0.02)
    with paced(objective.student(), 3.0), torch.no_grad():
        context = objective.packed([(long, objective.roll(long, 2, 3, seed=1))])
    assert context.speech.text_length.tolist() == [6 + CONFIG.orchestrator.look_ahead + 1]


def test_isolated_chunks_begin_from_the_data(folders, teacher):
    objective = rollout(folders, teacher, chunks=1)
    clip = first_clip(objective)
    with paced(objective.student(), 3.0), torch.no_grad():
        (chunk,) = objective.roll(clip, 1, 3, seed=1, first=2)
    assert torch.equal(chunk.before.motion[0], clip.video[1].float()) and chunk.before.history_chunks == 2
    assert torch.equal(chunk.before.sink[0], clip.video[0].float()) and chunk.before.window_start == 0
    assert torch.equal(chunk.before.history[0], clip.audio[: 2 * J].float())
    assert chunk.before.cursor == pytest.approx(float(true_cursor(clip, torch.tensor([2]).numpy())[0]))
    firsts = []
    objective.roll = lambda clip, chunks, trained, *, seed, first: firsts.append((first, chunks)) or [chunk]
    for step in range(20):
        objective.sample(step, 0, generator(0, step))
    assert set(firsts) == {(first, 1) for first in range(4)}, "anywhere in the clip"
