"""A linear start for the video codec: its down and up path as principal components of the data.

With the residual blocks zero, the codec is a chain of linear maps. Setting each to the leading principal components of
what comes out of the map before gives an autoencoder with the right colours and shapes before the first step; from
random maps the first 300 steps went into that.

Shape letters as in `codecs/video.py`; P samples, D input channels (times the 2x2 window), O output channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from streamchar.codecs.video import ToonVideoCodec


def _components(x_PD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the `count` leading principal directions (count, D) of samples."""
    mean = x_PD.mean(dim=0)
    centred = x_PD - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(x_PD))
    return mean, vectors.flip(1)[:, :count].T


@torch.no_grad()
def principal_start(codec: ToonVideoCodec, frames_BCTHW: Tensor, flatten: float = 0.5) -> None:
    """Initialise `codec`'s linear path from `frames_BCTHW` in [-1, 1]; residual blocks stay as they are.

    `flatten` takes the latents' standard deviations to this power less (0: as the data have them, 1: whitened), so
    that the noise of training does not drown the weak components before they have been found useful.
    """
    encoder, decoder = codec.encoder, codec.decoder
    maps = [(encoder.stem, decoder.head), *zip(encoder.downs, list(decoder.ups)[::-1], strict=True)]
    maps.append((encoder.head, decoder.stem))
    seen: list[Tensor] = []
    hook = encoder.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    codec.analyse(frames_BCTHW)
    hook.remove()
    x_NCHW = seen[0]
    for forward, backward in maps:
        down, up = _conv(forward), _conv(backward)
        size = down.kernel_size[0]
        x_PD = rearrange(x_NCHW, "n i (h p) (w q) -> (n h w) (i p q)", p=size, q=size)
        mean, rows_OD = _components(x_PD, down.out_channels)
        if len(rows_OD) < down.out_channels:  # wider than the data: the rest of the channels stay free
            rows_OD = torch.cat([rows_OD, rows_OD.new_zeros(down.out_channels - len(rows_OD), rows_OD.shape[1])])
        gain_O = torch.ones(len(rows_OD))
        if down is encoder.head:
            gain_O = ((x_PD - mean) @ rows_OD.T).std(dim=0).clamp(min=1e-3) ** -flatten
        down.weight.copy_((rows_OD * gain_O[:, None]).view(down.weight.shape))
        down.bias.copy_(-(down.weight.flatten(1) @ mean))  # type: ignore[union-attr]
        up.weight.copy_((rows_OD / gain_O[:, None]).T[:, :, None, None])
        up.bias.copy_(mean)  # type: ignore[union-attr]
        x_NCHW = down(x_NCHW)


def _conv(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module
