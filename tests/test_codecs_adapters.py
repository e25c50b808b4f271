"""Adapters against the real diffusers and transformers classes at tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, AutoencoderOobleck
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from streamchar import clock
from streamchar.codecs.oobleck import OobleckAudioCodec, reach
from streamchar.codecs.text import UMT5PromptEncoder
from streamchar.codecs.wan import WanVideoCodec
from streamchar.errors import CheckpointError, ConfigError, InputError
from streamchar.types import AudioCodec, PromptEncoder, VideoCodec

# diffusers' own class still uses torch's old weight_norm
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


@pytest.fixture(scope="module")
def wan() -> WanVideoCodec:
    """Wan2.2's layout (patched, residual, 16x), four channels wide."""
    torch.manual_seed(0)
    return WanVideoCodec.from_module(
        AutoencoderKLWan(
            base_dim=4, decoder_base_dim=4, z_dim=6, dim_mult=[1, 2, 2, 2], num_res_blocks=1, is_residual=True,
            in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
            latents_mean=[0.1 * i for i in range(6)], latents_std=[1.0 + 0.2 * i for i in range(6)],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def oobleck() -> OobleckAudioCodec:
    torch.manual_seed(0)
    vae = AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=6, audio_channels=1,
        channel_multiples=[1, 1, 2, 2, 2], sampling_rate=clock.AUDIO_RATE,
    )  # fmt: skip
    # the posterior has two values a channel: mean and scale
    vae.encoder.conv2 = torch.nn.Conv1d(8, 12, 3, padding=1)
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
    return OobleckAudioCodec.from_module(vae)


def test_wan_is_the_vae_with_its_own_normalisation(wan: WanVideoCodec) -> None:
    frames = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    z = wan.encode(frames)
    assert isinstance(wan, VideoCodec) and z.shape == (1, 6, 2, 2, 2)
    mean = torch.tensor(wan.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(wan.vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        raw = wan.vae.encode(frames).latent_dist.mode()
        torch.testing.assert_close(z, (raw - mean) / std)
        torch.testing.assert_close(wan.decode(z), wan.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
    assert wan.config.latent_channels == 6 and wan.config.family == "wan"


def test_wan_folder_round_trip(wan: WanVideoCodec, tmp_path: Path) -> None:
    wan.save(tmp_path)
    z = torch.randn(1, 6, 2, 2, 2)
    assert torch.equal(WanVideoCodec.load(tmp_path).decode(z), wan.decode(z))
    with pytest.raises(CheckpointError, match="cannot read a Wan VAE"):
        WanVideoCodec.load(tmp_path / "missing")


def test_wan_rejects_what_does_not_fit(wan: WanVideoCodec) -> None:
    with pytest.raises(InputError, match="first-frame rule"):
        wan.encode(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(InputError, match="multiples of 16"):
        wan.encode(torch.zeros(1, 3, 5, 32, 40))
    with pytest.raises(InputError, match="latents must be"):
        wan.decode(torch.zeros(1, 5, 2, 2, 2))


def test_oobleck_reach_is_what_the_decoder_shows(oobleck: OobleckAudioCodec) -> None:
    """No sample outside the stated reach moves, and the bound is tight to a latent."""
    vae = oobleck.vae.double()
    torch.manual_seed(1)
    z = torch.randn(1, 40, 6, dtype=torch.float64)
    other = z.clone()
    other[:, 20] += 1.0
    with torch.no_grad():
        moved = (vae.decode(z.mT).sample - vae.decode(other.mT).sample).abs()[0, 0] > 0
    vae.float()
    touched = torch.nonzero(moved.view(40, 2048).any(1)).flatten().tolist()
    assert oobleck.reach == reach((2, 4, 4, 8, 8)) == 10
    assert oobleck.reach - 1 <= 20 - touched[0] <= oobleck.reach
    assert oobleck.reach - 1 <= touched[-1] - 20 <= oobleck.reach


@pytest.mark.parametrize("parts", [(33, 33), (12, 20, 1, 10, 15)])
def test_oobleck_streamed_is_at_once(oobleck: OobleckAudioCodec, parts: tuple[int, ...]) -> None:
    z = torch.randn(2, sum(parts), 6)
    whole, state, heard, at = oobleck.decode_at_once(z), None, [], 0
    for piece in z.split(parts, dim=1):
        at += piece.shape[1]
        samples, state = oobleck.decode(piece, state, z[:, at : at + 33])
        assert samples.shape == (2, 2048 * piece.shape[1]) and state.tail_BTC.shape[1] == min(at, 10)
        heard.append(samples)
    torch.testing.assert_close(torch.cat(heard, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_oobleck_without_lookahead_differs_at_the_seam_alone(oobleck: OobleckAudioCodec) -> None:
    codec = OobleckAudioCodec.from_module(oobleck.vae, lookahead=0)
    z = torch.randn(1, 66, 6)
    first, state = codec.decode(z[:, :33], None, z[:, 33:])
    second, _ = codec.decode(z[:, 33:], state)
    whole = codec.decode_at_once(z)
    inner = (33 - codec.reach) * 2048
    torch.testing.assert_close(first[:, :inner], whole[:, :inner], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second, whole[:, 33 * 2048 :], atol=1e-5, rtol=1e-4)
    assert (first[:, -2048:] - whole[:, 32 * 2048 : 33 * 2048]).abs().max() > 1e-3
    with pytest.raises(InputError, match="latents must be"):
        codec.decode(z, None, z[:, :, :3])


def test_oobleck_encodes_mono_and_stereo(oobleck: OobleckAudioCodec) -> None:
    assert isinstance(oobleck, AudioCodec)
    samples = torch.randn(2, 3 * 2048)
    z = oobleck.encode(samples)
    assert z.shape == (2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(z, oobleck.vae.encode(samples[:, None]).latent_dist.mode().mT)
    with pytest.raises(InputError, match="multiple of 2048"):
        oobleck.encode(torch.zeros(1, 2000))


def test_oobleck_folder_and_limits(oobleck: OobleckAudioCodec, tmp_path: Path) -> None:
    plain = AutoencoderOobleck(
        encoder_hidden_size=4, decoder_channels=4, decoder_input_channels=2, audio_channels=2,
        channel_multiples=[1, 1, 1, 1, 1],
    )  # fmt: skip
    codec = OobleckAudioCodec.from_module(plain)
    codec.save(tmp_path)
    z = torch.randn(1, 12, 2)
    assert codec.decode_at_once(z).shape == (1, 12 * 2048)  # a stereo checkpoint gives mono
    assert codec.encode(torch.randn(1, 4096)).shape == (1, 2, 2)
    assert torch.equal(OobleckAudioCodec.load(tmp_path).decode_at_once(z), codec.decode_at_once(z))
    with pytest.raises(CheckpointError, match="cannot read an Oobleck VAE"):
        OobleckAudioCodec.load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="lookahead"):
        OobleckAudioCodec.from_module(oobleck.vae, lookahead=11)
    with pytest.raises(CheckpointError, match="stride 2048"):
        OobleckAudioCodec.from_module(
            AutoencoderOobleck(encoder_hidden_size=4, decoder_channels=4, downsampling_ratios=[2, 4, 4, 8, 4])
        )


@pytest.fixture(scope="module")
def umt5() -> UMT5PromptEncoder:
    words = ["<pad>", "</s>", "<unk>", "a", "happy", "person", "waves"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    torch.manual_seed(0)
    model = UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.0)
    )
    return UMT5PromptEncoder.from_module(model, fast, max_tokens=7)


def test_umt5_is_the_encoder_with_zeros_past_the_end(umt5: UMT5PromptEncoder) -> None:
    assert isinstance(umt5, PromptEncoder)
    out = umt5.encode(["a  happy\nperson", ""])
    assert out.shape == (2, 7, 16)
    assert (out[0, 4:] == 0).all() and (out[1, 1:] == 0).all()
    with torch.no_grad():
        alone = umt5.model(torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    torch.testing.assert_close(out[:1, :4], alone, atol=1e-5, rtol=1e-5)


def test_umt5_cuts_with_a_warning_and_loads_back(
    umt5: UMT5PromptEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert umt5.encode(["a happy person waves a happy person waves"]).shape == (1, 7, 16)
    assert "prompt cut to 7 of its 9 tokens" in caplog.text
    umt5.save(tmp_path)
    loaded = UMT5PromptEncoder.load(tmp_path, max_tokens=7)
    torch.testing.assert_close(loaded.encode(["a person"]), umt5.encode(["a person"]))
    assert loaded.config == umt5.config
    with pytest.raises(CheckpointError, match="cannot read a umT5"):
        UMT5PromptEncoder.load(tmp_path / "missing")
