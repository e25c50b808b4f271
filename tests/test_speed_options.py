"""The options: the tiny decoder, the visiting text encoder, the video decoder's memory format."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from streams import start, tiny_models

from streamchar import clock
from streamchar.codecs.tiny_decoder import load_tiny_decoder
from streamchar.errors import CheckpointError
from streamchar.stream.chunk import ChunkLatents
from streamchar.stream.offload import VisitingPromptEncoder
from streamchar.stream.session import decode
from streamchar.stream.speed import Speed, speed_up

WIDTHS, GROWTH = (12, 8, 6, 4), (1, 2, 2)


def weights(latent_channels=8, patch=2):
    """A state dict with the key names of taew2_2 (its widths are 256, 128, 64, 64), and an encoder that is not used."""
    draw = torch.Generator().manual_seed(0)

    def conv(outputs, inputs, size):
        return torch.randn(outputs, inputs, size, size, generator=draw) / (inputs * size * size) ** 0.5

    made = {"decoder.1.weight": conv(WIDTHS[0], latent_channels, 3), "encoder.0.weight": conv(4, 12, 3)}
    made["decoder.1.bias"] = torch.randn(WIDTHS[0], generator=draw)
    for first, width, after, factor in zip((3, 9, 15), WIDTHS, WIDTHS[1:], GROWTH, strict=False):
        for block in range(3):
            for layer, inputs in ((0, 2 * width), (2, width), (4, width)):
                made[f"decoder.{first + block}.conv.{layer}.weight"] = conv(width, inputs, 3)
                made[f"decoder.{first + block}.conv.{layer}.bias"] = 0.1 * torch.randn(width, generator=draw)
        made[f"decoder.{first + 4}.conv.weight"] = conv(width * factor, width, 1)
        made[f"decoder.{first + 5}.weight"] = conv(after, width, 3)
    made["decoder.22.weight"] = conv(3 * patch * patch, WIDTHS[3], 3)
    made["decoder.22.bias"] = 0.5 + torch.zeros(3 * patch * patch)
    return made


def by_hand(made, latents_CTHW, patch=2):
    """The published decoder frame by frame, from its keys alone: a memory block keeps its last input."""
    memory = {}

    def run(x, place, frame):
        if place == 23:
            return [F.pixel_shuffle(x, patch).clamp(0, 1)]
        key = f"decoder.{place}"
        frames = [x]
        if place == 0:
            frames = [3 * torch.tanh(x / 3)]
        elif f"{key}.conv.0.weight" in made:
            before = memory.get(place, torch.zeros_like(x))
            memory[place] = x
            y = torch.cat([x, before], dim=1)
            for layer in (0, 2, 4):
                y = F.conv2d(y, made[f"{key}.conv.{layer}.weight"], made[f"{key}.conv.{layer}.bias"], padding=1)
                y = F.relu(y) if layer < 4 else y
            frames = [F.relu(x + y)]
        elif f"{key}.conv.weight" in made:
            frames = list(F.conv2d(x, made[f"{key}.conv.weight"]).split(x.shape[1], dim=1))
        elif f"{key}.weight" in made:
            frames = [F.conv2d(x, made[f"{key}.weight"], made.get(f"{key}.bias"), padding=1)]
        elif place in (6, 12, 18):
            frames = [x.repeat_interleave(2, -1).repeat_interleave(2, -2)]
        else:
            frames = [F.relu(x)]
        return [out for frame in frames for out in run(frame, place + 1, frame)]

    out = [frame for t in range(latents_CTHW.shape[1]) for frame in run(latents_CTHW[None, :, t], 0, t)]
    return torch.cat(out[3:]).transpose(0, 1) * 2 - 1


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture
def tiny_file(tmp_path):
    save_file(weights(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_the_tiny_decoder_is_the_published_one(tiny_file):
    decoder = load_tiny_decoder(tiny_file)
    latents = torch.randn(2, 8, clock.VIDEO_LATENTS_PER_CHUNK, 3, 2)
    frames = decoder.decode(latents)
    assert frames.shape == (2, 3, clock.FRAMES_PER_CHUNK, 48, 32)
    assert frames.min() < frames.max() <= 1
    for got, one in zip(frames, latents, strict=True):
        torch.testing.assert_close(got, by_hand(weights(), one), rtol=1e-5, atol=1e-5)


def test_a_chunk_through_the_tiny_decoder(models, tiny_file):
    fast = speed_up(copy.deepcopy(models), Speed(tiny_decoder=str(tiny_file)))
    h, w = models.config.latent_size
    video, audio = torch.randn(1, 8, 9, h, w), torch.randn(1, 33, 64)
    made = ChunkLatents(index=0, video=video, audio=audio, words=(), last=True, stalled=False, memory=None)
    frames, samples, _, seconds = decode(fast, made, None)
    assert frames.shape == (33, models.config.height, models.config.width, 3) and frames.dtype == torch.uint8
    assert samples.shape == (clock.SAMPLES_PER_CHUNK,) and set(seconds) == {"decode_video", "decode_audio"}
    picture = torch.rand(1, 3, 1, 64, 64)
    assert torch.equal(fast.video_codec.encode(picture), models.video_codec.encode(picture))


def test_a_wrong_tiny_decoder_is_refused(models, tmp_path):
    for name, given, message in (
        ("a.pth", None, "pickles are never read"),
        ("none.safetensors", None, "there is no tiny decoder"),
        ("other.safetensors", {"weight": torch.zeros(1)}, "no tiny decoder in taew2_2's format"),
        ("part.safetensors", {k: v for k, v in weights().items() if k != "decoder.10.conv.2.bias"}, "does not fit"),
        ("wide.safetensors", weights(latent_channels=16), "made for this model's VAE"),
    ):
        if given is not None:
            save_file(given, tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            speed_up(models, Speed(fuse_qkv=False, tiny_decoder=str(tmp_path / name)))


def test_a_visiting_encoder_says_the_same_and_goes_home(models):
    encoder = copy.deepcopy(models.prompt_encoder)
    visiting = VisitingPromptEncoder(encoder, torch.device("cpu"))
    homes = {name: value.data_ptr() for name, value in encoder.named_parameters()}
    away = []
    block = visiting._blocks[0]
    hook = block.register_forward_hook(
        lambda *_: away.append([n for n, p in encoder.named_parameters() if p.data_ptr() != homes[n]])
    )
    expected = models.prompt_encoder.encode(["happy, waves", ""])
    assert torch.equal(visiting.encode(["happy, waves", ""]), expected)
    hook.remove()
    assert any("shared" in name for name in away[0]) and any("block" in name for name in away[0])
    assert {name: value.data_ptr() for name, value in encoder.named_parameters()} == homes
    assert not list(visiting.parameters())  # moving the models does not move it
    bad = block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        visiting.encode(["happy"])
    bad.remove()
    assert {name: value.data_ptr() for name, value in encoder.named_parameters()} == homes
    assert torch.equal(visiting.encode(["happy, waves", ""]), expected)


def test_offloaded_text_in_a_stream(models):
    fast = speed_up(copy.deepcopy(models), Speed(offload_text=True))
    state = start(models)
    assert torch.equal(fast.prompt_encoder.encode([state.prompt]), models.prompt_encoder.encode([state.prompt]))
    assert replace(fast, steps=3).lane is fast.lane


def test_channels_last_decoding_of_a_wan_vae():
    from diffusers import AutoencoderKLWan

    from streamchar.codecs.wan import WanVideoCodec
    from streamchar.stream.decoding import ArrangedVideoCodec
    from streamchar.stream.graphs import run_plainly

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    latents = torch.randn(1, 4, 2, 2, 2)
    expected = WanVideoCodec(vae).decode(latents)
    arranged = ArrangedVideoCodec(WanVideoCodec(vae), last=True, record=run_plainly)
    kernels = [p for p in vae.decoder.parameters() if p.ndim == 5 and p.shape[1] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
    for _ in range(2):
        torch.testing.assert_close(arranged.decode(latents), expected, rtol=1e-5, atol=1e-5)
