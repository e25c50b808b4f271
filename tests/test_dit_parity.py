"""With Wan's weights and without audio the joint DiT is `diffusers.WanTransformer3DModel`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from streamchar.config.presets import paper, tiny
from streamchar.dit.cache import Conditions
from streamchar.dit.model import JointDiT
from streamchar.dit.wan import load_wan, rename
from streamchar.errors import CheckpointError
from streamchar.stream.weights import homes, on_meta, place

FRAMES, HEIGHT, WIDTH = 3, 4, 6


def wan(config, layers=None):
    return WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        in_channels=config.video_channels,
        out_channels=config.video_channels,
        text_dim=config.text_width,
        freq_dim=config.time_width,
        ffn_dim=config.ffn,
        num_layers=layers or config.layers,
        eps=config.eps,
    ).eval()


@pytest.fixture(scope="module", params=[48, 64], ids=["head24", "head32"])
def pair(request):
    torch.manual_seed(0)
    config = replace(tiny().dit, width=request.param)
    reference = wan(config)
    with torch.no_grad():
        for parameter in reference.parameters():  # away from unit norms and zero biases
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = JointDiT(config).eval()
    return config, reference, ours, load_wan(ours, reference.state_dict())


@pytest.fixture(scope="module")
def wide():
    """Two layers of Wan2.2-5B's full width, with weights that both models share: 2 GB, drawn once."""
    patch = pytest.MonkeyPatch()
    for layer in (torch.nn.Linear, torch.nn.Conv3d):
        patch.setattr(layer, "reset_parameters", lambda self: None)
    config = replace(paper().dit, layers=2)
    reference = wan(config)
    patch.undo()
    torch.manual_seed(0)
    pool = torch.randn(1_000_003)  # prime: no two rows of a matrix are alike
    with torch.no_grad():
        for parameter in reference.parameters():
            scale = 0.05 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            repeats = -(-parameter.numel() // pool.numel())
            parameter.copy_(pool.repeat(repeats)[: parameter.numel()].view(parameter.shape).mul_(scale))
    ours = on_meta(lambda: JointDiT(config)).eval()
    places = homes(ours)
    for key, value in reference.state_dict().items():
        flat = value.flatten(1) if key == "patch_embedding.weight" else value
        place(places.pop(rename(key)), flat)
    for (part, name), value in ((home, getattr(*home)) for home in places.values()):
        # the other expert and the audio path take no part, nor does a skip without weights
        place((part, name), torch.full((1,), float(name in ("deviation", "residual"))).expand(value.shape))
    return config, reference, ours


@torch.no_grad()
@pytest.mark.parametrize("expand", [False, True], ids=["one timestep", "one a token"])
def test_equal_to_wan_at_full_width(wide, expand):
    config, reference, ours = wide
    assert (config.width, config.heads, config.ffn) == (3072, 24, 14_336)
    x_v, text = torch.randn(1, config.video_channels, 2, 4, 4), torch.randn(1, 3, config.text_width)
    sigma = torch.full((1, 8) if expand else (1,), 0.9)
    sigma[..., :4] = torch.where(torch.tensor(expand), 0.0, sigma[..., :4])
    conditions = Conditions(text=text)
    expected = reference(x_v, 1000 * sigma, text, return_dict=False)[0]
    got = ours(x_v, None, None, sigma, ours.layout(conditions, x_v, None), conditions)
    assert expected.std() > 0.1
    assert relative_error(got.video, expected) < 1e-5


def inputs(config, batch=2):
    x_v = torch.randn(batch, config.video_channels, FRAMES, HEIGHT, WIDTH)
    return x_v, torch.randn(batch, 5, config.text_width)


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_equal_to_wan(pair):
    config, reference, ours, _ = pair
    x_v, text = inputs(config)
    sigma = torch.tensor([0.137, 0.9])
    conditions = Conditions(text=text)
    expected = reference(x_v, 1000 * sigma, text, return_dict=False)[0]
    got = ours(x_v, None, None, sigma, ours.layout(conditions, x_v, None), conditions)
    assert got.audio is None
    assert relative_error(got.video, expected) < 1e-5


@torch.no_grad()
def test_equal_to_wan_with_a_timestep_per_token(pair):
    """TI2V's `expand_timesteps`: the first frame is clean, the others noisy."""
    config, reference, ours, _ = pair
    x_v, text = inputs(config)
    tokens = HEIGHT // 2 * (WIDTH // 2)
    sigma = torch.tensor([0.137, 0.9])[:, None].repeat(1, FRAMES * tokens)
    sigma[:, :tokens] = 0
    conditions = Conditions(text=text)
    expected = reference(x_v, 1000 * sigma, text, return_dict=False)[0]
    got = ours(x_v, None, None, sigma, ours.layout(conditions, x_v, None), conditions)
    assert relative_error(got.video, expected) < 1e-5


@torch.no_grad()
def test_equal_to_wan_through_the_cache(pair):
    config, reference, ours, _ = pair
    x_v, text = inputs(config)
    sigma, conditions = torch.tensor([0.137, 0.9]), Conditions(text=text)
    layout = ours.layout(conditions, x_v, None)
    got = ours.denoise(x_v, None, None, sigma, layout, ours.encode_conditions(layout, conditions))
    assert relative_error(got.video, reference(x_v, 1000 * sigma, text, return_dict=False)[0]) < 1e-5


def test_every_wan_weight_is_used_and_experts_start_equal(pair):
    _, reference, ours, report = pair
    assert set(report.used) == set(reference.state_dict())
    assert not report.ignored
    state = ours.state_dict()
    assert len(report.replicated) == 4 * len(ours.blocks)
    for key in report.replicated:
        assert torch.equal(state[key], state[key.replace("audio_ffn", "ffn")])
    assert all(key.startswith("audio.") for key in report.new)
    assert all(not state[key].any() for key in report.silenced)


def test_a_checkpoint_of_another_size_is_refused(pair):
    config, _, _, _ = pair
    with pytest.raises(CheckpointError, match="expected shape"):
        load_wan(JointDiT(replace(config, ffn=32)), wan(config).state_dict())
    with pytest.raises(CheckpointError, match="as many layers"):
        load_wan(JointDiT(config), wan(config, layers=1).state_dict())


def test_the_paper_preset_holds_all_of_wan22_5b():
    """On the meta device: every key and shape of Wan2.2-TI2V-5B, which has 4,999,787,712 parameters."""
    config = paper().dit
    with torch.device("meta"):
        reference, ours = wan(config), JointDiT(config)
    expected = {rename(key): value.numel() for key, value in reference.state_dict().items()}
    count = {key: value.numel() for key, value in ours.state_dict().items()}
    assert sum(expected.values()) == 4_999_787_712
    assert all(count[key] == size for key, size in expected.items())
    audio_ffn = sum(size for key, size in count.items() if ".audio_ffn." in key)
    assert audio_ffn == config.layers * (2 * config.width * config.ffn + config.width + config.ffn)
    rest = sum(size for key, size in count.items() if key.startswith(("audio.", "head.velocity.")))
    assert sum(count.values()) == sum(expected.values()) + audio_ffn + rest
