"""What the caches save: a chunk's sampling steps with them, and the same steps without, counted and timed.

Without caches every step runs all conditions with the noisy tokens (the DiT's `forward`, as in training) and the
orchestrator's whole prefix before its tail. Reading only: nothing here is used to generate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from streamchar import clock
from streamchar.bench import flops
from streamchar.bench.machine import settled, times_of
from streamchar.dit.cache import Conditions
from streamchar.dit.layout import Layout
from streamchar.stream.models import Models

HISTORY_CHUNKS = clock.MAX_HISTORY_CHUNKS // 2
"""A window between two slides."""
Times = Callable[[Callable[[], None]], list[float]]
J, T = clock.AUDIO_LATENTS_PER_CHUNK, clock.VIDEO_LATENTS_PER_CHUNK


@torch.inference_mode()
def measure(models: Models, *, steps: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    """Seconds and counted operations of a chunk's steps, cached and not, and their ratios."""

    def times(call: Callable[[], None]) -> list[float]:
        call()
        return times_of(call, models.device, repeats, now)

    return {"dit": _dit(models, steps, times), "orchestrator": _orchestrator(models, steps, times)}


def _drawn(models: Models, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=draw).to(models.device)


def _compared(cached: list[float], bare: list[float], counted: tuple[int, int]) -> dict[str, float]:
    with_it, without = settled(cached), settled(bare)
    return {
        "cached_s": with_it, "uncached_s": without, "ratio": without / with_it,
        "cached_tflop": counted[0] / 1e12, "uncached_tflop": counted[1] / 1e12,
        "counted_ratio": counted[1] / counted[0],
    }  # fmt: skip


def _dit(models: Models, steps: int, times: Times) -> dict[str, float]:
    dit, config = models.dit, models.config.dit
    video = _drawn(models, 1, config.video_channels, T, *models.config.latent_size)
    audio = _drawn(models, 1, J, config.audio_channels)
    c_a = _drawn(models, 1, J, config.condition_width).to(dit.patch_embedding.weight.dtype)
    text = _drawn(models, 1, models.config.prompt.max_tokens, config.text_width)
    level = torch.full((1,), 0.5, device=models.device)
    layout = Layout(grid=models.config.grid, ref=1, sink=T, motion=T)
    everything = Conditions(text=text, ref=video[:, :, :1], sink=video, motion=video)
    still = Layout(grid=models.config.grid, ref=1, sink=T)
    anchor = dit.encode_conditions(still, Conditions(text=text, ref=video[:, :, :1], sink=video))

    def cached() -> None:
        cache = dit.encode_conditions(layout, everything, previous=anchor)
        for _ in range(steps):
            dit.denoise(video, audio, c_a, level, layout, cache)

    def bare() -> None:
        for _ in range(steps):
            dit.forward(video, audio, c_a, level, layout, everything)

    tokens = models.config.prompt.max_tokens
    step = flops.dit_denoise(config, layout, tokens)
    counted = (
        flops.dit_motion(config, layout, tokens) + steps * step,
        steps * (flops.dit_conditions(config, layout, tokens) + step),
    )
    return _compared(times(cached), times(bare), counted)


def _orchestrator(models: Models, steps: int, times: Times) -> dict[str, float]:
    lm, config = models.orchestrator, models.config.orchestrator
    voice = _drawn(models, 1, config.max_reference, config.audio_channels)
    ids = torch.ones(1, config.max_transcript, dtype=torch.long, device=models.device)
    history = _drawn(models, 1, HISTORY_CHUNKS * J, config.audio_channels)
    noisy, one = history[:, :J], torch.ones(1, device=models.device)
    before = lm.extend(lm.prefix(voice, ids, None), history[:, J:])

    def cached() -> None:
        prefix = lm.extend(before, noisy)
        for _ in range(steps):
            lm.plan(prefix, noisy, one, one)

    def bare() -> None:
        for _ in range(steps):
            lm.plan(lm.prefix(voice, ids, history), noisy, one, one)

    text, start = config.max_transcript, config.max_reference + config.max_transcript
    length = start + HISTORY_CHUNKS * J
    plan = flops.lm_plan(config, length, text)
    whole = flops.lm_prefix(config, config.max_reference + HISTORY_CHUNKS * J, text)
    counted = (flops.lm_extend(config, length - J) + steps * plan, steps * (whole + plan))
    return _compared(times(cached), times(bare), counted)
