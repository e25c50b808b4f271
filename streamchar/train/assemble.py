"""Put trained components together into a model folder that `StreamCharPipeline` loads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.component import load_component, save_component
from streamchar.codecs.text import T5PromptEncoder
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import AudioCodecConfig, DiTConfig, ModelConfig, OrchestratorConfig, VideoCodecConfig
from streamchar.dit.model import JointDiT
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.tokenizer import tokenizer
from streamchar.stream import models as stream_models
from streamchar.stream.models import Models


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where each component lies."""

    orchestrator: Path
    dit: Path
    video_codec: Path
    audio_codec: Path
    prompt_encoder: Path


def assemble(
    parts: Parts, config: ModelConfig, out: Path, *, name: str, steps: int = 16, guidance: float = 1.0,
    temperature: float = 1.0, small: bool = True,
) -> Models:
    """Write `out`; with `small`, the orchestrator and the DiT as int8 rows and the codecs as bfloat16."""
    orchestrator = load_component(Orchestrator, OrchestratorConfig, parts.orchestrator)
    dit = load_component(JointDiT, DiTConfig, parts.dit)
    video, audio = ToonVideoCodec.load(parts.video_codec), ToonAudioCodec.load(parts.audio_codec)
    prompt = T5PromptEncoder.load(parts.prompt_encoder)
    models = Models(
        name=name, orchestrator=orchestrator, dit=dit, video_codec=video, audio_codec=audio, prompt_encoder=prompt,
        tokenizer=tokenizer(config.tokenizer), steps=steps, guidance=guidance,
        temperature=temperature,
        config=dataclasses.replace(
            config, orchestrator=orchestrator.config, dit=dit.config, video=video.config, audio=audio.config
        ),
    )
    stream_models.save(models, out)
    if small:
        save_component(orchestrator, orchestrator.config, out / "orchestrator", dtype=torch.int8)
        save_component(dit, dit.config, out / "dit", dtype=torch.int8)
        _shrink(video, VideoCodecConfig, out / "video_codec")
        _shrink(audio, AudioCodecConfig, out / "audio_codec")
    return models


def _shrink(module: ToonVideoCodec | ToonAudioCodec, config_type: type, folder: Path) -> None:
    """Codecs are near what a person sees and hears: bfloat16, not bytes."""
    assert isinstance(module.config, config_type)
    save_component(module, module.config, folder, dtype=torch.bfloat16)
