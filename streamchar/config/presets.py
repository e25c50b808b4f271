"""The presets: functions that return a `ModelConfig` (design section 1)."""

from __future__ import annotations

from collections.abc import Callable

from streamchar.config.model import (
    AudioCodecConfig,
    DiTConfig,
    ModelConfig,
    OrchestratorConfig,
    PromptEncoderConfig,
    VideoCodecConfig,
)
from streamchar.errors import ConfigError


def toon() -> ModelConfig:
    """The embedded model: trained on the cartoon world, runs on two CPU cores."""
    return ModelConfig(
        name="toon",
        height=256,
        width=256,
        orchestrator=OrchestratorConfig(
            vocab_size=192, width=256, layers=4, heads=4, kv_heads=2, ffn=704, pointer_width=128,
            max_reference=48, tokens_per_latent=0.65,
        ),
        dit=DiTConfig(
            width=256, layers=5, heads=4, ffn=640, video_channels=48, condition_width=256, text_width=128,
            audio_layers=2, time_scale=4.0, ref_beside=True, places=(4, 4),
        ),
        video=VideoCodecConfig(
            family="toon", latent_channels=48, spatial_stride=32, widths=(96, 160, 224, 256), blocks=(2, 4, 4, 3),
            motion=True, parts=6,
        ),
        audio=AudioCodecConfig(family="toon", latent_channels=64, width=192, blocks=6, voice=16),
        prompt=PromptEncoderConfig(family="t5", width=128, layers=2, heads=4, ffn=256, vocab_size=1024, max_tokens=24),
        tokenizer="phonemes",
    )


def tiny() -> ModelConfig:
    """For tests only: every component at the smallest width that still exercises the code."""
    return ModelConfig(
        name="tiny",
        height=64,
        width=64,
        orchestrator=OrchestratorConfig(
            vocab_size=192, width=32, layers=2, heads=4, kv_heads=2, ffn=64, pointer_width=16,
            max_reference=24, look_ahead=32, max_transcript=96,
        ),
        dit=DiTConfig(
            width=48, layers=2, heads=2, ffn=64, video_channels=8, condition_width=32, text_width=16,
            time_width=32, audio_layers=1,
        ),
        video=VideoCodecConfig(
            family="toon", latent_channels=8, spatial_stride=16, widths=(16, 16, 16), blocks=(1, 1, 1)
        ),
        audio=AudioCodecConfig(family="toon", latent_channels=64, width=32, blocks=1, voice=8),
        prompt=PromptEncoderConfig(family="t5", width=16, layers=1, heads=2, ffn=32, vocab_size=1024, max_tokens=8),
        tokenizer="characters",
    )


def paper() -> ModelConfig:
    """The paper's sizes: Wan2.2-TI2V-5B with two FFN experts, Qwen2.5-3B, umT5-XXL (section 5.1)."""
    return ModelConfig(
        name="paper",
        height=512,
        width=512,
        orchestrator=OrchestratorConfig(
            vocab_size=151_936, width=2048, layers=36, heads=16, kv_heads=2, ffn=11_008, rope_theta=1e6,
            pointer_width=512, tokens_per_latent=0.14, look_ahead=48, max_transcript=160,
        ),
        dit=DiTConfig(
            width=3072, layers=30, heads=24, ffn=14_336, video_channels=48, condition_width=2048, text_width=4096,
            audio_layers=4, audio_width=1024,
        ),
        video=VideoCodecConfig(family="wan", latent_channels=48, spatial_stride=16, widths=(160, 256), blocks=(2,)),
        audio=AudioCodecConfig(family="oobleck", latent_channels=64, width=128),
        prompt=PromptEncoderConfig(
            family="umt5", width=4096, layers=24, heads=64, ffn=10_240, vocab_size=256_384, max_tokens=512
        ),
        tokenizer="Qwen/Qwen2.5-3B",
    )


def paper_tiny() -> ModelConfig:
    """The paper's component classes at small widths: tests, and dry runs of what is meant for `paper`."""
    return ModelConfig(
        name="paper-tiny",
        height=64,
        width=64,
        orchestrator=OrchestratorConfig(
            vocab_size=320, width=32, layers=2, heads=4, kv_heads=2, ffn=64, rope_theta=1e6, audio_channels=8,
            pointer_width=16, look_ahead=48, max_transcript=160,
        ),
        dit=DiTConfig(
            width=72, layers=2, heads=3, ffn=96, video_channels=8, audio_channels=8, condition_width=32,
            text_width=32, time_width=32, audio_layers=1, audio_width=24,
        ),
        video=VideoCodecConfig(family="wan", latent_channels=8, spatial_stride=16, widths=(4, 4), blocks=(1,)),
        audio=AudioCodecConfig(family="oobleck", latent_channels=8, width=2),
        prompt=PromptEncoderConfig(
            family="umt5", width=32, layers=2, heads=2, ffn=48, vocab_size=320, max_tokens=32
        ),
        tokenizer="Qwen/Qwen2.5-3B",
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "toon": toon, "tiny": tiny, "paper": paper, "paper-tiny": paper_tiny,
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; expected one of: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
