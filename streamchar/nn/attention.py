"""Multi-head attention in two steps, so that keys and values can be cached between them.

Shape letters: B batch, L query tokens, S key tokens, D width, N heads, E head width.

`queries` and `keys_values` project, norm and rotate; `attend` is one fused attention call. Whoever
calls decides which keys a query sees by what is handed to `attend`: a prefix of the keys needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.nn.norms import RMSNorm
from streamchar.nn.rope import Rotation, rotate


@dataclass(frozen=True)
class KeyValue:
    """Keys (normed and rotated) and values of some tokens, both (B, S, N, E)."""

    key: Tensor
    value: Tensor

    @property
    def tokens(self) -> int:
        return self.key.shape[1]

    def prefix(self, tokens: int) -> KeyValue:
        """The first `tokens` keys and values, as a view."""
        if tokens == self.tokens:
            return self
        return KeyValue(self.key[:, :tokens], self.value[:, :tokens])


def join(parts: list[KeyValue]) -> KeyValue:
    """Keys and values of several runs of tokens, in order."""
    if len(parts) == 1:
        return parts[0]
    return KeyValue(torch.cat([part.key for part in parts], 1), torch.cat([part.value for part in parts], 1))


def attend(query_BLNE: Tensor, keys: KeyValue, seen_BS: Tensor | None = None) -> Tensor:
    """Attention of all queries over all keys -> (B, L, D).

    `seen_BS` (bool) hides keys of single samples; None, the common case, takes the path without a mask.
    """
    mask = None if seen_BS is None else seen_BS[:, None, None, :]
    out = F.scaled_dot_product_attention(
        query_BLNE.transpose(1, 2), keys.key.transpose(1, 2), keys.value.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections of self- or cross-attention, with RMS-normed queries and keys (Wan's attention)."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)

    def queries(self, x_BLD: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, L, D) -> (B, L, N, E)."""
        query = self.to_q(x_BLD)
        return self._heads(self.norm_q(query), rotation).to(query.dtype)

    def keys_values(self, x_BSD: Tensor, rotation: Rotation | None = None) -> KeyValue:
        """(B, S, D) -> keys and values, each (B, S, N, E)."""
        value = self.to_v(x_BSD)
        key = self._heads(self.norm_k(self.to_k(x_BSD)), rotation).to(value.dtype)
        return KeyValue(key, value.unflatten(-1, (self.heads, -1)))

    def _heads(self, x_BLD: Tensor, rotation: Rotation | None) -> Tensor:
        x_BLNE = x_BLD.unflatten(-1, (self.heads, -1))
        return x_BLNE if rotation is None else rotate(x_BLNE, rotation)
