"""From a run to a model folder: a student stays a student, and its fake score is not lost on the way."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from streamchar.config.presets import tiny
from streamchar.config.sampling import Sampling
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError
from streamchar.stream.models import load
from streamchar.train.assemble import moved_along, sampling_of
from streamchar.train.checkpoint import save_checkpoint
from streamchar.train.distill import export
from streamchar.train.teacher import FAKE, begun, followed
from tests.distillation import distill, loaded_teacher, made_folders, plain_run  # noqa: F401 - fixtures
from tests.test_gpu_pieces import PATH

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
def pieces():
    spec = importlib.util.spec_from_file_location("pieces", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(folders, teacher, tmp_path):
    """A run of stage I after no step, with weights that tell student, fake score and averages apart.

    Its teacher is guided, as the student is not."""
    teachers = {"guidance": 2.0, "picture_guidance": 3.0, "picture_guidance_above": 0.8}
    objective = distill(folders, teacher, sink=False, temperature=0.7, **teachers)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in objective.model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    average = {n: p.detach() + 0.01 for n, p in objective.model.named_parameters() if p.requires_grad}
    facts = {"objective": "distill", "preset": "tiny", "seed": 3, "step": 5, **asdict(objective.terms)}
    optimizers = [torch.optim.AdamW([p for p in objective.model.parameters() if p.requires_grad])]
    save_checkpoint(tmp_path / "run" / "checkpoint", objective.model, optimizers, average, facts)
    export(objective, tmp_path / "run")
    return tmp_path / "run", objective, average


def test_pieces_bring_the_fake_score_back(run, teacher, pieces, tmp_path):
    folder, _, average = run
    pieces.main(["split", str(folder), str(tmp_path / "pieces"), "--level", "exact"])
    pieces.main(["join", str(tmp_path / "pieces"), str(tmp_path / "back")])
    back = tmp_path / "back"
    assert (back / FAKE / "dit" / "config.json").read_text() == (folder / FAKE / "dit" / "config.json").read_text()
    name = "patch_embedding.weight"
    stored = load_file(back / FAKE / "dit" / "model.safetensors")[name]
    assert torch.equal(stored, average[f"fake_dit.{name}"])
    fake, student = followed(teacher, back), begun(teacher, back)
    assert torch.equal(fake.dit.patch_embedding.weight, average[f"fake_dit.{name}"])
    assert torch.equal(student.dit.patch_embedding.weight, average[f"dit.{name}"])
    assert not torch.equal(fake.dit.patch_embedding.weight, student.dit.patch_embedding.weight)


def test_how_a_student_is_played(run, pieces, tmp_path):
    folder, *_ = run
    expected = Sampling(steps=4, temperature=0.7, sampler="renoise", shift=5.0, sink=False)
    assert sampling_of(folder) == expected, "from the export"
    pieces.main(["split", str(folder), str(tmp_path / "pieces")])
    pieces.main(["join", str(tmp_path / "pieces"), str(tmp_path / "back")])
    assert not (tmp_path / "back" / "model_index.json").exists()
    assert sampling_of(tmp_path / "back") == expected, "from the facts"
    assert sampling_of(tmp_path) == Sampling(), "a base model's"
    facts = tmp_path / "base" / "checkpoint" / "facts.json"
    facts.parent.mkdir(parents=True)
    facts.write_text(json.dumps({"objective": "joint", "steps": 9}))
    assert sampling_of(tmp_path / "base") == Sampling()
    facts.write_text("{")
    with pytest.raises(CheckpointError, match="cannot read how the model"):
        sampling_of(tmp_path / "base")


def test_the_script_keeps_a_student_a_student(run, folders, tmp_path, monkeypatch):
    import runpy
    from pathlib import Path

    folder, objective, _ = run
    script = Path(__file__).parents[1] / "scripts" / "assemble.py"
    arguments = ["--preset", "tiny", "--speech", str(folder), "--codecs", str(folders / "teacher")]
    for name, extra in (("as-trained", []), ("asked", ["--steps", "2", "--temperature", "0.5", "--full"])):
        monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--out", str(tmp_path / name), *extra])
        runpy.run_path(str(script), run_name="__main__")
    made, asked = load(tmp_path / "as-trained"), load(tmp_path / "asked")
    played = {name: getattr(made, name) for name in asdict(Sampling())}
    assert Sampling(**played) == sampling_of(folder)
    assert (asked.steps, asked.temperature, asked.sampler, asked.sink) == (2, 0.5, "renoise", False)
    weight = objective.model.dit.patch_embedding.weight
    torch.testing.assert_close(asked.dit.patch_embedding.weight, weight)
    assert replace(asked, name="x").history is True


def test_the_speech_goes_a_part_of_the_way(run, folders, tmp_path, monkeypatch):
    """Half-way between base and student in the speech's own path, the student's everywhere else."""
    import runpy
    from pathlib import Path

    from streamchar.train.assemble import speech_path

    folder, objective, _ = run
    script = str(Path(__file__).parents[1] / "scripts" / "assemble.py")
    arguments = ["--preset", "tiny", "--speech", str(folder), "--codecs", str(folders / "teacher"), "--full"]
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--base", str(folders / "teacher"), "--out", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    made, student = load(tmp_path).dit.state_dict(), objective.model.dit.state_dict()
    base, path = load(folders / "teacher").dit.state_dict(), speech_path(objective.model.dit)
    assert path and all(name.startswith("audio.") for name in path)
    for name, value in made.items():
        expected = (base[name] + student[name]) / 2 if name in path else student[name]
        torch.testing.assert_close(value, expected)
    moved = {name for name in made if not torch.equal(made[name], student[name])}
    assert moved <= path and len(moved) > len(path) // 2
    assert any(name.startswith("audio.to_main.") for name in made.keys() - path)


def test_what_a_shipped_model_has_is_not_written_again(folders, run, tmp_path, monkeypatch):
    """A base model beside its student: the DiT is its own, everything else the student's."""
    from streamchar.cli.generator import ModelGenerator
    from streamchar.config.presets import tiny
    from streamchar.stream import models as stream_models
    from streamchar.train import assemble as module
    from streamchar.train.assemble import Parts, assemble
    from streamchar.train.teacher import fingerprint

    def shipped(source):
        return tmp_path / source if source in ("whole", "gone") else resolve(source)

    def parts(speech):
        rest = {name: folders / "teacher" / name for name in ("video_codec", "audio_codec", "prompt_encoder")}
        return Parts(orchestrator=folders / "teacher" / "orchestrator", dit=speech / "dit", **rest)

    resolve = stream_models.resolve
    for where in (stream_models, module):
        monkeypatch.setattr(where, "resolve", shipped)
    whole = assemble(parts(run[0]), tiny(), tmp_path / "whole", name="whole")
    base = assemble(parts(folders / "teacher"), tiny(), tmp_path / "base", name="base", steps=7, shares="whole")
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == ["dit", "model_index.json"]
    read = load(tmp_path / "base")
    assert (read.name, read.steps) == ("base", 7)
    for part in ("orchestrator", "prompt_encoder"):
        stored = load_file(tmp_path / "whole" / part / "model.safetensors")
        assert any(name.endswith("|int8") for name in stored)
        wide = [name for name, value in stored.items() if value.ndim > 1 and value.numel() >= 4096]
        assert wide and all(name.endswith("|int8") for name in wide), "tied weights too"
    weight = "patch_embedding.weight"
    torch.testing.assert_close(read.dit.state_dict()[weight], base.dit.state_dict()[weight], atol=2e-3, rtol=0)
    assert not torch.allclose(read.dit.state_dict()[weight], whole.dit.state_dict()[weight], atol=2e-3)
    assert fingerprint(tmp_path / "base") != fingerprint(tmp_path / "whole")
    started = begun(whole, tmp_path / "base")
    assert torch.equal(started.dit.state_dict()[weight], read.dit.state_dict()[weight])
    assert started.orchestrator.state_dict().keys() == whole.orchestrator.state_dict().keys()

    before = ModelGenerator(str(tmp_path / "base")).weights
    (tmp_path / "whole" / "orchestrator" / "config.json").write_text(
        (tmp_path / "whole" / "orchestrator" / "config.json").read_text() + "\n"
    )
    assert ModelGenerator(str(tmp_path / "base")).weights != before, "what is shared is part of the model"

    index = tmp_path / "base" / "model_index.json"
    for wrong, said in (("../whole", "shipped model's name"), ("gone", "component folder")):
        index.write_text(json.dumps({**json.loads(index.read_text()), "shares": wrong}))
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / "base")
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="one JSON object"):
        load(tmp_path / "base")


@torch.no_grad()
def test_a_student_goes_along_with_its_base():
    """What it learned is added; what only the new base has stays; models of another size are refused."""
    torch.manual_seed(0)
    config = tiny().dit
    old, student, new = JointDiT(config), JointDiT(config), JointDiT(replace(config, ref_beside=True))
    assert new.ref_embedding is not None
    new.ref_embedding.weight.normal_()
    made = moved_along(student, old, new)
    for name, value in made.state_dict().items():
        learned = student.state_dict()[name] - old.state_dict()[name] if name in old.state_dict() else 0.0
        torch.testing.assert_close(value, new.state_dict()[name] + learned)
    assert made.config == new.config
    same = moved_along(old, old, new).state_dict()
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in same.items())
    with pytest.raises(CheckpointError, match="two bases of one kind"):
        moved_along(student, old, JointDiT(replace(config, layers=1)))
