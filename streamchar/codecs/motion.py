"""Four frames of a group as one picture that moves (`toon`'s video decoder).

A group's four frames are stacked in a decoder's channels, so what moves within the group has to be drawn four times,
each time elsewhere, out of one feature: hands, lids and lips come out as the mean of the four. Here one picture of the
group is drawn, and a flow for each frame says where its pixels are taken from; every pixel is a mixture of that and of
the decoder's direct picture. It is the motion compensation of video coding, within a latent's own time.

Shape letters as in `codecs/video.py`; P = patch, the pixels of a feature's side at the finest level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streamchar import clock

REACH = 8.0
"""Pixels: what a flow of 1 is."""
DIRECT = 2.0
"""Logit of the direct picture at the start: 0.88 of the mixture."""


class GroupMotion(nn.Module):
    """The direct picture of a group mixed with one picture of it that four flows move."""

    def __init__(self, middle: int, fine: int, patch: int) -> None:
        """`middle`, `fine`: widths of the decoder's last two levels."""
        super().__init__()
        self.patch = patch
        self.key = nn.Conv2d(fine, 3 * patch * patch, 1)
        self.flow = nn.Conv2d(middle, 2 * clock.VIDEO_STRIDE, 3, padding=1)
        self.share = nn.Conv2d(fine, clock.VIDEO_STRIDE * patch * patch, 1)
        for head in (self.flow, self.share):
            nn.init.zeros_(head.weight)
            assert head.bias is not None
            nn.init.constant_(head.bias, 0.0 if head is self.flow else -DIRECT)

    @torch.no_grad()
    def begin(self, head: nn.Conv2d) -> None:
        """The one picture is at first the mean of the two in the middle of `head`, the direct picture's layer."""
        for mine, its in zip(self.key.parameters(), head.parameters(), strict=True):
            mine.copy_(its.unflatten(0, (clock.VIDEO_STRIDE, -1))[1:3].mean(0))

    def forward(self, direct_NCHW: Tensor, middle: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """`direct_NCHW` (N, 4 3, H, W): four frames in the channels; features of the last two levels. Returns the
        mixture and the moved picture, both as `direct_NCHW`."""
        key = F.pixel_shuffle(self.key(fine), self.patch)
        share = F.pixel_shuffle(self.share(fine), self.patch)
        flow = rearrange(self.flow(middle).float(), "n (f two) h w -> (n f) two h w", two=2)
        moved = move(key.float().repeat_interleave(clock.VIDEO_STRIDE, 0), REACH * flow)
        direct = direct_NCHW.float().unflatten(1, (clock.VIDEO_STRIDE, 3)).flatten(0, 1)
        mixed = torch.lerp(direct, moved, share.float().sigmoid().flatten(0, 1)[:, None].expand_as(moved))
        groups = (-1, clock.VIDEO_STRIDE)
        return mixed.unflatten(0, groups).flatten(1, 2), moved.unflatten(0, groups).flatten(1, 2)


def move(picture_NCHW: Tensor, flow_N2hw: Tensor) -> Tensor:
    """Each pixel taken from `flow` (x, y in pixels; it may be coarser than the picture) away; borders go on."""
    height, width = picture_NCHW.shape[-2:]
    unit = torch.tensor([2 / width, 2 / height], device=flow_N2hw.device)[:, None, None]
    flow = F.interpolate(flow_N2hw * unit, size=(height, width), mode="bilinear", align_corners=False)
    y = torch.linspace(-1, 1, 2 * height + 1, device=flow.device)[1::2]
    x = torch.linspace(-1, 1, 2 * width + 1, device=flow.device)[1::2]
    here = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return F.grid_sample(picture_NCHW, (flow + here).permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
