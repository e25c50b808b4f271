"""The layout's own arithmetic, and gradient probes: what a segment depends on is what the mask says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from streamchar.config.presets import tiny
from streamchar.dit.cache import Conditions
from streamchar.dit.layout import SEES, SEGMENTS, Layout
from streamchar.dit.model import JointDiT
from streamchar.errors import ConfigError

FULL = Layout(grid=(2, 3), sink=9, motion=9)


def test_segments_follow_each_other():
    assert [FULL.segment(name) for name in SEGMENTS] == [
        slice(0, 6),
        slice(6, 60),
        slice(60, 114),
        slice(114, 168),
        slice(168, 201),
    ]
    assert (FULL.tokens, FULL.condition_tokens, FULL.noisy_tokens) == (201, 114, 87)


def test_toon_has_481_tokens():
    layout = Layout(grid=(4, 4), sink=9, motion=9)
    assert (layout.condition_tokens, layout.noisy_tokens) == (304, 177)


@pytest.mark.parametrize(
    ("sink", "motion", "video", "audio"), [(9, 9, 9, 33), (0, 9, 9, 33), (0, 0, 27, 99), (9, 9, 0, 33)]
)
def test_grouped_prefixes_are_the_mask(sink, motion, video, audio):
    layout = Layout(grid=(2, 2), sink=sink, motion=motion, video=video, audio=audio)
    table = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    for group in layout.groups(0, layout.tokens):
        table[group.start : group.stop, : group.stop] = True
    assert torch.equal(table, layout.mask())


def test_routes_cover_every_token_once():
    seen = [None] * FULL.tokens
    for expert, part in FULL.routes(0, FULL.tokens):
        for token in range(FULL.tokens)[part]:
            assert seen[token] is None
            seen[token] = expert
    assert seen == ["video"] * 168 + ["audio"] * 33
    assert FULL.routes(114, 201) == (("video", slice(0, 54)), ("audio", slice(54, 87)))
    assert FULL.routes(0, 114) == (("video", slice(0, 114)),)


def test_positions():
    positions = FULL.positions()
    assert positions.shape == (FULL.tokens, 3)

    def times(name):
        return positions[FULL.segment(name), 0]

    assert times("ref").unique().tolist() == [-19]
    assert times("sink").unique().tolist() == list(range(-18, -9))
    assert times("motion").unique().tolist() == list(range(-9, 0))
    assert times("video").unique().tolist() == list(range(9))
    assert times("audio").tolist() == [j / 4 for j in range(33)]
    assert not positions[FULL.segment("audio"), 1:].any()
    assert positions[FULL.segment("video"), 1:][:6].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_a_segment_keeps_its_positions_when_others_are_absent():
    alone = Layout(grid=(2, 3), ref=0, motion=9)
    for name in ("motion", "video", "audio"):
        assert torch.equal(alone.positions()[alone.segment(name)], FULL.positions()[FULL.segment(name)])


def test_further_chunks_stand_as_a_new_chunk_does_to_motion():
    """The step from chunk to chunk is the step from motion to the new chunk."""
    two = Layout(grid=(1, 1), video=18, audio=66, motion=9)
    positions = two.positions()
    video, audio = positions[two.segment("video"), 0], positions[two.segment("audio"), 0]
    assert torch.equal(video[9:] - video[:9], video[:9] - positions[two.segment("motion"), 0])
    assert torch.equal(audio[33:] - audio[:33], torch.full((33,), 9.0, dtype=audio.dtype))
    assert torch.equal(audio[33::4], video[9:])


def test_unusable_layouts_are_refused():
    with pytest.raises(ConfigError, match="got neither"):
        Layout(grid=(1, 1), video=0, audio=0)
    with pytest.raises(ConfigError, match="nearest: 33 or 66"):
        Layout(grid=(1, 1), audio=40)
    with pytest.raises(ConfigError, match="one chunk at most"):
        Layout(grid=(1, 1), sink=10)
    with pytest.raises(ConfigError, match="negative"):
        Layout(grid=(1, 1), ref=-1)


def probe(model, layout, given, noisy):
    """Every segment's state after all attention but the last, and the two velocities."""
    x_v, x_a, c_a, sigma = noisy
    cache = model.encode_conditions(layout, given)
    keys = cache.layers[-1].self_attention.key
    out = model.denoise(x_v, x_a, c_a, sigma, layout, cache)
    states = {name: keys[:, layout.segment(name)] for name in ("ref", "sink", "motion")}
    return {**states, "video": out.video, "audio": out.audio}


def test_gradients_flow_exactly_where_the_mask_says():
    """d output segment / d input segment through three blocks, for all 25 pairs."""
    torch.manual_seed(0)
    config = replace(tiny().dit, layers=3)
    model = JointDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    leaf = {
        name: torch.randn(1, config.video_channels, frames, 2, 4, requires_grad=True)
        for name, frames in (("ref", 1), ("sink", 9), ("motion", 9), ("video", 9))
    }
    leaf["audio"] = torch.randn(1, 33, config.audio_channels, requires_grad=True)
    given = Conditions(
        text=torch.randn(1, 4, config.text_width), ref=leaf["ref"], sink=leaf["sink"], motion=leaf["motion"]
    )
    c_a = torch.randn(1, 33, config.condition_width)
    layout = model.layout(given, leaf["video"], leaf["audio"])
    outputs = probe(model, layout, given, (leaf["video"], leaf["audio"], c_a, torch.tensor([0.6])))
    mask = layout.mask()
    for target in SEGMENTS:
        grads = torch.autograd.grad(
            outputs[target].square().sum(), list(leaf.values()), retain_graph=True, allow_unused=True
        )
        for source, grad in zip(leaf, grads, strict=True):
            depends = grad is not None and bool(grad.any())
            seen = mask[layout.segment(target), layout.segment(source)]
            assert seen.all() or not seen.any()
            assert depends == bool(seen.any()) == (source in SEES[target]), (target, source)
