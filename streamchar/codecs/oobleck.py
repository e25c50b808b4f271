"""Adapter: diffusers' `AutoencoderOobleck` (Stable Audio's VAE) as a streaming `types.AudioCodec`.

With ratios 2, 4, 4, 8, 8 and 64 channels its stride is the clock's 2048; it runs at 49,152 Hz. Latents are used
unscaled, as diffusers' Stable Audio pipeline does.

Its decoder is not causal: the samples of one latent depend on `reach(ratios)` = 10 latents on either side (0.42 s).
So that a stream decoded chunk by chunk equals one decoded at once, `decode` is handed the first `lookahead` latents
that follow: a chunk can be heard when the next one has been generated, and the last one at once. `lookahead` 10 is
exact; 0 waits for nothing, but decodes a chunk's last latents as though silence followed, which is heard as a faint
seam. Anything between is a compromise.

Shape letters: B batch, S samples, T latents, C channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from streamchar import clock
from streamchar.codecs.tail import LatentTail
from streamchar.config.model import AudioCodecConfig
from streamchar.errors import CheckpointError, ConfigError, InputError

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)
_DILATIONS = (1, 3, 9)  # of a decoder block's three residual units, each with a kernel of 7


def oobleck_vae(config: AudioCodecConfig) -> AutoencoderOobleck:
    """An untrained mono Oobleck of this size with the clock's stride, at the clock's rate."""
    if config.family != "oobleck":
        raise ConfigError(f'an Oobleck VAE needs family "oobleck", got {config.family!r}')
    with quiet_weight_norm():
        return AutoencoderOobleck(
            encoder_hidden_size=2 * config.latent_channels,  # its encoder ends in means and scales
            decoder_channels=config.width, decoder_input_channels=config.latent_channels, audio_channels=1,
            sampling_rate=clock.AUDIO_RATE,
        )  # fmt: skip


@contextmanager
def quiet_weight_norm() -> Iterator[None]:
    """diffusers' class uses a form of weight norm that torch would like to see gone; its users cannot help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
        yield


def reach(ratios: tuple[int, ...]) -> int:
    """How many latents on either side the decoder's samples of one latent depend on.

    Walks from the output of one latent back through the layers, as an interval of samples at each rate.
    """
    low, high = -3, math.prod(ratios) - 1 + 3  # the last convolution, kernel 7
    for stride in ratios:  # the decoder's upsampling, from its end to its start
        low, high = low - 3 * sum(_DILATIONS), high + 3 * sum(_DILATIONS)
        padding = math.ceil(stride / 2)  # transposed convolution of kernel 2 s: o = i s - padding + k
        low, high = -((-low - padding + 2 * stride - 1) // stride), (high + padding) // stride
    return max(-low, high) + 3  # the first convolution, kernel 7


class OobleckAudioCodec(nn.Module):
    """An Oobleck VAE behind the codec protocol. Mono; a stereo checkpoint hears and returns both ears alike."""

    stride = clock.AUDIO_STRIDE

    def __init__(self, vae: AutoencoderOobleck, lookahead: int | None = None) -> None:
        super().__init__()
        settings: Any = vae.config
        ratios = tuple(settings.downsampling_ratios)
        if math.prod(ratios) != clock.AUDIO_STRIDE:
            raise CheckpointError(
                f"the clock needs an audio VAE with stride {clock.AUDIO_STRIDE}, got ratios {ratios} "
                f"= {math.prod(ratios)}"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels: int = settings.decoder_input_channels
        self.reach = reach(ratios)
        self.lookahead = self.reach if lookahead is None else lookahead
        """Latents of what follows that `decode` looks at."""
        if not 0 <= self.lookahead <= self.reach:
            raise ConfigError(f"lookahead must be from 0 to {self.reach} latents, got {lookahead}")

    @property
    def config(self) -> AudioCodecConfig:
        """What our configuration says of this codec."""
        own: Any = self.vae.config
        return AudioCodecConfig(family="oobleck", latent_channels=self.latent_channels, width=own.decoder_channels)

    @torch.no_grad()
    def encode(self, samples_BS: Tensor) -> Tensor:
        """(B, S) with S a multiple of 2048 -> (B, S/2048, C) in float32: the posterior's mean."""
        if samples_BS.ndim != 2 or samples_BS.shape[1] % self.stride or not samples_BS.shape[1]:
            raise InputError(f"samples must be (B, S) with S a multiple of 2048, got {tuple(samples_BS.shape)}")
        own: Any = self.vae.config
        ears = samples_BS[:, None].expand(-1, own.audio_channels, -1)
        return self.vae.encode(ears.to(self.vae.dtype)).latent_dist.mode().transpose(1, 2).float()

    def begin(self, reference_BTC: Tensor | None) -> None:
        """Nothing is known before the first latents: this decoder has no use for a voice."""
        return None

    @torch.no_grad()
    def decode(
        self, latents_BTC: Tensor, state: LatentTail | None = None, following_BTC: Tensor | None = None
    ) -> tuple[Tensor, LatentTail]:
        """(B, T, C) and the state after the latents before -> (B, 2048 T) float32 and the state after.

        `following_BTC` are latents that come next, `lookahead` of them or more; None, or fewer, where the stream ends.
        """
        self._check(latents_BTC)
        before = latents_BTC[:, :0] if state is None else state.tail_BTC.to(latents_BTC)
        parts = [before, latents_BTC]
        if following_BTC is not None and following_BTC.shape[1]:
            self._check(following_BTC)
            parts.append(following_BTC[:, : self.lookahead].to(latents_BTC))
        first, last = before.shape[1], before.shape[1] + latents_BTC.shape[1]
        samples_BS = self.decode_at_once(torch.cat(parts, dim=1))[:, first * self.stride : last * self.stride]
        heard_BTC = torch.cat(parts[:2], dim=1)
        return samples_BS, LatentTail(tail_BTC=heard_BTC[:, max(0, last - self.reach) :].clone())

    @torch.no_grad()
    def decode_at_once(self, latents_BTC: Tensor) -> Tensor:
        """A whole clip without delay: (B, T, C) -> (B, 2048 T)."""
        self._check(latents_BTC)
        return self.vae.decode(latents_BTC.transpose(1, 2).to(self.vae.dtype)).sample.float().mean(dim=1)

    def save(self, folder: Path | str) -> None:
        """Write the VAE as a diffusers folder."""
        self.vae.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def load(cls, folder: Path | str) -> OobleckAudioCodec:
        """Read a diffusers folder, in float32."""
        return cls.from_pretrained(str(folder))

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        subfolder: str | None = None,
        dtype: torch.dtype = torch.float32,
        lookahead: int | None = None,
    ) -> OobleckAudioCodec:
        """From a diffusers folder or hub id (`stabilityai/stable-audio-open-1.0` with subfolder `vae`)."""
        try:
            with quiet_weight_norm():
                vae = AutoencoderOobleck.from_pretrained(
                    source, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False
                )
        except LOAD_ERRORS as error:
            raise CheckpointError(f"cannot read an Oobleck VAE from {source} ({subfolder}): {error}") from error
        return cls(vae, lookahead)

    @classmethod
    def from_module(cls, vae: AutoencoderOobleck, lookahead: int | None = None) -> OobleckAudioCodec:
        """Around a VAE that is already built."""
        return cls(vae, lookahead)

    def _check(self, latents_BTC: Tensor) -> None:
        if latents_BTC.ndim != 3 or latents_BTC.shape[2] != self.latent_channels or not latents_BTC.shape[1]:
            raise InputError(f"latents must be (B, T, {self.latent_channels}), got {tuple(latents_BTC.shape)}")
