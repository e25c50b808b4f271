"""The progress-aware pointer (paper eq. 5) and the cursor prior.

Cross-attention from c_a to the transcript states gives each audio frame a soft position p_j; a
learned offset delta_j refines it; confidences w_j gather them into the spoken end s.

Ours, and optional (`OrchestratorConfig`): the cursor prior - speech goes on from where the cursor
stands at about the usual rate - as Gaussian windows over the transcript that the tail reads and that
bias the pointer; and the read-out, the attention-weighted transcript states, which is added to c_a.

Shapes: B batch (chunks), J = 33 audio frames, N text tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from streamchar.config.model import OrchestratorConfig
from streamchar.orchestrator.packing import TAIL


@dataclass(frozen=True, kw_only=True)
class Text:
    """The transcript window as a chunk sees it."""

    features: Tensor
    """(B, N, D) token embeddings with their neighbours': what is written here."""
    states: Tensor
    """(B, N, D) last hidden states: A in the paper."""
    visible: Tensor
    """(B, N) boolean: a token, and within the look-ahead limit."""
    length: Tensor
    """(B,) tokens in the window."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the pointer says of a chunk."""

    attention: Tensor
    """(B, J, N) log probabilities."""
    position: Tensor
    """(B, J) soft positions p_j + delta_j, in tokens from the window's start."""
    end: Tensor
    """(B,) spoken end: tokens spoken when the chunk ends, in [0, N]."""
    readout: Tensor
    """(B, J, D)."""


class CursorPrior(nn.Module):
    """Gaussian windows over the transcript that move on from the cursor, several rates at once."""

    def __init__(self, heads: int, rate: float) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(0.7, 1.3, heads) * rate if heads > 1 else torch.tensor([rate]))
        self.shift = nn.Parameter(torch.zeros(heads))
        self.log_width = nn.Parameter(torch.zeros(heads))
        self.log_growth = nn.Parameter(torch.full((heads,), math.log(0.06)))

    def forward(self, cursor_B: Tensor, tokens: int) -> Tensor:
        """Log weights, not normalised: (B, H, J, N)."""
        j = torch.arange(TAIL, device=cursor_B.device) + 0.5
        centre = cursor_B[:, None, None] + self.shift[:, None] + self.rate[:, None] * j - 0.5
        width = self.log_width.exp()[:, None] + self.log_growth.exp()[:, None] * j
        at = torch.arange(tokens, device=cursor_B.device)
        return -0.5 * ((at - centre[..., None]) / width[..., None]).square()


class TextFeatures(nn.Module):
    """Token embeddings with what stands beside them (two to each side): local, not causal, and so
    independent of the window except at its edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded_BND: Tensor, valid_BN: Tensor) -> Tensor:
        x = embedded_BND * valid_BN[..., None]
        mixed = self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x + self.out(tf.gelu(mixed)))


class Pointer(nn.Module):
    """Where in the transcript each frame of the chunk is."""

    def __init__(self, config: OrchestratorConfig) -> None:
        super().__init__()
        width, inner = config.width, config.pointer_width
        self.scale = inner**-0.5
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(2 * width, inner)
        self.frame = nn.Parameter(torch.zeros(TAIL, inner))
        self.prior = CursorPrior(1, config.tokens_per_latent) if config.cursor_prior else None
        self.value = nn.Linear(2 * width, width)
        self.offset = nn.Sequential(nn.Linear(2 * width, inner), nn.GELU(), nn.Linear(inner, 1))
        self.confidence = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, 1))
        self.latest = nn.Parameter(torch.linspace(-4, 4, TAIL))
        if self.prior is not None:
            with torch.no_grad():
                self.prior.log_width.fill_(math.log(4.0))
                self.prior.log_growth.fill_(math.log(0.2))

    def forward(self, c_BJD: Tensor, text: Text, cursor_B: Tensor) -> Progress:
        source = torch.cat([text.features, text.states], dim=-1)
        query = self.query(c_BJD) + self.frame
        logits = (query @ self.key(source).transpose(1, 2)).float() * self.scale
        if self.prior is not None:
            logits = logits + self.prior(cursor_B.float(), source.shape[1])[:, 0]
        logits = logits.masked_fill(~text.visible[:, None], -1e4)
        attention = logits.log_softmax(-1)
        weights = attention.exp()
        readout = weights.to(c_BJD.dtype) @ self.value(source)
        at = torch.arange(source.shape[1], device=c_BJD.device, dtype=torch.float32)
        delta = 2.0 * torch.tanh(self.offset(torch.cat([c_BJD, readout], dim=-1)).float()[..., 0])
        position = weights @ at + delta
        confidence = (self.confidence(c_BJD).float()[..., 0] + self.latest).softmax(-1)
        end = (confidence * position).sum(-1) + 0.5  # token n is half spoken when the position is n
        end = torch.minimum(end.clamp(min=0), text.length.float())  # eq. 5: clamped to [0, N]
        return Progress(attention=attention, position=position, end=end, readout=readout)


def pointer_loss(progress: Progress, frame_token_BJ: Tensor, end_B: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the attention against the true token of each frame (-1: unknown), smoothed
    over its neighbours, and smooth L1 of the spoken end. Both are means.

    Below e^-20 a probability counts by the logarithm of how far below it is: a frame that is far off still pulls, and
    does not pull harder than all others together. Tokens that the frame cannot see (padding, beyond the look-ahead)
    have no gradient to give and do not count."""
    n = progress.attention.shape[-1]
    known = frame_token_BJ >= 0
    target = frame_token_BJ.clamp(min=0)
    near = [(0, 0.8), (-1, 0.1), (1, 0.1)]
    picked = torch.zeros_like(progress.attention[..., 0])
    for step, share in near:
        log_p = progress.attention.gather(-1, (target + step).clamp(0, n - 1)[..., None])[..., 0]
        below = (-20 - log_p).clamp(min=0)
        softened = torch.where(below > 0, -20 - below.log1p(), log_p)
        picked = picked + share * softened.masked_fill(log_p < -5e3, 0.0)  # hidden tokens have logits of -1e4
    cross = -(picked * known).sum() / known.sum().clamp(min=1)
    return cross, tf.smooth_l1_loss(progress.end, end_B.float())
