"""Decoding beside the denoising of the next chunk, on a GPU.

On one CUDA stream a chunk's pixels would queue up behind the next chunk's denoising. A `Lane` is a stream of its
own for the decoders, with pinned memory for what leaves the device; the thread that decodes waits for its own work
only. Off a GPU, or when not asked for, a lane is the place where one stands.

The latents need no event: `generate_chunk` has read the cursor, so they are finished when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from streamchar.stream.models import Models


class Lane:
    """Where decoders run; `beside` asks for a stream of its own, where the device has streams."""

    def __init__(self, device: torch.device, *, beside: bool = False) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device, priority=-1) if beside and device.type == "cuda" else None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run what is inside on the lane."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield

    def fetch(self, tensor: Tensor) -> Tensor:
        """A copy in the host's memory, complete after `wait`."""
        if self.stream is None:
            return tensor.cpu()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> Mark:
        """This point of the lane's work, for timing."""
        if self.stream is None:
            return Mark(seconds=time.perf_counter())
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return Mark(event=event)

    def wait(self) -> None:
        """Until all of the lane's work is done."""
        if self.stream is not None:
            self.stream.synchronize()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment on the host's clock, or on the device's."""

    seconds: float = 0.0
    event: torch.cuda.Event | None = None

    def until(self, later: Mark) -> float:
        """Seconds from here to `later`, once the lane has been waited for."""
        if self.event is not None and later.event is not None:
            return self.event.elapsed_time(later.event) / 1000
        return later.seconds - self.seconds


@dataclass(frozen=True, kw_only=True)
class LanedModels(Models):
    """Models whose chunks are decoded on a lane."""

    lane: Lane


def lane_of(models: Models) -> Lane:
    """The lane that these models' chunks are decoded on."""
    return models.lane if isinstance(models, LanedModels) else Lane(models.device)
