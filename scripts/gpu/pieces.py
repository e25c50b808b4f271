"""A training checkpoint as a few files of limited size, and back.

    python scripts/gpu/pieces.py split runs/joint OUT [--mib 58]     RUN/checkpoint -> OUT/manifest.json, piece-0, ...
    python scripts/gpu/pieces.py join OUT runs/joint                 back, every piece checked by its SHA-256

Machines that are lent by the hour take and return little: what is stored is the first of these that fits
into --mib:

    exact   everything as trained: the run goes on as though never stopped
    half    weights and averages as float16, the optimiser's moments as bfloat16
    lean    averages alone (they become the weights) and the moments
    warm    averages alone as float16: the optimiser starts anew, and the loop warms up again
    bytes   averages alone as int8 with a scale a row: likewise

Stage 1 does not touch the DiT's main blocks: but for `exact`, they stay behind and are initialised again.
`join` also writes the averaged weights as components (RUN/orchestrator, RUN/dit), as training exports them, and a
distillation's fake score (RUN/fake_score/dit) with them: stage II goes on with stage I's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from streamchar.codecs.component import BYTES, SCALE, SMALL, from_bytes, to_bytes
from streamchar.train.checkpoint import FORMAT as FORM
from streamchar.train.checkpoint import read_parts

FORMAT = "streamchar-pieces-1"
LEVELS = ("exact", "half", "lean", "warm", "bytes")
UNTRAINED = "orchestrator"
"""The objective whose frozen weights are as they were initialised (stage 2 may freeze trained ones)."""
MIB = 1 << 20
PIECE = int(14.5 * MIB)
MOST_PIECES = 7
PARTS = ("model", "average", "optimizer")


def narrow(value: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 tensors of some size as `dtype`; bfloat16 where float16 would overflow."""
    if value.dtype != torch.float32 or value.numel() < SMALL:
        return value
    if dtype == torch.float16 and not value.abs().max() < torch.finfo(dtype).max:
        dtype = torch.bfloat16
    return value.to(dtype)


def pack(parts: dict[str, dict[str, Tensor]], level: str, objective: str) -> dict[str, Tensor]:
    """What is stored at `level`, under names like "average|dit.head.weight"."""
    model, average, moments = (parts[name] for name in PARTS)
    if level == "exact":
        return {f"{part}|{name}": value for part in PARTS for name, value in parts[part].items()}
    packed: dict[str, Tensor] = {}
    if level != "half":
        model = {name: value for name, value in model.items() if name not in average}
    if objective == UNTRAINED:
        model = {name: value for name, value in model.items() if name in average or value.numel() < SMALL}
    for part, tensors in (("model", model), ("average", average)):
        for name, value in tensors.items():
            if level == "bytes" and value.dtype == torch.float32 and value.ndim > 1 and value.numel() >= SMALL:
                packed[f"{part}|{name}{BYTES}"], packed[f"{part}|{name}{SCALE}"] = to_bytes(value)
            else:
                packed[f"{part}|{name}"] = narrow(value, torch.float16)
    if level in ("half", "lean"):
        packed |= {f"optimizer|{name}": narrow(value, torch.bfloat16) for name, value in moments.items()}
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The checkpoint's three parts in float32; weights that were left out are their averages."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
    for key, value in packed.items():
        part, _, name = key.partition("|")
        if name.endswith(SCALE):
            continue
        if name.endswith(BYTES):
            name = name.removesuffix(BYTES)
            value = from_bytes(value, packed[f"{part}|{name}{SCALE}"])
        parts[part][name] = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    parts["model"] = {**parts["average"], **parts["model"]}
    return parts


def initial(facts: dict) -> dict[str, Tensor]:
    """The model of these facts as its training began."""
    from streamchar.config.presets import preset
    from streamchar.train.orchestrator import SpeechModel

    torch.manual_seed(int(facts["seed"]))
    return SpeechModel(preset(facts["preset"])).state_dict()


def size(tensors: dict[str, Tensor]) -> int:
    """Bytes of the values."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def split(run: Path, out: Path, mib: float, levels: tuple[str, ...] = LEVELS) -> str:
    """Write the pieces of `run`'s checkpoint to `out`; returns the level."""
    folder = run / "checkpoint"
    if not (folder / "facts.json").is_file():
        raise SystemExit(f"error: expected a training checkpoint in {folder}, found none")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    parts = read_parts(folder)
    facts.pop(FORM, None)  # the pieces hold whole tensors, however many processes wrote them
    facts.pop("shards", None)  # data stays behind: another machine makes its own
    budget = min(int(mib * MIB), MOST_PIECES * PIECE)
    level, packed = levels[-1], {}
    for level in levels:
        packed = pack(parts, level, str(facts.get("objective")))
        if size(packed) <= 0.99 * budget:  # the rest is for names
            break
    else:
        raise SystemExit(f"error: {size(packed) / MIB:.0f} MiB at level {level!r} do not fit into {budget / MIB:.0f}")
    configs = {
        path.parent.relative_to(run).as_posix(): path.read_text(encoding="utf-8")
        for pattern in ("*/config.json", "*/*/config.json") for path in run.glob(pattern)
    }  # fmt: skip
    packed = {name: value.contiguous() for name, value in packed.items()}
    blob = save(packed, metadata={"facts": json.dumps(facts), "configs": json.dumps(configs), "level": level})
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("piece-*"):
        stale.unlink()
    pieces = []
    for i, start in enumerate(range(0, len(blob), PIECE)):
        data = blob[start : start + PIECE]
        (out / f"piece-{i}").write_bytes(data)
        pieces.append({"name": f"piece-{i}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {"format": FORMAT, "level": level, **facts, "bytes": len(blob), "pieces": pieces}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(f"{run}: step {facts.get('step')} as {len(pieces)} pieces, {len(blob) / MIB:.1f} MiB, {level}")
    return level


def join(source: Path, run: Path) -> None:
    """Write `run`'s checkpoint and components from the pieces in `source`."""
    folder = run / "checkpoint"
    if folder.exists():
        raise SystemExit(f"error: {folder} is there already; move it away to take the pieces' instead")
    try:
        manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: expected manifest.json in {source}: {error}") from None
    if manifest.get("format") != FORMAT:
        raise SystemExit(f"error: {source} has the format {manifest.get('format')!r}, expected {FORMAT}")
    data = []
    for piece in manifest["pieces"]:
        path = source / piece["name"]
        data.append(path.read_bytes() if path.is_file() else b"")
        if hashlib.sha256(data[-1]).hexdigest() != piece["sha256"]:
            raise SystemExit(f"error: {path} is missing or damaged; copy it again")
    blob = b"".join(data)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]
    parts, facts = unpack(load(blob)), json.loads(header["facts"])
    if facts.get("objective") == UNTRAINED and header["level"] != "exact":
        parts["model"] = {**initial(facts), **parts["model"]}
    part = folder.with_name("checkpoint.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in PARTS:
        save_file(parts[name], part / f"{name}.safetensors")
    (part / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    averaged = {**parts["model"], **parts["average"]}
    for name, config in json.loads(header["configs"]).items():
        prefix = name.replace("fake_score/", "fake_") + "."  # as Distillation names it
        own = {key.removeprefix(prefix): value for key, value in averaged.items() if key.startswith(prefix)}
        if own:
            (run / name).mkdir(parents=True, exist_ok=True)
            save_file({key: value.clone() for key, value in own.items()}, run / name / "model.safetensors")
            (run / name / "config.json").write_text(config, encoding="utf-8")
    part.rename(folder)
    print(f"{run}: step {manifest.get('step')}, {header['level']}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("split")
    one.add_argument("run", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--mib", type=float, default=58.0, help="all pieces together")
    one.add_argument("--level", choices=LEVELS, help="this one instead of the first that fits")
    two = verbs.add_parser("join")
    two.add_argument("source", type=Path)
    two.add_argument("run", type=Path)
    given = parser.parse_args(arguments)
    if given.verb == "split":
        split(given.run, given.out, given.mib, (given.level,) if given.level else LEVELS)
    else:
        join(given.source, given.run)


if __name__ == "__main__":
    main(sys.argv[1:])
