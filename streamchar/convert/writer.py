"""Carrying a plan out: shard by shard, going on where an earlier run stopped.

A shard gets its name when it is complete, `model_index.json` is written last, and `conversion.json` says which plan
the folder belongs to. So whatever stands there under its own name is finished, and need not be written again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from streamchar.config.sampling import Sampling
from streamchar.convert.table import Part, Plan
from streamchar.errors import CheckpointError, InputError
from streamchar.stream.checkpoint import TOKENIZER
from streamchar.stream.models import write_model_index
from streamchar.stream.shards import Shard, write_index, write_shard

RECORD = "conversion.json"
STEPS = 50
"""Sampling steps of the model before distillation (paper section 5.5)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One file with weights that now stands in the folder."""

    component: str
    file: str
    bytes: int
    kept: bool
    """It was there already."""


def carry_out(plan: Plan, folder: Path | str) -> Iterator[Step]:
    """Write the model folder. Stop iterating at any time; the same plan goes on from there.

    Raises `CheckpointError` when the folder holds something else, and `InputError` when it cannot be written."""
    folder = Path(folder)
    try:
        _claim(plan, folder)
        for part in plan.parts:
            yield from _write(part, plan.max_bytes, folder / part.component)
        _copy(plan.tokenizer, folder / TOKENIZER)
        kinds = {part.component: part.kind for part in plan.parts}
        write_model_index(folder, plan.config, kinds, name=plan.config.name, how=asdict(Sampling(steps=STEPS)))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}; what is finished is kept, run it again") from None


def _claim(plan: Plan, folder: Path) -> None:
    """Make the folder this plan's, or find that it is."""
    digest, record = plan.digest(), folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {folder} is a file; give a folder")
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))["plan"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found != digest:
            raise CheckpointError(
                f"{folder} holds a conversion of other sources or options; give another -o, or remove it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no conversion; give another -o")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(".part")
        sources = {part.component: str(part.weights.folder) for part in plan.parts}
        part.write_text(json.dumps({"plan": digest, "sources": sources}, indent=2) + "\n", encoding="utf-8")
        part.replace(record)
    left = sum(
        shard.bytes
        for part in plan.parts
        for shard in part.shards(plan.max_bytes)
        if not _complete(folder / part.component, shard)
    )
    free = shutil.disk_usage(folder).free
    if left > free:
        raise InputError(f"{folder} has {free / 1e9:.1f} GB free, {left / 1e9:.1f} GB are needed; make room")


def _complete(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes


def _write(part: Part, max_bytes: int, folder: Path) -> Iterator[Step]:
    read, shards = part.reader(), part.shards(max_bytes)
    for shard in shards:
        kept = _complete(folder, shard)
        if not kept:
            write_shard(folder, shard, read)
        yield Step(component=part.component, file=shard.file, bytes=shard.bytes, kept=kept)
    write_index(folder, shards, part.stem)
    _copy(part.copies, folder)
    (folder / "config.json").write_text(part.config, encoding="utf-8")


def _copy(files: tuple[Path, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
