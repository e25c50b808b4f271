"""Integrators of the flow: from noise to data by a function that gives velocities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from streamchar.flow.path import clean_from_velocity, interpolate
from streamchar.flow.schedule import Schedule

Latents = tuple[Tensor, ...]
"""One tensor a modality; all share sigma."""

VelocityField = Callable[[Latents, float, bool], Latents]
"""(x at sigma, sigma, whether this is the last step) -> v, one a modality."""


class Sampler(Protocol):
    """Turns noise into data by calling a velocity field a fixed number of times."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, field: VelocityField, noise: Latents, generator: torch.Generator) -> Latents: ...


@dataclass(frozen=True, kw_only=True)
class EulerSampler:
    """Euler steps along the probability-flow ODE: the base model's sampler."""

    schedule: Schedule

    def __call__(self, field: VelocityField, noise: Latents, generator: torch.Generator) -> Latents:
        sigmas = self.schedule.sigmas().tolist()
        x = noise
        for step, (now, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            v = field(x, now, step == self.schedule.steps - 1)
            x = tuple(a + (after - now) * b for a, b in zip(x, v, strict=True))
        return x


@dataclass(frozen=True, kw_only=True)
class RenoiseSampler:
    """Predict the data, add fresh noise, repeat: the distilled few-step student's sampler."""

    schedule: Schedule
    temperature: float | tuple[float, ...] = 1.0
    """Deviation of the fresh noise, for all modalities or one a modality; that of the first noise is the caller's."""

    def __call__(self, field: VelocityField, noise: Latents, generator: torch.Generator) -> Latents:
        sigmas = self.schedule.sigmas().tolist()
        x = noise
        deviations = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,) * len(noise)
        for step, (now, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            v = field(x, now, step == self.schedule.steps - 1)
            clean = tuple(
                clean_from_velocity(a, b, torch.full(a.shape[:1], now, device=a.device))
                for a, b in zip(x, v, strict=True)
            )
            if step == self.schedule.steps - 1:
                return clean
            fresh = tuple(d * _noise_like(c, generator) for d, c in zip(deviations, clean, strict=True))
            x = tuple(
                interpolate(c, e, torch.full(c.shape[:1], after, device=c.device))
                for c, e in zip(clean, fresh, strict=True)
            )
        return x


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the CPU's generator, the same on every device, sent without making the host wait."""
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.dtype)
    return noise.pin_memory().to(x.device, non_blocking=True) if x.device.type == "cuda" else noise.to(x.device)
