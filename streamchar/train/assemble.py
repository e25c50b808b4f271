"""Put trained components together into a model folder that `StreamCharPipeline` loads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.component import load_component, save_component
from streamchar.codecs.text import T5PromptEncoder
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.config.sampling import Sampling, sampling_in
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.tokenizer import tokenizer
from streamchar.stream import models as stream_models
from streamchar.stream.models import INDEX, Models, resolve

STUDENTS = ("distill", "rollout")
"""Objectives whose models play in few steps."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where each component lies."""

    orchestrator: Path
    dit: Path
    video_codec: Path
    audio_codec: Path
    prompt_encoder: Path


GUIDANCE = ("guidance", "picture_guidance", "picture_guidance_above")


def sampling_of(folder: Path) -> Sampling:
    """As the weights in `folder` were trained to be played: a student's as its run says, else a base model's.

    A run of distillation says it in its export, or, where pieces of one were joined, in its checkpoint's facts."""
    for path in (folder / INDEX, folder / "checkpoint" / "facts.json"):
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read how the model in {folder} is played, {path}: {error}") from None
        if path.name != INDEX:
            if found.get("objective") not in STUDENTS:
                continue
            own = Sampling(sampler="renoise")  # the guidance of the facts is the teacher's
            found |= {name: getattr(own, name) for name in ("sampler", *GUIDANCE)}
        return sampling_in(found)
    return Sampling()


def speech_between(base: JointDiT, student: JointDiT, share: float) -> None:
    """Move `student`'s own path of the speech to `share` of the way from `base`'s to its own: a mean of weights, which
    kept words and sound better than either end (docs/decisions.md). What joins it to the picture stays."""
    own, theirs = student.state_dict(), base.state_dict()
    mixed = {name: torch.lerp(theirs[name], own[name], share) for name in speech_path(student)}
    student.load_state_dict({**own, **mixed})


def moved_along(student: JointDiT, old: JointDiT, new: JointDiT) -> JointDiT:
    """The student of the base `new`: `new` and what `student` has learned beyond `old`, the base that it was made from.
    A short distillation moves the weights by a twentieth of what further pretraining does, and plays on the new base at
    once (docs/decisions.md, ninth session). What `new` has and `old` has not is `new`'s. Raises `CheckpointError`."""
    made = JointDiT(new.config).eval()
    theirs, before, after = student.state_dict(), old.state_dict(), new.state_dict()
    odd = [n for n in theirs if n not in before or n not in after or theirs[n].shape != after[n].shape]
    if odd:
        raise CheckpointError(f"expected a student and two bases of one kind, got {odd[0]} that one of them has not")
    made.load_state_dict({n: value + (theirs[n] - before[n]) if n in theirs else value for n, value in after.items()})
    return made


def speech_path(dit: JointDiT) -> set[str]:
    """Names of the weights that the speech alone goes through."""
    joints = ("audio.to_main.", "audio.from_main.")
    return {name for name in dit.state_dict() if name.startswith("audio.") and not name.startswith(joints)}


def _dit_of(folder: Path) -> JointDiT:
    return load_component(JointDiT, DiTConfig, stream_models.parts_of(folder)["dit"])


def assemble(
    parts: Parts, config: ModelConfig, out: Path, *, name: str, steps: int = 16, guidance: float = 1.0,
    temperature: float = 1.0, small: bool = True, sampling: Sampling | None = None,
    shares: str | None = None, base: Path | None = None, speech_share: float = 1.0,
    moved: tuple[Path, Path] | None = None,
) -> Models:
    """Write `out`; with `small`, as int8 rows (codecs lose 0.04 dB by it). What the shipped model `shares` stores to
    the bit is not written again. `base`, `speech_share`: see `speech_between`; `moved`, an old and a new base: see
    `moved_along`.

    `sampling` takes the place of `steps`, `guidance` and `temperature`, and says the rest: `sampling_of` a student."""
    played = sampling or Sampling(steps=steps, guidance=guidance, temperature=temperature)
    orchestrator = load_component(Orchestrator, OrchestratorConfig, parts.orchestrator)
    dit = load_component(JointDiT, DiTConfig, parts.dit)
    if moved is not None:
        dit = moved_along(dit, *(_dit_of(folder) for folder in moved))
    if base is not None:
        speech_between(_dit_of(base), dit, speech_share)
    video, audio = ToonVideoCodec.load(parts.video_codec), ToonAudioCodec.load(parts.audio_codec)
    prompt = T5PromptEncoder.load(parts.prompt_encoder)
    models = Models(
        name=name, orchestrator=orchestrator, dit=dit, video_codec=video, audio_codec=audio, prompt_encoder=prompt,
        tokenizer=tokenizer(config.tokenizer), **dataclasses.asdict(played),
        config=dataclasses.replace(
            config, orchestrator=orchestrator.config, dit=dit.config, video=video.config, audio=audio.config
        ),
    )
    stream_models.save(models, out, shares=shares)
    if small:
        for part, module in models.components().items():
            save_component(module, module.config, out / part, dtype=torch.int8)
    for part in stream_models.COMPONENTS if shares else ():
        theirs = resolve(str(shares)) / part / "model.safetensors"
        if theirs.is_file() and theirs.read_bytes() == (out / part / "model.safetensors").read_bytes():
            shutil.rmtree(out / part)
    return models
