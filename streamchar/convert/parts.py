"""The codecs and the prompt encoder of a conversion: taken over as they are, key by key."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, AutoencoderOobleck  # pyright: ignore[reportPrivateImportUsage]
from transformers import UMT5Config, UMT5EncoderModel

from streamchar import clock
from streamchar.codecs.oobleck import quiet_weight_norm
from streamchar.config.model import AudioCodecConfig, PromptEncoderConfig, VideoCodecConfig
from streamchar.config.presets import paper
from streamchar.convert.sources import folder_of, read_json, tokenizer_files
from streamchar.convert.table import Part, match
from streamchar.errors import CheckpointError
from streamchar.stream.shards import WeightFolder
from streamchar.stream.weights import on_meta

CONFIG_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)
EMBEDDING, TWIN = "shared.weight", "encoder.embed_tokens.weight"


def _class_of(folder: Path, expected: str, option: str) -> dict:
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    if name != expected:
        raise CheckpointError(f"{option}: {folder} holds a {name}, expected {expected}; give that component's folder")
    return config


def video_codec(root: Path, option: str) -> tuple[Part, VideoCodecConfig]:
    """Wan's VAE, in the precision that it is stored in."""
    folder = folder_of(root, ("vae", ""), option)
    config = _class_of(folder, "AutoencoderKLWan", option)
    try:
        vae = on_meta(lambda: AutoencoderKLWan.from_config(config))
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"{option}: {folder}/config.json describes no Wan VAE: {error}") from None
    own = vae.config
    if own.scale_factor_temporal != clock.VIDEO_STRIDE:
        raise CheckpointError(
            f"{option}: the clock needs a temporal stride of {clock.VIDEO_STRIDE}, got {own.scale_factor_temporal}"
        )
    weights = WeightFolder(folder)
    rows = tuple(match("video codec", vae.state_dict(), weights, lambda key: key))
    part = Part(
        component="video_codec", kind="WanVideoCodec", stem="diffusion_pytorch_model", rows=rows, weights=weights,
        config=(folder / "config.json").read_text(encoding="utf-8"),
    )  # fmt: skip
    return part, VideoCodecConfig(
        family="wan", latent_channels=own.z_dim, spatial_stride=own.scale_factor_spatial,
        widths=(own.base_dim, own.decoder_base_dim or own.base_dim), blocks=(own.num_res_blocks,),
    )  # fmt: skip


def audio_codec(root: Path, option: str) -> tuple[Part, AudioCodecConfig, tuple[str, ...]]:
    """An Oobleck VAE of stride 2048, in the precision that it is stored in; and what to know about it."""
    folder = folder_of(root, ("vae", ""), option)
    config = _class_of(folder, "AutoencoderOobleck", option)
    try:
        with quiet_weight_norm():
            vae = on_meta(lambda: AutoencoderOobleck.from_config(config))
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"{option}: {folder}/config.json describes no Oobleck VAE: {error}") from None
    own = vae.config
    stride = math.prod(own.downsampling_ratios)
    if stride != clock.AUDIO_STRIDE:
        raise CheckpointError(f"{option}: the clock needs a stride of {clock.AUDIO_STRIDE}, {folder} has {stride}")
    weights = WeightFolder(folder)
    rows = tuple(match("audio codec", vae.state_dict(), weights, lambda key: key))
    part = Part(
        component="audio_codec", kind="OobleckAudioCodec", stem="diffusion_pytorch_model", rows=rows, weights=weights,
        config=(folder / "config.json").read_text(encoding="utf-8"),
    )  # fmt: skip
    notes = []
    if own.sampling_rate != clock.AUDIO_RATE:
        notes.append(
            f"the audio codec was trained at {own.sampling_rate} Hz and will run at {clock.AUDIO_RATE} Hz: "
            "train it further at that rate"
        )
    if own.audio_channels != 1:
        notes.append("the audio codec is stereo: it hears and returns both ears alike")
    mine = AudioCodecConfig(family="oobleck", latent_channels=own.decoder_input_channels, width=own.decoder_channels)
    return part, mine, tuple(notes)


def prompt_encoder(root: Path, option: str, dtype: torch.dtype) -> tuple[Part, PromptEncoderConfig]:
    """umT5's encoder with its tokenizer; a decoder beside it is left out."""
    folder = folder_of(root, ("text_encoder", ""), option)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "umt5":
        raise CheckpointError(f"{option}: {folder} holds a {config.get('model_type')}, expected a umt5 encoder")
    try:
        own = UMT5Config.from_pretrained(str(folder))
        target = on_meta(lambda: UMT5EncoderModel(own)).state_dict()
    except CONFIG_ERRORS as error:
        raise CheckpointError(f"{option}: {folder}/config.json describes no umT5: {error}") from None
    weights = WeightFolder(folder)
    target.pop(TWIN, None)
    both = EMBEDDING in weights.entries
    ignored = [
        (lambda key: key == TWIN and both, f"the same as {EMBEDDING}"),
        (lambda key: key.startswith(("decoder.", "lm_head.")), "the decoder: prompts are only encoded"),
    ]
    translate = {TWIN: EMBEDDING}
    rows = match("prompt encoder", target, weights, lambda k: translate.get(k, k), ignored=ignored, dtype=dtype)
    part = Part(
        component="prompt_encoder", kind="UMT5PromptEncoder", stem="model", rows=tuple(rows), weights=weights,
        config=(folder / "config.json").read_text(encoding="utf-8"),
        copies=tokenizer_files(folder, ("../tokenizer", "") if folder != root else ("", "tokenizer"), option),
    )  # fmt: skip
    return part, PromptEncoderConfig(
        family="umt5", width=own.d_model, layers=own.num_layers, heads=own.num_heads, ffn=own.d_ff,
        vocab_size=own.vocab_size, max_tokens=paper().prompt.max_tokens,
    )  # fmt: skip
