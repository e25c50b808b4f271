"""Small base checkpoints as their real classes save them: what `streamchar convert` is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from streamchar.codecs.oobleck import oobleck_vae
from streamchar.codecs.text import umt5_encoder
from streamchar.codecs.wan import wan_vae
from streamchar.config.model import DiTConfig, OrchestratorConfig
from streamchar.config.presets import paper_tiny
from streamchar.stream.stand_in import byte_tokenizer

CONFIG = paper_tiny()


@dataclass(frozen=True, kw_only=True)
class Bases:
    """Folders of the sources."""

    video: Path
    lm: Path
    audio_vae: Path

    def options(self) -> dict[str, str]:
        return {"video": str(self.video), "lm": str(self.lm), "audio_vae": str(self.audio_vae)}


def wan_transformer(config: DiTConfig, layers: int | None = None) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=config.patch, num_attention_heads=config.heads, attention_head_dim=config.head_width,
        in_channels=config.video_channels, out_channels=config.video_channels, text_dim=config.text_width,
        freq_dim=config.time_width, ffn_dim=config.ffn, num_layers=layers or config.layers, eps=config.eps,
    ).eval()  # fmt: skip


def qwen_model(config: OrchestratorConfig) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.ffn,
            num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's tokenizer class over bytes and two merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {mark: i for i, mark in enumerate([*letters, "he", "Ġt", "<|endoftext|>"])}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[("h", "e"), ("Ġ", "t")])


def shake(module: torch.nn.Module) -> None:
    """Away from unit norms and zero biases, so that no weight can be mistaken for another."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def make_bases(folder: Path) -> Bases:
    """Write them all; Wan's folder is in diffusers' layout, its transformer in several shards."""
    torch.manual_seed(0)
    bases = Bases(video=folder / "wan", lm=folder / "qwen", audio_vae=folder / "audio")
    transformer, vae = wan_transformer(CONFIG.dit), wan_vae(CONFIG.video)
    vae.register_to_config(latents_mean=[0.1 * i for i in range(8)], latents_std=[1 + 0.1 * i for i in range(8)])
    text, language, audio = umt5_encoder(CONFIG.prompt), qwen_model(CONFIG.orchestrator), oobleck_vae(CONFIG.audio)
    for module in (transformer, vae, text, language):
        shake(module)
    transformer.save_pretrained(bases.video / "transformer", max_shard_size="200KB")
    vae.save_pretrained(bases.video / "vae")
    text.save_pretrained(bases.video / "text_encoder")
    byte_tokenizer(ends=True).save_pretrained(bases.video / "tokenizer")
    language.save_pretrained(bases.lm, max_shard_size="60KB")
    qwen_tokenizer().save_pretrained(bases.lm)
    audio.save_pretrained(bases.audio_vae / "vae")
    return bases


def write_original(transformer: Path, folder: Path) -> None:
    """A transformer folder of diffusers' in Wan's own names and words."""
    values = json.loads((transformer / "config.json").read_text(encoding="utf-8"))
    width = values["num_attention_heads"] * values["attention_head_dim"]
    own = {
        "_class_name": "WanModel", "dim": width, "num_heads": values["num_attention_heads"], "model_type": "ti2v",
        "ffn_dim": values["ffn_dim"], "num_layers": values["num_layers"], "in_dim": values["in_channels"],
        "out_dim": values["out_channels"], "freq_dim": values["freq_dim"], "eps": values["eps"], "text_len": 512,
    }  # fmt: skip
    pairs = (
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"), ("proj_out", "head.head"),
        (".norm2.", ".norm3."), (".ffn.net.0.proj.", ".ffn.0."), (".ffn.net.2.", ".ffn.2."),
        (".attn1.", ".self_attn."), (".attn2.", ".cross_attn."), (".to_out.0.", ".o."), (".to_q.", ".q."),
        (".to_k.", ".k."), (".to_v.", ".v."),
    )  # fmt: skip
    state = {}
    for file in sorted(transformer.glob("*.safetensors")):
        for key, value in load_file(file).items():
            for ours, theirs in pairs:
                key = key.replace(ours, theirs)
            if key.endswith("scale_shift_table"):
                key = key.replace("scale_shift_table", "modulation" if key.startswith("blocks") else "head.modulation")
            state[key] = value
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
