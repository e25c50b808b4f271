"""`streamchar info`: what a model is made of and what this machine runs it on."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from streamchar.config.model import ModelConfig


def component_figures(name: str, module: nn.Module) -> dict[str, Any]:
    """Class, parameters, size in MiB, number format and device of one component."""
    tensors = [*module.parameters(), *module.buffers()]
    return {
        "name": name,
        "class": type(module).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "mib": round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20, 2),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters()})),
        "device": ", ".join(sorted({str(tensor.device) for tensor in tensors})),
    }


def machine() -> dict[str, Any]:
    """What computes here."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def model_figures(config: ModelConfig) -> dict[str, Any]:
    """Picture, sound and chunk of a model."""
    from streamchar import clock

    return {
        "model": config.name,
        "picture": f"{config.width}x{config.height}, {clock.VIDEO_FPS} fps",
        "sound": f"{clock.AUDIO_RATE} Hz mono, {clock.MUX_RATE} Hz in mp4 and webm",
        "chunk": f"{clock.FRAMES_PER_CHUNK} frames, {float(clock.CHUNK_SECONDS)} s",
        "transcript_tokens": config.tokenizer,
    }


def info(
    model: Annotated[str, typer.Option(metavar="toon|DIR|HUB_ID", help="Which model.")] = "toon",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="What fits on which GPU with which options; --model is a preset.")
    ] = False,
) -> None:
    """List a model's components: parameters, sizes, and what they run on."""
    if plan:
        from streamchar.cli.plan import show_memory_plan

        return show_memory_plan(model, as_json)
    from streamchar.stream.pipeline import StreamCharPipeline

    pipe = StreamCharPipeline.from_pretrained(model)
    parts = [component_figures(name, module) for name, module in pipe.components().items()]
    figures = model_figures(pipe.config)
    total = {"parameters": sum(part["parameters"] for part in parts), "mib": sum(part["mib"] for part in parts)}
    if as_json:
        print(json.dumps({**figures, "components": parts, "total": total, "machine": machine()}))
        return
    _show(figures, parts, total)


def _show(figures: dict[str, Any], parts: list[dict[str, Any]], total: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, value in {**figures, **machine()}.items():
        shown = (", ".join(value) or "none") if isinstance(value, list) else value
        console.print(f"{name.replace('_', ' '):18} {shown}", highlight=False)
    table = Table("component", "class")
    for title in ("parameters", "MiB"):
        table.add_column(title, justify="right")
    for title in ("dtype", "device"):
        table.add_column(title)
    for part in parts:
        sizes = (f"{part['parameters']:,}", f"{part['mib']:.1f}")
        table.add_row(part["name"], part["class"], *sizes, part["dtype"], part["device"])
    table.add_section()
    table.add_row("total", "", f"{total['parameters']:,}", f"{total['mib']:.1f}")
    console.print(table)
