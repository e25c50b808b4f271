"""Shards of training data: one safetensors file of flat arrays and one JSON line of text each.

A shard holds K clips. Arrays are concatenated over clips, offsets tell where each begins, so a shard
is read without copies and never unpickled. Latents are those of the codecs named in the shard.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamchar.errors import DataError

REFERENCE_LATENTS = 72


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One clip as training sees it."""

    audio: Tensor
    """(T, C) audio latents, T a multiple of 33."""
    reference: Tensor
    """(R, C) another utterance of the same speaker, R <= 72."""
    tokens: Tensor
    """(N,) transcript token ids, the end token last."""
    token_start: Tensor
    """(N,) start of each token in seconds; the end token's is the end of speech."""
    text: str
    voice: str
    seed: int
    prompt: str = ""
    direction: tuple[str, str, str] = ("", "", "")
    video: Tensor | None = None
    """(T/33, Cv, 9, h, w) video latents."""
    still: Tensor | None = None
    """(Cv, 1, h, w) latent of the reference frame."""
    pose: Tensor | None = None
    """(T/33, 9, P) how the character is posed at each video latent (`world/pose.py`); None where it is not known."""
    short: bool = False
    """Of one or two sentences: to draw it again, its seed is not enough (`world.clips.make_clip`)."""


_FLAT = ("audio", "reference", "tokens", "token_start", "video", "still", "pose")


def write_shard(path: Path, clips: list[ClipRecord]) -> None:
    """Write under a temporary name, then rename: a shard is whole or absent."""
    tensors: dict[str, Tensor] = {}
    for name in _FLAT:
        values = [getattr(c, name) for c in clips]
        if any(v is None for v in values):
            continue
        if name == "still":
            tensors[name] = torch.stack(values).to(torch.float16)
            continue
        half = values[0].is_floating_point() and name != "token_start"
        tensors[name] = torch.cat(values).to(torch.float16) if half else torch.cat(values)
        tensors[f"{name}_offset"] = torch.tensor(np.cumsum([0, *(v.shape[0] for v in values)]))
    told = ("text", "voice", "seed", "prompt", "direction")
    meta = [{**{name: getattr(c, name) for name in told}, **({"short": True} if c.short else {})} for c in clips]
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"clips": json.dumps(meta)})
    part.replace(path)


class Shard:
    """A shard in memory."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                self.clips: list[dict] = json.loads((file.metadata() or {})["clips"])
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is not a readable shard ({error}); delete it and prepare it again") from None
        for name in ("audio", "reference", "tokens", "token_start"):
            count = len(self.tensors.get(f"{name}_offset", ())) - 1
            if name not in self.tensors or count != len(self.clips):
                raise DataError(
                    f"{path}: expected {name} of {len(self.clips)} clips, got {max(0, count)}; "
                    "delete it and prepare it again"
                )

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def has_video(self) -> bool:
        return "video" in self.tensors

    def _piece(self, name: str, index: int) -> Tensor:
        offset = self.tensors[f"{name}_offset"]
        return self.tensors[name][int(offset[index]) : int(offset[index + 1])]

    def __getitem__(self, index: int) -> ClipRecord:
        meta = self.clips[index]
        return ClipRecord(
            audio=self._piece("audio", index), reference=self._piece("reference", index),
            tokens=self._piece("tokens", index), token_start=self._piece("token_start", index),
            text=meta["text"], voice=meta["voice"], seed=meta["seed"], prompt=meta["prompt"],
            direction=tuple(meta["direction"]), short=meta.get("short", False),
            video=self._piece("video", index) if self.has_video else None,
            still=self.tensors["still"][index] if "still" in self.tensors else None,
            pose=self._piece("pose", index) if "pose" in self.tensors else None,
        )


def shard_paths(folder: Path) -> list[Path]:
    """Finished shards of `folder`, in order."""
    paths = sorted(Path(folder).glob("shard-*.safetensors"))
    if not paths:
        raise DataError(f"expected shard-*.safetensors in {folder}, found none; run `streamchar world --shards {folder}`")
    return paths
