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
from streamchar.errors import CheckpointError, ConfigError, InputError

WAN22_STRIDE = 16
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)


def wan_vae(config: VideoCodecConfig) -> AutoencoderKLWan:
    """An untrained Wan2.2 VAE of this size; its latents are not normalised (no data, no statistics)."""
    if config.family != "wan" or len(config.widths) != 2 or len(config.blocks) != 1:
        raise ConfigError(
            'a Wan VAE needs family "wan", widths (encoder, decoder) and blocks (a level), '
            f"got {config.family!r}, {config.widths} and {config.blocks}"
        )
    if config.spatial_stride != WAN22_STRIDE:
        raise ConfigError(f"Wan2.2's VAE has a spatial stride of {WAN22_STRIDE}, got {config.spatial_stride}")
    channels = config.latent_channels
    return AutoencoderKLWan(
        base_dim=config.widths[0], decoder_base_dim=config.widths[1], z_dim=channels, dim_mult=[1, 2, 4, 4],
        num_res_blocks=config.blocks[0], temperal_downsample=[False, True, True], is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_temporal=clock.VIDEO_STRIDE, scale_factor_spatial=WAN22_STRIDE,
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels,
    )  # fmt: skip


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
        own: Any = self.vae.config
        return VideoCodecConfig(
            family="wan", latent_channels=self.latent_channels, spatial_stride=self.spatial_stride,
            widths=(own.base_dim, own.decoder_base_dim or own.base_dim), blocks=(own.num_res_blocks,),
        )  # fmt: skip

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
    def decode(
        self, latents_BCTHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """Normalised latents (B, C, 1+k, h, w) -> (B, 3, 1+4k, h s, w s) in float32, clamped to [-1, 1]. This VAE
        has no use for the still."""
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
                source, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
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
