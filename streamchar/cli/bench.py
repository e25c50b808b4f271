"""`streamchar bench`: how fast a model is on this machine, stage by stage (docs/bench.md)."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from streamchar.errors import InputError


def bench(
    preset: Annotated[str, typer.Option(help="Model size: toon, tiny, paper or paper-tiny.")] = "toon",
    model: Annotated[
        str | None, typer.Option(metavar="toon|DIR|HUB_ID", help="Measure these weights.  [default: random]")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw the weights on the device: speed is the same.")
    ] = False,
    chunks: Annotated[int, typer.Option(help="Chunks that count, each finished before the next begins.")] = 20,
    overlapped: Annotated[int, typer.Option(help="Chunks played as for a user, after them.")] = 8,
    warm_up: Annotated[int, typer.Option(help="Chunks played and forgotten before.")] = 3,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Picture, height first.  [default: preset's]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.  [default: the model's]")] = None,
    layers: Annotated[int | None, typer.Option(help="At most so many layers a transformer, for a trial run.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    speed: Annotated[
        str | None, typer.Option(metavar="LIST", help='Speed options with commas; "" for the usual ones.')
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="diffusers", help="Also time its Wan transformer.")] = None,
    caches: Annotated[bool, typer.Option("--caches", help="Also time the steps without their caches.")] = False,
    own_time: Annotated[
        bool, typer.Option("--own-time", help="CPU: the process's own seconds, for cores that are not free.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of noise and random weights.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them as a page here.")] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    note: Annotated[str, typer.Option(help="A sentence of the page: what else the machine did, say.")] = "",
) -> None:
    """Time every stage of a chunk, count its operations, and compare with the machine's ceiling."""
    if model is not None and random_weights:
        raise InputError("--model and --random-weights exclude each other; leave one out")
    if against not in (None, "diffusers"):
        raise InputError(f"--against knows diffusers, got {against!r}")
    from streamchar.bench.report import markdown as page
    from streamchar.bench.trial import Trial, read_size, read_speed, run
    from streamchar.stream.draft import Draft

    trial = Trial(
        preset=preset, model=model, chunks=chunks, overlapped=overlapped, warm_up=warm_up,
        size=None if size is None else read_size(size), steps=steps, layers=layers, device=device, dtype=dtype,
        speed=None if speed is None else read_speed(speed), against=against is not None, caches=caches,
        own_time=own_time, seed=seed,
    )  # fmt: skip
    logging.getLogger("streamchar.stream.checkpoint").setLevel(logging.ERROR)  # bytes for tokens are meant here
    with contextlib.ExitStack() as drafts:  # an unwritable place shows before minutes of work
        places = (json_file, markdown)
        for place in places:
            if place is not None:
                place.parent.mkdir(parents=True, exist_ok=True)
        files = [None if place is None else drafts.enter_context(Draft(place)) for place in places]
        result = run(trial)
        text = page(result, title or f"{result['trial']['name']} on {device}", note)
        print(text, end="")
        for file, content in zip(files, (json.dumps(result, indent=2) + "\n", text), strict=True):
            if file is not None:
                file.path.write_text(content, encoding="utf-8")
