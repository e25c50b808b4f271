"""Latents in the picture's metric: the same pictures, distances that mean something, strongest channel first."""

from __future__ import annotations

import copy

import pytest
import torch

from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.presets import tiny
from streamchar.train.energy import energy_axes, fold, latents_of, pixel_metric


@pytest.fixture(scope="module")
def codec() -> ToonVideoCodec:
    torch.manual_seed(0)
    codec = ToonVideoCodec(tiny().video)
    codec.decoder.stem.weight.data[:, 3:] *= 0.05  # channels that hardly show
    return codec.requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 5, 64, 64, generator=generator) * 2 - 1 for _ in range(4)]


def test_metric_is_that_of_a_linear_decoder(codec: ToonVideoCodec, pictures: list[torch.Tensor]) -> None:
    """At initialisation the decoder is linear: moving one channel changes the picture by exactly M's diagonal."""
    metric = pixel_metric(codec, pictures, torch.Generator().manual_seed(2))
    assert torch.allclose(metric, metric.T)
    raw = codec.analyse(pictures[0])
    for channel in (0, 5):
        moved = raw.clone()
        moved[:, channel] += 0.5
        change = float((codec.synthesise(moved) - codec.synthesise(raw)).square().sum()) / 0.25
        assert change / raw[:, 0].numel() == pytest.approx(float(metric[channel, channel]), rel=1e-3)


def test_pictures_stay_and_channels_are_sorted(codec: ToonVideoCodec, pictures: list[torch.Tensor]) -> None:
    changed = copy.deepcopy(codec)
    draw = torch.Generator().manual_seed(2)
    forward, inverse = energy_axes(pixel_metric(codec, pictures, draw), latents_of(codec, pictures))
    assert torch.allclose(forward @ inverse, torch.eye(len(forward), dtype=torch.float64), atol=1e-6)
    fold(changed, forward, inverse)
    x = pictures[0]
    assert torch.allclose(changed.synthesise(changed.analyse(x)), codec.synthesise(codec.analyse(x)), atol=1e-3)
    spread = latents_of(changed, pictures).std(dim=1)
    assert bool((spread[:-1] >= spread[1:] * 0.999).all())
    after = pixel_metric(changed, pictures, torch.Generator().manual_seed(2))
    strong = after[:3, :3] / after[0, 0]
    assert torch.allclose(strong, torch.eye(3, dtype=torch.float64), atol=0.35)
