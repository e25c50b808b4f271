"""One block of the joint DiT: Wan's block with a second FFN expert for audio (paper section 3.3).

Shape letters: B batch, L tokens, S keys, D width.

A pass runs over spans: runs of tokens with one modulation. Training runs two (clean conditions, noisy),
`encode_conditions` only the first, `denoise` only the second with the first's keys as `past`. It is one code
path, so that what is cached cannot differ from what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamchar.config.model import DiTConfig
from streamchar.dit.cache import LayerCache
from streamchar.dit.layout import Group
from streamchar.nn.attention import Attention, KeyValue, attend, join
from streamchar.nn.feedforward import FeedForward
from streamchar.nn.modulation import Modulation, ModulationTable
from streamchar.nn.norms import LayerNorm
from streamchar.nn.rope import Rotation

SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_FFN, SCALE_FFN, GATE_FFN = range(6)
"""Rows of a block's modulation, in Wan's order."""
MODULATION_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of tokens with one modulation: what every block needs to know about it."""

    start: int
    stop: int
    clean: bool
    """Condition tokens, of which nothing is read after the last block."""
    modulation: Tensor
    """(B or 1, 1 or L, 6, D): the time embedding's rows, before a block adds its own."""
    rotation: Rotation
    groups: tuple[Group, ...]
    seen: tuple[Tensor | None, ...]
    """For each group (B, keys) bool, or None: sees all of its prefix."""
    routes: tuple[tuple[str, slice], ...]
    """FFN expert of each slice of the span."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One run through the blocks: the same value at every layer."""

    spans: tuple[Span, ...]
    text: Tensor | None
    """(B, L, D) embedded text; None where its keys are in the cache."""
    keep: bool = False
    """Hand back keys and values, for a cache."""


class Block(nn.Module):
    """Self-attention, cross-attention to text, and one FFN expert per modality."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn1 = Attention(config.width, config.heads, config.eps)
        self.attn2 = Attention(config.width, config.heads, config.eps)
        self.norm2 = LayerNorm(config.width, config.eps)
        self.ffn = FeedForward(config.width, config.ffn)
        self.audio_ffn = FeedForward(config.width, config.ffn)
        self.scale_shift_table = ModulationTable(MODULATION_ROWS, config.width)

    def forward(
        self, xs: tuple[Tensor, ...], run: Pass, past: LayerCache | None = None, last: bool = False
    ) -> tuple[tuple[Tensor, ...], LayerCache | None]:
        """Run the spans' tokens, each (B, L, D), after the `past` keys.

        At the `last` block condition tokens leave only their keys and values, as no one reads the rest.
        """
        modulations = [self.scale_shift_table(span.modulation) for span in run.spans]
        inputs = [
            modulation.normed(x, SHIFT_ATTENTION, SCALE_ATTENTION, self.eps)
            for x, modulation in zip(xs, modulations, strict=True)
        ]
        queries: list[Tensor | None] = []
        parts = []
        for y, span in zip(inputs, run.spans, strict=True):
            if last and span.clean:
                query, part = None, self.attn1.keys_values(y, span.rotation)
            else:
                query, part = self.attn1.queries_keys_values(y, span.rotation)
            queries.append(query)
            parts.append(part)
        if past is not None and past.self_attention is not None:
            parts.insert(0, past.self_attention)
        keys = join(parts) if parts else None
        if past is not None:
            text = past.text
        else:
            assert run.text is not None
            text = self.attn2.keys_values(run.text)
        outputs = tuple(
            x if keys is None or query is None else self._span(x, query, span, modulation, (keys, text))
            for x, query, span, modulation in zip(xs, queries, run.spans, modulations, strict=True)
        )
        return outputs, LayerCache(self_attention=keys, text=text) if run.keep else None

    def _span(
        self, x: Tensor, query: Tensor, span: Span, modulation: Modulation, sources: tuple[KeyValue, KeyValue]
    ) -> Tensor:
        """One span through the three layers; `query` (B, L, N, E) of self-attention, `sources` keys and text."""
        keys, text = sources
        seen = [
            attend(query[:, group.start - span.start : group.stop - span.start], keys.prefix(group.stop), visible)
            for group, visible in zip(span.groups, span.seen, strict=True)
        ]
        attended = seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)
        x = modulation.gated(x, self.attn1.to_out(attended), GATE_ATTENTION)
        x = x + self.attn2.to_out(attend(self.attn2.queries(self.norm2(x)), text)).to(x.dtype)
        experts = {"video": self.ffn, "audio": self.audio_ffn}
        routed = []
        for expert, part in span.routes:
            rows, x_part = modulation.tokens(part), x[:, part]
            y_part = experts[expert](rows.normed(x_part, SHIFT_FFN, SCALE_FFN, self.eps))
            routed.append(rows.gated(x_part, y_part, GATE_FFN))
        return routed[0] if len(routed) == 1 else torch.cat(routed, dim=1)
