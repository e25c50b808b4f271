"""What the tests of both distillation stages share: a tiny teacher, clips, and objectives. Import the fixtures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamchar.config.presets import tiny
from streamchar.data.shards import ClipRecord, write_shard
from streamchar.stream import models as stream_models
from streamchar.train import loop, streams
from streamchar.train.distill import DistillObjective, DistillTerms
from streamchar.train.rollout import RolloutObjective, RolloutTerms
from streamchar.train.teacher import load_teacher
from tests.streams import tiny_models

CONFIG = tiny()
J = 33


@pytest.fixture(name="plain")
def plain_run(monkeypatch):
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
        pose=torch.randn(chunks, 9, 26, generator=draw) if video else None,
    )


@pytest.fixture(scope="module", name="folders")
def made_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    for name in ("video", "speech"):
        (root / name).mkdir()
        clips = [clip(n, i, video=name == "video") for i, n in enumerate((4, 3, 2))]
        write_shard(root / name / "shard-00000.safetensors", clips)
    teacher = replace(tiny_models(), guidance=2.0, temperature=0.6, steps=16)
    stream_models.save(teacher, root / "teacher")
    return root


@pytest.fixture(name="teacher")
def loaded_teacher(folders):
    return load_teacher(folders / "teacher")


def distill(folders, teacher, **changes):
    terms = DistillTerms(**{"guidance": 2.0, "follow": 1, **changes})
    return DistillObjective(CONFIG, folders / "video", teacher, batch=1, terms=terms, seed=3)


def rollout(folders, teacher, **changes):
    terms = RolloutTerms(**{"guidance": 2.0, "follow": 1, "chunks": 2, **changes})
    return RolloutObjective(CONFIG, folders / "video", teacher, terms=terms, batch=1, seed=3)


STAGES = {"distill": distill, "rollout": rollout}


def first_clip(objective):
    """The longest clip, of 4 chunks."""
    return objective.data.shards[objective.data.index[0][0]][0]
