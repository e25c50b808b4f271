"""Modulation by the noise level: shift, scale and gate of a normed token stream.

Shape letters: B batch, L tokens, D width, S noise levels of a sample (1, or L when each token has its own),
M modulation rows (shift, scale, gate, ...).

Everything here is float32: a bfloat16 `1 + scale` has two digits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamchar.nn.norms import standardise


class Modulation:
    """Rows of modulation for one run of tokens, (B or 1, S, M, D) float32."""

    def __init__(self, rows_BSMD: Tensor) -> None:
        self.rows_BSMD = rows_BSMD

    def tokens(self, part: slice) -> Modulation:
        """The rows for a slice of the tokens."""
        return self if self.rows_BSMD.shape[1] == 1 else Modulation(self.rows_BSMD[:, part])

    def normed(self, x_BLD: Tensor, shift: int, scale: int, eps: float) -> Tensor:
        """norm(x) * (1 + scale) + shift, in the type of x; `shift` and `scale` are row numbers."""
        y = torch.addcmul(self.rows_BSMD[:, :, shift], standardise(x_BLD, eps), 1 + self.rows_BSMD[:, :, scale])
        return y.to(x_BLD.dtype)

    def gated(self, x_BLD: Tensor, y_BLD: Tensor, gate: int) -> Tensor:
        """x + gate * y, in the type of x; `gate` is a row number."""
        return torch.addcmul(x_BLD.float(), y_BLD.float(), self.rows_BSMD[:, :, gate]).to(x_BLD.dtype)


class ModulationTable(nn.Module):
    """A layer's own offsets to the modulation that all layers share (Wan's `scale_shift_table`)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows_1MD = nn.Parameter(torch.zeros(1, rows, width))

    def forward(self, shared_BSMD: Tensor) -> Modulation:
        """(B, S, M, D), or (B, S, 1, D) for one shared row -> this layer's modulation."""
        return Modulation(self.rows_1MD.float() + shared_BSMD.float())
