"""The toon video codec: first-frame rule, causality, batching, component folder, training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamchar import clock
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import VideoCodecConfig
from streamchar.config.presets import tiny, toon
from streamchar.errors import CheckpointError, ConfigError, DataError, InputError, StateError
from streamchar.train import raw
from streamchar.train import video_codec as training
from streamchar.train.principal import principal_start
from streamchar.train.video_clips import SHARD, ClipShards, Crop, weight_map, write_shard
from streamchar.train.video_codec import (
    Trainer,
    VideoCodecTraining,
    reconstruction_gradient,
    reconstruction_loss,
    train_video_codec,
    widened,
)
from streamchar.types import VideoCodec


@pytest.fixture
def codec() -> ToonVideoCodec:
    """A tiny codec with no zero weights left, so that every path carries signal."""
    torch.manual_seed(0)
    made = ToonVideoCodec(tiny().video)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
        made.mean_C.normal_()
        made.scale.fill_(1.7)
    return made.eval()


def clip(frames: int = 9, batch: int = 1, size: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def stand_in(folder: Path, clips: int = 3, size: int = 64) -> None:
    """A coloured square that moves, with its place as the mouth's box."""
    rng = np.random.default_rng(0)
    frames = np.zeros((clips, clock.FRAMES_PER_CHUNK, 3, size, size), np.uint8)
    boxes = np.zeros((clips, clock.FRAMES_PER_CHUNK, 1, 4), np.float32)
    for i in range(clips):
        frames[i] = rng.integers(0, 255, (1, 3, 1, 1))
        ink = rng.integers(0, 255, (3, 1, 1))
        for t in range(clock.FRAMES_PER_CHUNK):
            x = 4 + t % 20
            frames[i, t, :, 20:32, x : x + 12] = ink
            boxes[i, t, 0] = np.array([x, 20, x + 12, 32]) / size
    write_shard(folder, 0, frames, boxes)


@pytest.mark.parametrize("latents", [1, 2, 3, clock.VIDEO_LATENTS_PER_CHUNK])
def test_first_frame_rule(codec: ToonVideoCodec, latents: int) -> None:
    frames = 1 + (latents - 1) * clock.VIDEO_STRIDE
    z = codec.encode(clip(frames))
    assert z.shape == (1, codec.latent_channels, latents, 4, 4)
    assert codec.decode(z).shape == (1, 3, frames, 64, 64)


def test_toon_preset_has_the_shapes_of_the_design() -> None:
    codec = ToonVideoCodec(toon().video)
    assert isinstance(codec, VideoCodec)
    assert codec.encode(clip(5, size=256)).shape == (1, 48, 2, 8, 8)
    assert sum(p.numel() for p in codec.parameters()) < 7_000_000  # 14 MB in 16 bits


@pytest.mark.parametrize("changed", [1, 4, 5, 8])
def test_encoding_is_causal(codec: ToonVideoCodec, changed: int) -> None:
    frames = clip()
    other = frames.clone()
    other[:, :, changed] += 0.5
    difference = (codec.encode(frames) - codec.encode(other)).abs().amax((0, 1, 3, 4))
    own = (changed + 3) // clock.VIDEO_STRIDE
    assert (difference[:own] == 0).all()
    assert difference[own] > 1e-3


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_decoding_is_causal(codec: ToonVideoCodec, changed: int) -> None:
    z = torch.randn(1, codec.latent_channels, 3, 4, 4)
    other = z.clone()
    other[:, :, changed] += 0.5
    difference = (codec.decode(z) - codec.decode(other)).abs().amax((0, 1, 3, 4))
    own = max(0, changed * clock.VIDEO_STRIDE - 3)
    assert (difference[:own] == 0).all()
    assert difference[own] > 1e-4


def test_time_is_mixed_but_not_too_far(codec: ToonVideoCodec) -> None:
    z = torch.randn(1, codec.latent_channels, 2, 4, 4)
    other = z.clone()
    other[:, :, 0] += 0.5
    assert (codec.decode(z) - codec.decode(other))[:, :, 1:].abs().max() > 1e-4


def test_a_still_picture_has_constant_latents(codec: ToonVideoCodec) -> None:
    z = codec.encode(clip(1).expand(-1, -1, 9, -1, -1))
    torch.testing.assert_close(z, z[:, :, :1].expand_as(z), atol=1e-5, rtol=1e-5)


def test_batch_of_two_is_two_of_one(codec: ToonVideoCodec) -> None:
    frames = clip(9, batch=2)
    z = codec.encode(frames)
    torch.testing.assert_close(z, torch.cat([codec.encode(frames[:1]), codec.encode(frames[1:])]), atol=1e-5, rtol=1e-5)
    out = codec.decode(z)
    torch.testing.assert_close(out, torch.cat([codec.decode(z[:1]), codec.decode(z[1:])]), atol=1e-5, rtol=1e-5)


def test_normalisation_is_one_scale_and_a_mean_per_channel(codec: ToonVideoCodec) -> None:
    frames = clip(5)
    raw, z = codec.analyse(frames), codec.encode(frames)
    torch.testing.assert_close(z * codec.scale + codec.mean_C.view(-1, 1, 1, 1), raw, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.decode(z), codec.synthesise(raw).clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_runs_in_16_bits(codec: ToonVideoCodec) -> None:
    frames = clip(5)
    z = codec.encode(frames)
    out = codec.decode(z)
    half = codec.to(torch.bfloat16)
    assert (half.decode(half.encode(frames)) - out).abs().mean() < 0.05


def test_principal_start_is_a_good_linear_codec() -> None:
    """Pictures of rank 3 pass through unharmed before any training."""
    codec = ToonVideoCodec(
        VideoCodecConfig(family="toon", latent_channels=8, spatial_stride=8, widths=(16, 16), blocks=(1, 1))
    )
    basis = torch.randn(3, 3, 1, 8, 8).repeat(1, 1, 5, 4, 4)
    frames = torch.einsum("bn,ncthw->bcthw", torch.randn(24, 3), basis) + 0.3
    principal_start(codec, frames)
    with torch.no_grad():
        torch.testing.assert_close(codec.synthesise(codec.analyse(frames)), frames, atol=1e-3, rtol=1e-3)


def test_save_and_load(codec: ToonVideoCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = ToonVideoCodec.load(tmp_path)
    z = codec.encode(clip(5))
    assert loaded.config == codec.config
    assert torch.equal(loaded.decode(z), codec.decode(z))
    codec.save(tmp_path, torch.float16)
    assert (ToonVideoCodec.load(tmp_path).decode(z) - codec.decode(z)).abs().max() < 0.05


def test_damaged_folders_say_so(codec: ToonVideoCodec, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json"):
        ToonVideoCodec.load(tmp_path)
    codec.save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        ToonVideoCodec.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        ToonVideoCodec.load(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "class": "Other"}))
    with pytest.raises(CheckpointError, match="Other"):
        ToonVideoCodec.load(tmp_path)


def test_wrong_input_says_what_to_do(codec: ToonVideoCodec) -> None:
    with pytest.raises(InputError, match="nearest: 5 or 9"):
        codec.encode(clip(8))
    with pytest.raises(InputError, match="multiples of 16"):
        codec.encode(clip(5, size=40))
    with pytest.raises(InputError, match="latents must be"):
        codec.decode(torch.zeros(1, 5, 2, 4, 4))
    with pytest.raises(ConfigError, match="spatial_stride"):
        ToonVideoCodec(
            VideoCodecConfig(family="toon", latent_channels=8, spatial_stride=6, widths=(8, 8, 8), blocks=(1, 1, 1))
        )


def test_loss_gradient_by_clip_is_that_of_the_batch() -> None:
    target, weight = clip(5, batch=3, size=32), torch.rand(1, 5, 32, 32).expand(3, -1, -1, -1) + 1
    out = (target + 0.1 * torch.randn_like(target)).requires_grad_(True)
    whole = reconstruction_loss(out - target, weight)
    whole.backward()
    loss, grad = reconstruction_gradient(out, target, weight)
    assert loss == pytest.approx(whole.item(), rel=1e-4)
    torch.testing.assert_close(grad, out.grad, atol=1e-7, rtol=1e-3)


def test_weights_count_mouth_and_eyes_and_the_greater_where_they_meet() -> None:
    weight = weight_map(np.array([[[0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5]]]), 8)
    assert weight.shape == (1, 8, 8)
    assert (weight[0, 4:, :4] == 6).all() and (weight[0, :4, 4:] == 4).all() and weight.sum() == 64 + (5 + 3) * 16
    overlaid = weight_map(np.array([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]]), 8)
    assert (overlaid == 6).all()


def test_crops_about_hands_hold_one(tmp_path: Path) -> None:
    """A clip without hands, and one whose right hand is seen in its last frames alone."""
    size, length = 128, clock.FRAMES_PER_CHUNK
    frames = np.zeros((2, length, 3, size, size), np.uint8)
    boxes = np.zeros((2, length, 5, 4), np.float32)
    boxes[1, 30:, 4] = np.array([100, 90, 116, 106]) / size
    frames[1, 30:, :, 90:106, 100:116] = 255
    write_shard(tmp_path, 0, frames, boxes)
    shards = ClipShards(tmp_path)
    assert shards.showing["hand"] == [(0, 1)]
    batches = shards.batches(Crop(size=64, batch=8, groups=1, about="hand"), torch.Generator().manual_seed(3))
    crops, weights = next(batches)
    assert ((crops == 1).flatten(1).sum(1) >= 3 * 16 * 16).all(), "a whole hand in one frame at least"
    torch.testing.assert_close(weights, 1 + 3 * (crops[:, 0] == 1).float())
    none = tmp_path / "none"
    write_shard(none, 0, frames[:1], boxes[:1, :, :1])
    crops, _ = next(ClipShards(none).batches(Crop(size=64, batch=2, groups=1, about="hand"), torch.Generator()))
    assert crops.shape == (2, 3, 5, 64, 64), "from anywhere"


def test_training_learns_stores_and_resumes(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    stand_in(data)
    widths, blocks = (16, 16, 16), (1, 1, 1)
    config = VideoCodecConfig(family="toon", latent_channels=8, spatial_stride=16, widths=widths, blocks=blocks)
    crops = (Crop(size=64, batch=2, groups=1), Crop(size=32, batch=4, groups=0, about="mouth"))
    short = {"minutes": 5.0, "crops": crops, "warmup_steps": 5, "calibration": 2, "energy_pictures": 1}
    frames = ClipShards(data).clip(0)[0][:5].float().div(127.5).sub(1).transpose(0, 1)[None]
    errors = []
    for steps in (1, 40):
        settings = VideoCodecTraining(**short, steps=steps)
        train_video_codec(data, out, 5.0, resume=steps > 1, settings=settings, config=config)
        loaded = ToonVideoCodec.load(out)
        z = loaded.encode(frames)
        assert 0.2 < z.std() < 5
        errors.append((loaded.decode(z) - frames).square().mean())
        assert json.loads((out / "training/training.json").read_text())["step"] == steps
    assert errors[1] < 0.8 * errors[0]


def test_training_the_decoder_alone_keeps_stored_latents_valid(tmp_path: Path) -> None:
    stand_in(tmp_path / "data")
    start = ToonVideoCodec(tiny().video)
    principal_start(start, clip(5, batch=4))
    start.save(tmp_path / "start")
    settings = VideoCodecTraining(minutes=1, steps=3, crops=(Crop(size=64, batch=1, groups=1),), decoder_only=True)
    train_video_codec(tmp_path / "data", tmp_path / "out", 1, settings=settings, start=tmp_path / "start")
    z, tuned = start.encode(clip(5)), ToonVideoCodec.load(tmp_path / "out")
    torch.testing.assert_close(tuned.encode(clip(5)), z, atol=2e-2, rtol=2e-2)  # stored in 16 bits
    assert not torch.equal(tuned.decode(z), start.decode(z))


def test_a_resumed_run_keeps_the_decoders_parts_without_a_start(tmp_path: Path) -> None:
    stand_in(tmp_path / "data")
    start = widened(ToonVideoCodec(tiny().video), motion=True, reference=True)
    principal_start(start, clip(5, batch=4))
    start.save(tmp_path / "start")
    crops = (Crop(size=64, batch=1, groups=1),)
    for steps, first in ((1, tmp_path / "start"), (2, None)):
        settings = VideoCodecTraining(minutes=1, steps=steps, crops=crops, decoder_only=True)
        train_video_codec(tmp_path / "data", tmp_path / "out", 1, first is None, settings=settings, start=first)
    found = ToonVideoCodec.load(tmp_path / "out")
    assert found.config.motion and found.config.reference
    assert found.decoder.reference is not None and start.decoder.reference is not None
    assert start.decoder.reference.inward.weight.abs().mean() > 0.01, "not what a new mixer would have by chance"
    torch.testing.assert_close(
        found.decoder.reference.inward.weight, start.decoder.reference.inward.weight, atol=1e-3, rtol=1e-3
    )  # float16


def test_a_state_that_was_cut_short_is_refused_and_does_not_replace_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(ToonVideoCodec(tiny().video), VideoCodecTraining(minutes=1))
    trainer.step = 7
    trainer.save(tmp_path / "training")

    def stop(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_file", stop)
    trainer.step = 8
    with pytest.raises(KeyboardInterrupt):
        trainer.save(tmp_path / "training")
    (tmp_path / "training").rename(tmp_path / "training.old")  # stopped between the two renames
    trainer.load(tmp_path / "training")
    assert trainer.step == 7

    other = Trainer(ToonVideoCodec(replace(tiny().video, latent_channels=12)), VideoCodecTraining(minutes=1))
    with pytest.raises(StateError, match="of another codec"):
        other.load(tmp_path / "training")
    for name in ("training.safetensors", "training.json"):
        path = tmp_path / "training" / name
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"[]"):
            path.write_bytes(damaged)
            with pytest.raises(StateError, match="missing or damaged.*--start"):
                trainer.load(tmp_path / "training")
        path.write_bytes(whole)


def test_a_damaged_shard_of_clips_says_so_and_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path)
    first = min(tmp_path.glob("frames-*.npy"))
    whole, drawn = first.read_bytes(), []
    monkeypatch.setattr(raw, "render_clips", lambda *_, **options: drawn.append(options["seed"]))
    piece = raw.Piece(folder=tmp_path, seed=0, amount=2 * SHARD)
    (tmp_path / "frames-0001.npy").write_bytes(whole)
    raw._clips(piece)
    assert not drawn
    for damaged in (whole[:200], b""):
        first.write_bytes(damaged)
        with pytest.raises(DataError, match="frames-0000.npy is not a readable array .*drawn again"):
            ClipShards(tmp_path)
    first.unlink()
    raw._clips(piece)
    assert drawn == [0]


def test_training_without_data_or_state_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clips"):
        train_video_codec(tmp_path, tmp_path / "out", 0.01)
    stand_in(tmp_path)
    with pytest.raises(StateError, match="cannot resume"):
        train_video_codec(tmp_path, tmp_path / "out", 0.01, True, config=tiny().video)
