"""A whole model: its components, loaded from or saved to a diffusers-style folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.component import load_component, save_component
from streamchar.codecs.text import T5PromptEncoder
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.config.presets import PRESETS, preset
from streamchar.config.sampling import SAMPLING, Sampling, sampling_in
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError, ConfigError, InputError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.tokenizer import Tokenizer, tokenizer
from streamchar.stream.weights import cast
from streamchar.types import AudioCodec, PromptEncoder, VideoCodec

INDEX = "model_index.json"
COMPONENTS = ("orchestrator", "dit", "video_codec", "audio_codec", "prompt_encoder")


@dataclass(frozen=True, kw_only=True)
class Models(Sampling):
    """The components that a chunk needs, all shared by any number of streams, and how they are played."""

    name: str
    config: ModelConfig
    orchestrator: Orchestrator
    dit: JointDiT
    video_codec: VideoCodec
    audio_codec: AudioCodec
    prompt_encoder: PromptEncoder
    tokenizer: Tokenizer

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
            f"there is no model {text!r}: expected toon, toon-base, a folder with {INDEX}, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"cannot fetch {text!r} from the hub: {str(error).splitlines()[0]}") from None


def read_index(folder: Path) -> dict[str, Any]:
    """What makes `folder` a model folder. Raises `CheckpointError`."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected {INDEX} in the model folder {folder}: {error}") from None
    if not isinstance(index, dict):
        raise CheckpointError(f"{folder / INDEX} must hold one JSON object, got a {type(index).__name__}")
    return index


def part_folders(folder: Path, index: dict[str, Any]) -> dict[str, Path]:
    """Where each component lies: in the model's folder or, where it has none and the index says so, in the shipped
    model that it `shares` the rest with. Raises `CheckpointError`."""
    shared, own = index.get("shares"), {name: folder / name for name in COMPONENTS}
    if shared is None:
        return own
    if not isinstance(shared, str) or "/" in shared or "\\" in shared:
        raise CheckpointError(f"{folder / INDEX} shares the components of {shared!r}; expected a shipped model's name")
    rest = resolve(shared)
    return {name: path if path.is_dir() else rest / name for name, path in own.items()}


def parts_of(folder: Path) -> dict[str, Path]:
    """The same of a folder that may be a run's export, without an index."""
    return part_folders(folder, read_index(folder) if (folder / INDEX).is_file() else {})


def usable(device: str) -> torch.device:
    """The device of that name. Raises `InputError` where this machine or this torch has none."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None


def sampling(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How a model folder's index says that it is to be sampled."""
    try:
        return dataclasses.asdict(sampling_in(index))
    except ConfigError as error:
        raise CheckpointError(f"{folder / INDEX}: {error}") from None


def load(source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Models:
    """Load a model in evaluation mode onto `device`.

    `dtype` is that of the parameters of orchestrator, DiT and prompt encoder, and of a Wan VAE; None leaves a model
    of the paper's family as it is stored (bfloat16 as `streamchar convert` writes it) and toon in float32.
    """
    folder = resolve(source)
    index = read_index(folder)
    try:
        base, about = index["preset"], index["config"]
        family, tokens, height, width = about["video"]["family"], about["tokenizer"], about["height"], about["width"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} is not that of a streamchar model: {error} is missing") from None
    if base not in PRESETS:
        raise CheckpointError(f"{folder / INDEX} names the preset {base!r}; known are {', '.join(sorted(PRESETS))}")
    if family != "toon":
        from streamchar.stream.checkpoint import load_paper

        return load_paper(folder, index, device, dtype)
    how, parts = sampling(index, folder), part_folders(folder, index)
    orchestrator = load_component(Orchestrator, OrchestratorConfig, parts["orchestrator"])
    dit = load_component(JointDiT, DiTConfig, parts["dit"])
    video, audio = ToonVideoCodec.load(parts["video_codec"]), ToonAudioCodec.load(parts["audio_codec"])
    prompt = T5PromptEncoder.load(parts["prompt_encoder"])
    config = dataclasses.replace(
        preset(base), orchestrator=orchestrator.config, dit=dit.config, video=video.config, audio=audio.config,
        prompt=prompt.config, tokenizer=tokens, height=height, width=width,
    )
    for part in (orchestrator, dit, prompt):
        cast(part, dtype)
    for part in (orchestrator, dit, video, audio, prompt):
        part.to(device)
    return Models(
        name=index.get("name", base), config=config, orchestrator=orchestrator, dit=dit, video_codec=video.eval(),
        audio_codec=audio, prompt_encoder=prompt.eval(), tokenizer=tokenizer(config.tokenizer), **how,
    )


def save(
    models: Models, folder: Path | str, dtype: torch.dtype | None = None, *, shares: str | None = None
) -> None:
    """Write the model folder; weights as `dtype` if given. `shares`: see `part_folders`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if models.config.video.family != "toon":
        from streamchar.stream.checkpoint import save_paper

        save_paper(models, folder, dtype)
    else:
        for name, part in models.components().items():
            if hasattr(part, "save"):
                part.save(folder / name)
            else:
                save_component(part, part.config, folder / name, dtype=dtype)
    how = {name: getattr(models, name) for name in SAMPLING}
    write_model_index(
        folder, models.config, {name: type(part).__name__ for name, part in models.components().items()},
        name=models.name, how=how, shares=shares,
    )


def write_model_index(
    folder: Path, config: ModelConfig, components: dict[str, str], *, name: str, how: dict[str, Any],
    shares: str | None = None,
) -> None:
    """What makes a folder a model folder, and so written last; `how` are the values of `SAMPLING`."""
    index = {
        "name": name, "preset": config.name, **how, **({} if shares is None else {"shares": shares}),
        "components": components,
        "config": {
            "height": config.height, "width": config.width, "tokenizer": config.tokenizer,
            "video": {"family": config.video.family}, "prompt_tokens": config.prompt.max_tokens,
        },
    }  # fmt: skip
    part = folder / f"{INDEX}.part"
    part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / INDEX)


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


def random_models(
    config: ModelConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0,
    tokenizer_folder: Path | str | None = None,
) -> Models:
    """A whole model of any preset with random weights (benchmarks, tests), made where it is to run and in `dtype`.

    A model of the paper's family is drawn on the device one tensor at a time; its audio codec is float32 whatever
    `dtype` is, as samples need more digits than bfloat16 has. Without `tokenizer_folder` (Qwen's), bytes stand in for
    its tokens, and `config.tokenizer` of the result says so. Equal seeds give equal weights on one kind of device.
    """
    from streamchar.stream.checkpoint import random_paper

    if config.video.family != "toon":
        return random_paper(config, device, dtype, seed, tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = fresh(config)
        with torch.no_grad():
            for part in (made.orchestrator, made.dit):
                for parameter in part.parameters():  # nothing stays zero as it is before training
                    parameter.add_(0.02 * torch.randn_like(parameter))
    for part in (made.orchestrator, made.dit, made.prompt_encoder):
        cast(part, dtype)
    for part in made.components().values():
        part.to(device).requires_grad_(False)
    return made
