"""The linear skip against the least-squares factor it claims to be."""

from __future__ import annotations

import pytest
import torch

from streamchar.dit.head import Head, linear_velocity
from streamchar.nn.embeddings import TimeEmbedding


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0])
def test_linear_velocity_is_the_least_squares_factor(sigma, deviation):
    z, eps = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]], dtype=torch.float64)  # unit variance, uncorrelated
    x, v = (1 - sigma) * deviation * z + sigma * eps, eps - deviation * z
    factor = linear_velocity(torch.tensor(sigma, dtype=torch.float64), deviation)
    torch.testing.assert_close(factor, v @ x / (x @ x))


def test_a_batch_that_mixes_references_is_each_sample_alone():
    """The one without a reference deviates as latents do, the other as they do from their reference."""
    torch.manual_seed(0)
    head = Head(8, 3, 4, 1e-6, anchored=True)
    head.velocity.deviation.copy_(torch.tensor([0.5, 1.0, 2.0]))
    head.velocity.residual.copy_(torch.tensor([0.1, 0.2, 0.3]))
    time, tokens = TimeEmbedding(32, 8)(torch.tensor([0.4, 0.4])), torch.randn(2, 5, 8)
    noisy, anchor = torch.randn(2, 5, 4, 3), torch.randn(2, 5, 4, 3)
    anchor[0] = 0
    mixed, without, with_it = (head(tokens, noisy, time, a) for a in (anchor, None, anchor[[1, 1]]))
    torch.testing.assert_close(mixed[0], without[0])
    torch.testing.assert_close(mixed[1], with_it[1])
    assert not torch.allclose(without[1], with_it[1])


def test_every_channel_has_its_own_factor():
    head, sigma = Head(8, 3, 4, 1e-6), torch.tensor([0.2, 0.7])
    torch.nn.init.zeros_(head.proj_out.weight), torch.nn.init.zeros_(head.proj_out.bias)
    torch.nn.init.zeros_(head.velocity.proj.weight), torch.nn.init.zeros_(head.velocity.proj.bias)
    head.velocity.deviation.copy_(torch.tensor([0.1, 1.0, 2.0]))
    noisy = torch.randn(2, 5, 4, 3)
    v = head(torch.randn(2, 5, 8), noisy, TimeEmbedding(32, 8)(sigma))
    torch.testing.assert_close(v, noisy * linear_velocity(sigma[:, None, None, None], head.velocity.deviation))
