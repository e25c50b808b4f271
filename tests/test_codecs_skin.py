"""What the video decoder sees in its own picture beside the still: movement, colours, hands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamchar.codecs.reference import Acting, toned
from streamchar.codecs.skin import coloured
from streamchar.errors import ConfigError


def test_a_hand_takes_its_characters_colour_and_keeps_its_shape() -> None:
    """A dark hand of stripes, beside a fair character, where the gate says so; and nothing elsewhere, nor where all
    that is said to be a hand is a speck."""
    stripes = torch.tensor([-0.1, 0.1]).repeat(32).expand(64, 64)
    own = torch.full((1, 12, 64, 64), 0.2)
    own[..., 16:32, 16:32] = -0.5 + stripes[16:32, 16:32]
    where, fair = torch.full((1, 4, 16, 16), -8.0), torch.tensor([0.6, 0.4, 0.2]).view(1, 3, 1, 1)
    where[:, :3, 4:8, 4:8] = 8.0  # the fourth frame has none
    made = coloured(own, where, fair).unflatten(1, (4, 3))
    off, inside = made - own.unflatten(1, (4, 3)), made[:, :3, :, 20:28, 20:28]
    assert off[:, 3].abs().max() < 1e-3 and off[..., 40:, 40:].abs().max() < 1e-3
    assert (inside.mean((-2, -1)) - fair.view(3)).abs().max() < 0.02
    assert float(inside.std((-2, -1)).mean()) < 0.3 * float(stripes.std())
    wanted = fair.view(3) + 0.5
    where = torch.full((1, 4, 16, 16), -8.0)
    where[..., 5, 5] = 0.0
    speck = (coloured(own, where, fair) - own).abs().max()
    assert 0 < speck < 0.3 * wanted.abs().max()


def test_the_own_picture_takes_the_stills_colours_where_both_are_alike() -> None:
    """All a little too yellow, but for a hand in front of the still: that says nothing, and is corrected as what is
    around it."""
    moved = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.2
    yellow = torch.tensor([0.06, 0.03, -0.06]).view(3, 1, 1)
    own = moved + yellow
    own[..., 24:40, 24:40] = -0.8
    lacking, added = toned(own, moved, torch.full((1, 4, 8, 8), -30.0))
    assert (lacking + yellow).abs().max() < 0.025 and added.abs().max() < 1e-6
    lacking, added = toned(moved - 1.0, moved, torch.full((1, 4, 8, 8), 30.0))
    assert lacking.abs().max() < 1e-3, "another picture altogether"
    torch.testing.assert_close(added, torch.full_like(added, -1.0), atol=1e-3, rtol=0)


def test_what_has_moved_is_seen_in_two_pictures() -> None:
    """Features say nothing: how far a picture's grain is from the still's is learned from the two beside each other,
    for pictures never seen."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    acting = Acting(4, 4, 4)
    learn = torch.optim.Adam(acting.parameters(), 3e-3)

    def error() -> Tensor:
        shift = torch.randint(-2, 3, (4,), generator=draw)
        still = F.avg_pool2d(torch.randn(4, 3, 40, 40, generator=draw), 3, 1, 1)
        own = torch.stack([part.roll(int(d), -1) for part, d in zip(still, shift, strict=True)])
        acted, off = acting(torch.zeros(1, 8, 20, 20), own, still)
        assert acted.shape == off.shape == (1, 8, 20, 20)
        found = torch.stack([acted[0].unflatten(0, (4, 2))[:, 0], off[0].unflatten(0, (4, 2))[:, 0]])
        return (found[..., 4:-4, 4:-4] - 0.1 * shift[:, None, None]).abs().mean()

    with torch.no_grad():
        before = sum(float(error()) for _ in range(8))
    for _ in range(150):
        learn.zero_grad()
        error().backward()
        learn.step()
    with torch.no_grad():
        assert sum(float(error()) for _ in range(8)) < 0.6 * before
    with pytest.raises(ConfigError, match="patch that 2 divides"):
        Acting(4, 4, 3)
