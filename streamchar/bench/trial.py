"""One benchmark: a model, a stream of so many chunks, and the figures that come out (docs/bench.md)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any

import torch

from streamchar import clock
from streamchar.bench import codec_flops, flops, machine, rival, saving
from streamchar.bench.stream import Measured, Played, begin, play
from streamchar.bench.timing import Spread, Stopwatch, watched
from streamchar.config.model import ModelConfig
from streamchar.config.presets import preset
from streamchar.dit.layout import Layout
from streamchar.errors import InputError
from streamchar.flow.schedule import Schedule
from streamchar.stream import models as components
from streamchar.stream.models import Models
from streamchar.stream.speed import Speed, speed_up
from streamchar.stream.state import StreamState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEADY_FROM = 2
"""The first chunk has no motion, the second meets the sink: from the third on all are alike."""
MIN_CHUNKS = 4
MAX_HEIGHT, MAX_WIDTH, SIZE_STEP = 720, 1280, 32


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is measured."""

    preset: str = "toon"
    model: str | None = None
    """A model folder or name; None draws random weights."""
    chunks: int = 20
    overlapped: int = 8
    """Chunks of a further stream that is played as for a user: decoding beside the next chunk's denoising."""
    warm_up: int = 3
    """Chunks of a stream played and forgotten before."""
    size: tuple[int, int] | None = None
    steps: int | None = None
    layers: int | None = None
    """Random weights only: at most so many layers of each transformer."""
    device: str = "cpu"
    dtype: str = "float32"
    speed: Speed | None = None
    """None leaves the model as it is."""
    against: bool = False
    """Also time diffusers' transformer."""
    own_time: bool = False
    """On a CPU: the process's own seconds, of all its threads, instead of the clock's: for cores that are not free."""
    caches: bool = False
    """Also time the same work without the caches."""
    seed: int = 0

    def check(self) -> None:
        """What can be told before anything is built. Raises `InputError`."""
        if self.chunks < MIN_CHUNKS:
            raise InputError(f"--chunks must be at least {MIN_CHUNKS} (two are not like the others), got {self.chunks}")
        for name, value, least in (("warm-up", self.warm_up, 1), ("overlapped", self.overlapped, 0)):
            if value < least:
                raise InputError(f"--{name} must be at least {least}, got {value}")
        for name, value in (("steps", self.steps), ("layers", self.layers)):
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}")
        if self.own_time and not self.device.startswith("cpu"):
            raise InputError(f"--own-time is for --device cpu, got {self.device}; a GPU is timed by its events")
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.model is not None and (self.size or self.layers):
            raise InputError("--size and --layers change what a model is made of; use them with --random-weights")
        if components.usable(self.device).type not in machine.SIDES:
            raise InputError(f"--device must be one of {', '.join(machine.SIDES)}, got {self.device}")

    @property
    def config(self) -> ModelConfig:
        """The configuration that random weights are drawn for."""
        config = preset(self.preset)
        if self.size is not None:
            config = replace(config, height=self.size[0], width=self.size[1])
        if self.layers is not None:
            config = shallow(config, self.layers)
        return config


def shallow(config: ModelConfig, layers: int) -> ModelConfig:
    """The same widths with at most `layers` layers in each transformer."""
    return replace(
        config,
        orchestrator=replace(config.orchestrator, layers=min(layers, config.orchestrator.layers)),
        dit=replace(config.dit, layers=min(layers, config.dit.layers)),
        prompt=replace(config.prompt, layers=min(layers, config.prompt.layers)),
    )


def read_size(text: str) -> tuple[int, int]:
    """`--size 512x768`: height, then width."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise InputError(f"--size must be HEIGHTxWIDTH in pixels, such as 512x512, got {text!r}")
    size = int(height), int(width)
    most = (MAX_HEIGHT // SIZE_STEP * SIZE_STEP, MAX_WIDTH)
    if any(not 0 < side <= limit for side, limit in zip(sorted(size), most, strict=True)):
        raise InputError(f"--size may be up to {most[0]}x{most[1]} (or upright), got {text}")
    return size


def read_speed(text: str) -> Speed:
    """`--speed compile,cuda-graphs,tiny-decoder=FILE,no-fuse-qkv`; empty for what is always on."""
    known = {field.name.replace("_", "-"): field for field in fields(Speed)}
    options: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = word.partition("=")
        positive = name.removeprefix("no-")
        if positive not in known or (bool(value) != (positive == "tiny-decoder" and not name.startswith("no-"))):
            raise InputError(
                f"--speed does not know {word!r}; expected some of {', '.join(known)} (no-NAME turns one off, "
                "tiny-decoder=FILE takes a file), separated by commas"
            )
        options[known[positive].name] = value or positive == name
        if positive == "tiny-decoder" and not value:
            options["tiny_decoder"] = None
    return Speed(**options)


def load(trial: Trial) -> Models:
    """The model under test, on its device, as fast as was asked for."""
    if trial.model is None:
        made = components.random_models(trial.config, device=trial.device, dtype=DTYPES[trial.dtype], seed=trial.seed)
    else:
        made = components.load(trial.model)
        for part in made.components().values():
            part.to(trial.device)
        if trial.dtype != "float32":
            from streamchar.stream.weights import cast

            for part in (made.orchestrator, made.dit, made.prompt_encoder):
                cast(part, DTYPES[trial.dtype])
    return made if trial.speed is None else speed_up(made, trial.speed)


def run(trial: Trial) -> dict[str, Any]:
    """All figures of a trial, ready for JSON; seconds, MiB and TFLOP/s."""
    trial.check()
    began = time.perf_counter()
    models = load(trial)
    loaded = time.perf_counter() - began
    device, steps = models.device, trial.steps or models.steps
    paced, now = trial.model is None, time.process_time if trial.own_time else time.perf_counter
    dtype = models.dit.patch_embedding.weight.dtype
    ceiling = machine.matmul_ceiling(device, dtype, now=now)
    longest = max(trial.chunks, trial.overlapped, trial.warm_up)
    began = time.perf_counter()
    state = begin(models, chunks=longest, steps=steps, seed=trial.seed)
    started = time.perf_counter() - began
    warm = play(Measured(models, state, limit=trial.warm_up, paced=paced, alone=True), now)
    machine.reset_peak(device)
    watch = Stopwatch(device=device, now=now)
    with watched(models, watch):
        alone = play(Measured(models, state, limit=trial.chunks, paced=paced, alone=True, watch=watch), now)
    beside = None
    if trial.overlapped and not trial.own_time:  # side by side is a matter of the clock
        beside = play(Measured(models, state, limit=trial.overlapped, paced=paced, alone=False))
    peak = machine.peak_mib(device)
    stages = spreads(watch, alone)
    forwards = passes(models, state)
    work = chunk_flops(models, alone, steps, forwards)
    result = {
        "trial": {
            **asdict(trial), "steps": steps, "chunk_s": float(clock.CHUNK_SECONDS), "name": models.name,
            "guidance": state.guidance, "picture_guidance": state.weights[0],
            "picture_guidance_above": state.picture_guidance_above, "forwards": asdict(forwards),
            "size": [models.config.height, models.config.width], "paced_by_clock": paced,
        },
        "load_s": loaded, "start_s": started, "cold_first_chunk_s": warm.intervals[0],
        "first_chunk_s": (beside or alone).intervals[0],
        "stages": {name: spread.figures() for name, spread in stages.items()},
        "rtf": {"alone": stages["chunk"].median / float(clock.CHUNK_SECONDS),
                "overlapped": None if beside is None else steady_rtf(beside)},
        "steady": steadiness(alone),
        "memory_mib": {"peak": peak, "kind": "GPU, allocated" if device.type == "cuda" else "process, resident"},
        "flops": rates(work, stages, ceiling), "matmul_tflops": ceiling, "environment": machine.environment(device),
    }  # fmt: skip
    if trial.caches:
        result["caches"] = saving.measure(models, steps=steps, repeats=min(trial.chunks, 10), now=now)
    if trial.against:
        found = rival.race(
            models.config, device=device, dtype=dtype, passes=forwards.whole, repeats=min(trial.chunks, 10),
            compiled=bool(trial.speed and trial.speed.compile), now=now,
        )  # fmt: skip
        ours = stages["conditions"].median + stages["denoise"].median if "denoise" in stages else None
        ratio = None if ours is None else rival.ratios(found, ours)
        result["against"] = {**found, "speech_passes": forwards.speech, "ours_s": ours, "ratio": ratio}
    return result


def spreads(watch: Stopwatch, played: Played) -> dict[str, Spread]:
    """Stages over the chunks from the third on; `chunk` is the time from one finished chunk to the next."""
    found = {}
    for stage, turns in watch.seconds().items():
        counted = [seconds for turn, seconds in turns.items() if turn >= STEADY_FROM]
        if counted:
            found[stage] = Spread.of(counted)
    found["chunk"] = Spread.of(played.whole[STEADY_FROM:])
    return found


def steady_rtf(played: Played) -> float | None:
    """Real-time factor of the chunks that follow the first."""
    rest = played.whole[1:]
    return sum(rest) / len(rest) / float(clock.CHUNK_SECONDS) if rest else None


def steadiness(played: Played) -> dict[str, Any]:
    """Late chunks against early ones (issue: chunk 200 takes at most 1.05 of chunk 2, and no more memory)."""
    times, memory = played.whole[1:], played.memory_mib
    some = max(1, min(10, len(times) // 2))
    return {
        "chunks": len(played.intervals),
        "last_over_second": times[-1] / times[0],
        "late_over_early": median(times[-some:]) / median(times[:some]),
        "early_late_chunks": some,
        "memory_second_mib": memory[1],
        "memory_last_mib": memory[-1],
    }


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forwards of the DiT in a chunk."""

    whole: int
    """Through the main blocks."""
    speech: int
    """Of the speech alone: where the picture is not guided, the pass without text has no main blocks."""
    blank: bool
    """Whether the conditions are encoded without text too."""
    again: int
    """Steps with a second pass, whole or of the speech."""


def passes(models: Models, state: StreamState) -> Passes:
    """What guidance adds to a forward a step."""
    levels = Schedule(steps=state.steps, shift=models.shift).sigmas().tolist()[:-1]
    weights = [state.weights_at(level) for level in levels]
    whole = sum(picture != 1.0 for picture, _ in weights)
    again = sum(both != (1.0, 1.0) for both in weights)
    return Passes(whole=len(levels) + whole, speech=again - whole, blank=state.weights[0] != 1.0, again=again)


def chunk_flops(models: Models, played: Played, steps: int, forwards: Passes) -> dict[str, int | None]:
    """Operations of each stage in a mean chunk of the stream."""
    config, text = models.config, models.config.prompt.max_tokens
    nine = clock.VIDEO_LATENTS_PER_CHUNK
    layout = Layout(grid=config.grid, ref=1, sink=nine if models.sink else 0, motion=nine)
    chunks = sum(chunk >= STEADY_FROM for chunk in played.prefixes)
    steady = [[x for chunk, x in seen.items() if chunk >= STEADY_FROM] for seen in (played.prefixes, played.blanks)]
    seen, blanks = steady
    lm = config.orchestrator
    return {
        "conditions": (2 if forwards.blank else 1) * flops.dit_motion(config.dit, layout, text),
        "history": sum(flops.lm_extend(lm, max(0, prefix - flops.J)) for prefix, _ in seen + blanks) // chunks,
        "plan": (
            steps * sum(flops.lm_plan(lm, *lengths) for lengths in seen)
            + forwards.again * sum(flops.lm_plan(lm, *lengths) for lengths in blanks)
        ) // chunks,
        "denoise": forwards.whole * flops.dit_denoise(config.dit, layout, text)
        + forwards.speech * flops.audio_path(config.dit, clock.AUDIO_LATENTS_PER_CHUNK),
        "decode_video": codec_flops.video_decode(models.video_codec, config.latent_size),
        "decode_audio": codec_flops.audio_decode(models.audio_codec),
    }


def rates(work: dict[str, int | None], stages: dict[str, Spread], ceiling: float) -> dict[str, Any]:
    """Counted TFLOP of each stage, and what was reached of them a second."""
    found: dict[str, Any] = {}
    for stage, count in work.items():
        if count is None or stage not in stages:
            continue
        reached = count / stages[stage].median / 1e12
        found[stage] = {"tflop": count / 1e12, "tflops": reached, "of_ceiling": reached / ceiling}
    return found
