"""What a resumed run sees: the same shards. A pointer that is far off still learns. Samples of stages 1 and 2."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.text import T5PromptEncoder, word_tokenizer
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import paper
from streamchar.data.dataset import WindowDataset
from streamchar.data.origin import encoders
from streamchar.data.shards import write_shard
from streamchar.errors import DataError, StateError
from streamchar.orchestrator.pointer import Progress, pointer_loss
from streamchar.train import joint, loop, orchestrator, streams
from streamchar.train.checkpoint import FROZEN
from streamchar.train.joint import JointObjective, VideoTerms
from streamchar.train.loop import Schedule, run
from streamchar.train.orchestrator import SpeechObjective, SpeechTerms
from streamchar.train.streams import Codecs, Gallery, codecs_for, spectrogram
from tests.distillation import CONFIG, clip, made_folders  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No compiler and no TensorBoard."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)


# -- data that grows ---------------------------------------------------------------------------------


class Reader:
    """An objective that remembers what it was given."""

    name, samples_per_step, parts, uneven = "reader", 2, 1, False

    def __init__(self, folder):
        torch.manual_seed(0)
        self.model, self.data, self.seen = nn.Linear(2, 1), WindowDataset(folder, look_ahead=4, seed=1), []

    def rate_factor(self, name):
        return 1.0

    def loss(self, number):
        self.seen.append(float(self.data.batch(number, 2, 1).audio.sum()))
        return self.model(torch.ones(1, 2)).sum(), {}

    def validate(self, step):
        return {}


def test_a_resumed_run_sees_the_shards_that_it_would_have_seen(tmp_path, monkeypatch):
    """A shard that was finished while it stood still joins at the next refresh, as for a run that went on."""
    monkeypatch.setattr(loop, "REFRESH", 4)
    folder = tmp_path / "data"
    folder.mkdir()

    def shard(name, seeds):
        write_shard(folder / f"shard-{name}.safetensors", [clip(2, seed, video=False) for seed in seeds])

    def read(objective, steps, out, resume):
        schedule = Schedule(minutes=60.0, rate=1e-3, max_steps=steps)
        run(objective, schedule, out, resume=resume, export=lambda _: None, data={"data": objective.data})
        return objective.seen

    shard("00005", (0, 1))
    first = read(Reader(folder), 2, tmp_path / "stopped", False)
    whole = Reader(folder)
    inner = whole.loss

    def loss(number):
        if number == 2:
            shard("00002", (2, 3, 4))  # earlier by name: its place in the index is when it was found
        return inner(number)

    whole.loss = loss
    expected = read(whole, 8, tmp_path / "whole", False)
    assert whole.data.names == ["shard-00005.safetensors", "shard-00002.safetensors"]
    rest = read(Reader(folder), 8, tmp_path / "stopped", True)
    assert first + rest == expected
    assert expected[4:] != read(_only(folder), 8, tmp_path / "only", False)[4:]


def _only(folder):
    """A reader that never hears of the second shard."""
    objective = Reader(folder)
    objective.data.restrict(["shard-00005.safetensors"])
    objective.data.refresh = lambda: None
    return objective


def test_a_shard_that_is_gone_is_named(folders):
    data = WindowDataset(folders / "speech", look_ahead=4)
    with pytest.raises(DataError, match="trained on 2 shards, 1 of them are not in .* .such as shard-9"):
        data.restrict(["shard-00000.safetensors", "shard-9.safetensors"])


def test_a_run_whose_data_has_gone_goes_on_and_says_so(folders, tmp_path, caplog):
    for steps, resume in ((1, False), (2, True)):
        folder = tmp_path / f"data-{steps}"
        folder.mkdir()
        write_shard(folder / f"shard-0000{steps}.safetensors", [clip(2, steps, video=False)])
        objective = Reader(folder)
        schedule = Schedule(minutes=60.0, rate=1e-3, max_steps=steps)
        with caplog.at_level("WARNING", logger="streamchar"):
            run(
                objective,
                schedule,
                tmp_path / "run",
                resume=resume,
                export=lambda _: None,
                data={"data": objective.data},
            )
        assert bool(caplog.records) == resume and len(objective.seen) == 1
    assert "shard-00001.safetensors" in caplog.text and "going on with what is there" in caplog.text


# -- what is frozen and not in the checkpoint --------------------------------------------------------


def test_a_run_goes_on_with_the_frozen_parts_that_it_was_begun_with(tmp_path):
    def go(name, steps, origin=None, **frozen):
        (tmp_path / name).mkdir(exist_ok=True)
        write_shard(tmp_path / name / "shard-00000.safetensors", [clip(2, 0, video=False)])
        if origin is not None:
            (tmp_path / name / "recipe.json").write_text(json.dumps(origin))
        objective, schedule = Reader(tmp_path / name), Schedule(minutes=60.0, rate=1e-3, max_steps=steps)
        run(
            objective, schedule, tmp_path / "run", resume=steps > 1, export=lambda _: None,
            data={"data": objective.data}, facts={FROZEN: frozen} if frozen else None,
        )  # fmt: skip

    go("old", 1)  # as all checkpoints were: nothing is known
    go("one", 2, {"seed": 1, "audio_codec": "a"}, prompt_encoder="x")
    go("other", 3, {"seed": 2, "audio_codec": "a"})  # data of another seed is welcome
    go("old", 4)
    with pytest.raises(StateError, match="begun with another audio codec; go on with that one"):
        go("third", 5, {"audio_codec": "b"})
    with pytest.raises(StateError, match="begun with another prompt encoder; go on with that one"):
        go("one", 5, prompt_encoder="y")


def test_data_of_two_codecs_is_refused(tmp_path):
    for name, codec in (("data", "a"), ("speech", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps({"audio_codec": codec, "video_codec": None}))
    with pytest.raises(DataError, match="speech are of another audio_codec"):
        encoders([tmp_path / "data", tmp_path / "speech"])


def test_stage_two_keeps_its_prompt_encoder_and_a_resumed_run_its_weights(folders, tmp_path, monkeypatch, caplog):
    seen = []
    for module in (joint, orchestrator):
        monkeypatch.setattr(module, "run", lambda *_, facts, **options: seen.append(facts.get(FROZEN)))
    for name in ("one", "other"):
        T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy"])).save(tmp_path / name)
    caplog.set_level("INFO", logger="streamchar")
    options = {"config": CONFIG, "resume": True, "start": tmp_path / "nothing is there"}
    for name in ("one", "one", "other"):
        joint.train_joint(folders / "video", tmp_path / "out", 1.0, prompt_encoder=tmp_path / name, **options)
    assert seen[0] == seen[1] != seen[2] and all(len(frozen["prompt_encoder"]) == 16 for frozen in seen)
    orchestrator.train_orchestrator(folders / "speech", tmp_path / "out", 1.0, **options)
    assert caplog.text.count("goes on with its own weights") == 4


# -- the pointer -------------------------------------------------------------------------------------


def progress(logits):
    attention = logits.log_softmax(-1)
    zeros = torch.zeros(logits.shape[:2])
    return Progress(attention=attention, position=zeros, end=zeros[:, 0], readout=zeros[..., None])


def test_a_frame_that_is_far_off_still_pulls():
    logits = torch.zeros(1, 2, 9)
    logits[0, 0, 0] = 60.0  # all weight on token 0, the true one is 5: below e^-20
    logits.requires_grad_()
    cross, _ = pointer_loss(progress(logits), torch.tensor([[5, 5]]), torch.zeros(1))
    (pull,) = torch.autograd.grad(cross, logits)
    assert pull[0, 0, 5] < -1e-3 and pull[0, 0, 0] > 1e-3, "towards the true token, away from the wrong one"
    assert float(pull[0, 0].abs().sum()) < float(pull[0, 1].abs().sum()), "not harder than a frame that is near"
    near = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(0))
    logs = near.log_softmax(-1)[0]
    expected = -(0.8 * logs[:, 5] + 0.1 * logs[:, 4] + 0.1 * logs[:, 6]).mean()
    torch.testing.assert_close(pointer_loss(progress(near), torch.tensor([[5, 5]]), torch.zeros(1))[0], expected)


def test_what_a_frame_cannot_see_does_not_count():
    logits = torch.zeros(1, 1, 6)
    logits[..., 4:] = -1e4
    cross, _ = pointer_loss(progress(logits), torch.tensor([[5]]), torch.zeros(1))
    assert float(cross) == 0
    cross, _ = pointer_loss(progress(logits), torch.tensor([[3]]), torch.zeros(1))
    assert float(cross) == pytest.approx(0.9 * torch.tensor(4.0).log().item(), rel=1e-5)


# -- samples -----------------------------------------------------------------------------------------


@pytest.fixture
def codecs():
    torch.manual_seed(0)
    return Codecs(video=ToonVideoCodec(CONFIG.video).eval(), audio=ToonAudioCodec(CONFIG.audio).eval())


def shown(monkeypatch):
    seen = {}
    monkeypatch.setattr(streams, "_images", lambda folder: lambda name, image, step: seen.update({name: image}))
    return seen


def test_stage_one_is_heard(folders, codecs, tmp_path, monkeypatch):
    seen = shown(monkeypatch)
    objective = SpeechObjective(CONFIG, folders / "speech", batch=1, terms=SpeechTerms(), seed=3)
    objective.codecs, objective.gallery = codecs, Gallery(tmp_path, [], every=2)
    with torch.no_grad():
        objective.show(0)
        assert set(seen) == {"sound/0", "sound/1", "true_sound/0", "true_sound/1"}
        windows = objective.data.batch(10**8 + 1, 2, 2)
        samples, _ = codecs.audio.decode(windows.audio.flatten(1, 2)[:1], None)
        assert torch.equal(seen["true_sound/0"], spectrogram(samples[0]))
        seen.clear()
        objective.show(1)
        assert not seen, "only every so many saves"
        objective.show(2)
        assert set(seen) == {"sound/0", "sound/1"}


def test_stage_two_is_seen_and_heard(folders, codecs, tmp_path, monkeypatch):
    seen = shown(monkeypatch)
    monkeypatch.setattr("streamchar.train.joint.SPEAKING_STEPS", 1)
    encoder = T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy", "and", "lively"]))
    objective = JointObjective(CONFIG, folders / "video", encoder, batch=1, terms=VideoTerms(), seed=3)
    before = {n: p.clone() for n, p in objective.model.state_dict().items()}
    objective.codecs, objective.gallery = codecs, Gallery(tmp_path, [clip(2, 0)], chunks=1)
    with torch.no_grad():
        objective.show(0)
    assert set(seen) == {"film/0", "sound/0"} and seen["film/0"].shape == (3, 64, 8 * 64)
    assert all(torch.equal(before[n], p) for n, p in objective.model.state_dict().items())


def test_codecs_of_other_latents_show_nothing(caplog, tmp_path, codecs):
    with caplog.at_level("INFO", logger="streamchar"):
        assert codecs_for(CONFIG, None) is None
        assert codecs_for(paper(), None) is None
    assert "this model of (8, (" in caplog.text and "not trained here" in caplog.text
    codecs.video.save(tmp_path / "video_codec"), codecs.audio.save(tmp_path / "audio_codec")
    assert codecs_for(CONFIG, tmp_path) is not None
    other = replace(CONFIG, dit=replace(CONFIG.dit, video_channels=4))
    assert codecs_for(other, tmp_path) is None
