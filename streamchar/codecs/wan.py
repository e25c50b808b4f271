"""Adapter: diffusers' `AutoencoderKLWan` as a `types.VideoCodec` (Wan2.2: 48 channels, 16x in space, 4x in time).

Latents are normalised per channel with the checkpoint's own `latents_mean` and `latents_std`, as diffusers' Wan
pipelines do: it is what the Wan DiT weights were trained on. `encode` takes the posterior's mode, so it is a function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from streamchar import clock
from streamchar.config.model import VideoCodecConfig
from streamchar.errors import CheckpointError, InputError

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


class WanVideoCodec(nn.Module):
    """A Wan VAE behind the codec protocol."""

    temporal_stride = clock.VIDEO_STRIDE

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        settings: Any = vae.config
        if settings.scale_factor_temporal != clock.VIDEO_STRIDE:
            raise CheckpointError(
                f"the clock needs a video VAE with temporal stride {clock.VIDEO_STRIDE}, "
                f"got {settings.scale_factor_temporal}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(settings, name)) != settings.z_dim:
                raise CheckpointError(
                    f"{name} must have {settings.z_dim} values, one a channel, got {len(getattr(settings, name))}"
                )
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels: int = settings.z_dim
        self.spatial_stride: int = settings.scale_factor_spatial
        self.register_buffer("mean_C", torch.tensor(settings.latents_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std_C", torch.tensor(settings.latents_std, dtype=torch.float32), persistent=False)

    @property
    def config(self) -> VideoCodecConfig:
        """What our configuration says of this codec."""
        return VideoCodecConfig(
            family="wan", latent_channels=self.latent_channels, spatial_stride=self.spatial_stride
        )

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """(B, 3, 1+4k, H, W) in [-1, 1] -> normalised latents (B, C, 1+k, H/s, W/s) in float32."""
        frames, stride = frames_BCTHW.shape[2], self.spatial_stride
        if frames % clock.VIDEO_STRIDE != 1:
            raise InputError(f"a clip must have 1 + 4 k frames (first-frame rule), got {frames}")
        if frames_BCTHW.shape[3] % stride or frames_BCTHW.shape[4] % stride:
            raise InputError(
                f"height and width must be multiples of {stride}, got {tuple(frames_BCTHW.shape[3:])}"
            )
        raw = self.vae.encode(frames_BCTHW.to(self.vae.dtype)).latent_dist.mode().float()
        return (raw - self._wide(self.mean_C)) / self._wide(self.std_C)

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Normalised latents (B, C, 1+k, h, w) -> (B, 3, 1+4k, h s, w s) in float32, clamped to [-1, 1]."""
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[1] != self.latent_channels:
            raise InputError(
                f"latents must be (B, {self.latent_channels}, 1+k, h, w), got {tuple(latents_BCTHW.shape)}"
            )
        raw = latents_BCTHW.float() * self._wide(self.std_C) + self._wide(self.mean_C)
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float()

    def save(self, folder: Path | str) -> None:
        """Write the VAE as a diffusers folder."""
        self.vae.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def load(cls, folder: Path | str) -> WanVideoCodec:
        """Read a diffusers folder, in float32."""
        return cls.from_pretrained(str(folder))

    @classmethod
    def from_pretrained(
        cls, source: str, subfolder: str | None = None, dtype: torch.dtype = torch.float32
    ) -> WanVideoCodec:
        """From a diffusers folder or hub id (`Wan-AI/Wan2.2-TI2V-5B-Diffusers` with subfolder `vae`)."""
        try:
            vae = AutoencoderKLWan.from_pretrained(
                source, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True
            )
        except LOAD_ERRORS as error:
            raise CheckpointError(f"cannot read a Wan VAE from {source} (subfolder {subfolder}): {error}") from error
        return cls(vae)

    @classmethod
    def from_module(cls, vae: AutoencoderKLWan) -> WanVideoCodec:
        """Around a VAE that is already built."""
        return cls(vae)

    @staticmethod
    def _wide(values_C: Tensor) -> Tensor:
        return values_C.float()[:, None, None, None]
