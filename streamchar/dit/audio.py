"""The audio path: encoder in front of the main blocks, decoder behind them (paper section 3.3, figure 1).

Shape letters: B batch, K chunks, L audio tokens (33 a chunk), C audio latent channels, D audio width,
S noise levels of a sample (1 or L).

The decoder reads the encoder's output plus a zero-initialised projection of what the main blocks made of the
audio tokens. Without main blocks that is a complete speech model (stage 1), and the joint model begins as
exactly that one. Both are bidirectional within one chunk and never look across a seam.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from streamchar import clock
from streamchar.config.model import DiTConfig
from streamchar.dit.block import (
    GATE_ATTENTION,
    GATE_FFN,
    MODULATION_ROWS,
    SCALE_ATTENTION,
    SCALE_FFN,
    SHIFT_ATTENTION,
    SHIFT_FFN,
)
from streamchar.dit.head import Head
from streamchar.errors import ConfigError
from streamchar.nn.attention import Attention, attend
from streamchar.nn.embeddings import TimeEmbedding, TimeStates
from streamchar.nn.feedforward import FeedForward
from streamchar.nn.modulation import ModulationTable
from streamchar.nn.rope import Rotation, rotation

FFN_RATIO = 4


class AudioBlock(nn.Module):
    """Self-attention over one chunk's audio tokens and a feed-forward layer, modulated by the noise level."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = Attention(width, heads, eps)
        self.ffn = FeedForward(width, FFN_RATIO * width)
        self.scale_shift_table = ModulationTable(MODULATION_ROWS, width)

    def forward(self, x_BLD: Tensor, time_BSMD: Tensor, turn: Rotation) -> Tensor:
        """(B, L, D), (B, S, 6, D) -> (B, L, D)."""
        modulation = self.scale_shift_table(time_BSMD)
        y = modulation.normed(x_BLD, SHIFT_ATTENTION, SCALE_ATTENTION, self.eps)
        y = attend(self.attn1.queries(y, turn), self.attn1.keys_values(y, turn))
        x_BLD = modulation.gated(x_BLD, self.attn1.to_out(y), GATE_ATTENTION)
        y = modulation.normed(x_BLD, SHIFT_FFN, SCALE_FFN, self.eps)
        return modulation.gated(x_BLD, self.ffn(y), GATE_FFN)


class AudioPath(nn.Module):
    """Audio encoder, decoder and head, with a time embedding of their own: what stage 1 trains of the DiT."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.audio_width or config.width
        if width % config.head_width:
            raise ConfigError(
                f"dit.audio_width must be a multiple of the head width {config.head_width}, got {width}; "
                f"nearest: {max(1, width // config.head_width) * config.head_width}"
            )
        self.head_width, self.rope_theta = config.head_width, config.rope_theta
        heads = width // config.head_width
        self.time = TimeEmbedding(config.time_width, width)
        self.latents_in = nn.Linear(config.audio_channels, width)
        self.condition_in = nn.Linear(config.condition_width, width, bias=False)
        self.encoder = nn.ModuleList(AudioBlock(width, heads, config.eps) for _ in range(config.audio_layers))
        self.to_main = nn.Linear(width, config.width)
        self.from_main = nn.Linear(config.width, width)
        self.decoder = nn.ModuleList(AudioBlock(width, heads, config.eps) for _ in range(config.audio_layers))
        self.head = Head(width, config.audio_channels, 1, config.eps)

    def encode(self, x_BLC: Tensor, c_BLD: Tensor, time: TimeStates) -> Tensor:
        """Noisy latents (B, L, C) fused with c_a (B, L, condition width) -> (B, L, D)."""
        dtype = self.latents_in.weight.dtype
        h_BLD = self.latents_in(x_BLC.to(dtype)) + self.condition_in(c_BLD.to(dtype))
        return self._blocks(self.encoder, h_BLD.to(dtype), time)

    def decode(self, encoded_BLD: Tensor, main_BLD: Tensor | None, x_BLC: Tensor, time: TimeStates) -> Tensor:
        """Encoder output, main blocks' output (None: they did not run) and noisy latents -> v_a (B, L, C)."""
        h_BLD = encoded_BLD if main_BLD is None else encoded_BLD + self.from_main(main_BLD).to(encoded_BLD.dtype)
        h_BLD = self._blocks(self.decoder, h_BLD, time)
        return self.head(h_BLD, x_BLC[:, :, None], time)[:, :, 0].to(x_BLC.dtype)

    def forward(self, x_BLC: Tensor, c_BLD: Tensor, sigma: Tensor) -> Tensor:
        """Speech alone: noisy latents (B, L, C), c_a (B, L, condition width), sigma -> v_a (B, L, C)."""
        time = self.time(sigma)
        return self.decode(self.encode(x_BLC, c_BLD, time), None, x_BLC, time)

    def _blocks(self, blocks: nn.ModuleList, x_BLD: Tensor, time: TimeStates) -> Tensor:
        """Run blocks over each chunk by itself."""
        batch, tokens = x_BLD.shape[:2]
        window = min(tokens, clock.AUDIO_LATENTS_PER_CHUNK)
        chunks = tokens // window
        rows = time.rows
        if chunks > 1 and rows.shape[1] == 1:
            rows = rows.repeat_interleave(chunks, dim=0)
        elif chunks > 1:
            rows = rearrange(rows, "b (k l) m d -> (b k) l m d", k=chunks)
        index = torch.arange(window, device=x_BLD.device)[:, None]
        turn = rotation(index, (self.head_width,), self.rope_theta)
        x_BLD = rearrange(x_BLD, "b (k l) d -> (b k) l d", k=chunks)
        for block in blocks:
            x_BLD = block(x_BLD, rows, turn)
        return rearrange(x_BLD, "(b k) l d -> b (k l) d", b=batch)
