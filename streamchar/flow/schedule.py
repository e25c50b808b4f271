"""Sampling schedules: the noise levels of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from streamchar.errors import ConfigError
from streamchar.flow.path import shift_sigma


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`steps` noise levels from 1 towards 0, warped by `shift`."""

    steps: int
    shift: float = 3.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"sampling steps must be at least 1, got {self.steps}; 16 is a good value")
        if not self.shift > 0:
            raise ConfigError(f"the schedule's shift must be above 0, got {self.shift}; 1 means none")

    def sigmas(self) -> Tensor:
        """(steps + 1,) from 1 to 0, float32."""
        return shift_sigma(torch.linspace(1, 0, self.steps + 1), self.shift)
