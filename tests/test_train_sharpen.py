"""The critic of pictures: where it looks, what it asks for, and that its run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamchar.codecs.component import fingerprint
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import tiny
from streamchar.data.prepare import clip_record
from streamchar.data.shards import write_shard
from streamchar.stream import models as stream_models
from streamchar.train import sharpen
from streamchar.train.estimates import Cut
from streamchar.train.principal import principal_start
from streamchar.train.reference import train_reference
from streamchar.train.sharpen import SIDE, SharpTrainer, busy_places, crops
from streamchar.train.video_codec import VideoCodecTraining, widened
from tests.streams import tiny_models


def test_it_looks_where_the_picture_is_not_the_still() -> None:
    frames, draw = torch.zeros(3, 5, 160, 160), torch.Generator().manual_seed(0)
    frames[:, 3, 100:140, 20:60] = 1.0
    places = busy_places(frames, torch.zeros(3, 160, 160), 40, draw)
    assert {t for t, _, _ in places} == {3}
    seen = crops(frames, places)
    assert seen.shape == (40, 3, SIDE, SIDE) and float(seen.amax((1, 2, 3)).min()) == 1.0


def cut(codec: ToonVideoCodec, picture: torch.Tensor) -> Cut:
    """A piece whose latents say nothing of its frames."""
    still = torch.zeros(1, 3, 64, 64)
    clean = codec.encode(still[:, :, None])
    return Cut(
        frames_BCTHW=picture.expand(1, 3, 9, 64, 64), weight_BTHW=torch.ones(1, 9, 64, 64), still_BC1HW=clean,
        picture_BCHW=still, displacement_B2Thw=torch.zeros(1, 2, 9, 16, 16),
        acted_B2Thw=torch.zeros(1, 2, 9, 16, 16), known_BThw=torch.zeros(1, 9, 16, 16),
        acting_BTHW=torch.zeros(1, 9, 64, 64), bare_BThw=torch.zeros(1, 9, 16, 16), skin_B3=torch.zeros(1, 3),
        estimate=False,
        latents_BCKHW=clean.expand(-1, -1, 3, -1, -1).contiguous(),
    )


def contrast(codec: ToonVideoCodec, piece: Cut) -> float:
    with torch.no_grad():
        made = codec.synthesise(codec.raw(piece.latents_BCKHW), codec.raw(piece.still_BC1HW), piece.picture_BCHW)
    return float(made[:, :, 1:].std(dim=(3, 4)).mean())


def test_of_two_possible_pictures_one_is_drawn_instead_of_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars, or the same bars with light and dark exchanged, from the same latents."""
    monkeypatch.setattr(sharpen, "ALONE", 10)
    torch.manual_seed(0)
    bars = torch.ones(64, 64)
    bars[:, 16:32] = bars[:, 48:] = -1
    base = widened(ToonVideoCodec(tiny().video).eval(), reference=True)
    principal_start(base, torch.randn(4, 3, 9, 64, 64))
    found = {}
    for weight in (0.0, 2.0):
        monkeypatch.setattr(sharpen, "WEIGHT", weight)
        codec, draw = widened(ToonVideoCodec(tiny().video).eval(), reference=True), torch.Generator().manual_seed(1)
        codec.load_state_dict(base.state_dict())
        settings = VideoCodecTraining(minutes=10, decoder_only=True, rate=3e-3, warmup_steps=1, noise=0.0)
        trainer = SharpTrainer(codec, settings)
        pieces = [cut(codec, bars), cut(codec, -bars)]
        for _ in range(80):
            trainer.update(pieces, draw)
        found[weight] = contrast(trainer.codec, pieces[0])
        assert fingerprint(trainer.codec) == fingerprint(base), "the encoder stays"
    assert found[2.0] > 2 * found[0.0], found


def test_its_run_goes_on_with_its_critic(tmp_path: Path) -> None:
    models = tiny_models()
    assert isinstance(models.video_codec, ToonVideoCodec)
    stream_models.save(models, tmp_path / "model")
    (tmp_path / "data").mkdir()
    clip = clip_record(models.audio_codec, models.video_codec, 3, held_out=False, size=models.config.height)
    write_shard(tmp_path / "data" / "shard-00000.safetensors", [clip])

    def train(minutes: float, *, resume: bool = False) -> ToonVideoCodec:
        return train_reference(
            tmp_path / "data", tmp_path / "run", minutes, config=tiny().video, start=tmp_path / "model", clips=2,
            critic=True, resume=resume,
        )  # fmt: skip

    made = train(0.03)
    again = SharpTrainer(widened(made, reference=True), VideoCodecTraining(minutes=1, decoder_only=True))
    fresh = {name: value.clone() for name, value in again.critic.state_dict().items()}
    again.load(tmp_path / "run" / "training")
    kept = again.critic.state_dict()
    assert again.step > 0 and any(not torch.equal(value, fresh[name]) for name, value in kept.items())
    plain = {name: value for name, value in models.video_codec.state_dict().items() if name.startswith("decoder.")}
    assert any(not torch.equal(value, made.state_dict()[name]) for name, value in plain.items())
    step = again.step
    train(0.06, resume=True)
    again.load(tmp_path / "run" / "training")
    assert again.step > step
