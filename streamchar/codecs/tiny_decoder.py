"""A small decoder for Wan2.2's video latents: the architecture and the key names of `taew2_2` (TAEHV family).

2D convolutions at four scales. Each memory block also sees its own input one step earlier, so the whole is causal in
time; two of the three scales double the number of frames. A chunk of 9 latents gives 36 frames, of which the first 3
have no counterpart in the causal VAE and are dropped. Sizes are read off the weights, so that a decoder of the same
family with other widths loads too. Safetensors only.

Shape letters: B batch, C channels, T steps in time, H and W height and width, N = B T.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamchar import clock
from streamchar.errors import CheckpointError, InputError
from streamchar.types import VideoCodec

SATURATION = 3.0
"""Latents go in as 3 tanh(z / 3): outliers are squashed."""
SCALES = 3
BLOCKS = 3
"""Memory blocks of a scale."""


def _conv3(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Squash(nn.Module):
    """Soft limits for latents."""

    def forward(self, x_NCHW: Tensor, steps: int) -> Tensor:
        return SATURATION * torch.tanh(x_NCHW / SATURATION)


class Memory(nn.Module):
    """ReLU(x + three convolutions of x and of the x one step before; zeros before the clip)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv3(2 * channels, channels), nn.ReLU(), _conv3(channels, channels), nn.ReLU(), _conv3(channels, channels)
        )

    def forward(self, x_NCHW: Tensor, steps: int) -> Tensor:
        x_BTCHW = x_NCHW.unflatten(0, (-1, steps))
        before = torch.cat([torch.zeros_like(x_BTCHW[:, :1]), x_BTCHW[:, :-1]], dim=1).flatten(0, 1)
        return F.relu(x_NCHW + self.conv(torch.cat([x_NCHW, before], dim=1)))


class Enlarge(nn.Module):
    """Twice the height and width, each pixel four times."""

    def forward(self, x_NCHW: Tensor, steps: int) -> Tensor:
        return F.interpolate(x_NCHW, scale_factor=2, mode="nearest")


class Grow(nn.Module):
    """A 1x1 convolution that makes `factor` steps of one."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, channels * factor, 1, bias=False)

    def forward(self, x_NCHW: Tensor, steps: int) -> Tensor:
        return self.conv(x_NCHW).unflatten(1, (self.factor, -1)).flatten(0, 1)


class Rectify(nn.Module):
    """ReLU."""

    def forward(self, x_NCHW: Tensor, steps: int) -> Tensor:
        return F.relu(x_NCHW)


def _layers(latent_channels: int, widths: tuple[int, ...], growth: tuple[int, ...], patch: int) -> list[nn.Module]:
    """The decoder's layers, at the places that their keys name."""
    layers: list[nn.Module] = [Squash(), _conv3(latent_channels, widths[0]), Rectify()]
    for scale in range(SCALES):
        layers += [Memory(widths[scale]) for _ in range(BLOCKS)]
        layers += [
            Enlarge(), Grow(widths[scale], growth[scale]), _conv3(widths[scale], widths[scale + 1], bias=False)
        ]  # fmt: skip
    return [*layers, Rectify(), _conv3(widths[-1], 3 * patch * patch)]


_LAST = 4 + SCALES * (BLOCKS + 3)


class TinyVideoDecoder(nn.Module):
    """Normalised latents to pixels, as `taew2_2` does it."""

    def __init__(self, latent_channels: int, widths: tuple[int, ...], growth: tuple[int, ...], patch: int) -> None:
        super().__init__()
        self.decoder = nn.ModuleList(_layers(latent_channels, widths, growth, patch))
        self.latent_channels, self.patch = latent_channels, patch
        self.spatial_stride = 2**SCALES * patch
        self.temporal_stride = 1
        for factor in growth:
            self.temporal_stride *= factor

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Normalised latents (B, C, 1+k, h, w) -> (B, 3, 1+4k, h s, w s) in float32, in [-1, 1]."""
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[1] != self.latent_channels:
            raise InputError(
                f"latents must be (B, {self.latent_channels}, 1+k, h, w), got {tuple(latents_BCTHW.shape)}"
            )
        batch, steps = latents_BCTHW.shape[0], latents_BCTHW.shape[2]
        x = latents_BCTHW.transpose(1, 2).flatten(0, 1).to(next(self.parameters()).dtype)
        for layer in self.decoder:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, steps)
            steps = x.shape[0] // batch
        frames_NCHW = F.pixel_shuffle(x, self.patch).clamp(0, 1).float() * 2 - 1
        frames_BCTHW = frames_NCHW.unflatten(0, (batch, steps)).transpose(1, 2)
        return frames_BCTHW[:, :, self.temporal_stride - 1 :]

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], source: str) -> TinyVideoDecoder:
        """From a state dict with the keys of `taew2_2`; its encoder is left aside. Raises `CheckpointError`."""
        own = {name: value for name, value in weights.items() if name.startswith("decoder.")}
        first, last = own.get("decoder.1.weight"), own.get(f"decoder.{_LAST}.weight")
        if first is None or last is None:
            raise CheckpointError(
                f"{source} is no tiny decoder in taew2_2's format: expected decoder.1.weight and "
                f"decoder.{_LAST}.weight, got {len(own)} decoder keys; give taew2_2 as safetensors"
            )
        place = 3
        widths, growth = [first.shape[0]], []
        try:
            for _ in range(SCALES):
                place += BLOCKS + 1
                growth.append(own[f"decoder.{place}.conv.weight"].shape[0] // widths[-1])
                widths.append(own[f"decoder.{place + 1}.weight"].shape[0])
                place += 2
        except KeyError as error:
            raise CheckpointError(f"{source} is incomplete: {error} is missing; fetch it again") from None
        patch = round((last.shape[0] / 3) ** 0.5)
        with torch.device("meta"):
            made = cls(first.shape[1], tuple(widths), tuple(growth), patch)
        expected = {name: tuple(value.shape) for name, value in made.state_dict().items()}
        wrong = sorted(set(expected) ^ set(own)) or sorted(k for k in own if tuple(own[k].shape) != expected[k])
        if wrong:
            raise CheckpointError(
                f"{source} does not fit the tiny decoder's layers: {wrong[0]} is missing, unknown or of another shape "
                f"({len(wrong)} in all); give taew2_2 as safetensors"
            )
        made.load_state_dict(own, assign=True)
        return made.eval().requires_grad_(False)


class TinyDecodedCodec(nn.Module):
    """A video codec whose decoder is a tiny one; pictures are still encoded by its own encoder."""

    def __init__(self, codec: VideoCodec, decoder: TinyVideoDecoder) -> None:
        super().__init__()
        wanted = (codec.latent_channels, codec.spatial_stride, codec.temporal_stride)
        got = (decoder.latent_channels, decoder.spatial_stride, decoder.temporal_stride)
        if wanted != got:
            raise CheckpointError(
                f"the tiny decoder is for another codec: expected (channels, stride in space, in time) {wanted}, "
                f"got {got}; use the one made for this model's VAE"
            )
        assert codec.temporal_stride == clock.VIDEO_STRIDE
        self.codec, self.decoder = codec, decoder
        self.latent_channels, self.spatial_stride, self.temporal_stride = wanted

    @property
    def config(self) -> Any:
        """The codec's own."""
        return self.codec.config  # type: ignore[attr-defined]

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """As the codec does."""
        return self.codec.encode(frames_BCTHW)

    def decode(
        self, latents_BCTHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """Normalised latents (B, C, 1+k, h, w) -> (B, 3, 1+4k, h s, w s) in float32, in [-1, 1], without the
        still."""
        return self.decoder.decode(latents_BCTHW)

    def save(self, folder: Path | str) -> None:
        """The codec's own weights: the tiny decoder is an option of a run."""
        self.codec.save(folder)  # type: ignore[attr-defined]


def load_tiny_decoder(path: Path | str) -> TinyVideoDecoder:
    """Read a safetensors file; raises `CheckpointError`."""
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(
            f"expected a .safetensors file, got {path}; pickles are never read: convert it to safetensors first"
        )
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no tiny decoder at {path}; give the file taew2_2.safetensors") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); fetch it again") from None
    return TinyVideoDecoder.from_weights(weights, str(path))
