"""Floating-point operations of the codecs' decoders, by formula; rules as in `flops.py`.

Each function takes a codec as it is built, because the public VAEs' widths stand in their own configurations and
not in ours. Padding counts as input, as the convolutions compute it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from streamchar import clock
from streamchar.bench.flops import dense
from streamchar.codecs.audio import BINS, FRAMES_PER_LATENT, ToonAudioCodec
from streamchar.codecs.video import Decoder, ToonVideoCodec
from streamchar.stream.decoding import ArrangedVideoCodec

COARSE_KERNEL, FINE_KERNEL, EXPANSION = 4, 7, 3  # of the toon audio decoder's blocks
RESIDUAL_UNITS, UNIT_KERNEL = 3, 7  # of an Oobleck decoder block


def conv(positions: int, inputs: int, outputs: int, kernel: int = 1) -> int:
    """A convolution with `positions` outputs and `kernel` taps."""
    return dense(positions, inputs * kernel, outputs)


def video_decode(codec: Any, latent_size: tuple[int, int]) -> int | None:
    """One chunk of pictures from latents of this height and width; None for a codec without a formula."""
    if isinstance(codec, ArrangedVideoCodec):
        codec = codec.codec
    if isinstance(codec, ToonVideoCodec):
        return toon_video(codec, latent_size)
    vae = getattr(codec, "vae", None)
    if type(vae).__name__ == "AutoencoderKLWan":
        return wan_video(vae.config, latent_size)
    return None


def audio_decode(codec: Any) -> int | None:
    """One chunk of sound in the middle of a stream, with what it looks back and ahead at; None without a formula."""
    if isinstance(codec, ToonAudioCodec):
        return toon_audio(codec)
    vae = getattr(codec, "vae", None)
    if type(vae).__name__ == "AutoencoderOobleck":
        return oobleck(vae.config, codec.reach + codec.lookahead + clock.AUDIO_LATENTS_PER_CHUNK)
    return None


def toon_video(codec: ToonVideoCodec, latent_size: tuple[int, int]) -> int:
    """Our small VAE: residual levels with depth-to-space maps between, and its motion; with a mixer, the mixture too,
    and what it sees of the still, whose picture is at hand."""
    area = math.prod(latent_size)
    total, positions = _toon_levels(codec.decoder, clock.VIDEO_LATENTS_PER_CHUNK * area)
    mixer = codec.decoder.reference
    if mixer is None:
        return total
    coarse, middle, fine = positions[-3:]
    total += _toon_levels(codec.decoder, area, len(codec.decoder.levels) - 2)[0]
    for at, parts in (
        (coarse, (mixer.inward, mixer.coarse, mixer.up)), (middle, (mixer.across, mixer.middle, mixer.flow)),
        (fine, (mixer.share,)),
    ):  # fmt: skip
        total += sum(_convs(part, at) for part in parts)
    if mixer.parts is not None and mixer.acting is not None and mixer.skin is not None:
        frames = clock.VIDEO_STRIDE * clock.VIDEO_LATENTS_PER_CHUNK
        place, end = (x // clock.VIDEO_LATENTS_PER_CHUNK for x in (middle, fine))
        total += _convs(mixer.parts.said, middle) + _convs(mixer.parts.edges, fine)
        total += _convs(mixer.acting.told, fine) + _convs(mixer.acting.tint, middle)
        total += sum(
            _convs(part, frames * end) for part in (mixer.acting.seen, mixer.acting.matched, mixer.acting.moves)
        )
        # twice: both sums and the maps, and these at every place
        total += 4 * frames * mixer.parts.count * (place * (9 + 6) + 18 + end * 6)
        total += _convs(mixer.skin.where, fine) + _convs(mixer.skin.seen, 1) + _convs(mixer.skin.colour, 1)
        # both pictures' colours of each other and a hand's gate, laid on the picture down and across
        high, wide = (n * codec.spatial_stride for n in latent_size)
        for few, channels in ((place, 6), (end, 1)):
            across = wide // math.isqrt(wide * high // few)
            total += 2 * frames * channels * (few * high + across * high * wide)
    return total


def _toon_levels(decoder: Decoder, positions: int, levels: int | None = None) -> tuple[int, list[int]]:
    """Operations from the latents to the picture, or through the first `levels`; and the positions of each."""
    parts = list(decoder.levels)[:levels]
    total, found = _convs(decoder.stem, positions) + _convs(parts[0], positions), [positions]
    for up, level, following in zip(decoder.ups, parts[1:], [*decoder.ups[1:], decoder.head], strict=False):
        total += _convs(up, positions)
        positions *= up.out_channels // following.in_channels  # channels become pixels, or frames
        total += _convs(level, positions)
        found.append(positions)
    if levels is not None:
        return total, found
    if decoder.motion is not None:
        motion = decoder.motion
        total += _convs(motion.key, positions) + _convs(motion.share, positions) + _convs(motion.flow, found[-2])
    return total + _convs(decoder.head, positions), found


def _convs(module: nn.Module, positions: int) -> int:
    """All convolutions in `module`, each with as many outputs."""
    found = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return sum(conv(positions, c.in_channels, c.out_channels, math.prod(c.kernel_size)) for c in found)


def wan_video(settings: Any, latent_size: tuple[int, int]) -> int:
    """Wan2.2's decoder, latent by latent: the first gives one frame, every other doubles at each temporal level."""
    if not settings.is_residual:
        raise NotImplementedError("the formula is of Wan2.2's residual decoder")
    area, frames = math.prod(latent_size), clock.VIDEO_LATENTS_PER_CHUNK
    width = settings.decoder_base_dim or settings.base_dim
    widths = [width * factor for factor in (settings.dim_mult[-1], *settings.dim_mult[::-1])]
    doubles = [*settings.temperal_downsample[::-1], False]
    top = widths[0]
    total = conv(frames * area, settings.z_dim, settings.z_dim)  # post-quantisation
    total += conv(frames * area, settings.z_dim, top, 27) + 2 * 2 * conv(frames * area, top, top, 27)
    # the middle's attention, one head within a frame
    total += conv(frames * area, top, 4 * top) + frames * 4 * area * area * top
    for level, (inner, outer) in enumerate(zip(widths, widths[1:], strict=False)):
        for unit in range(settings.num_res_blocks + 1):
            first = inner if unit == 0 else outer
            total += conv(frames * area, first, outer, 27) + conv(frames * area, outer, outer, 27)
            total += conv(frames * area, first, outer) if first != outer else 0
        if level == len(widths) - 2:
            break
        if doubles[level]:
            total += conv((frames - 1) * area, outer, 2 * outer, 3)  # the first latent stays one frame
            frames = 1 + 2 * (frames - 1)
        area *= 4
        total += conv(frames * area, outer, outer, 9)
    return total + conv(frames * area, widths[-1], settings.out_channels, 27)


def toon_audio(codec: ToonAudioCodec) -> int:
    """Our vocoder's network; its Fourier transforms are not counted."""
    width, blocks = codec.config.width, codec.config.decoder_blocks or codec.config.blocks
    latents = clock.AUDIO_LATENTS_PER_CHUNK
    frames = latents * FRAMES_PER_LATENT

    def block(positions: int, kernel: int) -> int:
        return 2 * positions * width * kernel + 2 * dense(positions, width, EXPANSION * width)

    channels = codec.config.latent_channels
    total = dense(latents, channels, channels)  # the rotation that sorts the channels
    total += dense(latents, channels, width) + dense(latents, width, FRAMES_PER_LATENT * width)
    total += blocks // 2 * block(latents, COARSE_KERNEL) + (blocks - blocks // 2) * block(frames, FINE_KERNEL)
    return total + dense(frames, width, 3 * BINS) + dense(frames, width, 2)


def oobleck(settings: Any, latents: int) -> int:
    """Stable Audio's decoder over a window of `latents`."""
    multiples = [1, *settings.channel_multiples]
    width, positions = settings.decoder_channels, latents
    total = conv(positions, settings.decoder_input_channels, width * multiples[-1], UNIT_KERNEL)
    for level, stride in enumerate(settings.downsampling_ratios[::-1]):
        inner, outer = width * multiples[-1 - level], width * multiples[-2 - level]
        total += conv(positions, inner, outer, 2 * stride)  # transposed: every input meets every tap
        positions *= stride
        total += RESIDUAL_UNITS * (conv(positions, outer, outer, UNIT_KERNEL) + conv(positions, outer, outer))
    return total + conv(positions, width, settings.audio_channels, UNIT_KERNEL)
