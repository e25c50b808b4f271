"""The initial checkpoint of the paper's model, planned from public base checkpoints (paper section 5.1).

Wan2.2's transformer becomes the joint DiT, its FFN both experts; Qwen2.5 becomes the orchestrator's language model;
the codecs and umT5 are taken over. What neither has starts as in training from nothing (`dit/init.py`, and the
modules' own beginnings in `orchestrator/`), except the heads' skip: zero, so that the video path is Wan's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamchar.config.model import DiTConfig, ModelConfig, OrchestratorConfig
from streamchar.config.presets import paper
from streamchar.convert.parts import audio_codec, prompt_encoder, video_codec
from streamchar.convert.sources import fetch, folder_of, read_json, tokenizer_files
from streamchar.convert.table import NEW, REPLICATED, ZERO, Part, Plan, Row, match
from streamchar.dit.model import JointDiT
from streamchar.dit.wan import from_original, rename
from streamchar.errors import CheckpointError, ConfigError
from streamchar.orchestrator.lm import Orchestrator
from streamchar.stream.checkpoint import check_parts
from streamchar.stream.shards import MAX_BYTES, WeightFolder
from streamchar.stream.weights import BACKBONE, new_dit_weights, new_orchestrator_weights, on_meta

IMAGE = "Wan's older models attend to an image embedding; here the reference frame stands in the sequence as tokens"
IMAGE_KEYS = ("img_emb.", "condition_embedder.image_embedder.")
IMAGE_PARTS = (".k_img.", ".v_img.", ".norm_k_img.", ".add_k_proj.", ".add_v_proj.", ".norm_added_k.")
SKIP, OURS = "head.velocity.", ("audio.", "head.velocity.")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `streamchar convert` was asked for: folders or hub ids, and how to write."""

    video: str
    lm: str
    audio_vae: str
    text: str | None = None
    """umT5; `video`'s own when None."""
    video_vae: str | None = None
    """Wan's VAE; `video`'s own when None."""
    height: int = 512
    width: int = 512
    dtype: torch.dtype = torch.bfloat16
    """Of orchestrator, DiT and prompt encoder; the codecs stay as they are stored."""
    max_bytes: int = MAX_BYTES
    seed: int = 0
    """Of what is new."""


def plan(request: Request) -> Plan:
    """Look at every source, and say what becomes of each of its weights. Raises `CheckpointError`."""
    if request.max_bytes < 1:
        raise ConfigError(f"a shard must hold at least one byte, got {request.max_bytes}; 5 GB is usual")
    video_root = fetch(request.video, "--video")
    vae, video = video_codec(*_or_video(request.video_vae, video_root, "--video-vae"))
    text, prompt = prompt_encoder(*_or_video(request.text, video_root, "--text"), request.dtype)
    audio_part, audio, notes = audio_codec(fetch(request.audio_vae, "--audio-vae"), "--audio-vae")
    lm_root = fetch(request.lm, "--lm")
    language, lm_config = orchestrator(lm_root, audio.latent_channels, request)
    dit_part, dit_config = dit(video_root, (audio.latent_channels, lm_config.width), request)
    tokens = tokenizer_files(lm_root, ("", "tokenizer"), "--lm")
    config = ModelConfig(
        name="paper", height=request.height, width=request.width, orchestrator=lm_config, dit=dit_config, video=video,
        audio=audio, prompt=prompt, tokenizer="tokenizer",
    )  # fmt: skip
    check_parts(config, _tokenizer(tokens[0].parent), "the sources")
    return Plan(
        parts=(language, dit_part, vae, audio_part, text), config=config, tokenizer=tokens,
        max_bytes=request.max_bytes, notes=notes,
    )  # fmt: skip


def _or_video(source: str | None, video_root: Path, option: str) -> tuple[Path, str]:
    """A component's own folder, or that of `--video`."""
    if source is not None:
        return fetch(source, option), option
    names = {"--text": "text_encoder", "--video-vae": "vae"}
    if not (video_root / names[option] / "config.json").is_file():
        raise CheckpointError(
            f"{video_root} has no {names[option]} in diffusers' layout; give one with {option} "
            "(the -Diffusers repository of the same model has it)"
        )
    return video_root, option


def _tokenizer(folder: Path) -> Any:
    from streamchar.orchestrator.tokenizer import HubTokenizer

    return HubTokenizer.from_pretrained(str(folder))


def _component(config: Any, kind: str) -> str:
    return json.dumps({"class": kind, **asdict(config)}, indent=2) + "\n"


# -- language model -------------------------------------------------------------------------------------


def orchestrator(folder: Path, audio_channels: int, request: Request) -> tuple[Part, OrchestratorConfig]:
    """Qwen2.5 as the orchestrator's backbone; audio, cursor and pointer modules are new."""
    folder = folder_of(folder, ("",), "--lm")
    config = qwen(read_json(folder / "config.json"), folder, audio_channels)
    weights = WeightFolder(folder)
    target = on_meta(lambda: Orchestrator(config)).state_dict()
    inner = any(key.startswith("model.") for key in weights.entries)
    ignored = [
        (lambda key: key.startswith("lm_head."), "next-token logits: the orchestrator's hidden states are read"),
        (lambda key: key.endswith("rotary_emb.inv_freq"), "computed from the configuration"),
    ]
    used = match(
        "orchestrator", target, weights, lambda key: BACKBONE + (key.removeprefix("model.") if inner else key),
        ignored=ignored, dtype=request.dtype, elsewhere=lambda name: not name.startswith(BACKBONE),
    )  # fmt: skip
    rows = list(used)
    rows += [
        Row(how=NEW, name=name, source=None, shape=tuple(value.shape), dtype=request.dtype)
        for name, value in target.items()
        if not name.startswith(BACKBONE)
    ]
    part = Part(
        component="orchestrator", kind="Orchestrator", stem="model", rows=tuple(rows), weights=weights,
        config=_component(config, "Orchestrator"), new=lambda: new_orchestrator_weights(config, request.seed),
    )  # fmt: skip
    return part, config


def qwen(values: dict[str, Any], folder: Path, audio_channels: int) -> OrchestratorConfig:
    """Our configuration of a Qwen2 language model's config.json."""
    if values.get("model_type") != "qwen2":
        raise CheckpointError(f"--lm: {folder} holds a {values.get('model_type')} model, expected qwen2 (Qwen2.5)")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    eps, kind = values.get("rms_norm_eps", 1e-6), rope.get("rope_type", "default")
    if eps != 1e-6 or kind != "default":
        raise CheckpointError(
            f"--lm: expected rms_norm_eps 1e-6 and plain rotary positions, {folder} has {eps} and {kind!r}; "
            "give Qwen2.5-3B or another size of it"
        )
    try:
        return replace(
            paper().orchestrator, vocab_size=values["vocab_size"], width=values["hidden_size"],
            layers=values["num_hidden_layers"], heads=values["num_attention_heads"],
            kv_heads=values["num_key_value_heads"], ffn=values["intermediate_size"],
            rope_theta=float(values.get("rope_theta") or rope["rope_theta"]), audio_channels=audio_channels,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"--lm: {folder}/config.json is incomplete: {error}; fetch it again") from None


# -- DiT ------------------------------------------------------------------------------------------------


def dit(root: Path, widths: tuple[int, int], request: Request) -> tuple[Part, DiTConfig]:
    """Wan's transformer as the joint DiT; `widths` are audio channels and the width of c_a."""
    folder = folder_of(root, ("transformer", ""), "--video")
    weights = WeightFolder(folder)
    config = wan(read_json(folder / "config.json"), weights, widths)
    target = on_meta(lambda: JointDiT(config)).state_dict()
    original = "time_projection.1.weight" in weights.entries

    def translate(key: str) -> str | None:
        theirs = from_original(key) if original else key
        return None if theirs is None else rename(theirs)

    rows = list(
        match(
            "DiT",
            target,
            weights,
            translate,
            ignored=[(_of_image, IMAGE)],
            dtype=request.dtype,
            elsewhere=lambda name: name.startswith(OURS) or ".audio_ffn." in name,
        )
    )
    sources = {row.name: row for row in rows}
    for name, value in target.items():
        if name in sources:
            continue
        shape, buffer = tuple(value.shape), name.endswith((".deviation", ".residual"))
        twin = sources.get(name.replace(".audio_ffn.", ".ffn."))
        if twin is not None:
            rows.append(replace(twin, how=REPLICATED, name=name))
        elif name.startswith(SKIP) and not buffer:
            rows.append(Row(how=ZERO, name=name, source=None, shape=shape, dtype=request.dtype))
        else:
            kind = value.dtype if buffer else request.dtype
            rows.append(Row(how=NEW, name=name, source=None, shape=shape, dtype=kind))
    part = Part(
        component="dit", kind="JointDiT", stem="model", rows=tuple(rows), weights=weights,
        config=_component(config, "JointDiT"), new=lambda: new_dit_weights(config, request.seed),
    )  # fmt: skip
    return part, config


def _of_image(key: str) -> bool:
    return key.startswith(IMAGE_KEYS) or any(part in key for part in IMAGE_PARTS)


def wan(values: dict[str, Any], weights: WeightFolder, widths: tuple[int, int]) -> DiTConfig:
    """Our configuration of a Wan transformer's config.json, in diffusers' words or in Wan's own."""
    name, where = values.get("_class_name"), weights.folder
    audio_channels, condition_width = widths
    try:
        if name == "WanTransformer3DModel":
            heads, text_width = values["num_attention_heads"], values["text_dim"]
            width, inputs, outputs = heads * values["attention_head_dim"], values["in_channels"], values["out_channels"]
        elif name == "WanModel" or "dim" in values:
            heads, width, inputs, outputs = (values[k] for k in ("num_heads", "dim", "in_dim", "out_dim"))
            text_width = weights.entries["text_embedding.0.weight"].shape[1]
        else:
            raise CheckpointError(f"--video: {where} holds a {name}, expected Wan's transformer (Wan2.2-TI2V-5B)")
        if inputs != outputs:
            raise CheckpointError(
                f"--video: {where} takes {inputs} channels and returns {outputs}: a model with pictures beside the "
                "noise; give Wan2.2-TI2V-5B, which has as many in as out"
            )
        head_width = width // heads
        return replace(
            paper().dit, width=width, heads=heads, ffn=values["ffn_dim"], layers=values["num_layers"],
            video_channels=inputs, audio_channels=audio_channels, condition_width=condition_width,
            text_width=text_width, time_width=values["freq_dim"], eps=float(values.get("eps", 1e-6)),
            patch=tuple(values.get("patch_size", (1, 2, 2))),
            audio_width=max(1, width // 3 // head_width) * head_width,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"--video: {where}/config.json is incomplete: {error}; fetch it again") from None
