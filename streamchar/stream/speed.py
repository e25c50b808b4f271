"""How to make a model fast, applied from outside: which means, and the models that use them (docs/speed.md).

The default changes nothing but the order of floating-point additions. The modules are worked on in place, so use
the value that `speed_up` returns, and train the models before it, not after.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from streamchar.codecs.tiny_decoder import TinyDecodedCodec, load_tiny_decoder
from streamchar.dit.cache import ConditionCache, Conditions
from streamchar.dit.layout import Layout
from streamchar.dit.model import JointDiT, Velocity
from streamchar.errors import ConfigError
from streamchar.nn.attention import Attention
from streamchar.stream.decoding import ArrangedVideoCodec
from streamchar.stream.graphs import CudaRecorder, GraphedDiT, GraphedOrchestrator, Recorder, run_plainly
from streamchar.stream.models import Models
from streamchar.stream.offload import VisitingPromptEncoder
from streamchar.stream.overlap import Lane, LanedModels
from streamchar.stream.views import DiTView

MIN_FP8 = (8, 9)
"""Compute capability from which a GPU multiplies 8-bit floats."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The means. The first five are exact in the sense of floating-point numbers; the others are options."""

    fuse_qkv: bool = True
    """Queries, keys and values of self-attention in one matrix product."""
    compile: bool = False
    """`torch.compile` of the DiT's repeated block; the first two chunks compile."""
    cuda_graphs: bool = False
    """Record the denoising step, the orchestrator's tail and the picture decoder once, replay them after."""
    channels_last_decode: bool = False
    """The video decoder's weights and latents in channels_last_3d."""
    overlap_decode: bool = True
    """On a GPU: decode on a stream of its own, copy through pinned memory."""
    fp8: bool = False
    """The DiT's large linear layers in 8 bits (torchao); not exact."""
    tiny_decoder: str | None = None
    """A safetensors file in the format of taew2_2, in place of the video decoder; not exact."""
    offload_text: bool = False
    """The text encoder's weights stay in the computer's memory and visit the GPU layer by layer."""


def speed_up(models: Models, speed: Speed, *, record: Recorder | None = None) -> Models:
    """The models made fast; `generate_chunk` and `Session` use them as they use any.

    `record` stands in for the CUDA recorder (tests hand in `run_plainly`). Raises `ConfigError` where something is
    asked for that this machine or installation does not have, before anything is changed.
    """
    device = models.device
    _check(models, speed, device, record)
    tiny = None if speed.tiny_decoder is None else load_tiny_decoder(speed.tiny_decoder)
    dit, orchestrator, video, prompt = models.dit, models.orchestrator, models.video_codec, models.prompt_encoder
    if tiny is not None:
        dtype = next((p.dtype for p in video.parameters()), None) if isinstance(video, nn.Module) else None
        video = TinyDecodedCodec(video, tiny.to(device=device, dtype=dtype))
    if speed.fp8:
        _quantise(dit)
    if speed.fuse_qkv:
        cross = {block.attn2 for block in dit.blocks}  # queries and keys of different tokens: nothing to fuse
        for part in dit.modules():
            if isinstance(part, Attention) and part.to_qkv is None and part not in cross:
                part.fuse()
    if speed.compile:
        for block in dit.blocks:
            block.compile(dynamic=False)
    if device.type == "cuda":
        dit = TunedDiT(dit)
    if speed.cuda_graphs:
        steps = record or CudaRecorder()
        dit, orchestrator = GraphedDiT(dit, steps), GraphedOrchestrator(orchestrator, steps)
    if speed.channels_last_decode or speed.cuda_graphs:
        pictures = (record or CudaRecorder()) if speed.cuda_graphs else None  # a pool of its own: it runs beside
        video = ArrangedVideoCodec(video, last=speed.channels_last_decode, record=pictures)
    if speed.offload_text:
        prompt = VisitingPromptEncoder(prompt, device)  # type: ignore[arg-type]
    values: dict[str, Any] = {f.name: getattr(models, f.name) for f in fields(Models)}
    values |= {"dit": dit, "orchestrator": orchestrator, "video_codec": video, "prompt_encoder": prompt}
    return LanedModels(**values, lane=Lane(device, beside=speed.overlap_decode))


def _check(models: Models, speed: Speed, device: torch.device, record: Recorder | None) -> None:
    if speed.cuda_graphs and device.type != "cuda" and record is None:
        raise ConfigError(
            f"cuda_graphs needs a model on a CUDA device, got one on {device}; move it there or leave the option out"
        )
    if speed.offload_text and not isinstance(models.prompt_encoder, nn.Module):
        raise ConfigError("offload_text needs a text encoder with weights of its own; leave the option out")
    if not speed.fp8:
        return
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError('fp8 needs the package torchao, which is not installed; pip install "streamchar[fp8]"')
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_FP8:
        raise ConfigError(
            f"fp8 needs a GPU of compute capability {MIN_FP8[0]}.{MIN_FP8[1]} or above (Ada, Hopper), got {device}; "
            "leave the option out"
        )


def _quantise(dit: JointDiT) -> None:
    """The blocks' large matrices in float8, one scale a row; embeddings, modulation, audio path and head stay."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    chosen = nn.ModuleList()
    for block in dit.blocks:
        block.attn1.merge()
        chosen += [block.attn1.to_qkv, block.attn1.to_out, block.attn2.to_q, block.attn2.to_out]
        chosen += [layer for expert in (block.ffn, block.audio_ffn) for layer in (expert.up, expert.down)]
    quantize_(chosen, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


@contextmanager
def fastest_attention() -> Iterator[None]:
    """Prefer cuDNN's attention, then flash, where a call has no mask: on Hopper the first is the faster."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    ]  # fmt: skip
    with sdpa_kernel(order, set_priority=True):
        yield


class TunedDiT(DiTView):
    """A DiT that asks for the fastest attention kernels."""

    def encode_conditions(
        self, layout: Layout, conditions: Conditions, previous: ConditionCache | None = None
    ) -> ConditionCache:
        """As `JointDiT.encode_conditions`."""
        with fastest_attention():
            return super().encode_conditions(layout, conditions, previous)

    def denoise(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        cache: ConditionCache,
    ) -> Velocity:
        """As `JointDiT.denoise`."""
        with fastest_attention():
            return super().denoise(x_v, x_a, c_a, sigma, layout, cache)


@dataclass(frozen=True, kw_only=True)
class Unencoded:
    """Conditions as they are, where others keep their keys."""

    layout: Layout
    conditions: Conditions


class UncachedDiT(DiTView):
    """A DiT without condition caches: every step runs the conditions again, as training does."""

    def encode_conditions(self, layout: Layout, conditions: Conditions, previous: Any = None) -> Any:
        """Nothing is computed; `previous` lends its text."""
        if conditions.text is None and previous is not None:
            conditions = replace(conditions, text=previous.conditions.text)
        return Unencoded(layout=layout, conditions=conditions)

    def denoise(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        cache: Any,
    ) -> Velocity:
        """One step over conditions and noisy tokens together."""
        return self.plain(x_v, x_a, c_a, sigma, layout, cache.conditions)


def uncached(models: Models) -> Models:
    """The same models without condition caches: the plain path that `bench` and the tests compare with."""
    return replace(models, dit=UncachedDiT(models.dit))


__all__ = ["Speed", "fastest_attention", "run_plainly", "speed_up", "uncached"]
