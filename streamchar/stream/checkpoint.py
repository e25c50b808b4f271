"""Models of the paper's family as folders: Wan's VAE and DiT, Qwen's language model, umT5, Oobleck.

One folder a component. Orchestrator and DiT are ours (`config.json` and safetensors, in shards with an index when
they are large); the codecs, the prompt encoder and the tokenizer are as diffusers and transformers save them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from streamchar.codecs.component import read_config
from streamchar.codecs.oobleck import OobleckAudioCodec, oobleck_vae
from streamchar.codecs.text import UMT5PromptEncoder, umt5_encoder
from streamchar.codecs.wan import WanVideoCodec, wan_vae
from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.config.presets import preset
from streamchar.dit.model import JointDiT
from streamchar.errors import CheckpointError, ConfigError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.orchestrator.tokenizer import HubTokenizer
from streamchar.stream.models import Models, sampling
from streamchar.stream.shards import MAX_BYTES, Entry, WeightFolder, plan_shards, write_index, write_shard
from streamchar.stream.stand_in import byte_tokenizer
from streamchar.stream.weights import (
    fill,
    homes,
    new_dit_weights,
    new_orchestrator_weights,
    on_meta,
    place,
    to_device,
)

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)
OWN = ("orchestrator", "dit")
"""Components of our own classes; the others are saved as their libraries do."""
TOKENIZER = "tokenizer"
"""The transcript tokenizer's folder in a model folder."""

STAND_IN = "bytes"
"""`ModelConfig.tokenizer` where bytes stand in for Qwen's tokens."""


def random_paper(
    config: ModelConfig, device: torch.device | str, dtype: torch.dtype, seed: int, tokenizer_folder: Path | str | None
) -> Models:
    """A model of the paper's family with random weights: see `random_models`."""
    draw = torch.Generator(device=device).manual_seed(seed)
    known = new_orchestrator_weights(config.orchestrator, seed)
    orchestrator = fill(on_meta(lambda: Orchestrator(config.orchestrator)), known, device, dtype, draw)
    known = new_dit_weights(config.dit, seed)
    dit = fill(on_meta(lambda: JointDiT(config.dit)), known, device, dtype, draw)
    vae = fill(on_meta(lambda: wan_vae(config.video)), {}, device, dtype, draw)
    encoder = fill(on_meta(lambda: umt5_encoder(config.prompt)), {}, device, dtype, draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        audio = OobleckAudioCodec(oobleck_vae(config.audio)).to(device)
    prompt = UMT5PromptEncoder(encoder, byte_tokenizer(ends=True), config.prompt.max_tokens)
    if tokenizer_folder is None:
        log.warning("no tokenizer folder was given: bytes stand in for the transcript's tokens")
        config, tokens = dataclasses.replace(config, tokenizer=STAND_IN), HubTokenizer(byte_tokenizer(ends=False))
    else:
        tokens = HubTokenizer.from_pretrained(str(tokenizer_folder))
    if max(tokens.vocab_size, tokens.end_id + 1) > config.orchestrator.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokens.vocab_size} tokens, orchestrator.vocab_size is "
            f"{config.orchestrator.vocab_size}; give a tokenizer of this model or a larger vocabulary"
        )
    parts: dict[str, Any] = {
        "orchestrator": orchestrator,
        "dit": dit,
        "video_codec": WanVideoCodec(vae).to(device),
        "audio_codec": audio,
        "prompt_encoder": prompt,
    }
    for part in parts.values():
        part.eval().requires_grad_(False)
    return Models(name=config.name, config=config, tokenizer=tokens, steps=4, **parts)


@torch.no_grad()
def read_module(build: Callable[[], M], folder: Path, device: torch.device | str, dtype: torch.dtype | None) -> M:
    """Build a module and give it the folder's weights, tensor by tensor and straight onto the device.

    Parameters become `dtype` if given and stay as stored otherwise; buffers are as the module has them."""
    module, stored = on_meta(build), WeightFolder(folder)
    own = homes(module)
    tied: dict[int, list[str]] = {}  # names of one tensor, of which a file may have any
    for name, (part, attribute) in own.items():
        tied.setdefault(id(getattr(part, attribute)), []).append(name)
    found = {names[0]: next((n for n in names if n in stored.entries), None) for names in tied.values()}
    missing, extra = [name for name, key in found.items() if key is None], sorted(set(stored.entries) - set(own))
    wrong = [key for key in found.values() if key and getattr(*own[key]).shape != stored.entries[key].shape]
    if missing or extra or wrong:
        raise CheckpointError(
            f"{folder} does not fit {type(module).__name__}: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"wrong shape {wrong[:3]} ({len(missing)}, {len(extra)}, {len(wrong)} in all)"
        )
    for names in list(tied.values()):
        key = found[names[0]]
        assert key is not None
        part, attribute = own[names[0]]
        value = stored.read(key)
        kind = (dtype or value.dtype) if attribute in part._parameters else getattr(part, attribute).dtype
        place(own[names[0]], value.to(device=device, dtype=kind, copy=True))
        for other in names[1:]:
            twin, twin_attribute = own[other]
            twin._parameters[twin_attribute] = part._parameters[attribute]
    return to_device(module, device).eval().requires_grad_(False)


def load_paper(folder: Path, index: dict[str, Any], device: torch.device | str, dtype: torch.dtype | None) -> Models:
    """A model folder of the paper's family; the audio codec is float32 whatever `dtype` is."""
    about = index["config"]
    plan = read_config(OrchestratorConfig, folder / "orchestrator", "Orchestrator")
    drawn = read_config(DiTConfig, folder / "dit", "JointDiT")
    try:
        vae_config = AutoencoderKLWan.load_config(str(folder / "video_codec"))
        t5_config = UMT5Config.from_pretrained(str(folder / "prompt_encoder"))
        prompt_tokens = AutoTokenizer.from_pretrained(str(folder / "prompt_encoder"))
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{folder} lacks a part of the video codec or prompt encoder: {error}") from None
    named = folder / TOKENIZER
    tokens = HubTokenizer.from_pretrained(str(named) if named.is_dir() else about["tokenizer"])
    prompt = read_module(lambda: UMT5EncoderModel(t5_config), folder / "prompt_encoder", device, dtype)
    vae = read_module(lambda: AutoencoderKLWan.from_config(vae_config), folder / "video_codec", device, dtype)
    video, audio = WanVideoCodec(vae).to(device), OobleckAudioCodec.load(folder / "audio_codec").to(device)
    encoder = UMT5PromptEncoder(prompt, prompt_tokens, about.get("prompt_tokens", 512))
    config = dataclasses.replace(
        preset(index["preset"]),
        orchestrator=plan,
        dit=drawn,
        video=video.config,
        audio=audio.config,
        prompt=encoder.config,
        tokenizer=about["tokenizer"],
        height=about["height"],
        width=about["width"],
    )
    check_parts(config, tokens, str(folder))
    return Models(
        name=index.get("name", config.name),
        config=config,
        tokenizer=tokens,
        video_codec=video,
        audio_codec=audio,
        orchestrator=read_module(lambda: Orchestrator(plan), folder / "orchestrator", device, dtype),
        dit=read_module(lambda: JointDiT(drawn), folder / "dit", device, dtype),
        prompt_encoder=encoder,
        **sampling(index, folder),
    )


def check_parts(config: ModelConfig, tokens: HubTokenizer, where: str) -> None:
    """Whether the components fit each other; raises `CheckpointError`."""
    dit, plan = config.dit, config.orchestrator
    pairs = (
        ("channels of the DiT's video and of the video codec", dit.video_channels, config.video.latent_channels),
        ("channels of the DiT's audio and of the audio codec", dit.audio_channels, config.audio.latent_channels),
        ("channels of the orchestrator's audio and of the audio codec", plan.audio_channels,
         config.audio.latent_channels),
        ("width of the DiT's text and of the prompt encoder", dit.text_width, config.prompt.width),
    )  # fmt: skip
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise CheckpointError(f"{where}: expected equal {what}, got {ours} and {theirs}; use parts of one model")
    if max(tokens.vocab_size, tokens.end_id + 1) > plan.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokens.vocab_size} tokens, the orchestrator's vocabulary {plan.vocab_size}; "
            "use the tokenizer of its language model"
        )


def save_module(module: nn.Module, config: Any, folder: Path, dtype: torch.dtype | None, max_bytes: int) -> None:
    """Write a component of ours in shards; parameters as `dtype` if given."""
    parameters = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    entries = [
        Entry(name=name, shape=tuple(v.shape), dtype=dtype if dtype is not None and name in parameters else v.dtype)
        for name, v in state.items()
    ]
    shards = plan_shards(entries, "model", max_bytes)
    for shard in shards:
        write_shard(folder, shard, state.__getitem__)
    write_index(folder, shards, "model")
    text = json.dumps({"class": type(module).__name__, **dataclasses.asdict(config)}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def save_paper(models: Models, folder: Path, dtype: torch.dtype | None, max_bytes: int = MAX_BYTES) -> None:
    """Every component of a model of the paper's family, and its tokenizer."""
    for name, part in models.components().items():
        if name in OWN:
            save_module(part, part.config, folder / name, dtype, max_bytes)
        else:
            part.save(folder / name)
    assert isinstance(models.tokenizer, HubTokenizer)
    models.tokenizer.tokenizer.save_pretrained(str(folder / TOKENIZER))
