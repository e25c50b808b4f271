"""A small net that looks at cartoon-world pictures: features for `fid_world`, an identity embedding, attributes, mood.

Trained by `train/worldnet.py` on drawn frames of training characters only. It knows nothing but the cartoon world:
what it says of a photograph means nothing. Shape letters: N pictures, H height, W width, D features, E embedding,
C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.codecs.component import load_component
from streamchar.errors import InputError

FOLDER = Path(__file__).parent.parent / "assets" / "worldnet"
"""The shipped weights."""
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class WorldNetConfig:
    """Sizes, and what each head tells apart: the labels go with the weights, so that neither can drift alone."""

    heads: Mapping[str, tuple[str, ...]]
    size: int = 96
    widths: tuple[int, ...] = (40, 80, 128)
    features: int = 128
    embedding: int = 64


class _Residual(nn.Module):
    """Two convolutions around which the picture goes unchanged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.norm(self.conv(x)))


class WorldNet(nn.Module):
    """Pictures -> features (N, D); from these the embedding and the heads' logits are linear."""

    def __init__(self, config: WorldNetConfig) -> None:
        super().__init__()
        self.config = config
        self.version = "worldnet, untrained"
        """Names the weights: two nets' figures are not comparable. Set by `load_worldnet`."""
        stages: list[nn.Module] = []
        width = 3
        for i, wider in enumerate(config.widths):
            kernel, stride = (6, 4) if i == 0 else (3, 2)
            stages += [nn.Conv2d(width, wider, kernel, stride=stride, padding=1, bias=False)]
            stages += [nn.BatchNorm2d(wider), nn.SiLU()]
            if i < len(config.widths) - 1:
                stages.append(_Residual(wider))
            width = wider
        self.trunk = nn.Sequential(*stages)
        self.gather = nn.Linear(width * 9, config.features)
        self.norm = nn.BatchNorm1d(config.features, affine=False)  # every feature counts alike in a distance
        self.identity = nn.Linear(config.features, config.embedding, bias=False)
        self.heads = nn.ModuleDict({name: nn.Linear(config.features, len(v)) for name, v in config.heads.items()})

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """(N, 3, size, size) of `prepare` -> features (N, D)."""
        return self.norm(self.gather(F.adaptive_avg_pool2d(self.trunk(x_N3HW), 3).flatten(1)))

    def prepare(self, frames_N3HW: Tensor) -> Tensor:
        """uint8 of any size -> (N, 3, size, size) in [-1, 1]; of oblong pictures the middle square."""
        if frames_N3HW.ndim != 4 or frames_N3HW.shape[1] != 3 or frames_N3HW.dtype != torch.uint8:
            raise InputError(f"expected (N, 3, H, W) uint8, got {tuple(frames_N3HW.shape)} {frames_N3HW.dtype}")
        high, wide = frames_N3HW.shape[-2:]
        side, size = min(high, wide), self.config.size
        top, left = (high - side) // 2, (wide - side) // 2
        square = frames_N3HW[..., top : top + side, left : left + side].float()
        if side != size:
            square = F.interpolate(square, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return square.div(127.5).sub(1)

    @torch.no_grad()
    def features(self, frames_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, D) float32."""
        return torch.cat([self(self.prepare(part)) for part in frames_N3HW.split(BATCH)])

    def embed(self, features_ND: Tensor) -> Tensor:
        """(N, E) of length 1: near for pictures of one character, whatever it does; far for two."""
        return F.normalize(self.identity(features_ND), dim=-1)

    def logits(self, features_ND: Tensor) -> dict[str, Tensor]:
        """By head: (N, C)."""
        return {name: head(features_ND) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, features_ND: Tensor) -> dict[str, list[str]]:
        """By head: the label of every picture."""
        labels = self.config.heads
        return {
            name: [labels[name][i] for i in value_NC.argmax(-1).tolist()]
            for name, value_NC in self.logits(features_ND).items()
        }


@lru_cache(maxsize=2)
def load_worldnet(folder: Path = FOLDER) -> WorldNet:
    """The net of a folder, in evaluation mode; raises `CheckpointError` if there is none."""
    net = load_component(WorldNet, WorldNetConfig, folder).requires_grad_(False)
    net.version = f"worldnet {hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()[:8]}"
    return net
