"""Invariants of the joint DiT: caching, batching, presence, routing, and the order of the stages."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from streamchar.config.presets import tiny
from streamchar.dit.cache import Conditions
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT
from streamchar.errors import InputError
from streamchar.nn.rope import axis_widths, rotation

CONFIG = tiny().dit
BATCH, SIZE = 2, (2, 4)
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(scope="module", params=[{}, {"ref_beside": True}, {"places": (1, 2)}], ids=["", "ref beside", "places"])
def dit(request):
    torch.manual_seed(0)
    model = JointDiT(replace(CONFIG, **request.param))
    with torch.no_grad():
        for parameter in model.parameters():  # nothing zero: every path must show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def latents(frames, batch=BATCH):
    return torch.randn(batch, CONFIG.video_channels, frames, *SIZE)


def conditions(batch=BATCH, **without):
    found = {"ref": latents(1, batch), "sink": latents(9, batch), "motion": latents(9, batch)}
    return Conditions(text=torch.randn(batch, 5, CONFIG.text_width), **{**found, **without})


def noisy(chunks=1, batch=BATCH):
    tokens = 33 * chunks
    c_a = torch.randn(batch, tokens, CONFIG.condition_width)
    return latents(9 * chunks, batch), torch.randn(batch, tokens, CONFIG.audio_channels), c_a, torch.rand(batch)


def equal(got, expected):
    torch.testing.assert_close(got, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("without", [(), ("sink",), ("sink", "motion"), ("ref", "sink", "motion")])
@pytest.mark.parametrize("chunks", [1, 3])
def test_cached_equals_uncached(dit, without, chunks):
    given = conditions(**dict.fromkeys(without))
    x_v, x_a, c_a, sigma = noisy(chunks)
    layout = dit.layout(given, x_v, x_a)
    cache = dit.encode_conditions(layout, given)
    equal(dit.denoise(x_v, x_a, c_a, sigma, layout, cache), dit(x_v, x_a, c_a, sigma, layout, given))


@torch.no_grad()
def test_a_cache_grown_over_chunks_equals_a_fresh_one(dit):
    """Chunk 1 has the reference, chunk 2 gets sink and motion, chunk 3 a new motion."""
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    chunks = [
        replace(given, sink=None, motion=None),
        replace(given, motion=given.sink),
        replace(given, motion=latents(9)),
        given,
    ]
    cache = None
    for chunk in chunks:
        layout = dit.layout(chunk, x_v, x_a)
        cache = dit.encode_conditions(layout, chunk, cache)
        equal(dit.denoise(x_v, x_a, c_a, sigma, layout, cache), dit(x_v, x_a, c_a, sigma, layout, chunk))


@torch.no_grad()
def test_what_a_cache_holds_is_not_computed_again(dit):
    """With `previous`, a changed reference, sink or prompt must not show: they were read once a stream. Where the
    reference stands beside every token, only in its own and the sink's."""
    given, other = conditions(), conditions()
    layout = Layout(grid=(1, 2), sink=9, motion=9)
    first = dit.encode_conditions(layout, given)
    grown = dit.encode_conditions(layout, replace(other, motion=given.motion), first)
    for before, after in zip(first.layers, grown.layers, strict=True):
        kept = layout.segment("sink" if dit.config.ref_beside else "motion").stop
        equal(after.self_attention.key[:, :kept], before.self_attention.key[:, :kept])
        assert after.text is before.text


@torch.no_grad()
def test_condition_keys_do_not_depend_on_noise(dit):
    """A cache for one noisy layout serves any other with the same conditions."""
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    cache = dit.encode_conditions(dit.layout(given, x_v, x_a), given)
    layout = dit.layout(given, x_v, None)
    equal(dit.denoise(x_v, None, None, sigma, layout, cache).video, dit(x_v, None, None, sigma, layout, given).video)
    layout = dit.layout(given, None, x_a)
    equal(dit.denoise(None, x_a, c_a, sigma, layout, cache).audio, dit(None, x_a, c_a, sigma, layout, given).audio)


@torch.no_grad()
def test_batch_of_two_equals_two_of_one(dit):
    given = conditions()
    x_v, x_a, c_a, sigma = noisy(2)
    layout = dit.layout(given, x_v, x_a)
    both = dit(x_v, x_a, c_a, sigma, layout, given)
    for i in range(2):
        one = slice(i, i + 1)
        alone = Conditions(text=given.text[one], ref=given.ref[one], sink=given.sink[one], motion=given.motion[one])
        got = dit(x_v[one], x_a[one], c_a[one], sigma[one], layout, alone)
        equal((got.video, got.audio), (both.video[one], both.audio[one]))


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_an_absent_segment_equals_a_layout_without_it(dit, cached):
    """One batch of eight samples holds every mixture of ref, sink and motion."""
    given = conditions(8)
    x_v, x_a, c_a, sigma = noisy(batch=8)
    bits = torch.arange(8)
    has = {"has_ref": (bits & 1) > 0, "has_sink": (bits & 2) > 0, "has_motion": (bits & 4) > 0}
    layout = dit.layout(given, x_v, x_a)
    mixed = replace(given, **has)
    if cached:
        both = dit.denoise(x_v, x_a, c_a, sigma, layout, dit.encode_conditions(layout, mixed))
    else:
        both = dit(x_v, x_a, c_a, sigma, layout, mixed)
    for i in range(8):
        one = slice(i, i + 1)
        there = {
            name: getattr(given, name)[one] if has[f"has_{name}"][i] else None for name in ("ref", "sink", "motion")
        }
        alone = Conditions(text=given.text[one], **there)
        layout_i = dit.layout(alone, x_v[one], x_a[one])
        got = dit(x_v[one], x_a[one], c_a[one], sigma[one], layout_i, alone)
        equal((got.video, got.audio), (both.video[one], both.audio[one]))


def test_an_absent_segment_gives_and_gets_no_gradient(dit):
    given = conditions()
    sink = given.sink.clone().requires_grad_()
    x_v, x_a, c_a, sigma = noisy()
    mixed = replace(given, sink=sink, has_sink=torch.tensor([True, False]))
    out = dit(x_v, x_a, c_a, sigma, dit.layout(given, x_v, x_a), mixed)
    (grad,) = torch.autograd.grad(out.video.square().sum() + out.audio.square().sum(), sink)
    assert grad[0].abs().max() > 0
    assert not grad[1].any()


@torch.no_grad()
def test_a_reference_beside_every_token_and_its_place_begin_at_nothing():
    """A wider model that starts from an older one's weights is that model, until it has learned to compare."""
    torch.manual_seed(0)
    plain, wider = JointDiT(CONFIG), JointDiT(replace(CONFIG, ref_beside=True, places=(1, 2)))
    for name, parameter in plain.named_parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
        wider.get_parameter(name).copy_(parameter)
    for name, buffer in plain.named_buffers():
        wider.get_buffer(name).copy_(buffer)
    given, (x_v, x_a, c_a, sigma) = conditions(), noisy()
    layout = plain.layout(given, x_v, x_a)
    equal(wider(x_v, x_a, c_a, sigma, layout, given), plain(x_v, x_a, c_a, sigma, layout, given))
    assert wider.ref_embedding is not None
    wider.ref_embedding.weight.normal_(std=0.1)
    changed, kept = wider(x_v, x_a, c_a, sigma, layout, given), plain(x_v, x_a, c_a, sigma, layout, given)
    assert (changed.video - kept.video).abs().max() > 1e-3
    alone = replace(given, ref=None)
    layout = plain.layout(alone, x_v, x_a)
    equal(wider(x_v, x_a, c_a, sigma, layout, alone), plain(x_v, x_a, c_a, sigma, layout, alone))


@torch.no_grad()
def test_a_learned_place_is_the_same_in_every_frame_and_another_at_every_place():
    torch.manual_seed(0)
    dit = JointDiT(replace(CONFIG, places=(1, 2)))
    assert dit.place_embedding is not None
    dit.place_embedding.weight.normal_()
    still = dit._patches(torch.zeros(1, CONFIG.video_channels, 3, *SIZE), None) - dit.patch_embedding.bias
    torch.testing.assert_close(still[0].unflatten(0, (3, 2)), dit.place_embedding.weight.expand(3, -1, -1))
    with pytest.raises(InputError, match=r"\(1, 2\) tokens a frame"):
        wider = Conditions(text=torch.randn(1, 5, 16), ref=torch.randn(1, 8, 1, 4, 4))
        dit.encode_conditions(Layout(grid=(2, 2)), wider)


@torch.no_grad()
def test_a_level_per_token_equals_a_level_per_sample(dit):
    given = conditions()
    x_v, x_a, c_a, sigma = noisy(2)
    layout = dit.layout(given, x_v, x_a)
    levels = sigma[:, None].expand(-1, layout.noisy_tokens)
    equal(dit(x_v, x_a, c_a, levels, layout, given), dit(x_v, x_a, c_a, sigma, layout, given))


@torch.no_grad()
def test_ffn_routing_by_modality(dit):
    """Every block sends all audio tokens, and them alone, through `audio_ffn`."""
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    counts = {"ffn": 0, "audio_ffn": 0}
    hooks = []
    for block in dit.blocks[:-1]:
        for name in counts:

            def count(module, args, name=name):
                counts[name] += args[0].shape[1]

            hooks.append(getattr(block, name).register_forward_pre_hook(count))
    layout = dit.layout(given, x_v, x_a)
    dit(x_v, x_a, c_a, sigma, layout, given)
    for hook in hooks:
        hook.remove()
    blocks = len(dit.blocks) - 1
    assert counts == {"ffn": blocks * (layout.tokens - 33), "audio_ffn": blocks * 33}


def test_audio_alone_never_touches_the_video_expert(dit):
    _, x_a, c_a, sigma = noisy()
    given = Conditions(text=torch.randn(BATCH, 5, CONFIG.text_width))
    dit.zero_grad()
    dit(None, x_a, c_a, sigma, dit.layout(given, None, x_a), given).audio.square().sum().backward()
    for block in dit.blocks:
        assert all(parameter.grad is None for parameter in block.ffn.parameters())
        assert all(parameter.grad.any() for parameter in block.audio_ffn.parameters())
    dit.zero_grad()


@torch.no_grad()
def test_a_new_joint_model_speaks_as_its_audio_path_alone():
    """Stage 1's model is preserved: main blocks start as a no-op for audio."""
    torch.manual_seed(1)
    model = JointDiT(CONFIG)
    for name, parameter in model.audio.named_parameters():
        if not name.startswith("from_main"):
            parameter.add_(0.1 * torch.randn_like(parameter))
    given = conditions()
    x_v, x_a, c_a, sigma = noisy(2)
    joint = model(x_v, x_a, c_a, sigma, model.layout(given, x_v, x_a), given)
    torch.testing.assert_close(joint.audio, model.denoise_audio(x_a, c_a, sigma), rtol=0, atol=0)


def test_main_blocks_learn_from_audio_after_one_step():
    """The zero projection opens: its own gradient is not zero, and after a step the blocks get theirs."""
    torch.manual_seed(1)
    model = JointDiT(CONFIG)
    torch.nn.init.normal_(model.audio.head.proj_out.weight)
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    layout = model.layout(given, x_v, x_a)
    for _ in range(2):
        model.zero_grad()
        model(x_v, x_a, c_a, sigma, layout, given).audio.square().mean().backward()
        assert model.audio.from_main.weight.grad.any()
        with torch.no_grad():
            model.audio.from_main.weight.sub_(model.audio.from_main.weight.grad)
    assert all(block.audio_ffn.up.weight.grad.any() for block in model.blocks)


@torch.no_grad()
def test_untrained_velocity_is_the_best_linear_denoiser():
    """Zero heads: v = a(sigma) x, whose error for unit-variance data is 1 / (sigma^2 + (1 - sigma)^2)."""
    torch.manual_seed(0)
    model, count = JointDiT(CONFIG), 64
    sigma = torch.full((count,), 0.3)
    z, eps = torch.randn(2, count, 33, CONFIG.audio_channels)
    v = model.denoise_audio(0.7 * z + 0.3 * eps, torch.randn(count, 33, CONFIG.condition_width), sigma)
    assert (v - (eps - z)).square().mean().item() == pytest.approx(1 / (0.3**2 + 0.7**2), rel=0.02)


@torch.no_grad()
def test_audio_path_does_not_look_across_chunks(dit):
    _, x_a, c_a, sigma = noisy(2)
    both = dit.denoise_audio(x_a, c_a, sigma)
    halves = [dit.denoise_audio(x_a[:, part], c_a[:, part], sigma) for part in (slice(0, 33), slice(33, 66))]
    equal(both, torch.cat(halves, dim=1))


@torch.no_grad()
def test_bfloat16_stays_close_and_keeps_types():
    torch.manual_seed(0)
    model = JointDiT(CONFIG)
    torch.nn.init.normal_(model.head.proj_out.weight, std=0.1)
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    layout = model.layout(given, x_v, x_a)
    expected = model(x_v, x_a, c_a, sigma, layout, given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x_v, x_a, c_a, sigma, layout, given)
    half = model.bfloat16()(x_v, x_a, c_a, sigma, layout, given)
    for got in (mixed, half):
        assert got.video.dtype == got.audio.dtype == torch.float32
        assert (got.video - expected.video).std() < 0.02 * expected.video.std()
    assert model(x_v.bfloat16(), x_a, c_a, sigma, layout, given).video.dtype == torch.bfloat16


@torch.no_grad()
def test_a_compiled_block_equals_eager(dit):
    """Block by block, as training compiles it: one graph without a break."""
    given = conditions(has_sink=torch.tensor([True, False]))
    x_v, x_a, c_a, sigma = noisy()
    layout = dit.layout(given, x_v, x_a)
    compiled = copy.deepcopy(dit)
    compiled.blocks[-1].compile(backend="eager", fullgraph=True)
    equal(compiled(x_v, x_a, c_a, sigma, layout, given), dit(x_v, x_a, c_a, sigma, layout, given))
    torch.compiler.reset()


def test_checkpointed_blocks_give_the_same_gradients(dit):
    """Activation checkpointing is applied from outside, block by block."""
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    layout = dit.layout(given, x_v, x_a)

    def gradients(model):
        model.zero_grad()
        out = model(x_v, x_a, c_a, sigma, layout, given)
        (out.video.square().mean() + out.audio.square().mean()).backward()
        return {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}

    expected = gradients(dit)
    wrapped = copy.deepcopy(dit)
    wrapped.blocks = torch.nn.ModuleList(checkpoint_wrapper(block) for block in wrapped.blocks)
    got = gradients(wrapped)
    assert all(gradient is not None for gradient in expected.values())
    equal(got, expected)
    dit.zero_grad()


def test_inputs_that_do_not_fit_are_refused(dit):
    given = conditions()
    x_v, x_a, c_a, sigma = noisy()
    layout = dit.layout(given, x_v, x_a)
    with pytest.raises(InputError, match="x_v: expected latents"):
        dit(x_v[:, :, :8], x_a, c_a, sigma, layout, given)
    with pytest.raises(InputError, match="c_a: expected"):
        dit(x_v, x_a, None, sigma, layout, given)
    with pytest.raises(InputError, match="sink: expected latents"):
        dit(x_v, x_a, c_a, sigma, layout, replace(given, sink=None))
    fewer = replace(given, sink=None)
    cache = dit.encode_conditions(dit.layout(fewer, x_v, x_a), fewer)
    with pytest.raises(InputError, match="expected a cache of the layout's conditions"):
        dit.denoise(x_v, x_a, c_a, sigma, layout, cache)


def test_time_scale_turns_audio_neighbours_as_far_as_a_sequence_of_its_own(dit):
    """At 4, audio token j turns with time as token j of plain positions does; space is untouched."""
    layout = Layout(grid=(1, 2), video=9, audio=33)
    scaled = JointDiT(replace(CONFIG, time_scale=4.0))._rotation(layout, "cpu")
    plain = dit._rotation(layout, "cpu")
    time = axis_widths(CONFIG.head_width)[0]
    audio = layout.segment("audio").start
    index = torch.arange(33)[:, None]
    own = rotation(index, (time,), CONFIG.rope_theta)
    torch.testing.assert_close(scaled.cos[audio:, :, :time], own.cos)
    torch.testing.assert_close(scaled.sin[audio:, :, :time], own.sin)
    assert torch.equal(scaled.cos[..., time:], plain.cos[..., time:])
    assert not torch.equal(scaled.cos[..., :time], plain.cos[..., :time])
