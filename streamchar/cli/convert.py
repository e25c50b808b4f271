"""`streamchar convert`: the paper's model from public base checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamchar.errors import ConfigError

if TYPE_CHECKING:
    from streamchar.convert.table import Plan

TYPES = ("bfloat16", "float16", "float32")
SOURCE = "DIR|HUB_ID"


def convert(
    video: Annotated[str, typer.Option(metavar=SOURCE, help="Wan2.2-TI2V-5B, diffusers' layout or Wan's own.")],
    lm: Annotated[str, typer.Option(metavar=SOURCE, help="Qwen2.5-3B.")],
    audio_vae: Annotated[str, typer.Option(metavar=SOURCE, help="An Oobleck VAE of stride 2048.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The model folder to write.")],
    text: Annotated[str | None, typer.Option(metavar=SOURCE, help="umT5's encoder.  [default: --video's]")] = None,
    video_vae: Annotated[str | None, typer.Option(metavar=SOURCE, help="Wan's VAE.  [default: --video's]")] = None,
    height: Annotated[int, typer.Option(help="Of the picture.")] = 512,
    width: Annotated[int, typer.Option(help="Of the picture.")] = 512,
    dtype: Annotated[str, typer.Option(metavar="|".join(TYPES), help="Of all but the codecs.")] = "bfloat16",
    max_shard_mb: Annotated[int, typer.Option(help="Largest file, in 10^6 bytes.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the weights that are new.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what becomes of every weight.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="A line for each weight, not one for all blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")] = False,
) -> None:
    """Build an initial `paper` model from base checkpoints. Run it again to go on after an interruption."""
    if dtype not in TYPES:
        raise ConfigError(f"--dtype must be one of {', '.join(TYPES)}, got {dtype!r}")
    import torch

    from streamchar.convert.conversion import Request, plan
    from streamchar.convert.writer import carry_out

    request = Request(
        video=video, lm=lm, audio_vae=audio_vae, text=text, video_vae=video_vae, height=height, width=width,
        dtype=getattr(torch, dtype), max_bytes=max_shard_mb * 1_000_000, seed=seed,
    )  # fmt: skip
    made = plan(request)
    if as_json:
        print(json.dumps({"bytes": made.bytes(), "notes": made.notes, "rows": table(made, keys=True)}))
    elif dry_run:
        show(made, keys=keys)
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        return
    for step in carry_out(made, output):
        done = "kept" if step.kept else "written"
        typer.echo(f"{step.component}/{step.file} {done}, {step.bytes / 1e6:,.1f} MB", err=True)
    if not as_json:
        print(f"{output}: {made.bytes() / 1e9:.2f} GB; train it, then: streamchar say --model {output}")


def table(plan: Plan, *, keys: bool) -> list[dict[str, Any]]:
    """Rows of the plan; those of all blocks as one unless `keys`."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for part in plan.parts:
        for row in part.rows:
            name, source = row.name or "", row.source or ""
            if not keys:
                name, source = (re.sub(r"\.\d+(?=\.)", ".*", text, count=1) for text in (name, source))
            same = (part.component, row.how, name, source, row.reason)
            group = groups.setdefault(
                same,
                {"component": part.component, "how": row.how, "name": name, "source": source, "reason": row.reason,
                 "weights": 0, "parameters": 0},
            )  # fmt: skip
            group["weights"] += 1
            group["parameters"] += row.parameters
    return list(groups.values())


def show(plan: Plan, *, keys: bool) -> None:
    """Print the table, then its sums."""
    rows = table(plan, keys=keys)
    for row in rows:
        arrow = f"{row['name'] or '-'} <- {row['source'] or row['how']}"
        why = f"  ({row['reason']})" if row["reason"] else ""
        print(f"{row['component']:15} {row['how']:10} {row['weights']:5} {row['parameters']:15,}  {arrow}{why}")
    print()
    for part in plan.parts:
        sums: dict[str, int] = {}
        for row in (row for row in rows if row["component"] == part.component):
            sums[row["how"]] = sums.get(row["how"], 0) + row["parameters"]
        shards = part.shards(plan.max_bytes)
        size = sum(shard.bytes for shard in shards) / 1e9
        counted = ", ".join(f"{how} {count:,}" for how, count in sums.items())
        print(f"{part.component:15} {size:8.3f} GB in {len(shards)} file(s): {counted}")
    print(f"{'total':15} {plan.bytes() / 1e9:8.3f} GB")
