"""A whole model: its components, loaded from or saved to a diffusers-style folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.component import load_component, save_component
from streamchar.codecs.text import T5PromptEncoder
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.config.presets import PRESETS, preset
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.tokenizer import Tokenizer, tokenizer
from streamchar.types import AudioCodec, PromptEncoder, VideoCodec

INDEX = "model_index.json"
SAMPLERS = ("euler", "renoise")
COMPONENTS = ("orchestrator", "dit", "video_codec", "audio_codec", "prompt_encoder")


@dataclass(frozen=True, kw_only=True)
class Models:
    """The components that a chunk needs; all shared by any number of streams."""

    name: str
    config: ModelConfig
    orchestrator: Orchestrator
    dit: JointDiT
    video_codec: VideoCodec
    audio_codec: AudioCodec
    prompt_encoder: PromptEncoder
    tokenizer: Tokenizer
    steps: int = 16
    """Sampling steps this model was made for."""
    guidance: float = 1.0
    temperature: float = 1.0
    """Deviation of the noise that sampling starts from."""
    sampler: str = "euler"
    """"euler" for a base model, "renoise" for a distilled student."""
    shift: float = 5.0
    """Warp of the sampling schedule."""
    sink: bool = True
    """Whether it streams with a sink (ablation)."""
    history: bool = True
    """Whether its orchestrator hears what was said (ablation)."""

    @property
    def device(self) -> torch.device:
        return next(self.dit.parameters()).device

    def components(self) -> dict[str, nn.Module]:
        found = {name: getattr(self, name) for name in COMPONENTS}
        return {name: part for name, part in found.items() if isinstance(part, nn.Module)}


def resolve(source: str | Path) -> Path:
    """A shipped model's name, a folder, or a hub id -> a folder. Raises `CheckpointError`."""
    text = str(source)
    shipped = resources.files("streamchar") / "assets" / text
    if "/" not in text and "\\" not in text and shipped.is_dir() and (shipped / INDEX).is_file():
        return Path(str(shipped))
    if Path(source).is_dir():
        return Path(source)
    if Path(source).exists():
        raise CheckpointError(f"expected a model folder, got the file {source}; give the folder with {INDEX}")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"there is no model {text!r}: expected toon, a folder with {INDEX}, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"cannot fetch {text!r} from the hub: {str(error).splitlines()[0]}") from None


def load(source: str | Path) -> Models:
    """Load a model in evaluation mode."""
    folder = resolve(source)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        base, about = index["preset"], index["config"]
        family, tokens, height, width = about["video"]["family"], about["tokenizer"], about["height"], about["width"]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected {INDEX} in the model folder {folder}: {error}") from None
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} is not that of a streamchar model: {error} is missing") from None
    if base not in PRESETS:
        raise CheckpointError(f"{folder / INDEX} names the preset {base!r}; known are {', '.join(sorted(PRESETS))}")
    if family != "toon":
        raise CheckpointError(
            f"{folder} is a {base!r} model: loading it needs its Wan and Qwen folders, not wired up yet"
        )
    sampler = index.get("sampler", "euler")
    if sampler not in SAMPLERS:
        raise CheckpointError(f"{folder / INDEX} names the sampler {sampler!r}; known are {', '.join(SAMPLERS)}")
    orchestrator = load_component(Orchestrator, OrchestratorConfig, folder / "orchestrator")
    dit = load_component(JointDiT, DiTConfig, folder / "dit")
    video, audio = ToonVideoCodec.load(folder / "video_codec"), ToonAudioCodec.load(folder / "audio_codec")
    prompt = T5PromptEncoder.load(folder / "prompt_encoder")
    config = dataclasses.replace(
        preset(base), orchestrator=orchestrator.config, dit=dit.config, video=video.config, audio=audio.config,
        prompt=prompt.config, tokenizer=tokens, height=height, width=width,
    )
    return Models(
        name=index.get("name", base), config=config, orchestrator=orchestrator, dit=dit, video_codec=video.eval(),
        audio_codec=audio, prompt_encoder=prompt.eval(), tokenizer=tokenizer(config.tokenizer),
        steps=index.get("steps", 16), guidance=index.get("guidance", 1.0), temperature=index.get("temperature", 1.0),
        sampler=sampler, shift=index.get("shift", 5.0), sink=index.get("sink", True),
        history=index.get("history", True),
    )


def save(models: Models, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write the model folder; weights as `dtype` if given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in models.components().items():
        if hasattr(part, "save"):
            part.save(folder / name)
        else:
            save_component(part, part.config, folder / name, dtype=dtype)
    index = {
        "name": models.name, "preset": models.config.name, "steps": models.steps, "guidance": models.guidance,
        "temperature": models.temperature, "sampler": models.sampler, "shift": models.shift, "sink": models.sink,
        "history": models.history,
        "components": {name: type(part).__name__ for name, part in models.components().items()},
        "config": {
            "height": models.config.height, "width": models.config.width, "tokenizer": models.config.tokenizer,
            "video": {"family": models.config.video.family},
        },
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def fresh(config: ModelConfig) -> Models:
    """An untrained model of this configuration (tests, benchmarks)."""
    from streamchar.codecs.text import word_tokenizer
    from streamchar.world.prompt import known_words

    return Models(
        name=config.name, config=config, orchestrator=Orchestrator(config.orchestrator).eval(),
        dit=JointDiT(config.dit).eval(), video_codec=ToonVideoCodec(config.video).eval(),
        audio_codec=ToonAudioCodec(config.audio).eval(),
        prompt_encoder=T5PromptEncoder(config.prompt, word_tokenizer(known_words())).eval(),
        tokenizer=tokenizer(config.tokenizer), steps=2,
    )
