"""The orchestrator: a causal language model that reads the script and what was said, and plans the
sound of the chunk, c_a (paper section 3.2).

The backbone is transformers' `Qwen2Model`. Everything before the tail does not depend on sigma: its
keys and values are a `Prefix`, a value, computed once a chunk and extended from one to the next.

Shapes: B batch, L packed tokens, N text tokens, J = 33, D width, C audio channels, n chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from streamchar.config.model import OrchestratorConfig
from streamchar.orchestrator.packing import TAIL, SpeechBatch, training_mask, training_positions
from streamchar.orchestrator.pointer import CursorPrior, Pointer, Progress, Text, TextFeatures

PRIOR_HEADS = 4
REFERENCE, TEXT, HISTORY, COND = range(4)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """c_a and the pointer's view of a chunk (or of B x n chunks)."""

    c_a: Tensor
    """(B, J, D) frame-aligned audio condition, the pointer's read-out included."""
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Keys and values of [reference, text, history] for one stream."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: int
    text: Text
    text_start: int
    look_ahead: int


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Prefixes of several streams side by side, or of one with room to spare, in tensors of one shape."""

    keys: tuple[Tensor, ...]
    """Per layer (B, N, S, E)."""
    values: tuple[Tensor, ...]
    token_BS: Tensor
    """Which transcript token stands in a column; -1: another kind, always seen; `ABSENT`: padding, never seen."""
    next_B: Tensor
    """Rotary position of the tail's first token."""
    text: Text
    look_ahead: int


ABSENT = 2**30


def aligned(prefixes: Sequence[Prefix], capacity: int | None = None, tokens: int | None = None) -> Prefixes:
    """Prefixes side by side, padded to `capacity` columns and `tokens` transcript tokens (None: to the longest).

    Padding is hidden by the mask, so its share of every softmax is exactly 0. Nothing is copied where nothing is
    padded and there is one prefix.
    """
    first = prefixes[0]
    width = max(prefix.length for prefix in prefixes) if capacity is None else capacity
    count = max(prefix.text.features.shape[1] for prefix in prefixes) if tokens is None else tokens
    device = first.text.features.device
    columns = []
    for prefix in prefixes:
        n = prefix.text.features.shape[1]
        at = torch.arange(width, device=device)
        token = at - prefix.text_start
        token = token.masked_fill((token < 0) | (token >= n), -1).masked_fill(at >= prefix.length, ABSENT)
        columns.append(token)

    def rows(parts: list[Tensor], axis: int, size: int) -> Tensor:
        return _stack([_padded(part, axis, size) for part in parts])

    return Prefixes(
        keys=tuple(rows(list(layer), 2, width) for layer in zip(*(p.keys for p in prefixes), strict=True)),
        values=tuple(rows(list(layer), 2, width) for layer in zip(*(p.values for p in prefixes), strict=True)),
        token_BS=torch.stack(columns),
        next_B=_stack([torch.full((1,), prefix.length, device=device) for prefix in prefixes]),
        text=Text(
            features=rows([p.text.features for p in prefixes], 1, count),
            states=rows([p.text.states for p in prefixes], 1, count),
            visible=rows([p.text.visible for p in prefixes], 1, count),
            length=_stack([p.text.length for p in prefixes]),
        ),
        look_ahead=first.look_ahead,
    )  # fmt: skip


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded(tensor: Tensor, axis: int, size: int) -> Tensor:
    """`tensor` with zeros (False) behind it along `axis`."""
    short = size - tensor.shape[axis]
    if short == 0:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = short
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


class _Behind:
    """What Qwen2 takes for its cache while the tail runs: cached keys in front, the tail's own behind, nothing kept.

    transformers' `DynamicCache` would copy every layer's cached keys once more, and a recorded graph wants no more
    copies than it needs.
    """

    def __init__(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
        self.keys, self.values = keys, values

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys[layer], key], dim=2), torch.cat([self.values[layer], value], dim=2)

    def get_seq_length(self, layer: int = 0) -> int:
        return self.keys[layer].shape[2]


class SigmaEmbedding(nn.Module):
    """Sinusoids of 1000 sigma and a small network: (B,) -> (B, D)."""

    rate: Tensor

    def __init__(self, width: int, inner: int = 128) -> None:
        super().__init__()
        self.register_buffer(
            "rate", torch.exp(-math.log(10_000.0) * torch.arange(inner // 2) / (inner // 2)), persistent=False
        )
        self.net = nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        angle = 1000.0 * sigma.float()[..., None] * self.rate
        return self.net(torch.cat([angle.sin(), angle.cos()], dim=-1).to(self.net[0].weight.dtype))


def backbone(config: OrchestratorConfig) -> nn.Module:
    """`Qwen2Model` of the configured size."""
    from transformers import Qwen2Config, Qwen2Model

    return Qwen2Model(
        Qwen2Config(
            vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.ffn,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, use_sliding_window=False,
            tie_word_embeddings=False, attn_implementation="sdpa",
        )
    )


class Orchestrator(nn.Module):
    """See the module's text."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.backbone = backbone(config)
        self.audio_in = nn.Linear(config.audio_channels, width)
        self.tail_in = nn.Linear(config.audio_channels, width)
        self.sigma = SigmaEmbedding(width)
        self.segment = nn.Parameter(torch.randn(4, width) * 0.02)
        self.text_features = TextFeatures(width)
        self.prior = CursorPrior(PRIOR_HEADS, config.tokens_per_latent) if config.cursor_prior else None
        self.cursor_in = nn.Linear(PRIOR_HEADS * width, width) if config.cursor_prior else None
        self.pointer = Pointer(config)
        self.readout = nn.Linear(width, width) if config.pointer_readout else None

    def _embed_audio(self, latents: Tensor, segment: int) -> Tensor:
        return self.audio_in(latents.to(self.audio_in.weight.dtype)) + self.segment[segment]

    def _embed_text(self, ids_BN: Tensor, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.backbone.embed_tokens(ids_BN)
        return embedded + self.segment[TEXT], self.text_features(embedded, valid_BN)

    def _embed_tail(self, noisy_BJC: Tensor, sigma_B: Tensor, cursor_B: Tensor, text: Text) -> Tensor:
        """E_cond(t) of eq. 3: noisy latent, timestep, and what the cursor prior says comes next."""
        tail = self.tail_in(noisy_BJC.to(self.tail_in.weight.dtype)) + self.segment[COND]
        tail = tail + self.sigma(sigma_B)[:, None]
        if self.prior is not None and self.cursor_in is not None:
            logits = self.prior(cursor_B.float(), text.features.shape[1])
            logits = logits.masked_fill(~text.visible[:, None, None], -1e4)
            heard = logits.softmax(-1).to(text.features.dtype) @ text.features[:, None]
            tail = tail + self.cursor_in(heard.transpose(1, 2).flatten(2))
        return tail

    def _plan(self, hidden_BJD: Tensor, text: Text, cursor_B: Tensor) -> Plan:
        progress = self.pointer(hidden_BJD, text, cursor_B)
        c_a = hidden_BJD
        if self.readout is not None:
            c_a = c_a + self.readout(progress.readout)
        return Plan(c_a=c_a, progress=progress)

    # -- training ---------------------------------------------------------------------------

    def forward(self, batch: SpeechBatch) -> Plan:
        """All chunks of every window in one pass; the plan's batch is B n, chunks of a window
        together."""
        b, n = batch.noisy.shape[:2]
        length = batch.text.shape[1]
        at = torch.arange(length, device=batch.text.device)
        valid = at < batch.text_length[:, None]
        embedded, features = self._embed_text(batch.text, valid)
        cursor = batch.cursor.flatten()
        text = Text(
            features=features.repeat_interleave(n, 0),
            states=features.repeat_interleave(n, 0),
            visible=valid.repeat_interleave(n, 0) & (at < (cursor + self.config.look_ahead)[:, None]),
            length=batch.text_length.repeat_interleave(n),
        )
        tail = self._embed_tail(batch.noisy.flatten(0, 1), batch.sigma.flatten(), cursor, text)
        packed = torch.cat(
            [
                self._embed_audio(batch.reference, REFERENCE),
                embedded,
                self._embed_audio(batch.history, HISTORY),
                tail.reshape(b, n * TAIL, -1),
            ],
            dim=1,
        )
        hidden = self.backbone(
            inputs_embeds=packed,
            attention_mask=training_mask(batch, self.config.look_ahead),
            position_ids=training_positions(batch),
            use_cache=False,
        ).last_hidden_state
        r = batch.reference.shape[1]
        text = replace(text, states=hidden[:, r : r + length].repeat_interleave(n, 0))
        return self._plan(hidden[:, -n * TAIL :].reshape(b * n, TAIL, -1), text, cursor)

    # -- inference --------------------------------------------------------------------------

    def _run(
        self, embedded: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], start: int
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run tokens behind cached ones -> hidden states, all keys, all values; the cache object lives for this
        call only."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            cache.update(key, value, layer)
        positions = torch.arange(start, start + embedded.shape[1], device=embedded.device)[None]
        hidden = self.backbone(
            inputs_embeds=embedded, past_key_values=cache, position_ids=positions, use_cache=True
        ).last_hidden_state
        return hidden, tuple(c.keys for c in cache.layers), tuple(c.values for c in cache.layers)

    def prefix(self, reference_1RC: Tensor | None, text_1N: Tensor, history_1TC: Tensor | None) -> Prefix:
        """Run [reference, text, history] of one stream; any of the audio parts may be None."""
        valid = torch.ones_like(text_1N, dtype=torch.bool)
        embedded, features = self._embed_text(text_1N, valid)
        parts = [] if reference_1RC is None else [self._embed_audio(reference_1RC, REFERENCE)]
        first = sum(p.shape[1] for p in parts)
        parts.append(embedded)
        if history_1TC is not None and history_1TC.shape[1]:
            parts.append(self._embed_audio(history_1TC, HISTORY))
        packed = torch.cat(parts, dim=1)
        hidden, keys, values = self._run(packed, (), (), 0)
        n = text_1N.shape[1]
        return Prefix(
            keys=keys, values=values, length=packed.shape[1], text_start=first, look_ahead=self.config.look_ahead,
            text=Text(
                features=features, states=hidden[:, first : first + n], visible=valid,
                length=torch.full((1,), n, device=text_1N.device),
            ),
        )

    def extend(self, prefix: Prefix, history_1TC: Tensor) -> Prefix:
        """Append history latents behind the prefix."""
        embedded = self._embed_audio(history_1TC, HISTORY)
        _, keys, values = self._run(embedded, prefix.keys, prefix.values, prefix.length)
        return replace(prefix, keys=keys, values=values, length=prefix.length + embedded.shape[1])

    def plan(self, prefix: Prefix, noisy_1JC: Tensor, sigma_1: Tensor, cursor_1: Tensor) -> Plan:
        """One sampling step's tail of one stream: c_a and the pointer for x_t at sigma."""
        return self.plans(aligned([prefix]), noisy_1JC, sigma_1, cursor_1)

    def plans(self, prefixes: Prefixes, noisy_BJC: Tensor, sigma_B: Tensor, cursor_B: Tensor) -> Plan:
        """`plan` for several streams. As in training, a tail sees the text only up to the look-ahead limit.

        The mask stays even where that limit hides nothing: the tail is causal within itself, whether it hides
        something is known on the device only, and 33 queries over some hundred keys are nothing beside the weights
        that every step reads.
        """
        limit_B1 = (cursor_B + prefixes.look_ahead)[:, None]
        at = torch.arange(prefixes.text.features.shape[1], device=noisy_BJC.device)
        text = replace(prefixes.text, visible=prefixes.text.visible & (at < limit_B1))
        tail = self._embed_tail(noisy_BJC, sigma_B, cursor_B, text)
        b, j = tail.shape[:2]
        seen_BJS = (prefixes.token_BS < limit_B1)[:, None].expand(b, j, -1)
        own_BJJ = torch.ones(j, j, dtype=torch.bool, device=tail.device).tril().expand(b, j, j)
        positions_BJ = prefixes.next_B[:, None] + torch.arange(j, device=tail.device)
        hidden = self.backbone(
            inputs_embeds=tail, past_key_values=_Behind(prefixes.keys, prefixes.values), position_ids=positions_BJ,
            attention_mask=torch.cat([seen_BJS, own_BJJ], dim=-1)[:, None], use_cache=True,
        ).last_hidden_state
        return self._plan(hidden, text, cursor_B)
