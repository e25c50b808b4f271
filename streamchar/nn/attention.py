"""Multi-head attention in two steps, so that keys and values can be cached between them.

Shape letters: B batch, L query tokens, S key tokens, D width, N heads, E head width.

`queries` and `keys_values` project, norm and rotate; `attend` is one fused attention call. Whoever
calls decides which keys a query sees by what is handed to `attend`: a prefix of the keys needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """Projections of self- or cross-attention, with RMS-normed queries and keys (Wan's attention).

    `fuse` puts the three input projections into one matrix of which `to_q`, `to_k` and `to_v` become views:
    checkpoints and parameters stay what they are, and without gradients one product does the work of three.
    `merge` goes further and leaves `to_qkv` alone (for weights in another number format).
    """

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)
        self.to_qkv: nn.Linear | None = None
        self._joint: tuple[Tensor, Tensor] | None = None  # a tuple: no parameter of its own

    def queries(self, x_BLD: Tensor, rotation: Rotation | None = None) -> Tensor:
        """(B, L, D) -> (B, L, N, E)."""
        query = self.to_q(x_BLD)
        return self._heads(self.norm_q(query), rotation).to(query.dtype)

    def keys_values(self, x_BSD: Tensor, rotation: Rotation | None = None) -> KeyValue:
        """(B, S, D) -> keys and values, each (B, S, N, E)."""
        if self.to_qkv is not None:
            _, key, value = self.to_qkv(x_BSD).chunk(3, dim=-1)
        elif self._joint is not None and not torch.is_grad_enabled():
            weight, bias = self._joint
            width = x_BSD.shape[-1]
            key, value = F.linear(x_BSD, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            key, value = self.to_k(x_BSD), self.to_v(x_BSD)
        return self._keys(key, value, rotation)

    def queries_keys_values(self, x_BLD: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, KeyValue]:
        """Both of the above for the same tokens: self-attention."""
        if self.to_qkv is not None:
            query, key, value = self.to_qkv(x_BLD).chunk(3, dim=-1)
        elif self._joint is not None and not torch.is_grad_enabled():
            query, key, value = F.linear(x_BLD, *self._joint).chunk(3, dim=-1)
        else:
            query, key, value = self.to_q(x_BLD), self.to_k(x_BLD), self.to_v(x_BLD)
        return self._heads(self.norm_q(query), rotation).to(query.dtype), self._keys(key, value, rotation)

    @torch.no_grad()
    def fuse(self) -> None:
        """One matrix for the three projections, from now on (it follows a move to another device or type)."""
        parts = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        for part, rows, shift in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
            part.weight.data, part.bias.data = rows, shift
        self._joint = (weight, bias)

    @torch.no_grad()
    def merge(self) -> None:
        """`to_qkv` in the place of `to_q`, `to_k` and `to_v`, which go: a linear layer to be quantised."""
        self.fuse()
        assert self._joint is not None
        weight, bias = self._joint
        self.to_qkv = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.to_qkv.weight, self.to_qkv.bias = nn.Parameter(weight), nn.Parameter(bias)
        self._joint = None
        del self.to_q, self.to_k, self.to_v

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attention:
        super()._apply(fn, recurse)
        if self._joint is not None:
            self.fuse()  # a move copies each parameter by itself: views no more
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joint": None}  # nor are a copy's parameters views

    def _keys(self, key_BSD: Tensor, value_BSD: Tensor, rotation: Rotation | None) -> KeyValue:
        key_BSNE = self._heads(self.norm_k(key_BSD), rotation).to(value_BSD.dtype)
        return KeyValue(key_BSNE, value_BSD.unflatten(-1, (self.heads, -1)))

    def _heads(self, x_BLD: Tensor, rotation: Rotation | None) -> Tensor:
        x_BLNE = x_BLD.unflatten(-1, (self.heads, -1))
        return x_BLNE if rotation is None else rotate(x_BLNE, rotation)
