"""`streamchar train`: codecs, prompt encoder and the training stages (design section 4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
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
    source: str | None = "--shards DIR --hours 1"
    """What `streamchar world` writes its data with; None where it makes its own."""

    @property
    def reads_data(self) -> bool:
        return self.source is not None

    def config(self, whole: ModelConfig) -> Any:
        return getattr(whole, self.part) if self.part else whole


STAGES = {
    "audio-codec": Stage(
        module="streamchar.train.audio_codec", function="train_audio_codec", part="audio",
        source="--speech-raw DIR --hours 3",
    ),
    "video-codec": Stage(
        module="streamchar.train.video_codec", function="train_video_codec", part="video",
        source="--clips-raw DIR --clips 400",
    ),
    "reference": Stage(module="streamchar.train.reference", function="train_reference", part="video"),
    "prompt-encoder": Stage(
        module="streamchar.train.prompt_encoder", function="train_prompt_encoder", part="prompt", source=None
    ),
    "orchestrator": Stage(module="streamchar.train.orchestrator", function="train_orchestrator"),
    "joint": Stage(module="streamchar.train.joint", function="train_joint"),
    "distill": Stage(module="streamchar.train.distill", function="train_distill"),
    "rollout": Stage(module="streamchar.train.rollout", function="train_rollout"),
    "ablate": Stage(module="streamchar.cli.train", function="train_ablate"),
}
SCALE = ("shard", "bf16", "checkpoint_activations", "compile", "accumulate")
"""Options of how a run is spread out (`train/parallel.py:Scale`)."""
OWN = ("stage", "data", "out", "preset", "minutes", "resume", "gpus", "gpu_memory", "tflops")
"""What is not an option of a stage's function."""


def train(
    stage: Annotated[str, typer.Argument(metavar="|".join([*STAGES, "plan"]), help="What to train.")],
    data: Annotated[Path | None, typer.Option(help="Folder of data that `streamchar world` wrote.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run: checkpoints and scalars.")] = None,
    preset: Annotated[str, typer.Option(help="Model size: toon, tiny or paper.")] = "toon",
    minutes: Annotated[float | None, typer.Option(help="Wall time to train for.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; cpu when not given.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows or clips a step; else the stage's own.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate; else the stage's own.")] = None,
    cooldown: Annotated[float | None, typer.Option(help="Share of the minutes, at the end, in which it falls.")] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Begin with these weights (the stage's before, or its own of another run)."),
    ] = None,
    speech: Annotated[Path | None, typer.Option(metavar="DIR", help="joint: shards of speech alone to mix in.")] = None,
    codecs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="orchestrator, joint: codecs to show samples; else toon's.")
    ] = None,
    prompt_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="joint: the frozen text encoder; else toon's.")
    ] = None,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Codecs: the decoder alone; stored latents stay valid.")
    ] = False,
    critic: Annotated[
        bool, typer.Option("--critic", help="reference: sharpen the whole decoder, with a critic, after the mixer.")
    ] = False,
    freeze_speech: Annotated[bool, typer.Option("--freeze-speech", help="joint: train the main blocks alone.")] = False,
    teacher: Annotated[
        Path | None, typer.Option(metavar="toon-base|DIR", help="distill, rollout, ablate: what is distilled.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="distill, rollout: the teacher's; else its own.")] = None,
    picture_guidance: Annotated[
        float | None, typer.Option(help="distill, rollout: the teacher's of the picture alone, down to its own level.")
    ] = None,
    fake_rate: Annotated[
        float | None, typer.Option(help="distill, rollout: the fake score's; else a fifth of --rate.")
    ] = None,
    follow: Annotated[
        int | None, typer.Option(help="distill, rollout: updates of the fake score for one of the student.")
    ] = None,
    audio_weight: Annotated[float | None, typer.Option(help="distill, rollout: of audio against video.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="distill, rollout: deviation of the student's noise.  [default: 1]")
    ] = None,
    picture_temperature: Annotated[
        float | None, typer.Option(help="distill, rollout: the same for the picture; else as --temperature.")
    ] = None,
    train_orchestrator: Annotated[
        bool, typer.Option("--train-orchestrator", help="distill, rollout: the orchestrator too.")
    ] = False,
    chunks: Annotated[int | None, typer.Option(help="rollout: chunks of the longest; 1: isolated chunks.")] = None,
    grow: Annotated[
        int | None, typer.Option(help="rollout: student updates after which a rollout is a chunk longer.")
    ] = None,
    no_sink: Annotated[bool, typer.Option("--no-sink", help="distill, rollout: ablation.")] = False,
    no_history: Annotated[bool, typer.Option("--no-history", help="distill, rollout: ablation.")] = False,
    no_stage_1: Annotated[
        bool, typer.Option("--no-stage-1", help="rollout: ablation, begin from the teacher.")
    ] = False,
    no_pointer_truncation: Annotated[
        bool, typer.Option("--no-pointer-truncation", help="rollout: ablation, the transcript is cut by the clock.")
    ] = False,
    updates: Annotated[
        int | None, typer.Option(help="distill, rollout, ablate: of the student, in each stage; then it ends.")
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: weights cut over the processes (FSDP2).")
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="With --shard: weights travel as bfloat16.")] = False,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory: blocks run twice.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the DiT's main blocks.")] = False,
    accumulate: Annotated[int | None, typer.Option(help="Batches of a step on each process.")] = None,
    seeds: Annotated[int | None, typer.Option(help="ablate: trainings of every arm.  [default: 3]")] = None,
    protocols: Annotated[
        str | None, typer.Option(metavar="A,B", help="ablate: what is measured on.  [default: short,long]")
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option(help="ablate: only the first so many of each protocol. reference: examples.  [default: 800]"),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="ablate: the protocols' variants for two cores.")] = False,
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="ablate: only these; else the table's.")] = None,
    recogniser_folder: Annotated[Path | None, typer.Option(help="ablate: the recogniser's weights.")] = None,
    gpus: Annotated[int | None, typer.Option(help="plan: how many.  [default: 8]")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="plan: GiB of one.  [default: 79]")] = None,
    tflops: Annotated[float | None, typer.Option(help="plan: sustained rate of one.  [default: 400]")] = None,
) -> None:
    """Train one stage for some minutes; repeat with --resume to go on. `plan`: what the stages take on many GPUs."""
    given = dict(locals())
    if stage == "plan":
        from streamchar.cli.plan import show_training_plan

        return show_training_plan(preset, gpus=gpus, memory=gpu_memory, tflops=tflops, batch=batch)
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
        raise InputError(f"there is no folder {data}; write one with: streamchar world {chosen.source}")
    if resume and not chosen.reads_data:
        raise InputError(f"{stage} trains in minutes and cannot be resumed; leave out --resume")
    if not resume and (out / "model.safetensors").exists():
        how = "go on with --resume, or " if chosen.reads_data else ""
        raise InputError(f"{out} holds weights already: {how}choose another --out")
    if teacher is not None and len(teacher.parts) == 1 and not teacher.is_dir():
        from streamchar.stream.models import resolve

        teacher = resolve(str(teacher))  # a shipped model's name
    given["teacher"] = teacher
    options = {name: v for name, v in given.items() if name not in OWN and v is not None and v is not False}
    check(options)
    from streamchar.config.presets import preset as named

    config = chosen.config(named(preset))
    logging.getLogger("streamchar").setLevel(logging.INFO)
    function = getattr(import_module(chosen.module), chosen.function)
    known = signature(function).parameters
    unknown = [name for name in options if name not in known and not (name in SCALE and "scale" in known)]
    if unknown:
        raise InputError(f"{stage} does not take --{unknown[0].replace('_', '-')}; leave it out")
    spread = {name: options.pop(name) for name in SCALE if name in options}
    if spread:
        from streamchar.train.parallel import Scale

        options["scale"] = Scale(**spread)
    if options.get("device") == "cuda":
        from streamchar.train.parallel import own_device

        options["device"] = own_device("cuda")
    if chosen.reads_data:
        function(data, out, minutes, config=config, resume=resume, **options)
    else:
        function(out, minutes, config=config, **options)


def check(options: dict[str, Any]) -> None:
    """Raise `InputError` for values that no stage takes."""
    for name in ("batch", "follow", "chunks", "grow", "updates", "accumulate", "seeds", "clips"):
        if options.get(name, 1) < 1:
            raise InputError(f"--{name} must be at least 1, got {options[name]}")
    positive = ("guidance", "picture_guidance", "audio_weight", "temperature", "picture_temperature")
    for name in ("rate", "fake_rate", *positive):
        if not 0 < options.get(name, 1.0) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0, got {options[name]}")
    if not 0 <= options.get("cooldown", 0.0) <= 1:
        raise InputError(f"--cooldown is a share of the minutes, from 0 to 1, got {options['cooldown']}")
    for name in ("start", "speech", "prompt_encoder", "teacher", "recogniser_folder", "codecs"):
        if name in options and not options[name].is_dir():
            raise InputError(f"--{name.replace('_', '-')}: there is no folder {options[name]}")
    if "device" in options:
        from streamchar.stream.models import usable

        usable(options["device"])


def train_ablate(
    data: Path, out: Path, minutes: float, *, config: ModelConfig, resume: bool = False, device: str = "cpu",
    teacher: Path | None = None, updates: int | None = None, seeds: int = 3, protocols: str = "short,long",
    clips: int | None = None, fast: bool = False, metrics: str | None = None, recogniser_folder: Path | None = None,
    chunks: int = 5, grow: int = 40, batch: int | None = None, rate: float | None = None,
    fake_rate: float | None = None, guidance: float | None = None, picture_guidance: float | None = None,
    audio_weight: float | None = None, follow: int | None = None, temperature: float | None = None,
    picture_temperature: float | None = None,
) -> None:
    """All ablations at one budget; the same command goes on after a stop (`resume` says nothing new)."""
    from streamchar.train.ablate import Ablation, Budget, ablate, markdown

    if teacher is None or updates is None:
        missing = [name for name, value in (("--teacher", teacher), ("--updates", updates)) if value is None]
        raise InputError(f"ablate needs {' and '.join(missing)}: the model to distil, the budget of every training")
    evaluate = suite_of(
        protocols, clips=clips, fast=fast, metrics=metrics, recogniser_folder=recogniser_folder, device=device
    )
    asked = {
        "batch": batch, "rate": rate, "fake_rate": fake_rate, "guidance": guidance,
        "picture_guidance": picture_guidance, "audio_weight": audio_weight, "follow": follow,
        "temperature": temperature, "picture_temperature": picture_temperature,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    plan = Ablation(
        data=data, out=out, teacher=teacher, config=config, device=device, options=options, grow=grow, chunks=chunks,
        budget=Budget(updates=updates, minutes=minutes, seeds=seeds),
    )
    print(markdown(ablate(plan, evaluate)), end="")


def suite_of(
    protocols: str, *, clips: int | None, fast: bool, metrics: str | None, recogniser_folder: Path | None, device: str
) -> Callable[[Path, Path], dict[str, Path]]:
    """Measures a model folder on protocols, each into a folder of its own; what is there already is not made again."""
    from streamchar.cli.generator import ModelGenerator, TruthGenerator
    from streamchar.eval import evaluation, suite
    from streamchar.eval import protocol as named
    from streamchar.eval.cache import Cache, default_folder
    from streamchar.eval.metric import Options
    from streamchar.train.ablate import FIGURES

    chosen = [named.load(name.strip(), fast=fast).first(clips) for name in protocols.split(",")]
    wanted = FIGURES if metrics is None else [name.strip() for name in metrics.split(",")]
    built = suite.build_metrics(Options(recogniser_folder=recogniser_folder), wanted)

    def evaluate(model: Path, out: Path) -> dict[str, Path]:
        found = {protocol.name: out / protocol.name / "metrics.json" for protocol in chosen}
        missing = [protocol for protocol in chosen if not found[protocol.name].is_file()]
        generator = ModelGenerator(str(model), device=device) if missing else None
        for protocol in missing:
            assert generator is not None
            generator.check(protocol)
            settings = {"seed": 0, "steps": generator.about["steps"], "shift_frames": 0, "plant": None}
            plan = evaluation.Plan(
                protocol=protocol, out=out / protocol.name, generator=generator, truth=TruthGenerator(),
                model=generator.about, settings=settings, command="streamchar train ablate",
            )  # fmt: skip
            evaluation.run(plan, built, Cache(default_folder()))
        return found

    return evaluate
