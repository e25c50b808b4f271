"""The written formulas against torch's own counter, which sees the very operations that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamchar import clock
from streamchar.bench import codec_flops, flops
from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import tiny, toon
from streamchar.dit.cache import Conditions
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT
from streamchar.orchestrator.lm import Orchestrator
from streamchar.train.video_codec import widened

J = clock.AUDIO_LATENTS_PER_CHUNK
T = clock.VIDEO_LATENTS_PER_CHUNK


def counted(function, *arguments, **options) -> int:
    # the plain kernel: the counter does not know the fused one of CPUs
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*arguments, **options)
    return counter.get_total_flops()


@pytest.fixture(scope="module", params=[False, True], ids=["", "ref beside"])
def dit(request):
    config = replace(tiny().dit, audio_layers=2, audio_width=24, layers=3, ref_beside=request.param)
    latents = torch.randn(1, config.video_channels, T, 4, 6)
    conditions = Conditions(
        text=torch.randn(1, 8, config.text_width), ref=latents[:, :, :1], sink=latents, motion=latents
    )
    layout = Layout(grid=(2, 3), ref=1, sink=T, motion=T)
    return config, JointDiT(config).eval(), layout, conditions


def test_conditions(dit) -> None:
    config, model, layout, conditions = dit
    assert counted(model.encode_conditions, layout, conditions) == flops.dit_conditions(config, layout, 8)
    anchor_layout = replace(layout, motion=0)
    with torch.no_grad():
        anchor = model.encode_conditions(anchor_layout, replace(conditions, motion=None))
    again = counted(model.encode_conditions, layout, conditions, previous=anchor)
    assert again == flops.dit_motion(config, layout, 8)
    assert again < flops.dit_conditions(config, layout, 8) / 1.5  # the cache is worth having


def test_denoise(dit) -> None:
    config, model, layout, conditions = dit
    with torch.no_grad():
        cache = model.encode_conditions(layout, conditions)
    x_v, x_a = torch.randn(1, config.video_channels, T, 4, 6), torch.randn(1, J, config.audio_channels)
    c_a, sigma = torch.randn(1, J, config.condition_width), torch.tensor([0.5])
    got = counted(model.denoise, x_v, x_a, c_a, sigma, layout, cache)
    assert got == flops.dit_denoise(config, layout, 8)


@pytest.mark.parametrize("options", [{}, {"cursor_prior": False, "pointer_readout": False}])
def test_orchestrator(options) -> None:
    config = replace(tiny().orchestrator, **options)
    model = Orchestrator(config).eval()
    voice, ids = torch.randn(1, 10, config.audio_channels), torch.arange(20)[None] + 5
    assert counted(model.prefix, voice, ids, None) == flops.lm_prefix(config, 10, 20)
    with torch.no_grad():
        prefix = model.prefix(voice, ids, None)
    assert counted(model.extend, prefix, torch.randn(1, J, 64)) == flops.lm_extend(config, 30)
    noisy, one = torch.randn(1, J, 64), torch.ones(1)
    assert counted(model.plan, prefix, noisy, one, one) == flops.lm_plan(config, 30, 20)


@pytest.mark.parametrize("preset", [tiny, toon])
def test_toon_codecs(preset) -> None:
    config = preset()
    video, audio = ToonVideoCodec(config.video).eval(), ToonAudioCodec(config.audio).eval()
    latents = torch.randn(1, config.video.latent_channels, T, 2, 4)
    assert counted(video.decode, latents) == codec_flops.video_decode(video, (2, 4))
    picture = torch.zeros(1, 3, 2 * config.video.spatial_stride, 4 * config.video.spatial_stride)
    for parts in (0, 3):
        mixing = widened(video, reference=True, parts=parts)
        found = counted(mixing.decode, latents, latents[:, :, :1], picture)
        assert found == codec_flops.video_decode(mixing, (2, 4))
    sound = torch.randn(1, J, config.audio.latent_channels)
    with torch.no_grad():
        _, state = audio.decode(sound)
    assert counted(audio.decode, sound, state) == codec_flops.audio_decode(audio)


def test_public_codecs() -> None:
    diffusers = pytest.importorskip("diffusers")
    from streamchar.codecs.oobleck import OobleckAudioCodec
    from streamchar.codecs.wan import WanVideoCodec

    vae = diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=8, z_dim=6, num_res_blocks=2, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, latents_mean=[0.0] * 6, latents_std=[1.0] * 6,
    )  # fmt: skip
    video = WanVideoCodec(vae)
    assert counted(video.decode, torch.randn(1, 6, T, 2, 3)) == codec_flops.video_decode(video, (2, 3))

    audio = OobleckAudioCodec(diffusers.AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=8, audio_channels=1
    ))  # fmt: skip
    sound, state = torch.randn(1, J, 8), None
    for _ in range(2):
        with torch.no_grad():
            _, state = audio.decode(sound, state)
    assert counted(audio.decode, sound, state, sound) == codec_flops.audio_decode(audio)


def test_prompt_encoder() -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(tiny().prompt, max_tokens=12, layers=2)
    model = transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=50, d_model=config.width, d_kv=config.width // config.heads, d_ff=config.ffn,
        num_layers=config.layers, num_heads=config.heads, feed_forward_proj="gated-gelu",
    ))  # fmt: skip
    got = counted(model, input_ids=torch.ones(1, 12, dtype=torch.long))
    assert got == flops.prompt_encoder(config)


def test_a_codec_without_a_formula_says_so() -> None:
    assert codec_flops.video_decode(object(), (2, 2)) is None
    assert codec_flops.audio_decode(object()) is None
