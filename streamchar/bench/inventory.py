"""What a model of a configuration weighs, counted on modules without memory: no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from streamchar.config.model import ModelConfig
from streamchar.dit.model import JointDiT
from streamchar.orchestrator.lm import Orchestrator

UNNARROWED = ("attn2.to_k", "attn2.to_v")
"""Linear layers of a DiT block that stay as they are in 8 bits: they run once a stream."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Parameters of the components."""

    orchestrator: int
    embeddings: int
    """Of the orchestrator's, in its table of tokens."""
    dit: int
    dit_linears: int
    """Of the DiT's, in its blocks' matrices: what 8 bits apply to."""
    dit_block: int
    """Of one block."""
    audio_path: int
    """Of the DiT's, in its audio encoder, decoder and head: what stage 1 trains of it."""
    video_codec: int
    audio_codec: int
    prompt_encoder: int
    prompt_layer: int
    """Of one layer of the prompt encoder."""

    @property
    def lm_layers(self) -> int:
        return self.orchestrator - self.embeddings

    @property
    def total(self) -> int:
        return self.orchestrator + self.dit + self.video_codec + self.audio_codec + self.prompt_encoder


def count(module: nn.Module) -> int:
    """Parameters, each once."""
    return sum(parameter.numel() for parameter in module.parameters())


def inventory(config: ModelConfig) -> Inventory:
    """Build every component on the meta device and count."""
    with torch.device("meta"):
        lm, dit = Orchestrator(config.orchestrator), JointDiT(config.dit)
        prompt, layer = _prompt_encoder(config)
    video, audio = _codecs(config)
    narrowed = [
        part.weight.numel() for name, part in dit.blocks.named_modules()
        if isinstance(part, nn.Linear) and not name.endswith(UNNARROWED)
    ]  # fmt: skip
    return Inventory(
        orchestrator=count(lm), embeddings=lm.backbone.embed_tokens.weight.numel(), dit=count(dit),
        dit_linears=sum(narrowed),
        dit_block=count(dit.blocks[0]), audio_path=count(dit.audio), video_codec=video, audio_codec=audio,
        prompt_encoder=prompt, prompt_layer=layer,
    )  # fmt: skip


def _prompt_encoder(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the prompt encoder and of one of its layers."""
    from streamchar.codecs.text import T5PromptEncoder, umt5_encoder, word_tokenizer

    umt5 = config.prompt.family == "umt5"
    model = umt5_encoder(config.prompt) if umt5 else T5PromptEncoder(config.prompt, word_tokenizer([])).t5
    return count(model), count(model.encoder.block[0])


def _codecs(config: ModelConfig) -> tuple[int, int]:
    """Parameters of both codecs. Ours are small and are built outright, as they compute their filters."""
    if config.video.family == "wan":
        from streamchar.codecs.wan import wan_vae

        with torch.device("meta"):
            video = count(wan_vae(config.video))
    else:
        from streamchar.codecs.video import ToonVideoCodec

        video = count(ToonVideoCodec(config.video))
    if config.audio.family == "oobleck":
        from streamchar.codecs.oobleck import oobleck_vae

        with torch.device("meta"):
            audio = count(oobleck_vae(config.audio))
    else:
        from streamchar.codecs.audio import ToonAudioCodec

        audio = count(ToonAudioCodec(config.audio))
    return video, audio
