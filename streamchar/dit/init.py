"""How an untrained DiT starts.

Linear layers as Wan (Xavier uniform, zero bias), but not its 0.02 in the time embedder: at width 256 that leaves
the modulation a hundredth of its size. Heads are zero, so the first velocity is the linear skip
alone and the first loss is that of the best linear denoiser. Gates start at 1 / sqrt(2 layers) with almost no
dependence on time: the residual stream keeps its scale through the depth, as with zero gates, but gradients
reach every layer from the first step. What the main blocks give the audio decoder starts at zero (stage 1's
speech model is the joint model's start).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from streamchar.dit.block import GATE_ATTENTION, GATE_FFN, MODULATION_ROWS
from streamchar.dit.head import Head
from streamchar.nn.attention import Attention
from streamchar.nn.embeddings import TimeEmbedding
from streamchar.nn.modulation import ModulationTable

if TYPE_CHECKING:
    from streamchar.dit.model import JointDiT

TIME_STD = 0.02
"""Of the projection from the time embedding to the modulation rows."""


@torch.no_grad()
def initialise(dit: JointDiT) -> None:
    """Initialise in place; needs no data and works on the meta device."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in dit.modules():
        if isinstance(module, TimeEmbedding):
            nn.init.normal_(module.time_proj.weight, std=TIME_STD)
        elif isinstance(module, Head):
            for layer in (module.proj_out, module.velocity.proj):
                nn.init.zeros_(layer.weight)
    for blocks in (dit.blocks, [*dit.audio.encoder, *dit.audio.decoder]):
        gate = (2 * max(1, len(blocks))) ** -0.5
        for block in blocks:
            _open_gates(block, gate)
    nn.init.zeros_(dit.audio.from_main.weight)
    if dit.ref_embedding is not None:
        nn.init.zeros_(dit.ref_embedding.weight)
    if dit.place_embedding is not None:
        nn.init.zeros_(dit.place_embedding.weight)


def _open_gates(block: nn.Module, gate: float) -> None:
    table = block.scale_shift_table
    assert isinstance(table, ModulationTable)
    assert table.rows_1MD.shape[1] == MODULATION_ROWS
    table.rows_1MD[:, [GATE_ATTENTION, GATE_FFN]] = gate
    cross = getattr(block, "attn2", None)  # cross-attention has no gate in Wan: its output layer is scaled
    if isinstance(cross, Attention):
        cross.to_out.weight.mul_(gate)
