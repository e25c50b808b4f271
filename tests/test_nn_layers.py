"""Attention, norms, modulation and patches against their definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from streamchar.nn.attention import Attention, KeyValue, attend, join
from streamchar.nn.embeddings import TimeEmbedding, patch_latents, patchify, sinusoid, unpatch_latents
from streamchar.nn.modulation import Modulation, ModulationTable
from streamchar.nn.norms import LayerNorm, RMSNorm

torch.manual_seed(0)


def test_a_hidden_key_is_as_good_as_none():
    query, key, value = torch.randn(3, 2, 7, 2, 8)
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[:, 3:5] = False
    kept = [0, 1, 2, 5, 6]
    torch.testing.assert_close(
        attend(query, KeyValue(key, value), seen), attend(query, KeyValue(key[:, kept], value[:, kept]))
    )


def test_attention_is_softmax_of_scaled_scores():
    query, key, value = torch.randn(3, 2, 7, 2, 8)
    weights = (torch.einsum("blne,bsne->bnls", query, key) / 8**0.5).softmax(-1)
    expected = torch.einsum("bnls,bsne->blne", weights, value).flatten(2)
    torch.testing.assert_close(attend(query, KeyValue(key, value)), expected)


def test_joined_prefixes_are_what_was_joined():
    parts = [KeyValue(*torch.randn(2, 1, tokens, 2, 4)) for tokens in (3, 5)]
    both = join(parts)
    assert both.tokens == 8
    assert torch.equal(both.prefix(3).key, parts[0].key)
    assert torch.equal(both.prefix(3).value, parts[0].value)
    assert both.prefix(8) is both


def test_queries_and_keys_are_normed_across_heads():
    layer = Attention(16, 2, 1e-6)
    x = 5 * torch.randn(2, 3, 16)
    for heads in (layer.queries(x), layer.keys_values(x).key):
        torch.testing.assert_close(heads.flatten(2).square().mean(-1), torch.ones(2, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_compute_in_float32(dtype):
    x = (100 + torch.randn(2, 3, 16)).to(dtype)
    expected = torch.nn.functional.layer_norm(x.float(), (16,), eps=1e-6)
    torch.testing.assert_close(LayerNorm(16, 1e-6).to(dtype)(x), expected.to(dtype))
    assert RMSNorm(16, 1e-6).to(dtype)(x).dtype == torch.float32


def test_modulation_rows():
    x, y, rows = torch.randn(2, 4, 8), torch.randn(2, 4, 8), torch.randn(2, 1, 3, 8)
    modulation = Modulation(rows)
    normed = torch.nn.functional.layer_norm(x, (8,), eps=1e-6)
    torch.testing.assert_close(modulation.normed(x, 0, 1, 1e-6), normed * (1 + rows[:, :, 1]) + rows[:, :, 0])
    torch.testing.assert_close(modulation.gated(x, y, 2), x + y * rows[:, :, 2])
    per_token = Modulation(rows.expand(2, 4, 3, 8)).tokens(slice(1, 3))
    torch.testing.assert_close(per_token.gated(x[:, 1:3], y[:, 1:3], 2), modulation.gated(x, y, 2)[:, 1:3])
    assert ModulationTable(3, 8)(rows).rows_BSMD.equal(rows)


def test_sinusoid_equals_diffusers():
    timestep = torch.tensor([0.0, 12.5, 999.0])
    expected = get_timestep_embedding(timestep, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(timestep, 32), expected)


def test_time_states_of_one_level_and_of_one_per_token():
    embed = TimeEmbedding(32, 8)
    one, many = embed(torch.tensor([0.3, 0.8])), embed(torch.tensor([[0.3] * 5, [0.8] * 5]))
    assert (one.embedding.shape, one.rows.shape) == ((2, 1, 8), (2, 1, 6, 8))
    torch.testing.assert_close(many.rows[:, 2:3], one.rows)
    assert one.tokens(slice(0, 2)) is one
    assert many.tokens(slice(0, 2)).rows.shape == (2, 2, 6, 8)


def test_patchify_is_a_strided_convolution():
    x, conv = torch.randn(2, 3, 4, 4, 6), torch.nn.Conv3d(3, 5, (1, 2, 2), (1, 2, 2))
    expected = conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, (1, 2, 2)) @ conv.weight.flatten(1).T + conv.bias, expected)


def test_patch_latents_and_back():
    x = torch.randn(2, 3, 4, 4, 6)
    patches = patch_latents(x, (1, 2, 2))
    assert patches.shape == (2, 24, 4, 3)
    assert torch.equal(unpatch_latents(patches, (2, 3), (1, 2, 2)), x)
