"""Plans without weights: `streamchar info --plan` and `streamchar train plan`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from streamchar.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from streamchar.config.model import ModelConfig

MIB = 2**20


def configuration(name: str) -> ModelConfig:
    """A preset's configuration, or that of a model folder; no weights are read."""
    from streamchar.config.presets import PRESETS, preset

    if name in PRESETS:
        return preset(name)
    raise InputError(f"a plan is made from a preset, got {name!r}; one of: {', '.join(PRESETS)}")


def memory_plan(name: str) -> dict[str, Any]:
    """What fits on which card with which options."""
    from streamchar.bench.footprint import CARDS, CHOICES, RUNTIME_GIB, WASTE, footprint
    from streamchar.bench.inventory import inventory

    config = configuration(name)
    parts = inventory(config)
    rows = []
    for options in CHOICES:
        found = footprint(config, parts, options)
        rows.append({
            "options": options.name,
            "weights_mib": round(found.weights / MIB, 1), "stream_mib": round(found.stream / MIB, 1),
            "activations_mib": round(found.activations / MIB, 1), "total_mib": round(found.total / MIB, 1),
            "streams": {card: found.streams(size) for card, size in CARDS.items()},
        })  # fmt: skip
    return {
        "model": config.name, "size": [config.height, config.width],
        "parameters": {**asdict(parts), "total": parts.total},
        "plans": rows, "cards_gib": CARDS, "runtime_gib": RUNTIME_GIB, "waste": WASTE,
    }  # fmt: skip


def show_memory_plan(name: str, as_json: bool) -> None:
    """Print it."""
    plan = memory_plan(name)
    if as_json:
        print(json.dumps(plan))
        return
    from rich.console import Console

    console, height_width = Console(), "x".join(map(str, plan["size"]))
    title = f"{plan['model']} at {height_width}: GiB, and streams that fit"
    table = _table(title, "options", ("weights", "a stream", "activ.", "in all", *plan["cards_gib"]))
    for row in plan["plans"]:
        sizes = [f"{row[key] / 1024:.1f}" for key in ("weights_mib", "stream_mib", "activations_mib", "total_mib")]
        table.add_row(row["options"], *sizes, *(str(n) if n else "no" for n in row["streams"].values()))
    console.print(table)
    cards = ", ".join(f"{name}: {size}" for name, size in plan["cards_gib"].items())
    console.print(
        f"Counted: {plan['parameters']['total']:,} parameters, keys and values. Estimated: activations. In all: also "
        f"{plan['runtime_gib']} GiB for the driver and libraries, {plan['waste']:.0%} of stream and activations for "
        f"what the allocator cannot use. GiB taken as usable: {cards}.",
        highlight=False,
    )


GPU_GIB, TFLOPS, LINK_GB = 79.0, 400.0, 300.0


def training_plan(name: str, gpus: int, memory: float, tflops: float, link: float, batch: int | None) -> dict[str, Any]:
    """Memory a GPU and time a step of the four stages."""
    from dataclasses import replace

    from streamchar.bench.inventory import inventory
    from streamchar.bench.scale import Assumptions, estimate, stages

    for option, value in (("gpus", gpus), ("gpu-memory", memory), ("tflops", tflops), ("link", link)):
        if not 0 < value < float("inf"):
            raise InputError(f"--{option} must be above 0, got {value}")
    config, given = configuration(name), Assumptions(gpus=gpus, memory_gib=memory, tflops=tflops, link_gb=link)
    found = []
    for stage in stages(config, inventory(config), given):
        if batch is not None:
            stage = replace(stage, batch=batch)
        one = estimate(stage, given)
        found.append({**asdict(one), "step_s": one.step_s, "days": one.days})
    return {"model": config.name, "size": [config.height, config.width], "assumptions": asdict(given), "stages": found}


def show_training_plan(
    name: str,
    *,
    gpus: int | None = None,
    memory: float | None = None,
    tflops: float | None = None,
    batch: int | None = None,
) -> None:
    """Print it, with what it assumes."""
    if batch is not None and batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}")
    gpus, memory = 8 if gpus is None else gpus, GPU_GIB if memory is None else memory
    plan = training_plan(name, gpus, memory, TFLOPS if tflops is None else tflops, LINK_GB, batch)
    from rich.console import Console

    console = Console()
    title = f"{plan['model']} on {gpus} GPUs of {memory:g} GiB, FSDP2; GiB a GPU"
    columns = ("states", "gath.", "frozen", "sample", "ckpt.", "batch", "total", "step s", "days")
    table = _table(title, "stage", columns)
    for one in plan["stages"]:
        fits = f"{one['micro_batch']}x{one['accumulate']}" if one["micro_batch"] else "no"
        mark = " c" if one["checkpointing"] and one["micro_batch"] else ""
        sizes = [f"{one[key]:.1f}" for key in ("states_gib", "gathered_gib", "frozen_gib", "kept_gib")]
        table.add_row(
            one["stage"]["name"], *sizes, f"{one['checkpointed_gib']:.1f}", fits + mark, f"{one['total_gib']:.1f}",
            f"{one['step_s']:.1f}", f"{one['days']:.1f}",
        )  # fmt: skip
    console.print(table)
    given = plan["assumptions"]
    for line in (
        "states: master weights, gradients, two moments of Adam and averages, float32, shared out over all GPUs; "
        "gath.: bfloat16 weights of the blocks at work (rollout: all of them, with whole gradients, as its passes "
        "differ in number between processes); frozen: the prompt encoder, in distillation the whole teacher, on every "
        "GPU in bfloat16.",
        "sample: activations of one without checkpointing; ckpt.: with checkpointing, blocks' inputs and one block in "
        "full. batch: samples at once x accumulated, a GPU; c: with checkpointing, only where none fits without.",
        f"step: counted operations (backward twice the forward, checkpointing one forward more) at {given['tflops']:g} "
        f"TFLOP/s a GPU, or the exchange at {given['link_gb']:g} GB/s where that is longer. Data are assumed not to be "
        "waited for.",
        f"Steps and batches of stages 1 and 2 are the paper's; distillation's batch (64), {given['chunks']} chunks a "
        f"rollout, {given['follow']} fake-score updates a student update and guidance are ours.",
    ):
        console.print(line, highlight=False)


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    """Readable on a terminal of 80 columns: no lines between columns, and only titles wrap."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table
