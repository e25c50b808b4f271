"""Distillation: who moves when, exact resume, what is written and read, what is said of bad input."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamchar.cli.main import main
from streamchar.config.presets import toon
from streamchar.errors import CheckpointError, ConfigError, DataError, InputError, StateError
from streamchar.flow.sampler import RenoiseSampler
from streamchar.flow.schedule import Schedule as Steps
from streamchar.stream import models as stream_models
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.train import distill as module
from streamchar.train import loop, streams
from streamchar.train.distill import (
    FAKE,
    DistillObjective,
    DistillTerms,
    Opening,
    pace,
    train_distill,
)
from streamchar.train.loop import generator, run
from streamchar.train.rollout import RolloutObjective, train_rollout
from streamchar.train.streams import Gallery, film_strip, play, spectrogram
from streamchar.train.teacher import begun, fingerprint, followed, load_teacher, teacher_guidance
from tests.distillation import CONFIG, MIXED, STAGES, clip, distill, loaded_teacher, made_folders, plain_run, rollout  # noqa: F401 - fixtures
from tests.streams import paced

WEIGHTS = "model.safetensors"
pytestmark = pytest.mark.usefixtures("plain")


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


# -- the student's samples ----------------------------------------------------------------------------


def test_the_first_steps_of_the_schedule():
    whole = Steps(steps=4, shift=5.0).sigmas()
    torch.testing.assert_close(whole[:4], torch.tensor([1, 0.9375, 5 / 6, 0.625]))
    for n in (1, 2, 4):
        assert torch.equal(Opening(steps=n, of=4, shift=5.0).sigmas(), torch.cat([whole[:n], torch.zeros(1)]))


# -- in and out ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(folders):
    """Stage I's export after a step of training time."""
    out = folders / "student"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_images", lambda folder: None)
        patch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)
        patch.setattr(DistillObjective, "validate", lambda self, step: {})
        given = {"config": CONFIG, "batch": 2, "teacher": folders / "teacher", "follow": 1}
        train_distill(folders / "video", out, 1e-9, **given, temperature=0.8, picture_temperature=0.6)
    return out


def test_the_export_streams_with_its_own_sampler(student):
    pipe = StreamCharPipeline.from_pretrained(student)
    models = pipe.models
    kept = (models.sampler, models.steps, models.guidance, models.temperature, models.picture_temperature, models.shift)
    assert kept == ("renoise", 4, 1.0, 0.8, 0.6, 5.0)
    assert models.sink and models.history and models.name == "tiny-student"
    state = pipe.start("hello there", character=torch.zeros(3, 64, 64))
    session = pipe.session(replace(state, temperature=0.7, picture_temperature=0.3))
    assert session.sampler == RenoiseSampler(schedule=Steps(steps=4, shift=5.0), temperature=(0.3, 0.7))
    assert next(iter(session)).frames.shape == (33, 64, 64, 3)


def test_stage_one_goes_on_from_a_student(student, folders, monkeypatch):
    made, moved = [], folders / "moved"
    for part in ("dit", "fake_score/dit"):
        shutil.copytree(student / part, moved / part)
        weights = {name: value + 0.01 * len(part) for name, value in load_file(moved / part / WEIGHTS).items()}
        save_file(weights, moved / part / WEIGHTS)
    shutil.copytree(student / "orchestrator", moved / "orchestrator")
    monkeypatch.setattr(module, "carry_out", lambda objective, *rest, **named: made.append(objective))
    given = {"config": CONFIG, "teacher": folders / "teacher"}
    for start in (None, moved):
        train_distill(folders / "video", folders / "on", 1.0, **given, start=start)
    for part, folder in (("dit", moved / "dit"), ("fake_dit", moved / "fake_score" / "dit")):
        fresh, begun_there = (getattr(objective.model, part).state_dict() for objective in made)
        stored = load_file(folder / WEIGHTS)
        assert all(torch.equal(value, stored[name]) for name, value in begun_there.items()), part
        assert not all(torch.equal(value, stored[name]) for name, value in fresh.items()), part


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
    own = load_file(student / "dit" / "model.safetensors")
    assert all(torch.equal(value, own[name]) for name, value in begun(teacher, student).dit.state_dict().items())
    with pytest.raises(CheckpointError, match="expected a component folder with config.json, found none"):
        begun(teacher, folders / "video")
    out = folders / "second"
    known = {"config": CONFIG, "batch": 1, "teacher": folders / "teacher"}
    train_rollout(folders / "video", out, 1e-9, start=student, chunks=2, **known)
    assert stream_models.load(out).sampler == "renoise" and (out / FAKE / "dit" / "config.json").is_file()
    train_rollout(folders / "video", out, 1e-9, chunks=2, resume=True, **known)


def test_whose_guidance_the_scores_have(teacher):
    own = replace(teacher, guidance=2.0, picture_guidance=3.0, picture_guidance_above=0.8)
    cases = {(None, None): (2.0, 3.0, 0.8), (1.5, None): (1.5, None, 0.0), (None, 2.5): (2.0, 2.5, 0.8),
             (1.5, 2.5): (1.5, 2.5, 0.8)}  # fmt: skip
    for asked, expected in cases.items():
        assert tuple(teacher_guidance(own, *asked).values()) == expected, asked


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
        ("distill --teacher no", "there is no model 'no'"),
        ("distill --teacher no/such/folder", "--teacher: there is no folder no/such/folder"),
        ("distill --teacher toon-base", "the teacher is a 'toon' model"),
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
                 fake_rate=None, train_orchestrator=False, audio_weight=1.0, follow=5, grow=40,
                 temperature=1.0, picture_temperature=None, picture_guidance=None):
        seen.update(locals())

    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(train_rollout=stand_in))
    options = (
        f"--teacher {folders} --no-sink --no-history --no-stage-1 --no-pointer-truncation --chunks 3 --guidance 1.5 "
        "--fake-rate 1e-5 --train-orchestrator --audio-weight 2 --follow 3 --grow 7 "
        "--temperature 0.5 --picture-temperature 0.8 --picture-guidance 2.5"
    )
    assert main(f"train rollout --data {folders} --out x --minutes 1 --preset tiny {options}".split()) == 0
    flags = ("no_sink", "no_history", "no_stage_1", "no_pointer_truncation", "train_orchestrator")
    assert all(seen[name] is True for name in flags) and seen["teacher"] == folders
    assert (seen["chunks"], seen["guidance"], seen["fake_rate"], seen["audio_weight"]) == (3, 1.5, 1e-5, 2.0)
    assert (seen["follow"], seen["grow"]) == (3, 7)
    assert (seen["temperature"], seen["picture_temperature"], seen["picture_guidance"]) == (0.5, 0.8, 2.5)


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
