"""What the picture has in common with its still, taken from there (`toon`'s video decoder).

A character's hair, hat and glasses stand sharp in the still that a stream begins with; a latent of a moving head
only says where they went. Per frame, a flow field out of the decoder's own features moves the still's picture, and
every pixel is a mixture of three: the decoder's own, the moved still's, and the still's where it was (what stands
behind the character). With `parts`, the flow is that of a few parts which move as wholes each: a turned head is not
torn where its latents do not agree on how far. How far exactly is seen, not only known: the still so moved is laid
beside the decoder's own picture, which shows where things are, however smeared, and what is still off is asked of the
parts again; what a face does with brows, lids and gaze is a small flow of each place's own. Places may take the own
picture's colours, smoothed, as of a blush; hands have the colour of the still's skin (`codecs/skin.py`). At
initialisation the mixture is all but the decoder's own.

Shape letters as in `codecs/video.py`; P = patch, the pixels of a feature's side at the finest level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streamchar import clock
from streamchar.codecs.layers import Residual
from streamchar.codecs.motion import move
from streamchar.codecs.skin import Skin, coloured, enlarged
from streamchar.errors import ConfigError

COARSE, MIDDLE = 96, 64
"""Channels of the two levels that see both pictures."""
ACTING = 24
"""Channels, a frame, behind the flows that are seen in two pictures."""
HALF = 2
"""How much smaller those pictures are."""
BLOCKS = (3, 2)
REACH = 0.2
"""Of the picture's half side: what a flow of 1 is."""
OWN = 3.0
"""Logit of the decoder's own picture at the start: 0.91 of the mixture."""
SOURCES = 3
ALIKE, AROUND, FEW = 0.15, 2, 0.05
"""How far apart colours of [-1, 1] are that count as the same place's in two pictures, over how many places of 8 pixels
to each side the difference is averaged, and which share of these says little."""
STIFF = 0.003
"""How hard a part is to turn and to stretch: what its least squares add, in units of its own weight."""


class Parts(nn.Module):
    """A flow -> the flow of a few parts, each moving by the affine map that fits it best.

    Features say which part each place belongs to, and how far its flow is to be trusted; the maps are weighted least
    squares. So places that do not know where they come from go with their part. Where one part ends and the next one
    begins is said by finer features than the flow's.
    """

    def __init__(self, channels: int, fine: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.said = nn.Conv2d(channels, clock.VIDEO_STRIDE * (count + 1), 1)
        nn.init.normal_(self.said.weight, std=2 * channels**-0.5)
        self.edges = nn.Conv2d(fine, clock.VIDEO_STRIDE * count, 1, bias=False)
        nn.init.zeros_(self.edges.weight)

    def forward(self, x_NChw: Tensor, fine_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the flow's size and finer ones -> what `fit` needs: (4 N, K + 1, h, w), which part each place
        belongs to and how far it is trusted; and (4 N, K, H W), the former at the finer ones' places. In float32."""
        size = fine_NCHW.shape[-2:]
        with torch.autocast(x_NChw.device.type, enabled=False):
            said = self.said(x_NChw.to(self.said.weight.dtype)).float()
            said = rearrange(said, "n (f k) h w -> (n f) k h w", f=clock.VIDEO_STRIDE)
            edges = self.edges(fine_NCHW.to(self.edges.weight.dtype)).float()
            belongs = F.interpolate(said[:, : self.count], size=size, mode="bilinear", align_corners=False)
            belongs = belongs + rearrange(edges, "n (f k) h w -> (n f) k h w", k=self.count)
            return said, belongs.softmax(1).flatten(2)

    def fit(self, flow_N8hw: Tensor, said: Tensor, belongs: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 4 2, h, w) -> (N, 4 2, H, W), of `size`, in float32."""
        with torch.autocast(flow_N8hw.device.type, enabled=False):
            maps = self.maps(rearrange(flow_N8hw.float(), "n (f two) h w -> (n f) two h w", two=2), said)
            found = (maps.mT.flatten(1, 2) @ places(*size, maps.device).T).unflatten(1, (self.count, 2))
            found = (found * belongs[:, :, None]).sum(1)
        return rearrange(found, "(n f) two (h w) -> n (f two) h w", f=clock.VIDEO_STRIDE, h=size[0])

    def maps(self, flow_N2hw: Tensor, said_NKhw: Tensor) -> Tensor:
        """(N, K, 3, 2): of a place (x, y, 1), where each part has it come from."""
        said, flow = said_NKhw.flatten(2), flow_N2hw.flatten(2).mT
        weight = said[:, : self.count].softmax(1) * said[:, self.count :].sigmoid() + 1e-4
        place = places(*flow_N2hw.shape[-2:], flow.device)
        squares = (weight @ (place[:, :, None] * place[:, None]).flatten(1)).unflatten(2, (3, 3))
        given = (weight @ (place[:, :, None] * flow[:, :, None]).flatten(2)).unflatten(2, (3, 2))
        stiff = squares[..., 2:, 2:] * torch.diag(torch.tensor([STIFF, STIFF, 0.0], device=flow.device))
        return inverse(squares + stiff) @ given


def places(high: int, wide: int, device: torch.device) -> Tensor:
    """(h w, 3): x and y of each place between -1 and 1, and 1."""
    y, x = (torch.linspace(-1, 1, 2 * n + 1, device=device)[1::2] for n in (high, wide))
    return torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(high, wide, device=device)], -1).flatten(0, 1)


def inverse(m_NK33: Tensor) -> Tensor:
    """Of symmetric 3 x 3 matrices, from their rows' products: a solver would wait for the GPU, which no recorded graph
    can."""
    m = m_NK33 / m_NK33[..., 2:, 2:]
    a, b, c = m.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None] / m_NK33[..., 2:, 2:]


class Acting(nn.Module):
    """What is seen of a frame beside its still, moved by the parts: how far off that is, what a face does, and where it
    may blush.

    Both pictures are laid on each other in the same patches, with the same weights for a group's four frames: that is
    registering one picture on another, and asks for no knowledge of faces. The features, which know more and show no
    single frame, say what the patches are of.
    """

    def __init__(self, middle: int, fine: int, patch: int) -> None:
        super().__init__()
        if patch % HALF:
            raise ConfigError(f"a decoder with parts needs a patch that {HALF} divides, got {patch}")
        grain = patch // HALF
        self.told = nn.Conv2d(middle + fine, clock.VIDEO_STRIDE * ACTING, 1)
        self.seen = nn.Conv2d(2 * 3, ACTING, 3 * grain, stride=grain, padding=grain)
        self.matched = nn.Conv2d(ACTING, ACTING, 3, padding=1)
        self.moves = nn.Conv2d(ACTING, 4, 3, padding=1)
        self.tint = nn.Conv2d(middle, clock.VIDEO_STRIDE, 1)
        for head, start in ((self.moves, 0.0), (self.tint, -OWN)):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.constant_(head.bias, start)

    def forward(self, both_NCHW: Tensor, own: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and both pictures (4 N, 3, H P / 2, W P / 2) -> (N, 4 2, H, W) each, in units of `REACH`: what a
        face does, and how far off its place the moved still is."""
        told = self.told(both_NCHW).unflatten(1, (clock.VIDEO_STRIDE, ACTING)).flatten(0, 1)
        told = told.contiguous(memory_format=torch.channels_last)
        x = F.silu(told + self.seen(torch.cat([own, moved], 1)))
        x = self.moves(F.silu(x + self.matched(x))).float().unflatten(0, (-1, clock.VIDEO_STRIDE))
        return x[:, :, :2].flatten(1, 2), x[:, :, 2:].flatten(1, 2)


class Look(NamedTuple):
    """What is seen of a still, once for a whole chunk."""

    picture: Tensor
    """(B, 3, H, W)."""
    half: Tensor
    """The same, `HALF` times smaller."""
    beside: Tensor
    """The decoder's own features of it, of the coarsest level that the mixer sees."""
    tone: Tensor
    """Its skin's colour, (B, 3, 1, 1); of a mixer without parts nothing, (B, 0)."""

    def of(self, which: int) -> Look:
        """One stream's."""
        return Look(*(part[which : which + 1] for part in self))


class Plan(NamedTuple):
    """How a picture is mixed."""

    first: Tensor
    """Of the parts (N, 4 2, h, w), in units of `REACH`, as features know it; of the finest level's size, without parts
    of the middle one's."""
    flow: Tensor
    """The same, put right by what is seen."""
    acted: Tensor
    """What a face's acting adds to it."""
    tint: Tensor
    """Logits of how far the moved still's colours, those of whole places, go towards the own picture's, (N, 4, h, w)
    of the middle level's size."""
    share: Tensor
    """Logits of the mixture at the finest level."""
    bare: Tensor
    """Logits of where bare hands are, as the mixture's: (N, 4, H, W)."""


class ReferenceMixer(nn.Module):
    """The decoder's picture, the still moved by a flow, and the still: mixed by pixel."""

    def __init__(self, widths: tuple[int, ...], patch: int, parts: int = 0) -> None:
        """`widths`: of the decoder's levels, coarse to fine. `parts`: that move as wholes; 0: each place by itself."""
        super().__init__()
        if len(widths) < 3:
            raise ConfigError(f"a decoder with a reference needs at least 3 widths, got {widths}")
        coarse, middle, fine = widths[-3:]
        self.patch = patch
        self.inward = nn.Conv2d(2 * coarse, COARSE, 1)
        self.coarse = nn.Sequential(*(Residual(COARSE) for _ in range(BLOCKS[0])))
        self.up = nn.Conv2d(COARSE, 4 * MIDDLE, 1)
        self.across = nn.Conv2d(middle, MIDDLE, 1)
        self.middle = nn.Sequential(*(Residual(MIDDLE) for _ in range(BLOCKS[1])))
        self.flow = nn.Conv2d(MIDDLE, 2 * clock.VIDEO_STRIDE, 1)
        self.parts = Parts(MIDDLE, fine, parts) if parts else None
        self.acting = Acting(MIDDLE, fine, patch) if parts else None
        self.skin = Skin(MIDDLE + fine) if parts else None
        self.share = nn.Conv2d(MIDDLE + fine, clock.VIDEO_STRIDE * (SOURCES - 1) * patch * patch, 1)
        for head in (self.flow, self.share):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.constant_(head.bias, 0.0 if head is self.flow else -OWN)

    def look(self, still_BCHW: Tensor, beside_BCHW: Tensor) -> Look:
        """`still_BCHW` (B, 3, H, W) and its own features of the first of the last three levels."""
        tone = still_BCHW.new_zeros(len(still_BCHW), 0) if self.skin is None else self.skin.of(still_BCHW)
        return Look(still_BCHW, F.avg_pool2d(still_BCHW.float(), HALF), beside_BCHW, tone)

    def forward(self, own_NCHW: Tensor, features: list[Tensor], look: Look) -> tuple[Tensor, Tensor]:
        """`own_NCHW` (N, 4 3, H, W): four frames in the channels; `features`: of the last three levels, N of each.
        Returns the mixture and the moved still, both (N, 4 3, H, W)."""
        plan = self.plan(own_NCHW, features, look)
        if self.skin is not None:
            own_NCHW = coloured(own_NCHW, plan.bare, look.tone)
        return self.mix(own_NCHW, look.picture, plan.flow + plan.acted, plan.share, plan.tint)

    def plan(self, own_NCHW: Tensor, features: list[Tensor], look: Look) -> Plan:
        """What `mix` and `coloured` do, out of what `forward` takes."""
        coarse, middle, fine = features
        count = len(coarse) // len(look.beside)
        x = self.coarse(self.inward(torch.cat([coarse, look.beside.repeat_interleave(count, 0)], 1)))
        x = self.middle(F.pixel_shuffle(self.up(x), 2) + self.across(middle))
        flow = self.flow(x)
        both = torch.cat([F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False), fine], 1)
        share = self.share(both)
        if self.parts is None or self.acting is None or self.skin is None:
            never = flow.new_full((len(flow), clock.VIDEO_STRIDE, 1, 1), -100.0)
            return Plan(flow, flow, torch.zeros_like(flow), never, share, never)
        size, of = (fine.shape[-2], fine.shape[-1]), self.parts(x, fine)
        first = self.parts.fit(flow, *of, size)
        with torch.no_grad():
            own = own_NCHW[:, :, ::HALF, ::HALF].float().unflatten(1, (clock.VIDEO_STRIDE, 3)).flatten(0, 1)
            half = look.half.repeat_interleave(clock.VIDEO_STRIDE * count, 0)
            by = rearrange(first, "n (f two) h w -> (n f) two h w", two=2)
            moved = move(half, in_pixels(by, half.shape[-1]))
        acted, off = self.acting(both, own, moved)
        better = self.parts.fit(flow.float() + F.adaptive_avg_pool2d(off, flow.shape[-2:]), *of, size)
        return Plan(first, better, acted, self.acting.tint(x).float(), share, self.skin.where(both))

    def mix(
        self, own_NCHW: Tensor, still_BCHW: Tensor, flow: Tensor, share: Tensor, tint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns, of what `plan` says; the moved still without its tint."""
        stride = clock.VIDEO_STRIDE
        flow = rearrange(flow.float(), "n (f two) h w -> (n f) two h w", two=2)
        logits = rearrange(
            share, "n (f s p q) h w -> (n f) s (h p) (w q)", f=stride, p=self.patch, q=self.patch
        ).float()
        still = still_BCHW.float().repeat_interleave(len(flow) // len(still_BCHW), 0)
        moved = move(still, in_pixels(flow, still.shape[-1]))
        own = own_NCHW.float().unflatten(1, (stride, 3)).flatten(0, 1)
        tinted = moved
        if self.acting is not None:
            lacking, added = toned(own, moved, tint)
            own, tinted = own + lacking, moved + added
        shares = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).softmax(1)
        mixed = torch.addcmul(torch.addcmul(own * shares[:, :1], tinted, shares[:, 1:2]), still, shares[:, 2:3])
        return mixed.unflatten(0, (-1, stride)).flatten(1, 2), moved.unflatten(0, (-1, stride)).flatten(1, 2)


def toned(own_MCHW: Tensor, moved_MCHW: Tensor, tint_N4hw: Tensor) -> tuple[Tensor, Tensor]:
    """What both pictures are given of each other's colours, those of whole places (M, 3, H, W).

    The own one what it lacks of the moved still's, around: a student's latents have a face a little yellower than it
    is, which shows wherever its mouth is laid on the still. It is told by places that are alike in both, so a mouth
    that is shut in one and open in the other says nothing. The moved still what it lacks of the own one's, by the gates
    whose logits are `tint_N4hw`: a blush."""
    own, moved = (F.adaptive_avg_pool2d(x, tint_N4hw.shape[-2:]) for x in (own_MCHW, moved_MCHW))
    off = moved - own
    alike = torch.exp(-off.square().sum(1, keepdim=True) / (2 * ALIKE**2))
    reach = (2 * AROUND + 1, 1, AROUND)
    lacking = F.avg_pool2d(alike * off, *reach) / (F.avg_pool2d(alike, *reach) + FEW)
    return enlarged(lacking, own_MCHW), enlarged(tint_N4hw.float().sigmoid().flatten(0, 1)[:, None] * -off, own_MCHW)


def in_pixels(flow: Tensor, side: int) -> Tensor:
    """A flow in units of `REACH` in those of a picture's pixels."""
    return 0.5 * REACH * side * flow
