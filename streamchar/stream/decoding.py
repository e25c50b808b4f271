"""Pictures out of latents: in 16 bits where a CPU multiplies those, and by a codec whose decoder is arranged for the
GPU, channels last and replayed from a graph of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamchar.codecs.video import ToonVideoCodec
from streamchar.stream.graphs import Outputs, Recorder, Tapes
from streamchar.types import VideoCodec


def channels_last(module: nn.Module) -> None:
    """Convolution weights with their channels innermost, 2D and 3D: what tensor cores want to read.

    `Module.to(memory_format=...)` takes one format for all, and fails where both kinds are.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them bfloat16 is slower than float32."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def pictures(
    codec: VideoCodec, video_BCKHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
) -> Tensor:
    """`codec.decode`; the stream's picture is given in 8 bits. toon's float32 decoder runs in bfloat16 on a CPU that
    multiplies it: half of the time, and 57 dB from what float32 gives, below the 8 bits of a pixel."""
    half = video_BCKHW.device.type == "cpu" and isinstance(codec, ToonVideoCodec) and multiplies_bfloat16()
    picture = None if picture_BCHW is None else picture_BCHW.float().div(127.5).sub(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return codec.decode(*given(video_BCKHW, still_BC1HW, picture))


def given(video: Tensor, still: Tensor | None, picture: Tensor | None) -> tuple[Tensor, ...]:
    """Without what is not there; a picture without its latents is of no use."""
    if still is None:
        return (video,)
    return (video, still) if picture is None else (video, still, picture)


class ArrangedVideoCodec(nn.Module):
    """A codec that decodes latents handed over in channels_last_3d, from a recording if there is a recorder."""

    def __init__(self, codec: VideoCodec, *, last: bool, record: Recorder | None) -> None:
        super().__init__()
        self.codec, self._last = codec, last
        if last and isinstance(codec, nn.Module):
            channels_last(codec)
        self._tapes = None if record is None else Tapes(self._step, record)
        self.latent_channels = codec.latent_channels
        self.spatial_stride, self.temporal_stride = codec.spatial_stride, codec.temporal_stride

    @property
    def config(self) -> Any:
        """The codec's own."""
        return self.codec.config  # type: ignore[attr-defined]

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """As the codec does."""
        return self.codec.encode(frames_BCTHW)

    @torch.no_grad()
    def decode(
        self, latents_BCTHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """As the codec does."""
        if self._last and latents_BCTHW.ndim == 5:
            latents_BCTHW = latents_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        inputs = given(latents_BCTHW, still_BC1HW, picture_BCHW)
        if self._tapes is None:
            return self.codec.decode(*inputs)
        key = tuple((tuple(part.shape), part.dtype) for part in inputs)
        return self._tapes(key, inputs, self, lambda: ())[0]

    def _step(self, inputs: Sequence[Tensor], _: Any) -> Outputs:
        return (self.codec.decode(*inputs),)

    def save(self, folder: Path | str) -> None:
        """The codec's own weights."""
        self.codec.save(folder)  # type: ignore[attr-defined]
