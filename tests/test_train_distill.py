"""Distillation: who moves when, scores that are the session's, rollouts that are what is played, ablations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from streamchar.cli.main import main
from streamchar.config.presets import tiny, toon
from streamchar.data.shards import ClipRecord, write_shard
from streamchar.errors import CheckpointError, ConfigError, DataError, InputError, StateError
from streamchar.flow.sampler import RenoiseSampler
from streamchar.flow.schedule import Schedule as Steps
from streamchar.stream import models as stream_models
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.session import sampler_of
from streamchar.train import loop, streams
from streamchar.train.distill import (
    FAKE,
    DistillObjective,
    DistillTerms,
    Opening,
    fingerprint,
    load_teacher,
    pace,
    train_distill,
)
from streamchar.train.loop import generator, run
from streamchar.train.rollout import RolloutObjective, RolloutTerms, Tap, followed, train_rollout
from streamchar.train.streams import Gallery, begin, film_strip, play, spectrogram, transcript_of, true_cursor
from tests.streams import equal, paced, tiny_models

CONFIG = tiny()
J = 33


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No TensorBoard and no bfloat16: they cost more than all that is tested here."""
    monkeypatch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)
    monkeypatch.setattr(streams, "_images", lambda folder: None)
    monkeypatch.setattr(DistillObjective, "mixed", lambda self: torch.autocast("cpu", enabled=False))


MIXED = DistillObjective.mixed


def clip(chunks, seed, *, video=True):
    """Random latents with few tokens, so that a window holds them all."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.rand(7 * chunks, generator=draw).sort().values * (chunks * 1.375 - 0.3)
    starts[0] = 0
    h, w = CONFIG.latent_size
    channels = CONFIG.dit.video_channels
    return ClipRecord(
        audio=torch.randn(chunks * J, 64, generator=draw), reference=torch.randn(10 + seed, 64, generator=draw),
        tokens=torch.randint(1, 72, (7 * chunks,), generator=draw).to(torch.int16), token_start=starts, text="x",
        voice="heart", seed=seed, prompt="happy and lively",
        video=torch.randn(chunks, channels, 9, h, w, generator=draw) if video else None,
        still=torch.randn(channels, 1, h, w, generator=draw) if video else None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    for name in ("video", "speech"):
        (root / name).mkdir()
        clips = [clip(n, i, video=name == "video") for i, n in enumerate((4, 3, 2))]
        write_shard(root / name / "shard-00000.safetensors", clips)
    teacher = replace(tiny_models(), guidance=2.0, temperature=0.6, steps=16)
    stream_models.save(teacher, root / "teacher")
    return root


@pytest.fixture()
def teacher(folders):
    return load_teacher(folders / "teacher")


def distill(folders, teacher, **changes):
    terms = DistillTerms(**{"guidance": 2.0, "follow": 1, **changes})
    return DistillObjective(CONFIG, folders / "video", teacher, batch=1, terms=terms, seed=3)


def rollout(folders, teacher, **changes):
    terms = RolloutTerms(**{"guidance": 2.0, "follow": 1, "chunks": 2, **changes})
    return RolloutObjective(CONFIG, folders / "video", teacher, terms=terms, batch=1, seed=3)


STAGES = {"distill": distill, "rollout": rollout}


def train(objective, out, steps, *, resume=False, rate=1e-3):
    objective.validate = lambda step: {}
    schedule = replace(pace(CONFIG, 60.0, rate, 0.0, 1), max_steps=steps)
    return run(objective, schedule, out, resume=resume, export=lambda folder: None, facts={"seed": 3})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before, module):
    """Names of the tensors that are not what they were."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


# -- who moves when -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_each_step_changes_only_its_own_part(folders, teacher, tmp_path, stage):
    """An update of the fake score, then one of the student; the teacher and the orchestrator stay."""
    objective = STAGES[stage](folders, teacher)
    model, still = objective.model, weights(teacher.dit)
    with paced(objective.student(), 3.0):
        start = weights(model)
        train(objective, tmp_path, 1)
        changed = moved(start, model)
        assert changed and all(name.startswith("fake_dit.") for name in changed)
        then = weights(model)
        train(objective, tmp_path, 2, resume=True)
        changed = moved(then, model)
    assert changed and all(name.startswith("dit.") for name in changed)
    assert {name.split(".")[1] for name in changed} == {name.split(".")[0] for name, _ in model.dit.named_parameters()}
    assert not moved(still, teacher.dit) and not any(p.requires_grad for p in teacher.orchestrator.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_all_of_the_student_and_nothing_else(folders, teacher, stage, monkeypatch):
    monkeypatch.setattr(DistillObjective, "mixed", MIXED)
    objective = STAGES[stage](folders, teacher)
    with paced(objective.student(), 3.0):
        # the student's last step: weights cast for the steps without gradient must not be used for the one with it
        step = next(s for s in range(1, 99, 2) if int(torch.randint(4, (), generator=generator(3, s))) == 3)
        total, scalars = objective.loss(step)
        total.backward()
        without = {name for name, p in objective.model.dit.named_parameters() if p.grad is None or not p.grad.any()}
        assert without == set()
        assert all(p.grad is None for p in objective.model.fake_dit.parameters())
        assert {"dmd_video", "dmd_audio"} <= set(scalars) and scalars["dmd_video"] > 0 < scalars["dmd_audio"]
        objective.model.zero_grad(set_to_none=True)
        total, scalars = objective.loss(0)
        total.backward()
    assert set(scalars) == {"fake_video", "fake_audio"}
    assert all(p.grad is None for p in objective.model.dit.parameters())
    assert all(p.grad is not None for p in objective.model.fake_dit.parameters())


def test_a_trained_orchestrator_is_held_by_the_pointers_loss(folders, teacher):
    objective = distill(folders, teacher, orchestrator=True)
    total, scalars = objective.loss(1)
    total.backward()
    assert "pointer" in scalars and objective.model.orchestrator is not teacher.orchestrator
    grads = {name: p.grad is not None for name, p in objective.model.orchestrator.named_parameters()}
    assert all(grads.values()), [name for name, got in grads.items() if not got]
    objective.model.zero_grad(set_to_none=True)
    objective.loss(0)[0].backward()
    assert any(p.grad is not None for p in objective.model.fake_orchestrator.parameters())
    assert all(p.grad is None for p in objective.model.orchestrator.parameters())


def test_two_rates(folders, teacher):
    objective = distill(folders, teacher)
    assert objective.rate_factor("dit.blocks.0.x") == 1 and objective.rate_factor("fake_dit.x") == pytest.approx(0.2)
    schedule = pace(CONFIG, 1.0, None, 0.0, 60)
    assert schedule.betas[0] == 0 and not schedule.muon
    assert pace(replace(CONFIG, name="paper"), 1.0, None, 0.0, 60).rate == 2e-6


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_uninterrupted(folders, stage, tmp_path):
    """Three steps, and two (the second is the student's) and one: equal to the bit."""

    def objective():
        return STAGES[stage](folders, load_teacher(folders / "teacher"))

    train(objective(), tmp_path / "whole", 3)
    train(objective(), tmp_path / "parts", 2)
    torch.manual_seed(999)  # what a new process has in its generators must not matter
    train(objective(), tmp_path / "parts", 3, resume=True)
    for name in ("model", "optimizer", "average"):
        a, b = (load_file(tmp_path / out / "checkpoint" / f"{name}.safetensors") for out in ("whole", "parts"))
        assert a.keys() == b.keys() and [key for key in a if not torch.equal(a[key], b[key])] == []


# -- the scores ---------------------------------------------------------------------------------------


def test_nothing_moves_a_student_that_is_the_teacher(folders, teacher):
    """At the start, without guidance, both scores are one: the gradient is zero, to the bit."""
    objective = distill(folders, teacher, guidance=1.0)
    total, scalars = objective.loss(1)
    assert total == 0 and scalars["dmd_video"] == 0 and scalars["dmd_audio"] == 0
    assert distill(folders, teacher).loss(1)[1]["dmd_audio"] > 0


def test_the_teachers_score_is_what_its_session_computes(folders, teacher):
    """Velocities of `generate_chunk`, guidance and all, against those that a rollout is scored by: each of
    the last three chunks, from keys in a cache against all in one pass."""
    objective = rollout(folders, teacher)
    clip = objective.data.shards[objective.data.index[0][0]][0]
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


# -- the student's samples ----------------------------------------------------------------------------


def test_the_first_steps_of_the_schedule():
    whole = Steps(steps=4, shift=5.0).sigmas()
    torch.testing.assert_close(whole[:4], torch.tensor([1, 0.9375, 5 / 6, 0.625]))
    for n in (1, 2, 4):
        assert torch.equal(Opening(steps=n, of=4, shift=5.0).sigmas(), torch.cat([whole[:n], torch.zeros(1)]))


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
    clip, student = objective.data.shards[objective.data.index[0][0]][0], objective.student()
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
    clip = objective.data.shards[objective.data.index[0][0]][0]
    with paced(objective.student(), len(clip.tokens) / 2), torch.no_grad():
        played = objective.roll(clip, 4, 3, seed=1)
    assert len(played) == 2 and played[-1].after.finished


# -- ablations ----------------------------------------------------------------------------------------


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
        clip = objective.data.shards[objective.data.index[0][0]][0]
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
        clip = objective.data.shards[objective.data.index[0][0]][0]
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
    clip = objective.data.shards[objective.data.index[0][0]][0]
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


# -- in and out ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(folders):
    """Stage I's export after a step of training time."""
    out = folders / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_images", lambda folder: None)
        patch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)
        patch.setattr(DistillObjective, "validate", lambda self, step: {})
        train_distill(folders / "video", out, 1e-9, config=CONFIG, batch=2, teacher=folders / "teacher", follow=1)
    return out


def test_the_export_streams_with_its_own_sampler(student):
    pipe = StreamCharPipeline.from_pretrained(student)
    models = pipe.models
    kept = (models.sampler, models.steps, models.guidance, models.temperature, models.shift)
    assert kept == ("renoise", 4, 1.0, 1.0, 5.0) and models.sink and models.history and models.name == "tiny-student"
    state = pipe.start("hello there", character=torch.zeros(3, 64, 64))
    session = pipe.session(replace(state, temperature=0.7))
    assert session.sampler == RenoiseSampler(schedule=Steps(steps=4, shift=5.0), temperature=0.7)
    assert next(iter(session)).frames.shape == (33, 64, 64, 3)


def test_what_a_model_does_without_is_kept_and_played(student, folders):
    models = replace(stream_models.load(student), sink=False, history=False)
    stream_models.save(models, folders / "bare")
    pipe = StreamCharPipeline.from_pretrained(folders / "bare")
    session = pipe.session(pipe.start("hello there, how are you today, and so on?", character=torch.zeros(3, 64, 64)))
    with paced(pipe.models, 3.0):
        chunks = iter(session)
        next(chunks), next(chunks)
    assert session.state.sink is None and session.state.history is None and session.state.motion is not None
    assert session.state.window_start == int(session.state.cursor) > 0


def test_stage_two_goes_on_with_stage_ones_student_and_fake_score(student, folders, teacher, monkeypatch):
    monkeypatch.setattr(RolloutObjective, "validate", lambda self, step: {})
    fake = followed(teacher, student)
    stored = load_file(student / FAKE / "dit" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in fake.dit.state_dict().items())
    assert followed(teacher, folders / "teacher") is teacher
    out = folders / "second"
    known = {"config": CONFIG, "batch": 1, "teacher": folders / "teacher"}
    train_rollout(folders / "video", out, 1e-9, start=student, chunks=2, **known)
    assert stream_models.load(out).sampler == "renoise" and (out / FAKE / "dit" / "config.json").is_file()
    train_rollout(folders / "video", out, 1e-9, chunks=2, resume=True, **known)


def test_a_resumed_run_needs_the_teacher_it_began_with(student, folders):
    other = folders / "other"
    torch.manual_seed(5)
    stream_models.save(stream_models.fresh(CONFIG), other)
    assert fingerprint(other) != fingerprint(folders / "teacher")
    with pytest.raises(StateError, match="has guidance = 2.0, this run has 1.0|has teacher ="):
        train_distill(folders / "video", student, 1e-9, config=CONFIG, batch=2, teacher=other, follow=1, resume=True)


def test_what_is_missing_is_said(folders, teacher):
    with pytest.raises(CheckpointError, match="--teacher: expected a model folder with model_index.json"):
        train_distill(folders / "video", folders / "no", 1.0, config=CONFIG, teacher=folders / "video")
    with pytest.raises(InputError, match="needs --teacher DIR"):
        train_distill(folders / "video", folders / "no", 1.0, config=CONFIG)
    with pytest.raises(ConfigError, match="the teacher is a 'tiny' model, got --preset toon"):
        train_distill(folders / "video", folders / "no", 1.0, config=toon(), teacher=folders / "teacher")
    with pytest.raises(DataError, match="found speech alone"):
        DistillObjective(CONFIG, folders / "speech", teacher, batch=1, terms=DistillTerms())
    with pytest.raises(InputError, match="give --start DIR, or --no-stage-1 .* got neither"):
        train_rollout(folders / "video", folders / "no", 1.0, config=CONFIG, teacher=folders / "teacher")
    with pytest.raises(DataError, match="rollouts of 9 chunks need clips as long, the longest .* has 4"):
        rollout(folders, teacher, chunks=9)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("distill", "this stage needs --teacher DIR"),
        ("distill --teacher no", "--teacher: there is no folder no"),
        ("distill --teacher .", "expected a model folder with model_index.json"),
        ("distill --teacher . --chunks 3", "distill does not take --chunks"),
        ("rollout --teacher .", "got neither"),
        ("rollout --teacher . --start . --no-stage-1", "got both"),
        ("rollout --teacher . --start . --chunks 0", "--chunks must be at least 1"),
        ("distill --teacher . --fake-rate 0", "--fake-rate must be above 0"),
        ("joint --no-sink", "joint does not take --no-sink"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stage, *further = arguments.split()
    code = main(["train", stage, "--data", ".", "--out", "run", "--minutes", "1", "--preset", "tiny", *further])
    said = capsys.readouterr().err
    assert code == 2 and reason in " ".join(said.split()) and "Traceback" not in said


def test_the_command_line_hands_ablations_on(folders, monkeypatch):
    from types import SimpleNamespace

    from streamchar.cli import train as command

    seen = {}

    def stand_in(data, out, minutes, *, config, resume=False, device="cpu", teacher=None, no_sink=False,
                 no_history=False, no_stage_1=False, no_pointer_truncation=False, chunks=5, guidance=None,
                 fake_rate=None, train_orchestrator=False, audio_weight=1.0, follow=5, grow=40):
        seen.update(locals())

    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(train_rollout=stand_in))
    options = (
        f"--teacher {folders} --no-sink --no-history --no-stage-1 --no-pointer-truncation --chunks 3 --guidance 1.5 "
        "--fake-rate 1e-5 --train-orchestrator --audio-weight 2 --follow 3 --grow 7"
    )
    assert main(f"train rollout --data {folders} --out x --minutes 1 --preset tiny {options}".split()) == 0
    flags = ("no_sink", "no_history", "no_stage_1", "no_pointer_truncation", "train_orchestrator")
    assert all(seen[name] is True for name in flags) and seen["teacher"] == folders
    assert (seen["chunks"], seen["guidance"], seen["fake_rate"], seen["audio_weight"]) == (3, 1.5, 1e-5, 2.0)
    assert (seen["follow"], seen["grow"]) == (3, 7)


# -- what is seen while it runs -----------------------------------------------------------------------


def test_strips_and_spectrograms():
    frames = torch.arange(33, dtype=torch.uint8)[:, None, None, None].expand(33, 4, 6, 3)
    strip = film_strip(frames)
    assert strip.shape == (3, 4, 48) and strip[0, 0, ::6].tolist() == [0, 5, 9, 14, 18, 23, 27, 32]
    rate, tone = 49_152, 6144.0
    picture = spectrogram(torch.sin(2 * torch.pi * tone * torch.arange(rate) / rate))
    row = int(picture[0].mean(1).argmax())
    assert picture.shape[1] - 1 - row == round(tone * 1024 / rate), "low tones at the bottom"
    assert float(picture.max()) <= 1 and float(picture.min()) >= 0


def test_the_gallery_shows_the_student(teacher, folders, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(streams, "_images", lambda folder: lambda name, image, step: shown.update({name: image}))
    clips = [clip(3, 0)]
    frames, samples = play(replace(teacher, steps=2), clips[0], 2)
    Gallery(tmp_path, clips).show(replace(teacher, steps=2), 7)
    assert torch.equal(shown["film/0"], film_strip(frames)) and torch.equal(shown["sound/0"], spectrogram(samples))


def test_held_out_figures(folders, teacher, tmp_path):
    """Both stages' figures are finite, and pictures are made with them."""
    shown = []
    for make in STAGES.values():
        objective = make(folders, teacher, guidance=1.0)
        objective.gallery = Gallery(tmp_path, [])
        objective.gallery.show = lambda models, step: shown.append(models.sampler)
        figures = objective.validate(0)
        assert all(value == value and abs(value) < 1e6 for value in figures.values()), figures
        assert {"motion", "audio"} <= set(figures) or {"drift_video", "drift_motion"} <= set(figures)
    assert shown == ["renoise", "renoise"]


def test_pictures_are_written(teacher, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.undo()
    Gallery(tmp_path, [clip(2, 0)], chunks=1).show(replace(teacher, steps=1), 0)
    (file,) = (tmp_path / "samples").glob("events.*")
    assert b"film/0" in file.read_bytes() and b"sound/0" in file.read_bytes()
