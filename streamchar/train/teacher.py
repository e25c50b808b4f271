"""What a distillation begins with: the teacher's folder, what tells it from another, the guidance it is played with;
and the student and fake score of an earlier run."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamchar.codecs.component import load_component
from streamchar.config.model import DiTConfig, OrchestratorConfig
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError, InputError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.stream import models as stream_models
from streamchar.stream.models import INDEX, Models

log = logging.getLogger(__name__)

FAKE = "fake_score"
"""Folder of the fake score beside the student's components: the next run goes on with it."""

def load_teacher(folder: Path | None) -> Models:
    """The model folder that is distilled."""
    if folder is None:
        raise InputError("this stage needs --teacher DIR, a model folder (scripts/assemble.py writes one)")
    if not (Path(folder) / INDEX).is_file():
        raise CheckpointError(
            f"--teacher: expected a model folder with {INDEX}, found none at {folder}; write one from stage 2's run "
            "with scripts/assemble.py"
        )
    return stream_models.load(Path(folder))


def fingerprint(folder: Path) -> str:
    """Tells one teacher's weights from another's: a resumed run must have the one that it began with."""
    digest, folders = hashlib.sha256(), stream_models.parts_of(folder)
    for name in ("orchestrator", "dit", "prompt_encoder"):
        for path in sorted(folders[name].glob("*.safetensors")):
            size = path.stat().st_size
            with open(path, "rb") as file:
                digest.update(f"{name} {path.name} {size}".encode() + file.read(1 << 22))
                file.seek(-min(1 << 22, size), 2)
                digest.update(file.read())
    return digest.hexdigest()[:16]


def teacher_guidance(models: Models, guidance: float | None, picture: float | None = None) -> dict[str, Any]:
    """Terms of a distillation: the teacher's own guidance of speech and picture, or `guidance` for both; or `picture`
    for the picture, down to the noise level that is the teacher's own."""
    if guidance is not None and picture is None:
        return {"guidance": guidance, "picture_guidance": None, "picture_guidance_above": 0.0}
    return {
        "guidance": models.guidance if guidance is None else guidance,
        "picture_guidance": models.picture_guidance if picture is None else picture,
        "picture_guidance_above": models.picture_guidance_above,
    }


def begun(teacher: Models, start: Path) -> Models:
    """An earlier run's student: its export, or orchestrator/ and dit/ alone as pieces of a run are joined."""
    parts = stream_models.parts_of(start)
    return replace(
        teacher, orchestrator=load_component(Orchestrator, OrchestratorConfig, parts["orchestrator"]),
        dit=load_component(JointDiT, DiTConfig, parts["dit"]),
    )


def followed(teacher: Models, start: Path) -> Models:
    """The fake score that a run left beside its student: it knows the student already. The teacher without one."""
    folder = start / FAKE
    if not (folder / "dit").is_dir():
        log.info("no fake score in %s: it begins as the teacher", start)
        return teacher
    orchestrator = teacher.orchestrator
    if (folder / "orchestrator").is_dir():
        orchestrator = load_component(Orchestrator, OrchestratorConfig, folder / "orchestrator")
    return replace(teacher, dit=load_component(JointDiT, DiTConfig, folder / "dit"), orchestrator=orchestrator)
