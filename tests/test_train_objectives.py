"""What stages 1 and 2 train, and that a resumed run is the run that was not stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from streamchar.codecs.component import load_component
from streamchar.codecs.text import T5PromptEncoder, word_tokenizer
from streamchar.config.model import DiTConfig, OrchestratorConfig
from streamchar.config.presets import tiny
from streamchar.data.shards import ClipRecord, write_shard
from streamchar.dit.model import JointDiT
from streamchar.errors import ConfigError, StateError
from streamchar.flow.path import clean_from_velocity
from streamchar.orchestrator.lm import Orchestrator
from streamchar.train import loop
from streamchar.train.joint import JointObjective, VideoTerms, chunk_conditions
from streamchar.train.loop import Schedule, generator, run
from streamchar.train.orchestrator import (
    SpeechObjective,
    SpeechTerms,
    corrupt,
    pointer_terms,
    train_orchestrator,
    wrong_text,
    wrong_voice,
)

CONFIG = tiny()
J = 33
NO_LIMIT = 60.0
QUIET = SpeechTerms(drop_reference=0, drop_text=0, history_noise=0, cursor_noise=0)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No compiler and no TensorBoard: both cost more than all that is tested here."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)


def clip(chunks, seed, *, video):
    """Random latents with random text: enough to be trained on, and nothing to be learned."""
    draw = torch.Generator().manual_seed(seed)
    count = 15 * chunks
    starts = torch.rand(count, generator=draw).sort().values * (chunks * 1.375 - 0.3)
    starts[0] = 0
    h, w = CONFIG.latent_size
    channels = CONFIG.dit.video_channels
    return ClipRecord(
        audio=torch.randn(chunks * J, 64, generator=draw) * torch.linspace(2, 0.1, 64),
        reference=torch.randn(10 + seed % 20, 64, generator=draw),
        tokens=torch.randint(0, 72, (count,), generator=draw).to(torch.int16), token_start=starts, text="x",
        voice="heart", seed=seed, prompt="happy and lively" if video else "",
        video=torch.randn(chunks, channels, 9, h, w, generator=draw) if video else None,
        still=torch.randn(channels, 1, h, w, generator=draw) if video else None,
        pose=torch.randn(chunks, 9, 26, generator=draw) if video else None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    for name, lengths in (("speech", (11, 12, 10, 13)), ("video", (4, 3, 5, 4))):
        (root / name).mkdir()
        clips = [clip(n, i, video=name == "video") for i, n in enumerate(lengths)]
        write_shard(root / name / "shard-00000.safetensors", clips)
    return root


@pytest.fixture(scope="module")
def prompt_encoder():
    torch.manual_seed(0)
    return T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy", "and", "lively"]))


def speech(folders, seed=3):
    return SpeechObjective(CONFIG, folders / "speech", batch=2, terms=SpeechTerms(), seed=seed)


def joint(folders, prompt_encoder, *, with_speech=True, **options):
    return JointObjective(
        CONFIG, folders / "video", prompt_encoder, batch=2, terms=VideoTerms(), seed=3,
        speech=folders / "speech" if with_speech else None, **options,
    )


def train(objective, out, steps, *, resume=False, validate=False, **options):
    if not validate:
        objective.validate = lambda step: {}
    schedule = Schedule(minutes=NO_LIMIT, rate=3e-3, warmup=4, max_steps=steps, log_every=2, **options)
    return run(objective, schedule, out, resume=resume, export=lambda folder: None, facts={"seed": 3})


def same_checkpoint(one, other):
    for name in ("model", "optimizer", "average"):
        a, b = (load_file(out / "checkpoint" / f"{name}.safetensors") for out in (one, other))
        assert a.keys() == b.keys() and len(a) > 10
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert different == [], name


# -- resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["speech", "joint"])
def test_resumed_equals_uninterrupted(folders, prompt_encoder, tmp_path, kind):
    """Six steps, and three, a new process's worth of state, and three: equal to the bit."""

    def objective():
        return speech(folders) if kind == "speech" else joint(folders, prompt_encoder)

    assert train(objective(), tmp_path / "whole", 6) == 6
    assert train(objective(), tmp_path / "parts", 3) == 3
    torch.manual_seed(999)  # what a new process has in its generators must not matter
    torch.randn(17)
    assert train(objective(), tmp_path / "parts", 6, resume=True) == 6
    same_checkpoint(tmp_path / "whole", tmp_path / "parts")


def test_saving_and_validating_change_nothing(folders, tmp_path):
    """Averages are swapped in for validation and out again."""
    train(speech(folders), tmp_path / "quiet", 2)
    train(speech(folders), tmp_path / "busy", 2, validate=True, save_minutes=0.0)
    same_checkpoint(tmp_path / "quiet", tmp_path / "busy")


def test_a_checkpoint_of_another_run_is_refused(folders, tmp_path):
    train(speech(folders), tmp_path, 1)
    schedule = Schedule(minutes=NO_LIMIT, rate=1e-3, max_steps=2)
    for facts, message in (({"seed": 4}, "has seed = 3, this run has 4"), ({"preset": "toon"}, "has preset = None")):
        with pytest.raises(StateError, match=message):
            run(speech(folders), schedule, tmp_path, resume=True, export=lambda folder: None, facts=facts)
    other = speech(folders)
    other.name = "distill"
    with pytest.raises(StateError, match="has objective = 'orchestrator', this run has 'distill'"):
        run(other, schedule, tmp_path, resume=True, export=lambda folder: None)


# -- stage 1 -----------------------------------------------------------------------------------------


def test_corruption_is_consistent(folders):
    windows = speech(folders).windows(0)
    windows = replace(windows, cursor=windows.cursor.index_fill(1, torch.tensor([0]), 0.0))
    batch, target = corrupt(windows, SpeechTerms(), generator(0, 0))
    torch.testing.assert_close(clean_from_velocity(batch.noisy, target, batch.sigma), windows.audio)
    assert ((batch.sigma > 0) & (batch.sigma < 1)).all()
    assert (batch.cursor >= 0).all() and (batch.cursor <= batch.text_length[:, None]).all()
    assert not batch.cursor[:, 0].any(), "a stream knows where it starts"
    again, same = corrupt(windows, SpeechTerms(), generator(0, 0))
    assert torch.equal(batch.noisy, again.noisy) and torch.equal(target, same)
    assert torch.equal(batch.cursor, again.cursor)
    clean, _ = corrupt(windows, QUIET, generator(0, 0))
    assert torch.equal(clean.history, windows.audio.flatten(1, 2))
    torch.testing.assert_close(clean.cursor, windows.cursor[:, :-1])
    assert torch.equal(clean.text, windows.text) and torch.equal(clean.reference_length, windows.reference_length)


def test_dropped_text_and_voice(folders):
    windows = speech(folders).windows(0)
    terms = replace(QUIET, drop_text=1.0, drop_reference=1.0)
    batch, _ = corrupt(windows, terms, generator(0, 0))
    assert not batch.text.any() and (batch.text_length == 1).all(), "one pause"
    assert not batch.cursor.any() and not batch.reference_length.any()
    objective = speech(folders)
    plan, v = objective.flow(batch)
    cross, distance, scalars = pointer_terms(plan, windows, batch)
    assert v.isfinite().all() and cross == 0 and distance == 0
    assert all(value == value for value in scalars.values()), "no NaN in the log"


def test_a_batch_of_two_is_two_of_one(folders):
    objective = speech(folders)
    windows = objective.windows(0)
    batch, _ = corrupt(windows, QUIET, generator(0, 0))
    with torch.no_grad():
        _, both = objective.flow(batch)
        for i in range(2):
            r, n = int(batch.reference_length[i]), int(batch.text_length[i])
            one = {name: getattr(batch, name)[i : i + 1] for name in batch.__dataclass_fields__}
            alone = replace(batch, **{**one, "reference": one["reference"][:, :r], "text": one["text"][:, :n]})
            torch.testing.assert_close(objective.flow(alone)[1], both[i : i + 1], rtol=1e-4, atol=1e-5)


def test_stage_one_trains_the_speech_side_alone(folders):
    objective = speech(folders)
    total, scalars = objective.loss(0)
    total.backward()
    assert set(scalars) == {"flow", "pointer", "within_1", "end_error"}
    assert all(p.grad is None for p in objective.model.dit.blocks.parameters())
    again, _ = speech(folders).loss(0)
    assert torch.equal(total, again)


def test_the_loss_falls_on_one_batch(folders):
    objective = speech(folders)
    optimizer = torch.optim.AdamW([p for p in objective.model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(30):
        total, scalars = objective.loss(0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append((scalars["flow"], scalars["pointer"]))
    assert losses[-1][0] < 0.95 * losses[0][0], losses
    assert losses[-1][1] < 0.9 * losses[0][1], losses


def test_the_skip_knows_the_latents(folders):
    deviation = speech(folders).model.dit.audio.head.velocity.deviation
    torch.testing.assert_close(deviation, torch.linspace(2, 0.1, 64), rtol=0.1, atol=0.02)


def test_wrong_conditions_are_the_neighbours(folders):
    batch, _ = corrupt(speech(folders).windows(0), QUIET, generator(0, 0))
    assert torch.equal(wrong_text(batch).text[1], batch.text[0])
    assert torch.equal(wrong_text(batch).text_length[1], batch.text_length[0])
    assert torch.equal(wrong_voice(batch).reference[0], batch.reference[1])


# -- stage 2 -----------------------------------------------------------------------------------------


def test_conditions_of_a_chunk_are_the_chunks_before(folders, prompt_encoder):
    objective = joint(folders, prompt_encoder, with_speech=False)
    windows = objective.data.batch(0, 3, 2, first="later")
    still, sink, motion = chunk_conditions(windows)
    for b in range(3):
        assert torch.equal(motion[2 * b], windows.previous[b])
        assert torch.equal(motion[2 * b + 1], windows.video[b, 0])
        for k in range(2):
            assert torch.equal(sink[2 * b + k], windows.sink[b]) and torch.equal(still[2 * b + k], windows.still[b])


def test_a_first_chunk_has_neither_sink_nor_motion(folders, prompt_encoder):
    objective = joint(folders, prompt_encoder, with_speech=False)
    for first, there in (("start", False), ("later", True)):
        windows = objective.data.batch(0, 2, 1, first=first)
        batch, _ = corrupt(windows, QUIET, generator(0, 0))
        terms = VideoTerms(drop_sink=0, drop_motion=0, drop_reference=0, condition_noise=0)
        scene = objective.scene(windows, batch, generator(0, 1), terms)
        assert scene.conditions.ref is not None
        assert (scene.conditions.sink is not None) == (scene.conditions.motion is not None) == there
        clean = clean_from_velocity(scene.noisy, scene.target, batch.sigma.flatten())
        torch.testing.assert_close(clean, windows.video.flatten(0, 1), rtol=0, atol=1e-5)
        if there:
            assert torch.equal(scene.conditions.sink, windows.sink)
    gone = VideoTerms(drop_sink=1, drop_motion=1, drop_reference=1, drop_prompt=1)
    windows = objective.data.batch(0, 2, 1, first="later")
    scene = objective.scene(windows, batch, generator(0, 1), gone)
    assert scene.conditions.latents() == {}
    assert torch.equal(scene.conditions.text, prompt_encoder.encode(["", ""]))


def test_stage_two_trains_everything_and_mixes_speech_in(folders, prompt_encoder):
    objective = joint(folders, prompt_encoder)
    step = next(s for s in range(0, 100, 2) if objective.windows(s, generator(3, s)).first.any())
    total, scalars = objective.loss(step)
    total.backward()
    assert {"video", "audio", "pointer"} <= set(scalars)
    assert all(p.grad is None for p in prompt_encoder.parameters())
    assert [n for n, p in objective.model.named_parameters() if p.grad is None] == []
    _, scalars = objective.loss(1)
    assert "speech_flow" in scalars and "video" not in scalars
    assert objective.rate_factor("orchestrator.x") < 1 == objective.rate_factor("dit.blocks.0.x")


def test_stage_two_starts_as_stage_one_ended(folders, prompt_encoder, tmp_path):
    train_orchestrator(folders / "speech", tmp_path, 1e-12, config=CONFIG, batch=2, seed=5)
    made = load_component(Orchestrator, OrchestratorConfig, tmp_path / "orchestrator")
    dit = load_component(JointDiT, DiTConfig, tmp_path / "dit")
    objective = joint(folders, prompt_encoder, start=tmp_path)
    for got, expected in ((objective.model.orchestrator, made), (objective.model.dit.audio, dit.audio)):
        expected = expected.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in got.state_dict().items())
    deviation = objective.model.dit.head.velocity.deviation
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=0.1, atol=0.0)
    shutil.rmtree(tmp_path)


def test_a_frozen_speech_side_stays(folders, prompt_encoder):
    frozen = VideoTerms(freeze_speech=True)
    objective = JointObjective(CONFIG, folders / "video", prompt_encoder, batch=2, terms=frozen, seed=3)
    total, _ = objective.loss(0)
    total.backward()
    trained = {name for name, p in objective.model.named_parameters() if p.grad is not None}
    assert "dit.audio.to_main.weight" in trained and any(name.startswith("dit.blocks.") for name in trained)
    assert not any(name.startswith("orchestrator.") for name in trained)
    with pytest.raises(ConfigError, match="got both; leave out"):
        JointObjective(
            CONFIG, folders / "video", prompt_encoder, batch=2, terms=frozen, speech=folders / "speech",
        )


def test_validation_of_stage_two_shuffles_each_condition(folders, prompt_encoder):
    figures = joint(folders, prompt_encoder).validate(0)
    for name in ("text", "prompt", "ref", "sink", "motion"):
        assert {f"video_0.9_wrong_{name}", f"audio_0.9_wrong_{name}"} <= set(figures)
    assert {f"{kind}_{sigma}" for kind in ("video", "audio", "within_1") for sigma in (0.5, 0.9, 1.0)} <= set(figures)
    assert all(value == value for value in figures.values())
