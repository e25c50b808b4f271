"""Safetensors in shards, as diffusers and transformers lay them out, read and written one tensor at a time.

`<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` with `<stem>.safetensors.index.json`. What is written is
planned from names, shapes and types alone, so a shard's size is known before its first byte, and writing needs
memory for one tensor, not for one shard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streamchar.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
MAX_BYTES = 5_000_000_000
"""Largest shard, as diffusers and transformers choose it; a single larger tensor has a shard of its own."""
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {kind: name for name, kind in TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file that is to be written."""

    file: str
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Of the whole file, header included."""
        return len(header(self.entries)) + sum(entry.bytes for entry in self.entries)


class WeightFolder:
    """The safetensors of a folder: what is there, and each tensor by name. Raises `CheckpointError`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        self._files: dict[str, Path] = {}
        self.paths = _files(self.folder)
        for path in self.paths:
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping
                        part = file.get_slice(name)
                        kind = TYPES.get(part.get_dtype())
                        if kind is None:
                            given = part.get_dtype()
                            raise CheckpointError(f"{path}: {name} is stored as {given}; convert it to bfloat16")
                        self.entries[name] = Entry(name=name, shape=tuple(part.get_shape()), dtype=kind)
                        self._files[name] = path
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is not a complete safetensors file ({error}); fetch it again") from None

    def read(self, name: str) -> Tensor:
        """One tensor. Its file is opened for it alone: an open file's pages, once read, would count as ours."""
        try:
            with safe_open(self._files[name], "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {name} from {self.folder}: {error}; fetch it again") from None


def _files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights: an index's, or the plain one's."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is not an index of shards ({error}); fetch it again") from None
            missing = [name for name in names if not (folder / name).is_file()]
            if missing or not names:
                raise CheckpointError(
                    f"{index} names {len(names)} shards, {len(missing)} are missing {missing[:3]}; fetch them again"
                )
            return [folder / name for name in names]
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; give one with config.json and safetensors")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which are never read: a pickle can run "
            "anything; get the safetensors of this model (its diffusers or transformers repository has them)"
        )
    raise CheckpointError(f"expected {' or '.join(f'{s}.safetensors' for s in STEMS)} in {folder}, found neither")


def plan_shards(entries: Iterable[Entry], stem: str, max_bytes: int = MAX_BYTES) -> tuple[Shard, ...]:
    """Distribute tensors over files, in their order."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.bytes
    count = len(groups)
    return tuple(
        Shard(
            file=f"{stem}.safetensors" if count == 1 else f"{stem}-{i + 1:05}-of-{count:05}.safetensors",
            entries=tuple(sorted(group, key=lambda entry: -entry.dtype.itemsize)),  # so that all lie aligned
        )
        for i, group in enumerate(groups)
    )


def header(entries: Sequence[Entry]) -> bytes:
    """What a safetensors file of these tensors begins with."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        table[entry.name] = {
            "dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [at, at + entry.bytes],
        }  # fmt: skip
        at += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(folder: Path, shard: Shard, read: Callable[[str], Tensor]) -> None:
    """Write one file under a temporary name, then give it its own. `read` is called once a tensor, in file order."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{shard.file}.part"
    with part.open("wb") as file:
        file.write(header(shard.entries))
        for entry in shard.entries:
            value = read(entry.name).detach()
            assert tuple(value.shape) == entry.shape, f"{entry.name}: {tuple(value.shape)} for {entry.shape}"
            flat = value.to(device="cpu", dtype=entry.dtype).contiguous().reshape(-1)
            file.write(memoryview(flat.view(torch.uint8).numpy()))
    part.replace(folder / shard.file)


def write_index(folder: Path, shards: Sequence[Shard], stem: str) -> None:
    """The index beside several shards; a single file needs none."""
    if len(shards) == 1:
        return
    places = {entry.name: shard.file for shard in shards for entry in shard.entries}
    total = sum(entry.bytes for shard in shards for entry in shard.entries)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2)
    (folder / f"{stem}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
