"""What the video decoder takes from the still: the mixture, and its training."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock
from streamchar.codecs.component import fingerprint
from streamchar.codecs.reference import Parts, ReferenceMixer, in_pixels, inverse
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import paper, tiny
from streamchar.data.prepare import clip_record
from streamchar.data.shards import Shard, write_shard
from streamchar.errors import ConfigError, DataError, InputError
from streamchar.stream import decoding
from streamchar.stream import models as stream_models
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.stream.state import StreamState
from streamchar.train import estimates
from streamchar.train import reference as training
from streamchar.train.estimates import CHEEK, EYE, MOUTH, Cut, Examples, draw_examples, example
from streamchar.train.principal import principal_start
from streamchar.train.reference import ReferenceTrainer, train_reference
from streamchar.train.video_codec import VideoCodecTraining, widened
from tests.streams import tiny_models


@pytest.fixture
def codec() -> ToonVideoCodec:
    """A tiny codec whose mixer mixes and moves."""
    torch.manual_seed(0)
    made = widened(ToonVideoCodec(tiny().video).eval(), reference=True, parts=2)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().max() == 0 or parameter.min() == parameter.max():
                parameter.normal_(std=0.1)
    return made


def latents(k: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, 8, k, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_new_mixer_is_all_but_the_decoders_own_picture(codec: ToonVideoCodec) -> None:
    plain, z, still = ToonVideoCodec(tiny().video).eval(), latents(3), latents(1, seed=2)
    wider = widened(plain, reference=True)
    assert torch.equal(wider.decode(z), plain.decode(z))
    with torch.no_grad():
        own, mixed, alone = plain.synthesise(z), wider.synthesise(z, still), plain.synthesise(still)
    torch.testing.assert_close(mixed, own + (1 - 0.9095) * (alone - own), atol=1e-3, rtol=0)
    assert widened(wider, reference=True) is wider
    coloured_too = widened(plain, reference=True, parts=2).synthesise(z, still)
    assert (coloured_too - mixed).abs().mean() < 0.3 * (alone - own).abs().mean()


def test_without_a_mixer_the_still_is_not_used() -> None:
    plain = ToonVideoCodec(tiny().video).eval()
    assert torch.equal(plain.decode(latents(3), latents(1)), plain.decode(latents(3)))


@pytest.mark.parametrize("k", [1, 2, clock.VIDEO_LATENTS_PER_CHUNK])
def test_each_of_a_batch_has_a_still_of_its_own(codec: ToonVideoCodec, k: int) -> None:
    z, still = latents(k, batch=2), latents(1, batch=2, seed=2)
    both = codec.decode(z, still)
    assert both.shape == (2, 3, 1 + 4 * (k - 1), 64, 64)
    for i in range(2):
        torch.testing.assert_close(codec.decode(z[i : i + 1], still[i : i + 1])[0], both[i], atol=1e-5, rtol=1e-4)
    assert (codec.decode(z, still.flip(0)) - both).abs().max() > 1e-3


def test_the_mixture_is_causal(codec: ToonVideoCodec) -> None:
    z, still = latents(3), latents(1, seed=2)
    other = z.clone()
    other[:, :, 2] += 0.5
    difference = (codec.decode(z, still) - codec.decode(other, still)).abs().amax((0, 1, 3, 4))
    assert (difference[:5] == 0).all() and difference[5:].max() > 1e-4


def test_mixer_needs_levels_and_is_kept_on_disk(codec: ToonVideoCodec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 widths"):
        ReferenceMixer((8, 8), 2)
    codec.save(tmp_path)
    z, still = latents(2), latents(1, seed=2)
    loaded = ToonVideoCodec.load(tmp_path)
    assert loaded.config.reference and torch.equal(loaded.decode(z, still), codec.decode(z, still))


# -- training --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and two real clips in its codecs' latents."""
    root = tmp_path_factory.mktemp("reference")
    models = tiny_models()
    stream_models.save(models, root / "model")
    (root / "data").mkdir()
    clips = [
        clip_record(models.audio_codec, models.video_codec, seed, held_out=False, size=models.config.height)
        for seed in (3, 4)
    ]
    write_shard(root / "data" / "shard-00000.safetensors", clips)
    return root


def test_an_example_is_the_clip_drawn_again_and_the_students_view_of_it(folders: Path) -> None:
    models = stream_models.load(folders / "model")
    clip = Shard(folders / "data" / "shard-00000.safetensors")[0]
    found = example(models, clip, 1, seed=5)
    frames = found["frames"].float().div(127.5).sub(1).transpose(0, 1)[None]
    torch.testing.assert_close(models.video_codec.encode(frames)[0], found["truth"].float(), atol=0.1, rtol=0.05)
    assert found["boxes"].shape == (33, 5, 4) and found["still"].shape == (8, 1, 4, 4)
    again = example(models, clip, 1, seed=5)
    for name, value in found.items():
        assert torch.equal(value, again[name]), name
    assert found["displacement"].shape == (33, 2, 16, 16) and found["known"].shape == (33, 16, 16)
    assert found["bare"].shape == (33, 16, 16) and found["skin"].abs().max() <= 1
    near, far = ((found[kind].float() - found["truth"].float()).square().mean() for kind in ("near", "far"))
    assert near > 0 and near != far


def fitted(parts: Parts, flow: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    return parts.fit(flow, *parts(coarse, fine), (fine.shape[-2], fine.shape[-1]))


def test_a_part_moves_as_a_whole() -> None:
    """Of one part all places turn and stretch alike, whatever single places say; two parts are told apart by
    features."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(*(2 * [torch.linspace(-1, 1, 33)[1::2]]), indexing="ij")
    turned = torch.stack([0.1 * x - 0.2 * y + 0.3, 0.2 * x + 0.1 * y - 0.1]).repeat(4, 1, 1)[None]
    features = torch.where(x < 0, -1.0, 1.0)[None, None].repeat(1, 2, 1, 1)
    m = torch.rand(5, 2, 3, 7)
    m = m @ m.mT + 0.1 * torch.eye(3)
    torch.testing.assert_close(inverse(m), torch.linalg.inv(m), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        one, two = Parts(2, 2, 1), Parts(2, 2, 2)
        torn = turned + 0.5 * torch.randn(turned.shape)
        assert float((fitted(one, turned, features, features) - turned).abs().max()) < 0.03
        off = (fitted(one, torn, features, features) - turned).abs().mean()
        assert float(off) < 0.25 * float((torn - turned).abs().mean())
        for parameter in two.parameters():
            parameter.zero_()
        two.said.weight[:2, 0, 0, 0] = torch.tensor([-20.0, 20.0])  # of the first frame alone
        apart = turned * torch.where(x < 0, 1.0, -1.0)
        off = (fitted(two, apart, features, features) - apart).abs().unflatten(1, (4, 2)).mean((0, 2, 3, 4))
    assert float(off[0]) < 0.01 < 0.1 < float(off[1:].min())


def test_where_parts_end_is_said_by_finer_features() -> None:
    """Two parts that coarse features do not tell apart, and the places between two of theirs."""
    torch.manual_seed(0)
    parts, fine = Parts(2, 1, 2), torch.linspace(-1, 1, 65)[1::2].expand(1, 1, 32, 32)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
        flow, nothing = torch.zeros(1, 8, 16, 16), torch.zeros(1, 2, 16, 16)
        flow[:, ::2, :, 8:] = 0.5
        parts.said.weight[::3, 0], parts.said.bias[1::3] = 20.0, 0.0
        features = nothing.clone()
        features[:, 0, :, :8], features[:, 0, :, 8:] = 1.0, -1.0
        found = fitted(parts, flow, features, fine)
        assert float((found[:, 0] - (fine[:, 0] > 0) * 0.5).abs().amax((0, 1))[18:].max()) < 0.02
        assert found.shape == (1, 8, 32, 32)
        parts.edges.weight[1::2] = 400.0  # one pixel further to the left
        moved = fitted(parts, flow, features, fine + 1 / 16)
        assert float(moved[0, 0, :, 15].mean()) > 0.4 > 0.1 > float(moved[0, 0, :, 13].mean())


@pytest.mark.parametrize("parts", [0, 2])
def test_the_flow_is_asked_for_known_displacements(codec: ToonVideoCodec, parts: int) -> None:
    """Frames say nothing (all grey): only what the world knows can teach the flow. Where nothing is known, nothing is
    asked; and what a face's acting adds is asked of the flow beside the parts'."""
    codec = widened(codec, reference=True, parts=parts)
    grey, z = torch.zeros(1, 3, 9, 64, 64), latents(3)
    known, wanted, acted = torch.zeros(1, 9, 16, 16), torch.zeros(1, 2, 9, 16, 16), torch.zeros(1, 2, 9, 16, 16)
    known[..., :8], wanted[:, 0], wanted[:, 0, ..., 8:], acted[:, 0] = 1.0, 2.0, 50.0, 1.5 if parts else 0.0
    piece = Cut(
        frames_BCTHW=grey, weight_BTHW=torch.ones(1, 9, 64, 64), latents_BCKHW=z, still_BC1HW=latents(1),
        picture_BCHW=grey[:, :, 0], displacement_B2Thw=wanted, acted_B2Thw=acted, known_BThw=known,
        acting_BTHW=torch.zeros(1, 9, 64, 64), bare_BThw=torch.zeros(1, 9, 16, 16), skin_B3=torch.zeros(1, 3),
        estimate=False,
    )  # fmt: skip
    trainer = ReferenceTrainer(codec, VideoCodecTraining(minutes=10, decoder_only=True, rate=1e-2, noise=0.0))
    draw = torch.Generator().manual_seed(0)

    def flows() -> list[Tensor]:
        return [part.detach() for part in trainer.mixture(piece, draw)[3:7]]

    before = float(trainer.astray(piece, *flows()))
    for _ in range(60):
        trainer.update([piece], draw)
    assert float(trainer.astray(piece, *flows())) < 0.3 * before
    for flow, mean in zip(flows()[:3], (0.5, 0.5, 1.5) if parts else (2.0, 2.0, 0.0), strict=True):
        pixels = in_pixels(flow, 64)
        assert float(pixels[:, 0, ..., :3].mean()) == pytest.approx(mean, abs=0.6) and float(pixels.abs().max()) < 20
    if not parts:
        return
    product, square = trainer.along
    assert 0.2 < product / square < 1.1  # since the first step, mostly
    for along, more in (((0.8, 1.0), 1.25), ((1.2, 1.0), 1.0), ((-0.1, 1.0), training.MORE), ((0.0, 0.0), 1.0)):
        trainer.along = along
        made, plain = (c.decoder.reference.acting.moves.weight for c in (trainer.expressive(), trainer.average))
        torch.testing.assert_close(made[:2], more * plain[:2])
        assert torch.equal(made[2:], plain[2:]) and plain.abs().amax((1, 2, 3)).min() > 0


def test_groups_are_drawn_one_by_one_as_all_at_once(codec: ToonVideoCodec) -> None:
    z, still = codec.raw(latents(3, batch=2)), codec.raw(latents(1, batch=2, seed=2))
    codec = widened(codec, reference=True, parts=2)
    with torch.no_grad():
        together = codec.synthesise(z, still)
    alone = codec.decode(latents(3, batch=2), latents(1, batch=2, seed=2))
    torch.testing.assert_close(alone, together.clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_blush_is_a_colour_of_the_moved_still() -> None:
    """The own picture is red and coarsely grained; a still of fine stripes takes its colour where it is told to, and
    keeps its stripes; elsewhere it stays."""
    mixer = ReferenceMixer((8, 8, 8), 2, parts=2)
    grain = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    own = torch.cat([0.4 + grain, grain, grain], 1).repeat(1, 4, 1, 1)
    still = torch.tensor([-0.5, 0.5]).repeat(32).expand(1, 3, 64, 64)
    tint, share = torch.full((1, 4, 8, 8), -30.0), torch.full((1, 4, 2, 64, 64), -30.0)
    tint[:, :, 4:], share[:, :, 0] = 30.0, 30.0  # below; the moved still alone
    share = F.pixel_unshuffle(share.flatten(1, 2), 2)
    with torch.no_grad():
        made, moved = mixer.mix(own, still, torch.zeros(1, 8, 8, 8), share, tint)
    assert (moved.unflatten(1, (4, 3)) - still).abs().max() < 1e-4
    added = made.unflatten(1, (4, 3)) - still
    assert added[..., :24, :].abs().max() < 1e-3 and added[:, :, 1:].mean((-1, -2)).abs().max() < 0.05
    assert float(added[:, :, 0, 40:].mean()) == pytest.approx(0.4, abs=0.05)
    assert float(added[:, :, 0, 40:].std()) < 0.1 < float(grain.std())


def test_where_hands_are_and_their_colour_are_learned(codec: ToonVideoCodec) -> None:
    codec = widened(codec, reference=True, parts=2)
    trainer = ReferenceTrainer(codec, VideoCodecTraining(minutes=10, decoder_only=True, rate=1e-2, noise=0.0))
    grey, bare = torch.zeros(1, 3, 9, 64, 64), torch.zeros(1, 9, 16, 16)
    bare[..., :4] = 1.0
    z = latents(3)
    z[..., :1] += 2.0
    piece = Cut(
        frames_BCTHW=grey, weight_BTHW=torch.ones(1, 9, 64, 64), latents_BCKHW=z, still_BC1HW=latents(1),
        picture_BCHW=grey[:, :, 0], displacement_B2Thw=torch.zeros(1, 2, 9, 16, 16),
        acted_B2Thw=torch.zeros(1, 2, 9, 16, 16), known_BThw=torch.zeros(1, 9, 16, 16),
        acting_BTHW=torch.zeros(1, 9, 64, 64), bare_BThw=bare, skin_B3=torch.tensor([[0.5, 0.2, -0.4]]), estimate=False,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    before = float(trainer.mixture(piece, draw)[-1].detach())
    for _ in range(80):
        trainer.update([piece], draw)
    assert float(trainer.mixture(piece, draw)[-1].detach()) < 0.4 * before
    found = trainer.mixer.skin.of(grey[:, :, 0]).detach().flatten()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.2, -0.4]), atol=0.15, rtol=0)


def test_training_learns_stores_and_resumes(folders: Path, tmp_path: Path) -> None:
    config, out = tiny().video, tmp_path / "run"

    def train(minutes: float, **options: object) -> ToonVideoCodec:
        return train_reference(
            folders / "data", out, minutes, config=config, start=folders / "model", clips=16, **options
        )

    made = train(0.05)
    assert made.config.reference and (out / "examples" / "examples-00000.safetensors").is_file()
    step = ReferenceTrainer(widened(made, reference=True), VideoCodecTraining(minutes=1, decoder_only=True))
    step.load(out / "training")
    before = step.step
    assert before > 0
    train(0.1, resume=True)
    step.load(out / "training")
    assert step.step > before
    plain = stream_models.load(folders / "model").video_codec
    loaded = ToonVideoCodec.load(out)
    z = latents(3)
    assert torch.equal(loaded.decode(z), plain.decode(z)) and fingerprint(loaded) == fingerprint(plain)


def test_the_mixer_takes_from_the_still_what_noisy_latents_lack() -> None:
    codec, draw = ToonVideoCodec(tiny().video), torch.Generator().manual_seed(0)
    pictures = torch.einsum(
        "bn,ncthw->bcthw", torch.randn(24, 3, generator=draw), torch.randn(3, 3, 1, 16, 16, generator=draw)
    ).repeat(1, 1, 9, 2, 2)
    principal_start(codec, pictures)

    def cut(i: int) -> Cut:
        clean = codec.encode(pictures[i : i + 1])
        return Cut(
            frames_BCTHW=pictures[i : i + 1], weight_BTHW=torch.ones(1, 9, 32, 32), still_BC1HW=clean[:, :, :1],
            picture_BCHW=pictures[i : i + 1, :, 0],
            displacement_B2Thw=torch.zeros(1, 2, 9, 8, 8), acted_B2Thw=torch.zeros(1, 2, 9, 8, 8),
            known_BThw=torch.zeros(1, 9, 8, 8), acting_BTHW=torch.zeros(1, 9, 32, 32), estimate=False,
            bare_BThw=torch.zeros(1, 9, 8, 8), skin_B3=torch.zeros(1, 3),
            latents_BCKHW=clean + clean.std() * torch.randn(clean.shape, generator=draw),
        )

    def error(codec: ToonVideoCodec) -> float:
        with torch.no_grad():
            made = codec.synthesise(
                codec.raw(unseen.latents_BCKHW), codec.raw(unseen.still_BC1HW), unseen.picture_BCHW
            )
        return float((made - unseen.frames_BCTHW).square().mean())

    unseen = cut(20)
    settings = VideoCodecTraining(minutes=10, decoder_only=True, rate=1e-2, warmup_steps=1, noise=0.0)
    trainer = ReferenceTrainer(widened(codec.eval(), reference=True), settings)
    frozen = {name: p.clone() for name, p in trainer.codec.named_parameters() if name not in trainer.parameters}
    before = error(trainer.codec)
    for i in range(150):
        trainer.update([cut(i % 20)], draw)
    assert error(trainer.codec) < 0.6 * before
    now = dict(trainer.codec.named_parameters())
    assert frozen and all(torch.equal(now[name], value) for name, value in frozen.items())


def test_what_a_face_and_hands_do_is_left_to_the_decoder() -> None:
    boxes = np.array([[[0.4, 0.6, 0.6, 0.7], [0.3, 0.3, 0.4, 0.4], [0.6, 0.3, 0.7, 0.4], [0.0, 0.6, 0.2, 0.8]]])
    mask = estimates.acting(boxes, 100)[0]
    assert mask[65, 50] == mask[70, 50] == mask[65, 37] == MOUTH and mask[75, 50] == 0
    assert mask[31, 35] == mask[39, 29] == mask[21, 35] == EYE  # and the brow
    assert mask[19, 35] == 0 and mask[41, 35] == CHEEK
    assert mask[60, 10] == mask[90, 10] == MOUTH and mask[93, 10] == mask[70, 25] == 0  # a hand and its sleeve
    off = torch.zeros(1, 3, 1, 100, 100)
    off[..., 60:70, 45:47] = off[..., 34:36, 30:40] = 0.5  # a lip, a lid's edge
    found = training.acts(mask[None, None], off)[0, 0]
    assert found[65, 50] == 1 and found[65, 56] == 0 and not found[30:40].any()
    off[..., 27:42, 58:73] = 0.5  # an eye that is shut is the still's lid, moved
    assert not training.acts(mask[None, None], off)[0, 0][20:45].any()
    assert mask[50, 32] == mask[69, 68] == CHEEK and mask[50, 25] == mask[50, 75] == 0  # a blush


def test_training_says_what_it_cannot_use(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--preset toon"):
        train_reference(folders / "data", tmp_path, 0.01, config=paper().video)
    clip = Shard(folders / "data" / "shard-00000.safetensors")[0]
    silent = dataclasses.replace(clip, video=None, still=None)
    (tmp_path / "speech").mkdir()
    write_shard(tmp_path / "speech" / "shard-00000.safetensors", [silent])
    with pytest.raises(DataError, match="speech alone"):
        draw_examples(stream_models.load(folders / "model"), tmp_path / "speech", tmp_path / "out", 1)
    (tmp_path / "examples-00000.safetensors").write_bytes(b"{}")
    with pytest.raises(DataError, match="delete it"):
        Examples(tmp_path)


def test_a_stream_decodes_with_its_own_still(codec: ToonVideoCodec, tmp_path: Path) -> None:
    models = tiny_models()
    models = replace(models, video_codec=codec, config=replace(models.config, video=codec.config))
    pipe = StreamCharPipeline(models)
    frames = [
        torch.cat([c.frames for c in pipe.session(pipe.start("Hello there.", character=who, seed=1))]) for who in (1, 2)
    ]
    seen: list[tuple[Tensor, ...]] = []

    class Spy(ToonVideoCodec):
        def decode(self, latents_BCTHW: Tensor, *still_and_picture: Tensor) -> Tensor:
            seen.append(still_and_picture)
            return super().decode(latents_BCTHW, *still_and_picture)

    codec.__class__ = Spy
    state = pipe.start("Hello there.", character=1, seed=1)
    again = torch.cat([c.frames for c in pipe.session(state)])
    assert torch.equal(again, frames[0]) and not torch.equal(frames[0], frames[1][: len(again)])
    assert seen and state.picture is not None and state.picture.dtype == torch.uint8
    for still, picture in seen:
        assert torch.equal(still, state.still) and (picture - state.picture.float().div(127.5).sub(1)).abs().max() == 0
    state.save(tmp_path / "state")
    loaded = StreamState.load(tmp_path / "state")
    assert torch.equal(torch.cat([c.frames for c in pipe.session(loaded)]), again)
    without = torch.cat([c.frames for c in pipe.session(replace(loaded, picture=None))])  # as older states are
    assert without.shape == again.shape and not torch.equal(without, again)


def test_a_cpu_that_multiplies_bfloat16_decodes_with_it(codec: ToonVideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    z, still = latents(3), latents(1, seed=2)
    plain = codec.decode(z, still)
    monkeypatch.setattr(decoding, "multiplies_bfloat16", lambda: False)
    assert torch.equal(decoding.pictures(codec, z, still), plain)
    monkeypatch.setattr(decoding, "multiplies_bfloat16", lambda: True)
    half = decoding.pictures(codec, z, still)
    assert half.dtype == torch.float32 and 0 < (half - plain).abs().mean() < 0.02
