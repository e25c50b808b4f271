"""Floating-point operations of the transformers, by formula: what a chunk costs, whatever machine runs it.

One multiply-add is two operations. Counted are the matrix products (linear layers, attention); norms, activations,
rotations and sums are not, as in `torch.utils.flop_counter`, against which the tests hold these formulas. Only the
work that the plain path does is counted: a speed option that leaves work out shows as a higher rate.

Letters in the formulas: L tokens, D width, S keys.
"""

from __future__ import annotations

from streamchar import clock
from streamchar.config.model import DiTConfig, OrchestratorConfig, PromptEncoderConfig
from streamchar.dit.audio import FFN_RATIO
from streamchar.dit.block import MODULATION_ROWS
from streamchar.dit.layout import Layout
from streamchar.orchestrator.lm import PRIOR_HEADS

J = clock.AUDIO_LATENTS_PER_CHUNK
SIGMA_WAVES = 128
"""Sinusoids of the orchestrator's noise level."""
NEIGHBOURS = 5
"""Kernel of the transcript features' convolution."""


def dense(tokens: int, inputs: int, outputs: int) -> int:
    """A linear layer over `tokens`."""
    return 2 * tokens * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted values of `queries` tokens over `keys`, all heads together `width` wide."""
    return 4 * queries * keys * width


def time_embedding(waves: int, width: int) -> int:
    """One noise level to its modulation rows."""
    return dense(1, waves, width) + dense(1, width, width) + dense(1, width, MODULATION_ROWS * width)


def dit_block(config: DiTConfig, tokens: int, pairs: int, text: int) -> int:
    """One block over `tokens`; `pairs` is the sum over its groups of queries times keys seen."""
    d = config.width
    own = 4 * dense(tokens, d, d) + attention(1, pairs, d)
    cross = 2 * dense(tokens, d, d) + attention(tokens, text, d)
    return own + cross + 2 * dense(tokens, d, config.ffn)


def dit_text(config: DiTConfig, text: int) -> int:
    """Embedding the prompt's states and projecting them to every block's keys and values: once a stream."""
    d = config.width
    return dense(text, config.text_width, d) + dense(text, d, d) + config.layers * 2 * dense(text, d, d)


def _patch_width(config: DiTConfig) -> int:
    t, h, w = config.patch
    return config.video_channels * t * h * w


def _beside(config: DiTConfig, layout: Layout) -> int:
    """The reference's patches, which every video token gets: embedded once a pass."""
    return dense(layout.length("ref"), _patch_width(config), config.width) if config.ref_beside else 0


def dit_conditions(config: DiTConfig, layout: Layout, text: int, *, start: int = 0, with_text: bool = True) -> int:
    """`encode_conditions` from condition token `start` on: the last block makes keys and values alone."""
    tokens = layout.condition_tokens - start
    total = dit_text(config, text) if with_text else 0
    if tokens == 0:
        return total
    groups = layout.groups(start, layout.condition_tokens)
    pairs = sum((group.stop - group.start) * group.stop for group in groups)
    total += dense(tokens, _patch_width(config), config.width) + time_embedding(config.time_width, config.width)
    total += _beside(config, layout) + (config.layers - 1) * dit_block(config, tokens, pairs, text)
    return total + 2 * dense(tokens, config.width, config.width)


def dit_motion(config: DiTConfig, layout: Layout, text: int) -> int:
    """What a chunk adds to the stream's cache: its motion latents."""
    return dit_conditions(config, layout, text, start=layout.segment("motion").start, with_text=False)


def audio_path(config: DiTConfig, tokens: int) -> int:
    """Audio encoder, decoder and head of one chunk's tokens, without the way to the main blocks and back."""
    w = config.audio_width or config.width
    block = 4 * dense(tokens, w, w) + attention(tokens, min(tokens, J), w) + 2 * dense(tokens, w, FFN_RATIO * w)
    ways = dense(tokens, config.audio_channels, w) * 2 + dense(tokens, config.condition_width, w)
    skip = dense(1, w, config.audio_channels)
    return 2 * config.audio_layers * block + ways + skip + time_embedding(config.time_width, w)


def dit_denoise(config: DiTConfig, layout: Layout, text: int) -> int:
    """One sampling step of the DiT: noisy tokens over cached conditions."""
    noisy, d = layout.noisy_tokens, config.width
    video, audio = layout.length("video"), layout.length("audio")
    total = config.layers * dit_block(config, noisy, noisy * layout.tokens, text)
    total += time_embedding(config.time_width, d) + (_beside(config, layout) if video else 0)
    total += 2 * dense(video, _patch_width(config), d) + dense(1, d, config.video_channels)  # in, out, skip
    if audio:
        total += audio_path(config, audio) + 2 * dense(audio, config.audio_width or d, d)
    return total


def lm_layers(config: OrchestratorConfig, tokens: int, keys: int) -> int:
    """The language model over `tokens` that see `keys` (causal masks are computed in full)."""
    d, kv = config.width, config.kv_heads * config.head_width
    layer = 2 * dense(tokens, d, d) + 2 * dense(tokens, d, kv) + 3 * dense(tokens, d, config.ffn)
    return config.layers * (layer + attention(tokens, keys, d))


def lm_prefix(config: OrchestratorConfig, reference: int, text: int) -> int:
    """Reference audio and transcript window: when the window moves."""
    tokens, d = reference + text, config.width
    features = 2 * text * d * NEIGHBOURS + dense(text, d, d)
    return dense(reference, config.audio_channels, d) + features + lm_layers(config, tokens, tokens)


def lm_extend(config: OrchestratorConfig, prefix: int) -> int:
    """One chunk of history behind `prefix` tokens: once a chunk."""
    return dense(J, config.audio_channels, config.width) + lm_layers(config, J, prefix + J)


def pointer(config: OrchestratorConfig, text: int) -> int:
    """The progress-aware pointer over a window of `text` tokens."""
    d, inner = config.width, config.pointer_width
    scores = dense(J, d, inner) + dense(text, 2 * d, inner) + 2 * J * text * inner
    read = dense(text, 2 * d, d) + 2 * J * text * d  # values, read-out
    offset = dense(J, 2 * d, inner) + dense(J, inner, 1)
    return scores + read + offset + dense(J, d, inner) + dense(J, inner, 1)


def lm_plan(config: OrchestratorConfig, prefix: int, text: int) -> int:
    """One sampling step's tail: c_a and the pointer."""
    d = config.width
    total = dense(J, config.audio_channels, d) + dense(1, SIGMA_WAVES, d) + dense(1, d, d)
    if config.cursor_prior:
        total += PRIOR_HEADS * 2 * J * text * d + dense(J, PRIOR_HEADS * d, d)
    if config.pointer_readout:
        total += dense(J, d, d)
    return total + lm_layers(config, J, prefix + J) + pointer(config, text)


def prompt_encoder(config: PromptEncoderConfig) -> int:
    """The frozen text encoder (gated feed-forward, as T5 and umT5 have it) over one padded prompt."""
    tokens, d = config.max_tokens, config.width
    inner = d // config.heads * config.heads
    layer = 4 * dense(tokens, d, inner) + attention(tokens, tokens, inner) + 3 * dense(tokens, d, config.ffn)
    return config.layers * layer
