"""The orchestrator's packed causal sequence [e_ref, E_txt, e_hist, E_cond(t)] (paper eq. 3).

Two layouts of the same thing. At inference: a prefix (reference, text, history), computed once and
extended by 33 history latents a chunk, and a tail of 33, run once a sampling step. In training: all
chunks of a clip in one forward, `[ref, txt, z_1 .. z_T, tail_1 .. tail_n]`, where tail k stands at the
rotary positions that it has at inference and sees the text, the history before its chunk and itself.

Shapes: B batch, R reference latents, N text tokens, T history latents, n chunks, J = 33 tail tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from streamchar import clock

TAIL = clock.AUDIO_LATENTS_PER_CHUNK


@dataclass(frozen=True, kw_only=True)
class SpeechBatch:
    """Windows of speech for training: n chunks each, padded text and reference.

    `noisy` and `sigma` belong to the chunks: every chunk has its own noise level."""

    reference: Tensor
    """(B, R, C) clean latents of another utterance of the same speaker."""
    reference_length: Tensor
    """(B,) valid latents in `reference`; 0 = none."""
    text: Tensor
    """(B, N) token ids."""
    text_length: Tensor
    """(B,)."""
    history: Tensor
    """(B, 33 n, C) the window's own latents, as the orchestrator sees them (perhaps noised)."""
    noisy: Tensor
    """(B, n, 33, C) x_t of each chunk (eq. 1)."""
    sigma: Tensor
    """(B, n)."""
    cursor: Tensor
    """(B, n) text position at each chunk's start, as the stream would know it."""

    @property
    def chunks(self) -> int:
        return self.noisy.shape[1]

    def to(self, device: torch.device | str) -> SpeechBatch:
        """The same batch on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def training_positions(batch: SpeechBatch) -> Tensor:
    """(B, L) rotary positions. Padding repeats a position: it is masked, and nothing moves."""
    b, r = batch.reference.shape[:2]
    n, t = batch.text.shape[1], batch.history.shape[1]
    device = batch.text.device
    ref = torch.arange(r, device=device).expand(b, r)
    txt = batch.reference_length[:, None] + torch.arange(n, device=device)
    start = (batch.reference_length + batch.text_length)[:, None]
    hist = start + torch.arange(t, device=device)
    return torch.cat([ref, txt, hist, hist[:, : batch.chunks * TAIL]], dim=1)


def training_mask(batch: SpeechBatch, look_ahead: int) -> Tensor:
    """(B, 1, L, L) boolean, True where the row may look at the column."""
    b, r = batch.reference.shape[:2]
    n, t = batch.text.shape[1], batch.history.shape[1]
    device = batch.text.device
    k = batch.chunks * TAIL
    total = r + n + t + k
    ref_ok = torch.arange(r, device=device) < batch.reference_length[:, None]
    txt_ok = torch.arange(n, device=device) < batch.text_length[:, None]
    seen = torch.cat([ref_ok, txt_ok, torch.ones(b, t + k, dtype=torch.bool, device=device)], dim=1)
    mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    tail = slice(r + n + t, total)
    chunk = torch.arange(k, device=device) // TAIL
    mask[tail, r + n : r + n + t] = torch.arange(t, device=device)[None] < (chunk * TAIL)[:, None]
    mask[tail, tail] &= chunk[:, None] == chunk[None]
    mask = mask[None] & seen[:, None]
    limit = (batch.cursor + look_ahead).repeat_interleave(TAIL, dim=1)
    mask[:, tail, r : r + n] &= torch.arange(n, device=device) < limit[..., None]
    return (mask | torch.eye(total, dtype=torch.bool, device=device))[:, None]
