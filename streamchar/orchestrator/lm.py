"""The orchestrator: a causal language model that reads the script and what was said, and plans the
sound of the chunk, c_a (paper section 3.2).

The backbone is transformers' `Qwen2Model`. Everything before the tail does not depend on sigma: its
keys and values are a `Prefix`, a value, computed once a chunk and extended from one to the next.

Shapes: B batch, L packed tokens, N text tokens, J = 33, D width, C audio channels, n chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
        self, embedded: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], start: int, *, keep: bool,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run tokens behind cached ones; the cache object lives for this call only."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            cache.update(key, value, layer)
        positions = torch.arange(start, start + embedded.shape[1], device=embedded.device)[None]
        hidden = self.backbone(
            inputs_embeds=embedded, past_key_values=cache, position_ids=positions, attention_mask=mask, use_cache=True
        ).last_hidden_state
        if not keep:
            return hidden, (), ()
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
        hidden, keys, values = self._run(packed, (), (), 0, keep=True)
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
        _, keys, values = self._run(embedded, prefix.keys, prefix.values, prefix.length, keep=True)
        return replace(prefix, keys=keys, values=values, length=prefix.length + embedded.shape[1])

    def plan(self, prefix: Prefix, noisy_1JC: Tensor, sigma_1: Tensor, cursor_1: Tensor) -> Plan:
        """One sampling step's tail: c_a and the pointer for x_t at sigma. As in training, the tail
        sees the text only up to the look-ahead limit."""
        at = torch.arange(prefix.text.features.shape[1], device=noisy_1JC.device)
        visible = prefix.text.visible & (at < (cursor_1 + prefix.look_ahead)[:, None])
        text = replace(prefix.text, visible=visible)
        tail = self._embed_tail(noisy_1JC, sigma_1, cursor_1, text)
        j = tail.shape[1]
        mask = torch.ones(j, prefix.length + j, dtype=torch.bool, device=tail.device).tril(prefix.length)
        mask[:, prefix.text_start : prefix.text_start + visible.shape[1]] &= visible[0]
        hidden, _, _ = self._run(tail, prefix.keys, prefix.values, prefix.length, keep=False, mask=mask[None, None])
        return self._plan(hidden, text, cursor_1)
