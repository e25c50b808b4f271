"""Are the hidden states asked for poses, rightly paired, and is nothing of it left in the trained model?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from streamchar import clock
from streamchar.codecs.text import T5PromptEncoder, word_tokenizer
from streamchar.config.presets import tiny
from streamchar.data.shards import Shard, write_shard
from streamchar.errors import InputError
from streamchar.train import loop
from streamchar.train.joint import JointObjective, VideoTerms
from streamchar.train.loop import Schedule, run
from streamchar.train.pose import PoseError, PoseHead, States
from streamchar.world.pose import poses_by_latent
from tests.test_train_objectives import CONFIG, clip


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: None)
    monkeypatch.setattr(loop, "_writer", lambda out: lambda name, value, step: None)


def objective(folder, *, posed=True, **terms):
    folder.mkdir()
    clips = [clip(n, i, video=True) for i, n in enumerate((4, 3, 5))]
    write_shard(folder / "shard-00000.safetensors", clips if posed else [replace(c, pose=None) for c in clips])
    torch.manual_seed(0)
    encoder = T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy", "and", "lively"]))
    return JointObjective(CONFIG, folder, encoder, batch=2, terms=VideoTerms(**terms), seed=3)


def test_poses_are_those_of_a_latents_own_frames():
    by_frame = torch.arange(66.0)[:, None]
    found = poses_by_latent(by_frame)
    assert found.shape == (2, 9, 1)
    assert found[1, :, 0].tolist() == [33.0, *(33 + 1.5 + 1 + 4 * k for k in range(8))]
    with pytest.raises(InputError, match="whole chunks of 33 frames, got 40"):
        poses_by_latent(torch.zeros(40, 2))


def test_the_head_finds_a_pose_that_is_there():
    """States that hold the pose along one direction, the same for all tokens of a latent frame."""
    torch.manual_seed(0)
    head, pose = PoseHead(16, 4, 2), torch.randn(4, 2, 9, 2)
    way = torch.randn(2, 16)
    hidden = (pose.flatten(0, 1) @ way)[:, :, None].expand(-1, -1, 4, -1).flatten(1, 2) + 0.1 * torch.randn(8, 36, 16)
    wrong = hidden.unflatten(1, (9, 4)).roll(1, 1).flatten(1, 2)

    def error(states):
        """Motion frames show one chunk, noisy frames will be another."""
        found = head(States(noisy=states, motion=states.flip(0)), pose.flatten(0, 1), pose.flatten(0, 1).flip(0))
        return found.total(torch.ones(8)) / 2

    optimiser = torch.optim.Adam(head.parameters(), 3e-2)
    for _ in range(200):
        optimiser.zero_grad()
        error(hidden).backward()
        optimiser.step()
    assert error(hidden) < 0.25 < 0.8 < error(wrong)


def test_every_place_has_its_own_reading():
    """States that say it with opposite signs left and right, as a turned head does: their mean knows nothing."""
    torch.manual_seed(0)
    pose, signs = torch.randn(64, 9, 1), torch.tensor([1.0, -1.0])[:, None]
    turned, noise = pose[:, :, None] * signs * torch.randn(8), 0.1 * torch.randn(64, 9, 2, 8)
    hidden = (3 * torch.randn(8) + turned + noise).flatten(1, 2)

    def left(places):
        """Error after training."""
        head = PoseHead(8, places, 1)
        optimiser = torch.optim.Adam(head.parameters(), 3e-2)
        states = States(noisy=hidden if places == 2 else hidden.unflatten(1, (9, 2)).mean(2), motion=None)
        for _ in range(200):
            optimiser.zero_grad()
            loss = head(states, pose, pose).total(torch.ones(64))
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    assert left(2) < 0.3 < 0.7 < left(1)


def test_the_loss_reaches_the_first_half_of_the_blocks_alone(tmp_path):
    made = objective(tmp_path / "clips", pose=1.0)
    count = len(made.model.dit.blocks)
    errors = []
    made.pose_error = lambda *given: errors.append(JointObjective.pose_error(made, *given)) or errors[-1]
    _, scalars = made.loss(0)
    assert scalars["pose"] == pytest.approx(errors[0].foreseen.mean().item())
    parameters = [next(block.ffn.parameters()) for block in made.model.dit.blocks]
    grads = torch.autograd.grad(errors[0].total(torch.ones(1)), parameters, allow_unused=True)
    assert [g is not None for g in grads] == [i <= count // 2 for i in range(count)]


def test_validation_says_what_a_condition_tells_of_the_pose(tmp_path):
    figures = objective(tmp_path / "clips").validate(0)
    assert {"pose_0.5", "pose_0.9", "pose_1.0", "start_pose_1.0", "pose_0.9_wrong_motion"} <= set(figures)
    assert "pose_seen_0.9" in figures and "start_pose_seen_1.0" not in figures  # a first chunk has no motion frames


def test_clips_of_an_older_version_train_without(tmp_path, caplog):
    made = objective(tmp_path / "clips", posed=False)
    assert "no pose loss" in caplog.text and not made.posed
    total, scalars = made.loss(0)
    assert "pose" not in scalars and torch.isfinite(total)
    assert Shard(tmp_path / "clips" / "shard-00000.safetensors")[0].pose is None
    assert not objective(tmp_path / "none", pose=0.0).posed
    write_shard(tmp_path / "clips" / "shard-00001.safetensors", [clip(4, 9, video=True)])  # a folder that goes on
    encoder = T5PromptEncoder(CONFIG.prompt, word_tokenizer(["happy", "and", "lively"]))
    mixed = JointObjective(CONFIG, tmp_path / "clips", encoder, batch=2, terms=VideoTerms(), seed=3)
    assert not mixed.posed and "pose" not in mixed.loss(0)[1]


def test_nothing_of_it_is_left_in_what_is_exported(tmp_path):
    made = objective(tmp_path / "clips")
    made.loss(0)[0].backward()
    copy = deepcopy(made.model.dit)  # what the gallery plays: not listened to, nor kept from being copied
    assert copy.state_dict().keys() == made.model.dit.state_dict().keys()
    assert not any(name.startswith("pose") for name in copy.state_dict())


def test_the_head_is_trained_and_resumed(tmp_path):
    """Three steps, a new process's worth of state, and three, equal to six: the head too."""
    def go(out, steps, resume=False):
        made = objective(tmp_path / f"{out}-{steps}")
        made.validate = lambda step: {}
        run(
            made, Schedule(minutes=60.0, rate=3e-3, warmup=4, max_steps=steps), tmp_path / out, resume=resume,
            export=lambda folder: None, facts={"seed": 3},
        )  # fmt: skip
        return made.model.get_submodule("pose").state_dict()

    begun = objective(tmp_path / "begun").model.get_submodule("pose").state_dict()
    whole = go("whole", 4)
    go("parts", 2)
    resumed = go("parts", 4, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(begun["foresee.weight"], whole["foresee.weight"])


def test_drawn_clips_know_their_pose(tmp_path):
    """A clip that nods: its pitch, latent by latent, is that of its motion."""
    from streamchar.codecs.audio import ToonAudioCodec
    from streamchar.codecs.video import ToonVideoCodec
    from streamchar.data.prepare import clip_record
    from streamchar.world.clips import make_clip
    from streamchar.world.pose import POSES

    small = tiny()
    codecs = ToonAudioCodec(small.audio), ToonVideoCodec(small.video)
    record = clip_record(*codecs, 5, held_out=False, size=64, short=True)
    world = make_clip(5, short=record.short)
    track = world.track
    assert record.text == world.speech.text and len(track) < len(make_clip(5).track)
    assert record.pose is not None
    assert record.pose.shape == (len(track) // clock.FRAMES_PER_CHUNK, 9, len(POSES))
    assert float(record.pose[1, 3, POSES.index("pitch")]) == pytest.approx(float(track.pitch[42:46].mean()), abs=1e-3)


def test_what_is_foreseen_counts_less_at_low_noise():
    """Two chunks, one nearly clean: its error hardly counts; what the motion frames show counts at any level."""
    error = PoseError(foreseen=torch.tensor([1.0, 4.0])[:, None, None].expand(2, 9, 3), seen=torch.full((2, 9, 3), 0.5))
    assert float(error.total(torch.tensor([1.0, 0.1]))) == pytest.approx((1 + 0.04) / 2 + 0.5)
    assert float(error._replace(seen=None).total(torch.ones(2))) == pytest.approx(2.5)
