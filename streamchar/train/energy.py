"""Latent coordinates in which the picture's energy is: a linear map of a trained codec's latents, lossless.

A codec trained with white noise on its latents fills its channels evenly (water-filling): details that hardly
show take as much variance as the mouth, and a diffusion model's loss is then about details. Here the latents are
first measured in the decoder's metric, M = E[J^T J] (how much the picture changes per unit of each direction), as
z' = M^(1/2) z, and then turned onto their principal axes. Distances between latents become distances between
pictures, and channels are sorted by what they contribute to them. Both maps fold into the encoder's last and the
decoder's first layer.

Shape letters: C channels, N cells or samples, and those of `codecs/video.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from streamchar.codecs.video import ToonVideoCodec

STEP = 0.1  # of the latents' deviation: small against the noise that the decoder was trained with
FLOOR = 1e-3  # of the mean eigenvalue: directions without any effect stay invertible


@torch.no_grad()
def pixel_metric(codec: ToonVideoCodec, pictures: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """M = E[J^T J], (C, C) float64, from finite differences on `pictures`, each (B, 3, 1+4k, H, W) in [-1, 1].

    Every channel is moved alone, in all cells at once and with the same random signs for all channels: what cells
    spill into their neighbours cancels in the mean.
    """
    total, cells = torch.zeros(codec.latent_channels, codec.latent_channels, dtype=torch.float64), 0
    for frames in pictures:
        raw = codec.analyse(frames).float()
        base = codec.synthesise(raw)
        signs = torch.randint(0, 2, raw[:, 0].shape, generator=generator) * 2.0 - 1
        step = STEP * float(raw.std())
        rows = []
        for channel in range(codec.latent_channels):
            moved = raw.clone()
            moved[:, channel] += step * signs.to(raw.device)
            rows.append(((codec.synthesise(moved) - base) / step).flatten().cpu())
        change_CN = torch.stack(rows)
        total += (change_CN @ change_CN.T).double()
        cells += raw[:, 0].numel()
    return total / cells


@torch.no_grad()
def latents_of(codec: ToonVideoCodec, pictures: Iterable[Tensor]) -> Tensor:
    """Raw latents (C, N) of the cells of `pictures`."""
    return torch.cat([codec.analyse(frames).float().transpose(0, 1).flatten(1).cpu() for frames in pictures], dim=1)


def energy_axes(metric_CC: Tensor, raw_CN: Tensor) -> tuple[Tensor, Tensor]:
    """The map A of latents, z' = A z, and its inverse: (C, C) float64 each, channels sorted by variance."""
    values, vectors = torch.linalg.eigh(metric_CC.double())
    values = values.clamp(min=FLOOR * float(values.mean()))
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    inverse = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    _, turn = torch.linalg.eigh(torch.cov(root @ raw_CN.double()))
    turn = turn.flip(1)
    return turn.T @ root, inverse @ turn


@torch.no_grad()
def fold(codec: ToonVideoCodec, forward_CC: Tensor, inverse_CC: Tensor) -> None:
    """Change the coordinates of `codec`'s raw latents in place; pictures in and out stay what they were."""
    head, stem = codec.encoder.head, codec.decoder.stem
    assert head.bias is not None
    head.weight.copy_((forward_CC @ head.weight[:, :, 0, 0].double().cpu())[..., None, None])
    head.bias.copy_(forward_CC @ head.bias.double().cpu())
    stem.weight.copy_((stem.weight[:, :, 0, 0].double().cpu() @ inverse_CC)[..., None, None])
