"""diffusers' `WanTransformer3DModel` at our DiT's widths, for a comparison in the same run.

It knows neither caches nor audio, so two jobs bracket ours: `sequence`, all video tokens of our sequence (reference,
sink, motion and new latents) at every step, which is what the same context costs it; and `noisy`, the new latents
alone, which is less than we do (we attend to the cached conditions and carry the audio tokens as well).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streamchar import clock
from streamchar.bench.machine import settled, times_of
from streamchar.bench.timing import Spread
from streamchar.config.model import ModelConfig
from streamchar.dit.layout import Layout
from streamchar.errors import ConfigError

JOBS = ("sequence", "noisy")
STEADY = Layout(grid=(1, 1), ref=1, sink=clock.VIDEO_LATENTS_PER_CHUNK, motion=clock.VIDEO_LATENTS_PER_CHUNK)
"""From the third chunk on; the grid is the model's."""


def latent_frames(job: str) -> int:
    """Latent frames that diffusers' transformer gets."""
    new = STEADY.video
    return new if job == "noisy" else new + STEADY.ref + STEADY.sink + STEADY.motion


def build(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Its transformer with our widths and drawn weights, made on the device."""
    try:
        from diffusers import WanTransformer3DModel
    except ImportError as error:
        raise ConfigError(
            f"--against diffusers needs the package diffusers, which cannot be imported here ({error}); install it, "
            "or leave the option out"
        ) from error
    own = config.dit
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = WanTransformer3DModel(
                patch_size=own.patch, num_attention_heads=own.heads, attention_head_dim=own.head_width,
                in_channels=own.video_channels, out_channels=own.video_channels, text_dim=own.text_width,
                freq_dim=own.time_width, ffn_dim=own.ffn, num_layers=own.layers, cross_attn_norm=True, eps=own.eps,
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    return made.eval().requires_grad_(False)


def race(
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    passes: int,
    repeats: int,
    compiled: bool,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Seconds of `passes` forwards for both jobs; `compiled` adds its own regional compilation (Linux, GPU)."""
    transformer = build(config, device, dtype)
    found: dict[str, Any] = {"class": "WanTransformer3DModel", "passes": passes, "jobs": {}}
    for variant in ("plain", "compiled")[: 2 if compiled else 1]:
        if variant == "compiled":
            transformer.compile_repeated_blocks()
        for job in JOBS:
            inputs = _inputs(config, latent_frames(job), device, dtype)

            def chunk(inputs: dict[str, Tensor] = inputs) -> None:
                with torch.inference_mode():
                    for _ in range(passes):
                        transformer(**inputs, return_dict=False)

            cold = times_of(chunk, device, 1, now)[0]
            spent = times_of(chunk, device, repeats, now)
            found["jobs"][f"{job} {variant}"] = {
                "video_tokens": latent_frames(job) * config.grid[0] * config.grid[1],
                "first_s": cold, "chunk": Spread.of(spent).figures(), "median_s": settled(spent),
            }  # fmt: skip
    return found


def _inputs(config: ModelConfig, frames: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    draw, own = torch.Generator().manual_seed(0), config.dit
    latents = torch.randn(1, own.video_channels, frames, *config.latent_size, generator=draw)
    text = torch.randn(1, config.prompt.max_tokens, own.text_width, generator=draw)
    return {
        "hidden_states": latents.to(device, dtype),
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_hidden_states": text.to(device, dtype),
    }


def ratios(found: dict[str, Any], ours_s: float) -> dict[str, float]:
    """How many times faster our DiT's chunk (conditions and all steps) is than each job."""
    return {name: job["median_s"] / ours_s for name, job in found["jobs"].items()}
