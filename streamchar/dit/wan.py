"""Wan2.2 weights in the joint DiT: the key map, both FFN experts from one, and what is new.

Source names are those of `diffusers.WanTransformer3DModel` (as in Wan-AI/Wan2.2-TI2V-5B-Diffusers), or those of Wan's
own repository (`from_original`; Wan-AI/Wan2.2-TI2V-5B).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError

logger = logging.getLogger(__name__)

_TIME, _BLOCK = r"condition_embedder\.", r"blocks\.(\d+)\."
RENAMES: tuple[tuple[str, str], ...] = (
    (r"patch_embedding\.(weight|bias)", r"patch_embedding.\1"),
    (_TIME + r"(time_embedder\.linear_[12]|time_proj)\.(weight|bias)", r"condition_embedder.time.\1.\2"),
    (_TIME + r"text_embedder\.(linear_[12])\.(weight|bias)", r"condition_embedder.text_embedder.\1.\2"),
    (_BLOCK + r"(attn[12]\.(?:to_[qkv]|norm_[qk]))\.(weight|bias)", r"blocks.\1.\2.\3"),
    (_BLOCK + r"(attn[12])\.to_out\.0\.(weight|bias)", r"blocks.\1.\2.to_out.\3"),
    (_BLOCK + r"norm2\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (_BLOCK + r"ffn\.net\.0\.proj\.(weight|bias)", r"blocks.\1.ffn.up.\2"),
    (_BLOCK + r"ffn\.net\.2\.(weight|bias)", r"blocks.\1.ffn.down.\2"),
    (_BLOCK + r"scale_shift_table", r"blocks.\1.scale_shift_table.rows_1MD"),
    (r"proj_out\.(weight|bias)", r"head.proj_out.\1"),
    (r"scale_shift_table", r"head.scale_shift_table.rows_1MD"),
)
"""Regular expression of a diffusers key -> ours."""


_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
ORIGINAL: dict[str, str] = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "blocks.*.norm3": "blocks.*.norm2",  # the norm before cross-attention, the one norm of a block with weights
    "blocks.*.ffn.0": "blocks.*.ffn.net.0.proj",
    "blocks.*.ffn.2": "blocks.*.ffn.net.2",
    **{f"blocks.*.self_attn.{theirs}": f"blocks.*.attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"blocks.*.cross_attn.{theirs}": f"blocks.*.attn2.{ours}" for theirs, ours in _ATTENTION.items()},
}
"""Layer in Wan's own names -> in diffusers'; `*` is a block's number, weight and bias go along."""
TABLES = {"head.modulation": "scale_shift_table", "blocks.*.modulation": "blocks.*.scale_shift_table"}


def from_original(key: str) -> str | None:
    """The diffusers name of a key in Wan's own names; None for one that TI2V does not have."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    number, plain = ("", key) if found is None else (found[1], f"blocks.*.{found[2]}")
    layer, _, kind = plain.rpartition(".")
    if plain in TABLES:
        return TABLES[plain].replace("*", number)
    if layer not in ORIGINAL or kind not in ("weight", "bias"):
        return None
    return f"{ORIGINAL[layer]}.{kind}".replace("*", number)


@dataclass(frozen=True, kw_only=True)
class WanReport:
    """What `load_wan` did, by key."""

    used: tuple[str, ...]
    """Wan's keys that were copied."""
    replicated: tuple[str, ...]
    """Our keys of the audio expert, copied from the video expert."""
    silenced: tuple[str, ...]
    """Our keys set to zero, so that the video path is Wan's."""
    new: tuple[str, ...]
    """Our keys that Wan has nothing for, left as they were."""
    ignored: tuple[str, ...]
    """Wan's keys that the joint DiT has no place for."""


def rename(key: str) -> str | None:
    """Our name of a diffusers Wan key; None when we have no such weight."""
    for pattern, ours in RENAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours)
    return None


@torch.no_grad()
def load_wan(dit: JointDiT, state_dict: Mapping[str, Tensor]) -> WanReport:
    """Copy a Wan transformer's weights into `dit`, in place, and both its FFN experts from Wan's one.

    Raises CheckpointError when a shape differs or when a weight of the video path is missing.
    """
    parameters = dict(dit.named_parameters())
    used, ignored, filled = [], [], set()
    for key, value in state_dict.items():
        ours = rename(key)
        if ours is None or ours not in parameters:
            ignored.append(key)
            continue
        target = parameters[ours]
        if key == "patch_embedding.weight":  # Conv3d with kernel = stride is a linear layer over patches
            value = value.flatten(1)
        if value.shape != target.shape:
            raise CheckpointError(
                f"{key}: expected shape {tuple(target.shape)}, got {tuple(value.shape)}; "
                "use a configuration of the checkpoint's size"
            )
        target.copy_(value)
        used.append(key)
        filled.add(ours)
    _require_video_path(parameters, filled)
    replicated = []
    for name in sorted(filled):
        if ".ffn." in name:
            twin = name.replace(".ffn.", ".audio_ffn.")
            parameters[twin].copy_(parameters[name])
            replicated.append(twin)
    silenced = sorted(name for name in parameters if name.startswith("head.velocity."))
    for name in silenced:
        nn.init.zeros_(parameters[name])
    new = sorted(set(parameters) - filled - set(replicated) - set(silenced))
    logger.info("wan weights: %d used, %d new, %d ignored", len(used), len(new), len(ignored))
    return WanReport(
        used=tuple(used),
        replicated=tuple(replicated),
        silenced=tuple(silenced),
        new=tuple(new),
        ignored=tuple(ignored),
    )


def _require_video_path(parameters: Mapping[str, Tensor], filled: set[str]) -> None:
    ours_alone = ("audio.", "head.velocity.")
    missing = sorted(
        name
        for name in parameters
        if name not in filled and not name.startswith(ours_alone) and ".audio_ffn." not in name
    )
    if missing:
        raise CheckpointError(
            f"expected every weight of the video path, got none for {len(missing)} of them "
            f"(first: {missing[0]}); use a complete transformer checkpoint with as many layers as the configuration"
        )
