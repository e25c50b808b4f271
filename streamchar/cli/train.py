"""`streamchar train`: codecs, prompt encoder and the training stages (design section 4)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamchar.errors import InputError

if TYPE_CHECKING:
    from streamchar.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a stage's training function lives: `train(data, out, minutes, config=..., resume=...)`, or
    `train(out, minutes, config=...)` where it makes its own data in minutes."""

    module: str
    function: str
    part: str | None = None
    """The component of the model's configuration that it takes; the whole when None."""
    reads_data: bool = True

    def config(self, whole: ModelConfig) -> Any:
        return getattr(whole, self.part) if self.part else whole


STAGES = {
    "audio-codec": Stage(module="streamchar.train.audio_codec", function="train_audio_codec", part="audio"),
    "video-codec": Stage(module="streamchar.train.video_codec", function="train_video_codec", part="video"),
    "prompt-encoder": Stage(
        module="streamchar.train.prompt_encoder", function="train_prompt_encoder", part="prompt", reads_data=False
    ),
    "orchestrator": Stage(module="streamchar.train.orchestrator", function="train_orchestrator"),
    "joint": Stage(module="streamchar.train.joint", function="train_joint"),
}


def train(
    stage: Annotated[str, typer.Argument(metavar="|".join(STAGES), help="What to train.")],
    data: Annotated[Path | None, typer.Option(help="Folder of shards, from `streamchar world --shards`.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: checkpoints and scalars.")] = None,
    preset: Annotated[str, typer.Option(help="Model size: toon, tiny or paper.")] = "toon",
    minutes: Annotated[float | None, typer.Option(help="Wall time to train for.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")] = False,
) -> None:
    """Train one stage for some minutes; repeat with --resume to go on."""
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}; one of: {', '.join(STAGES)}")
    chosen = STAGES[stage]
    needed = {"--data": data} if chosen.reads_data else {}
    missing = [name for name, value in {**needed, "--out": out, "--minutes": minutes}.items() if value is None]
    if missing:
        raise InputError(f"training needs {', '.join(missing)}")
    assert out is not None and minutes is not None
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes must be above 0, got {minutes}")
    if chosen.reads_data and not (data and data.is_dir()):
        raise InputError(f"there is no folder {data}; write shards with: streamchar world --shards {data} --hours 1")
    if resume and not chosen.reads_data:
        raise InputError(f"{stage} trains in minutes and cannot be resumed; leave out --resume")
    from streamchar.config.presets import preset as named

    config = chosen.config(named(preset))
    logging.getLogger("streamchar").setLevel(logging.INFO)
    function = getattr(import_module(chosen.module), chosen.function)
    if chosen.reads_data:
        function(data, out, minutes, config=config, resume=resume)
    else:
        function(out, minutes, config=config)
