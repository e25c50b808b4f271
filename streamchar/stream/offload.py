"""A text encoder that lives in the computer's memory and visits the GPU part by part.

umT5-XXL has 11 GB of weights in bfloat16 and works once a stream. Its blocks come one after the other, in pinned
memory on the way; what is outside the blocks (embedding, last norm) stays for the duration of one call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class VisitingPromptEncoder(nn.Module):
    """A prompt encoder behind the same protocol; its weights are on `device` only while they are used."""

    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        super().__init__()
        encoder.to("cpu")
        if device.type == "cuda":
            for tensor in _tensors(encoder):
                tensor.data = tensor.data.pin_memory()
        self._encoder, self._visited = (encoder,), device  # a tuple: moving this module must not move the encoder
        self._lock = threading.Lock()
        self.width, self.max_tokens = encoder.width, encoder.max_tokens
        blocks = [block for part in encoder.modules() if isinstance(part, nn.ModuleList) for block in part]
        inner = {id(part) for block in blocks for part in block.modules() if part is not block}
        self._blocks = [block for block in blocks if id(block) not in inner]
        within = {id(tensor) for block in self._blocks for tensor in _tensors(block)}
        self._stem = [tensor for tensor in _tensors(encoder) if id(tensor) not in within]

    @property
    def config(self) -> Any:
        """The encoder's own."""
        return self._encoder[0].config

    def encode(self, prompts: list[str]) -> Tensor:
        """-> (B, max_tokens, width), zero after each prompt's end."""
        with self._lock, self._visit(self._stem), self._calling_in_turn():
            return self._encoder[0].encode(prompts)

    def save(self, folder: Path | str) -> None:
        """The encoder's own folder."""
        self._encoder[0].save(folder)

    @contextmanager
    def _visit(self, tensors: list[Tensor]) -> Iterator[None]:
        homes = [tensor.data for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to(self._visited, non_blocking=True, copy=True)
        try:
            yield
        finally:
            for tensor, home in zip(tensors, homes, strict=True):
                tensor.data = home

    @contextmanager
    def _calling_in_turn(self) -> Iterator[None]:
        """Each block's weights come before its forward and go after it, also when it fails."""
        visits: dict[nn.Module, Any] = {}

        def come(block: nn.Module, _: Any) -> None:
            visits[block] = self._visit(_tensors(block))
            visits[block].__enter__()

        def go(block: nn.Module, *_: Any) -> None:
            if block in visits:
                visits.pop(block).__exit__(None, None, None)

        hooks = [block.register_forward_pre_hook(come) for block in self._blocks]
        hooks += [block.register_forward_hook(go, always_call=True) for block in self._blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for block in list(visits):
                go(block)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return list({id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}.values())
