"""One picture of a group that flows move: the mixture, how it begins, and that it is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from streamchar import clock
from streamchar.codecs.motion import REACH, GroupMotion, move
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import tiny, toon
from streamchar.train.principal import principal_start
from streamchar.train.video_clips import Crop, write_shard
from streamchar.train.video_codec import VideoCodecTraining, distance, train_video_codec, widened

MOVING = replace(tiny().video, motion=True)


def latents(k: int, seed: int = 1) -> Tensor:
    return torch.randn(1, 8, k, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_flow_moves_the_picture_by_pixels() -> None:
    picture = torch.rand(1, 3, 8, 16)
    flow = torch.zeros(1, 2, 4, 8)
    flow[:, 0] = 3  # x: three pixels to the right is where each pixel comes from
    moved = move(picture, flow)
    torch.testing.assert_close(moved[..., :-3], picture[..., 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., -3:], picture[..., -1:].expand(-1, -1, -1, 3), atol=1e-5, rtol=0)
    flow = torch.stack([torch.zeros(1, 4, 8), torch.full((1, 4, 8), -2.0)], 1)
    torch.testing.assert_close(move(picture, flow)[:, :, 2:], picture[:, :, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(move(picture, torch.zeros(1, 2, 4, 8)), picture, atol=1e-5, rtol=0)


def test_each_frame_of_a_group_has_a_flow_and_a_share_of_its_own() -> None:
    motion = GroupMotion(6, 4, 2)
    middle, fine, direct = torch.ones(2, 6, 4, 4), torch.randn(2, 4, 8, 8), torch.randn(2, 12, 16, 16)
    with torch.no_grad():
        motion.flow.bias[4] = 1.0  # the third frame's x
        motion.share.bias[3 * 4 :] = 20.0  # the fourth frame is all moved
        motion.share.bias[: 3 * 4] = -20.0
        mixed, moved = motion(direct, middle, fine)
    frames = moved.unflatten(1, (clock.VIDEO_STRIDE, 3))
    torch.testing.assert_close(frames[:, 2, :, :, :-8], frames[:, 0, :, :, int(REACH) :])
    assert torch.equal(frames[:, 1], frames[:, 0]) and torch.equal(frames[:, 3], frames[:, 0])
    torch.testing.assert_close(mixed[:, :9], direct[:, :9], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[:, 9:], moved[:, 9:], atol=1e-5, rtol=0)


def test_a_new_motion_is_near_the_picture_without_it() -> None:
    torch.manual_seed(0)
    plain, z = ToonVideoCodec(tiny().video).eval(), latents(3)
    moving = widened(plain, motion=True)
    with torch.no_grad():
        direct = plain.decoder.picture(plain.decoder.features(z))
    with torch.enable_grad():
        mixed, moved = moving.decoder.pictures(moving.decoder.features(z))
    frames = direct.unflatten(1, (clock.VIDEO_STRIDE, 3))
    assert moved is not None
    torch.testing.assert_close(moved.unflatten(1, (4, 3))[:, 0], frames[:, 1:3].mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed, direct + 0.1192 * (moved - direct), atol=1e-4, rtol=0)
    assert widened(moving, motion=True) is moving and widened(moving) is moving


@pytest.mark.parametrize("k", [1, 2, clock.VIDEO_LATENTS_PER_CHUNK])
def test_pictures_are_causal_and_kept_on_disk(tmp_path: Path, k: int) -> None:
    torch.manual_seed(0)
    codec = ToonVideoCodec(MOVING).eval()
    assert codec.decoder.motion is not None
    with torch.no_grad():
        for parameter in codec.decoder.motion.parameters():
            parameter.normal_(std=0.1)
    z = latents(k)
    out = codec.decode(z)
    assert out.shape == (1, 3, 1 + 4 * (k - 1), 64, 64)
    other = torch.cat([z, latents(1, seed=2)], 2)
    torch.testing.assert_close(codec.decode(other)[:, :, : out.shape[2]], out, atol=1e-5, rtol=0)
    codec.save(tmp_path)
    assert torch.equal(ToonVideoCodec.load(tmp_path).decode(z), out)


def test_flows_are_learned_from_pictures() -> None:
    """Frames that are one picture, moved by -3, -1, 1 and 3 pixels: the loss of training finds out by how much."""
    torch.manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=(48, 48), mode="bicubic")
    places = (-3, -1, 1, 3)
    frames = torch.stack([picture.roll(place, -1) for place in places], 1)
    motion = GroupMotion(4, 12, 2)
    fine, middle = torch.nn.functional.pixel_unshuffle(picture, 2), torch.ones(1, 4, 12, 12)
    with torch.no_grad():
        motion.key.weight.copy_(torch.eye(12)[:, :, None, None])
        motion.key.bias.zero_()  # type: ignore[union-attr]
    optimiser = torch.optim.Adam(motion.flow.parameters(), 5e-3)
    for _ in range(150):
        _, moved = motion(frames.flatten(1, 2), middle, fine)
        optimiser.zero_grad()
        distance((moved.unflatten(1, (4, 3)) - frames).transpose(1, 2)).backward()
        optimiser.step()
    with torch.no_grad():
        found = REACH * motion.flow(middle)[0, :, 6, 6].view(4, 2)
    torch.testing.assert_close(found[:, 0], -torch.tensor(places, dtype=torch.float32), atol=0.3, rtol=0)
    assert found[:, 1].abs().max() < 0.2


def test_training_teaches_motion_with_the_rest(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, clock.FRAMES_PER_CHUNK, 3, 32, 32), np.uint8)
    write_shard(tmp_path / "data", 0, frames, np.zeros((2, clock.FRAMES_PER_CHUNK, 5, 4), np.float32))
    plain = ToonVideoCodec(tiny().video)
    principal_start(plain, torch.randn(4, 3, 5, 32, 32))
    plain.save(tmp_path / "plain")
    settings = VideoCodecTraining(minutes=5.0, steps=3, crops=(Crop(size=32, batch=1, groups=1),), decoder_only=True)
    found = train_video_codec(
        tmp_path / "data", tmp_path / "out", 5.0, settings=settings, config=MOVING, start=tmp_path / "plain"
    )
    assert found.config.motion and found.decoder.motion is not None
    begun = widened(plain, motion=True).decoder.motion
    for name, value in found.decoder.motion.named_parameters():
        assert not torch.equal(value, begun.get_parameter(name)), name  # type: ignore[union-attr]


def test_toons_codec_moves() -> None:
    assert toon().video.motion and not tiny().video.motion
