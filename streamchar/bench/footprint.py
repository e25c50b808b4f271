"""What a stream needs of a GPU's memory: counted weights and caches, estimated activations, and honest margins.

Counted: every parameter, every cached key and value, the stream's latents. Estimated: the largest set of
intermediate tensors that is alive at once (`ACTIVE_*`). On top: what the driver and the libraries take, and a share
for what the allocator cannot use. A plan says "fits" only with all of that.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamchar import clock
from streamchar.bench.inventory import Inventory
from streamchar.config.model import ModelConfig
from streamchar.dit.layout import Layout

GIB = 2**30
CARDS = {"24 GB": 23.0, "48 GB": 44.5, "80 GB": 79.0, "141 GB": 139.0}
"""Marketed size -> GiB that a process finds on such a card (with error correction where it has it)."""
RUNTIME_GIB = 1.5
"""CUDA context, cuBLAS and cuDNN workspaces."""
WASTE = 0.12
"""Share of caches and activations that the allocator holds and cannot use."""
BF16, FP8, FLOAT = 2, 1, 4
ACTIVE_WIDTHS = 20
"""Width-wide bfloat16 tensors of the noisy tokens alive in a block, float32 ones counted twice."""
ACTIVE_FFN = 3
ACTIVE_PICTURES = 6
"""Tensors of the decoder's widest level alive at once, convolution workspace included."""
MOST_HISTORY = clock.MAX_HISTORY_CHUNKS + 1
J, T = clock.AUDIO_LATENTS_PER_CHUNK, clock.VIDEO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be given up for memory."""

    name: str
    fp8: bool = False
    offload_text: bool = False
    tiny_decoder: bool = False


CHOICES = (
    Options(name="bf16"),
    Options(name="bf16, text encoder offloaded", offload_text=True),
    Options(name="bf16, offloaded, tiny decoder", offload_text=True, tiny_decoder=True),
    Options(name="fp8", fp8=True),
    Options(name="fp8, text encoder offloaded", fp8=True, offload_text=True),
    Options(name="fp8, offloaded, tiny decoder", fp8=True, offload_text=True, tiny_decoder=True),
)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes."""

    options: Options
    weights: int
    stream: int
    """Caches and state of one stream: every further stream adds it."""
    activations: int

    @property
    def total(self) -> int:
        working = self.stream + self.activations
        return int(self.weights + (1 + WASTE) * working + RUNTIME_GIB * GIB)

    def streams(self, card_gib: float) -> int:
        """Streams that one model on such a card can hold in memory; 0 when not even one fits."""
        room = card_gib * GIB - self.total
        return 0 if room < 0 else 1 + int(room / ((1 + WASTE) * self.stream))


def footprint(config: ModelConfig, parts: Inventory, options: Options) -> Footprint:
    """What `options` need at this configuration's picture size."""
    return Footprint(
        options=options, weights=weights(parts, options), stream=stream_bytes(config),
        activations=max(denoising(config), decoding(config, options), prompting(config)),
    )  # fmt: skip


def weights(parts: Inventory, options: Options) -> int:
    """Weights on the GPU. The audio codec is float32; fp8 keeps one float32 scale a row, which is nothing here. The
    video codec stays whole with a tiny decoder too: its encoder makes the reference's latent."""
    dit = BF16 * parts.dit - (BF16 - FP8) * parts.dit_linears * options.fp8
    text = BF16 * (2 * parts.prompt_layer if options.offload_text else parts.prompt_encoder)
    return dit + BF16 * (parts.orchestrator + parts.video_codec) + text + FLOAT * parts.audio_codec


def stream_bytes(config: ModelConfig) -> int:
    """Caches of one stream, at their largest: the anchor (reference, sink, prompt) and the chunk's own copy with
    motion; the orchestrator's keys, old and extended; latents kept in the state."""
    grid = config.grid[0] * config.grid[1]
    layout = Layout(grid=config.grid, ref=1, sink=T, motion=T)
    dit, lm = config.dit, config.orchestrator
    anchor = layout.segment("motion").start
    keys = 2 * BF16 * dit.width * dit.layers * (anchor + layout.condition_tokens + config.prompt.max_tokens)
    length = lm.max_reference + lm.max_transcript + MOST_HISTORY * J
    prefix = 2 * 2 * BF16 * lm.kv_heads * lm.head_width * lm.layers * length
    latents = FLOAT * (2 * T + 1) * dit.video_channels * config.latent_size[0] * config.latent_size[1]
    assert grid > 0
    return keys + prefix + latents


def denoising(config: ModelConfig) -> int:
    """Alive within a block over the noisy tokens, with the keys of one layer joined."""
    layout = Layout(grid=config.grid, ref=1, sink=T, motion=T)
    noisy, width = layout.noisy_tokens, config.dit.width
    joined = 2 * BF16 * layout.tokens * width
    return BF16 * noisy * (ACTIVE_WIDTHS * width + ACTIVE_FFN * config.dit.ffn) + joined


def decoding(config: ModelConfig, options: Options) -> int:
    """The video decoder's widest tensors, and the finished pictures as float32 and bytes (kept from one latent to
    the next by the causal convolutions: two frames of each)."""
    pixels = config.height * config.width
    pictures = clock.FRAMES_PER_CHUNK * pixels * 3 * (2 * FLOAT + 1)
    if options.tiny_decoder:  # 64 channels at full size, all frames at once in its fastest form
        return pictures + BF16 * 64 * pixels * clock.FRAMES_PER_CHUNK
    widest = config.video.widths[-1] if config.video.family == "wan" else max(config.video.widths)
    patch = 2 if config.video.family == "wan" else 1  # Wan2.2 decodes 2x2 patches
    level = BF16 * 2 * widest * pixels // patch**2 * clock.VIDEO_STRIDE
    return pictures + 2 * ACTIVE_PICTURES * level


def prompting(config: ModelConfig) -> int:
    """The text encoder over one padded prompt: scores of all heads and the feed-forward's hidden states."""
    own, tokens = config.prompt, config.prompt.max_tokens
    return FLOAT * own.heads * tokens * tokens * 2 + BF16 * tokens * (3 * own.ffn + 8 * own.width)
