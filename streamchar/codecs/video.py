"""Our small causal video VAE (`toon`): 4x in time, 32x in space at 256x256, 48 channels.

Groups of four frames are the unit: the first frame of a clip is a group of its own (repeated four times, the
Wan first-frame rule), then four frames each. A group's frames are stacked in the channels, so everything but two
cheap mixers per half works on one latent's time; the mixers look back over `HISTORY` latents and never ahead.
Norms are per pixel, so neither the chunk's length nor the picture's size changes what a pixel sees.

Shape letters: B batch, C channels, T RGB frames, K latents in time, N = B K, H and W height and width
(lower case in the latent), F = 4 frames of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from streamchar import clock
from streamchar.codecs.component import load_component, save_component
from streamchar.codecs.layers import PixelNorm, Residual
from streamchar.codecs.motion import GroupMotion
from streamchar.codecs.reference import Look, ReferenceMixer
from streamchar.config.model import VideoCodecConfig
from streamchar.errors import ConfigError, InputError

HISTORY = 2  # latents before the present one that a time mixer sees
MIXED_LEVELS = 2  # the coarsest levels, where the time mixers stand
AT_ONCE = 3  # groups of a stream that are drawn together
GROUP_CHANNELS = clock.VIDEO_STRIDE * 3


class TimeMixer(nn.Module):
    """A causal residual over latents: each pixel sees itself now and `HISTORY` latents back.

    Before the clip's start the first latent stands for the past, so that a still picture has constant latents.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PixelNorm(channels)
        self.inward = nn.Conv2d(channels * (1 + HISTORY), channels // 2, 1)
        self.outward = nn.Conv2d(channels // 2, channels, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x_NCHW: Tensor, latents: int) -> Tensor:
        y_BKCHW = self.norm(x_NCHW).unflatten(0, (-1, latents))
        past = [y_BKCHW]
        for _ in range(HISTORY):
            past.append(torch.cat([past[-1][:, :1], past[-1][:, :-1]], dim=1))
        seen_NCHW = torch.cat(past, dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return x_NCHW + self.outward(F.silu(self.inward(seen_NCHW)))


class Level(nn.Module):
    """The blocks of one resolution, with a time mixer in front at the coarse ones."""

    def __init__(self, channels: int, blocks: int, mixed: bool) -> None:
        super().__init__()
        self.mixer = TimeMixer(channels) if mixed else None
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(blocks)))

    def forward(self, x_NCHW: Tensor, latents: int) -> Tensor:
        if self.mixer is not None:
            x_NCHW = self.mixer(x_NCHW, latents)
        return self.blocks(x_NCHW)


class Encoder(nn.Module):
    """Space-to-depth linear maps with residual levels between; linear at initialisation."""

    def __init__(self, config: VideoCodecConfig, patch: int) -> None:
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.stem = nn.Conv2d(GROUP_CHANNELS * patch * patch, widths[0], 1)
        self.levels = nn.ModuleList(
            Level(width, count, mixed=last - i < MIXED_LEVELS)
            for i, (width, count) in enumerate(zip(widths, config.blocks, strict=True))
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        self.head = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, x_NCHW: Tensor, latents: int) -> Tensor:
        x_NCHW = self.stem(x_NCHW)
        for i, level in enumerate(self.levels):
            x_NCHW = level(self.downs[i - 1](x_NCHW) if i else x_NCHW, latents)
        return self.head(x_NCHW)


class Decoder(nn.Module):
    """The encoder mirrored: linear depth-to-space maps with residual levels between; with `GroupMotion` and a
    `ReferenceMixer` where the config wants them."""

    def __init__(self, config: VideoCodecConfig, patch: int) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.patch = patch
        self.stem = nn.Conv2d(config.latent_channels, widths[0], 1)
        self.levels = nn.ModuleList(
            Level(width, count, mixed=i < MIXED_LEVELS)
            for i, (width, count) in enumerate(zip(widths, config.blocks[::-1], strict=True))
        )
        self.ups = nn.ModuleList(
            nn.Conv2d(coarse, fine * 4, 1) for coarse, fine in zip(widths, widths[1:], strict=False)
        )
        self.head = nn.Conv2d(widths[-1], GROUP_CHANNELS * patch * patch, 1)
        self.motion = GroupMotion(*widths[-2:], patch) if config.motion else None
        self.reference = ReferenceMixer(widths, patch, config.parts) if config.reference else None

    def features(self, latents_BCKHW: Tensor, levels: int | None = None) -> list[Tensor]:
        """What each level makes of raw latents, coarse to fine, N = B K of each; only the first `levels`."""
        latents = latents_BCKHW.shape[2]
        x_NCHW = rearrange(latents_BCKHW, "b c k h w -> (b k) c h w").contiguous(memory_format=torch.channels_last)
        x_NCHW, found = self.stem(x_NCHW), []
        for i, level in enumerate(self.levels[:levels]):
            x_NCHW = level(F.pixel_shuffle(self.ups[i - 1](x_NCHW), 2) if i else x_NCHW, latents)
            found.append(x_NCHW)
        return found

    def picture(self, features: list[Tensor]) -> Tensor:
        """(N, 4 3, H, W): a group's four frames in the channels."""
        return self.pictures(features)[0]

    def pictures(self, features: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The same, and what `GroupMotion` moved, if there is one."""
        direct = rearrange(
            self.head(features[-1]), "n (f c p q) h w -> n (f c) (h p) (w q)",
            f=clock.VIDEO_STRIDE, p=self.patch, q=self.patch,
        )  # fmt: skip
        return (direct, None) if self.motion is None else self.motion(direct, *features[-2:])

    def forward(
        self, latents_BCKHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """Raw latents; those of the still, if there is one to use; and its picture, if that is at hand: else it is
        what its latents give -> (N, 4 3, H, W)."""
        return self._draw(self.features(latents_BCKHW)[-3:], self.look(still_BC1HW, picture_BCHW))

    def groups(
        self, latents_BCKHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The same, `AT_ONCE` of a stream after the other: behind the features nothing looks at another group, and the
        pictures of all at once would be most of a chunk's peak of memory."""
        features, latents = self.features(latents_BCKHW)[-3:], latents_BCKHW.shape[2]
        look = self.look(still_BC1HW, picture_BCHW)
        for which in range(len(latents_BCKHW)):
            mine = None if look is None else look.of(which)
            for first in range(which * latents, (which + 1) * latents, AT_ONCE):
                end = min(first + AT_ONCE, (which + 1) * latents)
                yield from self._draw([f[first:end] for f in features], mine).split(1)

    def look(self, still_BC1HW: Tensor | None, picture_BCHW: Tensor | None = None) -> Look | None:
        """What the mixer sees of a still, from its raw latents and its picture; nothing, where there is none to use."""
        if still_BC1HW is None or self.reference is None:
            return None
        if picture_BCHW is not None:
            return self.reference.look(picture_BCHW, self.beside(still_BC1HW))
        seen = self.features(still_BC1HW)
        return self.reference.look(self.picture(seen)[:, -3:], seen[-3])

    def _draw(self, features: list[Tensor], look: Look | None) -> Tensor:
        own = self.picture(features)
        return own if self.reference is None or look is None else self.reference(own, features, look)[0]

    def beside(self, still_BC1HW: Tensor) -> Tensor:
        """The features of a still that the mixer sees, from its raw latents."""
        return self.features(still_BC1HW, len(self.levels) - 2)[-1]


class ToonVideoCodec(nn.Module):
    """Causal video VAE for the cartoon world; implements `types.VideoCodec`.

    `encode` and `decode` speak normalised latents: one mean per channel and ONE scale for all of them, so that the
    variance stays where the energy is. `analyse` and `synthesise` are the raw halves that training uses.
    """

    temporal_stride = clock.VIDEO_STRIDE

    mean_C: Tensor
    scale: Tensor

    def __init__(self, config: VideoCodecConfig) -> None:
        super().__init__()
        halvings = len(config.widths) - 1
        if config.family != "toon" or not config.widths or len(config.widths) != len(config.blocks):
            raise ConfigError(
                'ToonVideoCodec needs family "toon" and as many blocks as widths, got '
                f"{config.family!r}, widths {config.widths}, blocks {config.blocks}"
            )
        if config.spatial_stride % 2**halvings:
            raise ConfigError(
                f"spatial_stride must be a multiple of {2**halvings} with {len(config.widths)} widths, "
                f"got {config.spatial_stride}"
            )
        self.config = config
        self.latent_channels = config.latent_channels
        self.spatial_stride = config.spatial_stride
        self.patch = config.spatial_stride // 2**halvings
        self.encoder = Encoder(config, self.patch)
        self.decoder = Decoder(config, self.patch)
        self.register_buffer("mean_C", torch.zeros(config.latent_channels))
        self.register_buffer("scale", torch.ones(()))
        self.to(memory_format=torch.channels_last)

    def analyse(self, frames_BCTHW: Tensor) -> Tensor:
        """(B, 3, 1+4k, H, W) in [-1, 1] -> raw latents (B, C, 1+k, H/s, W/s)."""
        self._check_frames(frames_BCTHW)
        first = frames_BCTHW[:, :, :1]
        groups = torch.cat([first.expand(-1, -1, clock.VIDEO_STRIDE - 1, -1, -1), frames_BCTHW], dim=2)
        latents = groups.shape[2] // clock.VIDEO_STRIDE
        x_NCHW = rearrange(
            groups, "b c (k f) (h p) (w q) -> (b k) (f c p q) h w", f=clock.VIDEO_STRIDE, p=self.patch, q=self.patch
        ).contiguous(memory_format=torch.channels_last)
        return rearrange(self.encoder(x_NCHW, latents), "(b k) c h w -> b c k h w", k=latents)

    def synthesise(
        self, latents_BCKHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """Raw latents (B, C, 1+k, h, w) -> (B, 3, 1+4k, h s, w s), not clamped. `still_BC1HW`: raw latents of the
        picture that a stream begins with, and that itself; they are used where the codec was made for it."""
        self._check_latents(latents_BCKHW)
        return in_time(self.decoder(latents_BCKHW, still_BC1HW, picture_BCHW), latents_BCKHW.shape[2])

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """(B, 3, 1+4k, H, W) in [-1, 1] -> normalised latents (B, C, 1+k, H/s, W/s) in float32."""
        raw = self.analyse(frames_BCTHW.to(self.encoder.stem.weight.dtype)).float()
        return (raw - self.mean_C.float()[:, None, None, None]) / self.scale.float()

    @torch.no_grad()
    def decode(
        self, latents_BCTHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """Normalised latents (B, C, 1+k, h, w); those (B, C, 1, h, w) of the picture that the stream began with, if
        it did; and that picture (B, 3, H, W) in [-1, 1] -> (B, 3, 1+4k, h s, w s) in float32, clamped to [-1, 1]."""
        self._check_latents(latents_BCTHW)
        still = None if still_BC1HW is None else self.raw(still_BC1HW)
        batch, _, latents, *size = latents_BCTHW.shape
        last = clock.VIDEO_STRIDE * (latents - 1)
        out = torch.empty(
            batch, 3, 1 + last, *(n * self.spatial_stride for n in size), device=latents_BCTHW.device
        )
        for n, group in enumerate(self.decoder.groups(self.raw(latents_BCTHW), still, picture_BCHW)):
            which, end = n // latents, 1 + clock.VIDEO_STRIDE * (n % latents)
            into = out[which, :, max(0, end - clock.VIDEO_STRIDE) : end]  # of the first group its last frame
            torch.clamp(group.unflatten(1, (-1, 3))[0, -into.shape[1] :].transpose(0, 1).float(), -1, 1, out=into)
        return out

    def raw(self, latents_BCTHW: Tensor) -> Tensor:
        """Normalised latents as the decoder takes them."""
        raw = latents_BCTHW.float() * self.scale.float() + self.mean_C.float()[:, None, None, None]
        return raw.to(self.decoder.stem.weight.dtype)

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors; `dtype` narrows the stored parameters."""
        save_component(self, self.config, Path(folder), dtype)

    @classmethod
    def load(cls, folder: Path | str) -> ToonVideoCodec:
        """Read a folder written by `save`, in float32 and evaluation mode."""
        return load_component(cls, VideoCodecConfig, Path(folder)).requires_grad_(False)

    def _check_latents(self, latents_BCKHW: Tensor) -> None:
        if latents_BCKHW.ndim != 5 or latents_BCKHW.shape[1] != self.latent_channels:
            raise InputError(
                f"latents must be (B, {self.latent_channels}, 1+k, h, w), got {tuple(latents_BCKHW.shape)}"
            )

    def _check_frames(self, frames_BCTHW: Tensor) -> None:
        shape, stride = tuple(frames_BCTHW.shape), self.spatial_stride
        if len(shape) != 5 or shape[1] != 3:
            raise InputError(f"frames must be (B, 3, T, H, W), got {shape}")
        if shape[2] % clock.VIDEO_STRIDE != 1:
            low = (shape[2] - 1) // clock.VIDEO_STRIDE * clock.VIDEO_STRIDE + 1
            raise InputError(
                f"a clip must have 1 + 4 k frames (first-frame rule), got {shape[2]}; "
                f"nearest: {max(low, 1)} or {low + clock.VIDEO_STRIDE}"
            )
        if shape[3] % stride or shape[4] % stride:
            raise InputError(f"height and width must be multiples of {stride}, got {shape[3]}x{shape[4]}")


def in_time(groups_NCHW: Tensor, latents: int) -> Tensor:
    """(B k, 4 C, H, W), k = `latents` -> (B, C, 1 + 4 (k - 1), H, W): of the first group only its last frame exists."""
    frames = rearrange(groups_NCHW, "(b k) (f c) h w -> b c (k f) h w", k=latents, f=clock.VIDEO_STRIDE)
    return frames[:, :, clock.VIDEO_STRIDE - 1 :]
