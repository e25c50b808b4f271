"""Rotary positions: shared phases, relative position, and Wan's own tables."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from streamchar.dit.layout import Layout
from streamchar.nn.rope import axis_widths, rotate, rotation

WIDTHS = axis_widths(64)


def test_the_head_is_split_as_in_wan():
    assert axis_widths(128) == (44, 42, 42)
    assert axis_widths(64) == (24, 20, 20)
    assert axis_widths(24) == (8, 8, 8)


@pytest.mark.parametrize("head_width", [24, 64, 128])
def test_equal_to_wan_tables(head_width):
    cos, sin = WanRotaryPosEmbed(head_width, (1, 2, 2), 64)(torch.zeros(1, 1, 5, 8, 6))
    layout = Layout(grid=(4, 3), ref=0, video=5, audio=0)
    ours = rotation(layout.positions(), axis_widths(head_width), 10_000.0)
    torch.testing.assert_close(ours.cos, cos[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sin[..., 1::2], sin[0, ..., 1::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sin[..., 0::2], -sin[0, ..., 0::2], rtol=0, atol=1e-6)


def test_audio_token_4k_shares_the_phase_of_video_latent_k():
    """Section 3.3: the same physical time, the same temporal phase."""
    layout = Layout(grid=(2, 2), sink=9, motion=9, video=18, audio=66)
    turn = rotation(layout.positions(), WIDTHS, 10_000.0)
    temporal = slice(0, WIDTHS[0])
    video = turn.part(*_ends(layout.segment("video")))
    audio = turn.part(*_ends(layout.segment("audio")))
    first_of_chunk = [0, 33]
    for chunk, start in enumerate(first_of_chunk):
        for latent in range(9):
            token = (9 * chunk + latent) * 4
            torch.testing.assert_close(audio.cos[start + 4 * latent, :, temporal], video.cos[token, :, temporal])
            torch.testing.assert_close(audio.sin[start + 4 * latent, :, temporal], video.sin[token, :, temporal])
    assert torch.equal(audio.cos[..., WIDTHS[0] :], torch.ones_like(audio.cos[..., WIDTHS[0] :]))


def test_scores_depend_on_relative_position_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 40, 2, 64, dtype=torch.float64)
    positions = torch.randn(40, 3, dtype=torch.float64) * 8

    def scores(shift):
        turn = rotation(positions + torch.tensor(shift), WIDTHS, 10_000.0)
        return torch.einsum("blne,bsne->bnls", rotate(query, turn), rotate(key, turn))

    torch.testing.assert_close(scores([0.0, 0.0, 0.0]), scores([-18.25, 3.0, 5.0]), rtol=0, atol=1e-4)


def test_rotation_keeps_length_and_zero_is_identity():
    x = torch.randn(1, 3, 2, 64)
    turned = rotate(x, rotation(torch.tensor([[0.0, 0, 0], [-9.5, 1, 2], [8, 0, 0]]), WIDTHS, 10_000.0))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def _ends(part):
    return part.start, part.stop
