"""What a conversion does, weight by weight: every key of the sources and of the result stands in it once.

A part is one component folder of the result. It knows its rows, its files and where each value comes from, so a plan
can be printed, compared with an earlier one, and carried out in any order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamchar.config.model import ModelConfig
from streamchar.errors import CheckpointError
from streamchar.stream.shards import Entry, Shard, WeightFolder, plan_shards

USED, REPLICATED, ZERO, NEW, IGNORED = "used", "replicated", "zero", "new", "ignored"
"""From the source; from the source once more; zero, so that nothing is added to it; as training from nothing begins;
in the source, but not in the result."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One weight."""

    how: str
    name: str | None
    """In the result; None where it is ignored."""
    source: str | None
    """In the source; None where it has none."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    reason: str = ""

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component folder of the result."""

    component: str
    kind: str
    """Class that it is loaded as."""
    stem: str
    config: str
    """Text of its config.json."""
    rows: tuple[Row, ...]
    weights: WeightFolder
    new: Callable[[], dict[str, Tensor]] | None = None
    copies: tuple[Path, ...] = ()
    """Files that are copied as they are (a tokenizer's)."""

    def shards(self, max_bytes: int) -> tuple[Shard, ...]:
        """Its files."""
        kept = (row for row in self.rows if row.name is not None)
        return plan_shards((Entry(name=r.name or "", shape=r.shape, dtype=r.dtype) for r in kept), self.stem, max_bytes)

    def reader(self) -> Callable[[str], Tensor]:
        """Values by name, one at a time; what is new is drawn when the first of it is asked for."""
        rows = {row.name: row for row in self.rows if row.name is not None}
        drawn: dict[str, Tensor] = {}

        def read(name: str) -> Tensor:
            row = rows[name]
            if row.how == ZERO:
                return torch.zeros(row.shape, dtype=row.dtype)
            if row.how == NEW:
                if not drawn:
                    assert self.new is not None
                    drawn.update(self.new())
                return drawn[name]
            assert row.source is not None
            return self.weights.read(row.source).reshape(row.shape)

        return read


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole conversion."""

    parts: tuple[Part, ...]
    config: ModelConfig
    tokenizer: tuple[Path, ...]
    """Files of the transcript tokenizer."""
    max_bytes: int
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Changes with anything that changes the result: sources, options, configuration."""
        facts: list[Any] = [repr(self.config), self.max_bytes]
        for part in self.parts:
            facts += [part.component, part.config, [repr(row) for row in part.rows]]
            facts += [_stamp(path) for path in (*part.weights.paths, *part.copies)]
        facts += [_stamp(path) for path in self.tokenizer]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def bytes(self) -> int:
        """Of all files with weights."""
        return sum(shard.bytes for part in self.parts for shard in part.shards(self.max_bytes))


def _stamp(path: Path) -> list[Any]:
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def match(
    component: str,
    target: Mapping[str, Tensor],
    weights: WeightFolder,
    translate: Callable[[str], str | None],
    *,
    ignored: Iterable[tuple[Callable[[str], bool], str]] = (),
    dtype: torch.dtype | None = None,
    elsewhere: Callable[[str], bool] = lambda name: False,
) -> Iterator[Row]:
    """A row for every key of the source. `target` is the result's state dict on the meta device, `translate` gives
    the result's name of a source's key, `elsewhere` tells names that do not come from this source.

    Raises `CheckpointError` for a key that is neither known nor ignored, a wrong shape, and a missing weight."""
    filled: set[str] = set()
    for key, entry in weights.entries.items():
        reason = next((why for test, why in ignored if test(key)), None)
        if reason is not None:
            yield Row(how=IGNORED, name=None, source=key, shape=entry.shape, dtype=entry.dtype, reason=reason)
            continue
        name = translate(key)
        if name is None or name not in target:
            raise CheckpointError(
                f"{weights.folder}: {key} has no place in the {component}; give a checkpoint of the expected model"
            )
        shape = tuple(target[name].shape)
        flat = (*entry.shape[:1], math.prod(entry.shape[1:]))  # a convolution whose kernel is its stride, as a matrix
        if entry.shape != shape and not (key.endswith("patch_embedding.weight") and flat == shape):
            raise CheckpointError(
                f"{weights.folder}: {key} has shape {entry.shape}, expected {shape} after its config.json; "
                "fetch both again"
            )
        if name in filled:
            raise CheckpointError(f"{weights.folder}: two keys give {name} ({key} is the second); fetch it again")
        filled.add(name)
        yield Row(how=USED, name=name, source=key, shape=shape, dtype=dtype or entry.dtype)
    missing = sorted(name for name in target if name not in filled and not elsewhere(name))
    if missing:
        raise CheckpointError(
            f"{weights.folder} lacks {len(missing)} weights of the {component} (first: {missing[0]}); "
            "fetch the whole checkpoint"
        )
