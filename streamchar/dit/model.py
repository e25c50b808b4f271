"""The joint audio-video DiT (paper sections 3.1 and 3.3; design section 3).

Shape letters: B batch, C latent channels, T latent frames, H W latent height and width, L tokens, D width,
S noise levels of a sample (1, or L when each token has its own).

Three ways through one set of blocks: `forward` (training: conditions and noisy tokens at once),
`encode_conditions` then `denoise` (inference: conditions once, noisy tokens at every step), and
`denoise_audio` (the audio path alone: stage 1, and guidance of the speech alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamchar.config.model import DiTConfig
from streamchar.dit.audio import AudioPath
from streamchar.dit.block import MODULATION_ROWS, Block, Pass, Span
from streamchar.dit.cache import ConditionCache, Conditions, LayerCache, seen_keys
from streamchar.dit.head import Head
from streamchar.dit.init import initialise
from streamchar.dit.layout import CONDITIONS, Layout
from streamchar.errors import InputError
from streamchar.nn.embeddings import MLP, TimeEmbedding, TimeStates, patch_latents, patchify, unpatch_latents
from streamchar.nn.rope import Rotation, axis_widths, rotation


class Velocity(NamedTuple):
    """v = eps - z of both modalities (eq. 2), in the type of the noisy latents; None where there is none."""

    video: Tensor | None
    """(B, C, T, H, W)."""
    audio: Tensor | None
    """(B, L, C)."""


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Noisy latents as they enter the blocks, with what their way out needs."""

    x_v: Tensor | None
    x_a: Tensor | None
    tokens: Tensor
    """(B, L, D): video, then audio."""
    time: TimeStates
    audio_time: TimeStates | None
    encoded: Tensor | None
    """(B, L, audio width): the audio encoder's output."""
    ref: Tensor | None = None
    """(B, C, 1, H, W): the reference, around which the video's way out begins."""


class ConditionEmbedder(nn.Module):
    """Noise level and prompt, as Wan embeds them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.time = TimeEmbedding(config.time_width, config.width, MODULATION_ROWS)
        self.text_embedder = MLP(config.text_width, config.width, config.width, "gelu")


class JointDiT(nn.Module):
    """Denoises video and audio latents together, conditioned on clean video, text and c_a."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.patch[0] * config.patch[1] * config.patch[2]
        inner = config.video_channels * pixels
        self.patch_embedding = nn.Linear(inner, config.width)
        self.ref_embedding = nn.Linear(inner, config.width, bias=False) if config.ref_beside else None
        self.place_embedding = None if config.places is None else nn.Embedding(math.prod(config.places), config.width)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config.width, config.video_channels, pixels, config.eps, anchored=True)
        self.audio = AudioPath(config)
        initialise(self)

    def layout(self, conditions: Conditions, x_v: Tensor | None, x_a: Tensor | None) -> Layout:
        """The layout of these inputs: (B, C, T, H, W) or None, (B, L, C) or None."""
        _, patch_h, patch_w = self.config.patch
        latents = conditions.latents()
        video = [*latents.values(), *([] if x_v is None else [x_v])]
        grid = (video[0].shape[3] // patch_h, video[0].shape[4] // patch_w) if video else (0, 0)
        return Layout(
            grid=grid,
            **{name: latents[name].shape[2] if name in latents else 0 for name in CONDITIONS},
            video=0 if x_v is None else x_v.shape[2] // self.config.patch[0],
            audio=0 if x_a is None else x_a.shape[1],
        )

    def forward(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        conditions: Conditions,
    ) -> Velocity:
        """Everything in one go, for training.

        x_v (B, C, T, H, W), x_a (B, L, C), c_a (B, L, condition width); `sigma` (B,), or (B, noisy tokens) for
        a level per token. Raises InputError when an input does not fit the layout.
        """
        self._check(layout, x_v, x_a, c_a)
        self._check_conditions(layout, conditions)
        noisy = self._noisy(x_v, x_a, c_a, sigma, layout, conditions.anchor())
        turn, presence = self._rotation(layout, sigma.device), conditions.presence()
        spans = (self._span(layout, layout.noisy, noisy.time, turn, presence),)
        xs: tuple[Tensor, ...] = (noisy.tokens,)
        if layout.condition_tokens:
            spans = (self._clean_span(layout, 0, turn, presence), *spans)
            xs = (self._clean(layout, 0, conditions), *xs)
        xs, _ = self._run(xs, Pass(spans=spans, text=self._text(conditions)), None)
        return self._leave(xs[-1], noisy, layout)

    def encode_conditions(
        self, layout: Layout, conditions: Conditions, previous: ConditionCache | None = None
    ) -> ConditionCache:
        """Keys and values of ref, sink, motion and text at every block: once a chunk.

        `previous`, a cache of the same stream, spares what it holds already: text always, ref and sink where
        both layouts have them. A new reference, sink or prompt needs a cache without `previous`.
        """
        self._check_conditions(layout, conditions)
        presence, past, done = conditions.presence(), None, 0
        if previous is not None:
            done = previous.reusable(layout)
            past = tuple(layer.prefix(done) for layer in previous.layers)
        text = self._text(conditions) if past is None else None
        turn = self._rotation(layout, self.patch_embedding.weight.device)
        if done < layout.condition_tokens:
            spans = (self._clean_span(layout, done, turn, presence),)
            _, past = self._run((self._clean(layout, done, conditions),), Pass(spans=spans, text=text, keep=True), past)
        elif past is None:  # no condition tokens at all: text keys alone
            _, past = self._run((), Pass(spans=(), text=text, keep=True), None)
        return ConditionCache(layout=layout, layers=past, presence=presence, ref=conditions.anchor(), turn=turn)

    def denoise(
        self,
        x_v: Tensor | None,
        x_a: Tensor | None,
        c_a: Tensor | None,
        sigma: Tensor,
        layout: Layout,
        cache: ConditionCache,
    ) -> Velocity:
        """One sampling step: noisy tokens only, after cached conditions. Inputs as `forward`."""
        if not layout.same_conditions(cache.layout):
            raise InputError(
                f"expected a cache of the layout's conditions {layout}, got one of {cache.layout}; "
                "call encode_conditions with the layout of this chunk"
            )
        self._check(layout, x_v, x_a, c_a)
        noisy = self._noisy(x_v, x_a, c_a, sigma, layout, cache.ref)
        made = cache.turn if cache.layout == layout else None
        turn = self._rotation(layout, sigma.device) if made is None else made
        span = self._span(layout, layout.noisy, noisy.time, turn, cache.presence)
        xs, _ = self._run((noisy.tokens,), Pass(spans=(span,), text=None), cache.layers)
        return self._leave(xs[-1], noisy, layout)

    def denoise_audio(self, x_a: Tensor, c_a: Tensor, sigma: Tensor) -> Tensor:
        """Speech alone, without main blocks: (B, L, C), (B, L, condition width), (B,) -> (B, L, C)."""
        layout = Layout(grid=(0, 0), ref=0, video=0, audio=x_a.shape[1])
        self._check(layout, None, x_a, c_a)
        return self.audio(x_a, c_a, sigma)

    def _text(self, conditions: Conditions) -> Tensor:
        if conditions.text is None:
            raise InputError("expected conditions with text, got none; only a `previous` cache makes up for it")
        embedder = self.condition_embedder.text_embedder
        dtype = embedder.linear_1.weight.dtype
        return embedder(conditions.text.to(dtype)).to(dtype)

    def _rotation(self, layout: Layout, device: torch.device) -> Rotation:
        positions = layout.positions(device)
        positions[:, 0] *= self.config.time_scale  # in place: a factor made on the host would be waited for
        return rotation(positions, axis_widths(self.config.head_width), self.config.rope_theta)

    def _patches(self, latents: Tensor, ref: Tensor | None) -> Tensor:
        """Tokens of latents, each with what stands at its place in the reference, if there is one: (B, L, D)."""
        dtype = self.patch_embedding.weight.dtype
        tokens = self.patch_embedding(patchify(latents.to(dtype), self.config.patch)).to(dtype)
        if self.place_embedding is not None:
            frames = tokens.shape[1] // self.place_embedding.num_embeddings
            tokens = tokens + self.place_embedding.weight.to(dtype).repeat(frames, 1)
        if self.ref_embedding is None or ref is None:
            return tokens
        beside = self.ref_embedding(patchify(ref.to(dtype), self.config.patch)).to(dtype)
        return tokens + beside.repeat(1, tokens.shape[1] // beside.shape[1], 1)

    def _clean(self, layout: Layout, start: int, conditions: Conditions) -> Tensor:
        """Condition tokens from `start` on: (B, L, D)."""
        latents = conditions.latents()
        names = [name for name in CONDITIONS if layout.length(name) and layout.segment(name).start >= start]
        return self._patches(torch.cat([latents[name] for name in names], dim=2), conditions.anchor())

    def _noisy(
        self, x_v: Tensor | None, x_a: Tensor | None, c_a: Tensor | None, sigma: Tensor, layout: Layout,
        ref: Tensor | None,
    ) -> Noisy:
        """Noisy latents on their way in: video by patches, audio through its encoder."""
        parts, encoded, audio_time = [], None, None
        if x_v is not None:
            parts.append(self._patches(x_v, ref))
        if x_a is not None and c_a is not None:
            audio_time = self.audio.time(sigma if sigma.ndim == 1 else sigma[:, -layout.audio :])
            encoded = self.audio.encode(x_a, c_a, audio_time)
            parts.append(self.audio.to_main(encoded).to(encoded.dtype))
        return Noisy(
            x_v=x_v,
            x_a=x_a,
            tokens=parts[0] if len(parts) == 1 else torch.cat(parts, dim=1),
            time=self.condition_embedder.time(sigma),
            audio_time=audio_time,
            encoded=encoded,
            ref=ref,
        )

    def _clean_span(self, layout: Layout, start: int, turn: Rotation, presence: dict[str, Tensor]) -> Span:
        """Condition tokens from `start` on, at the noise level of clean latents (timestep invariance)."""
        time = self.condition_embedder.time(torch.zeros(1, device=turn.cos.device))
        return self._span(layout, slice(start, layout.condition_tokens), time, turn, presence)

    def _span(self, layout: Layout, part: slice, time: TimeStates, turn: Rotation, presence: dict[str, Tensor]) -> Span:
        groups = layout.groups(part.start, part.stop)
        return Span(
            start=part.start,
            stop=part.stop,
            clean=part.stop <= layout.condition_tokens,
            modulation=time.rows,
            rotation=turn.part(part.start, part.stop),
            groups=groups,
            seen=tuple(seen_keys(layout, presence, group.names, group.stop) for group in groups),
            routes=layout.routes(part.start, part.stop),
        )

    def _run(
        self, xs: tuple[Tensor, ...], run: Pass, past: tuple[LayerCache, ...] | None
    ) -> tuple[tuple[Tensor, ...], tuple[LayerCache, ...]]:
        """All blocks in a row; the caches are empty unless the pass keeps them."""
        kept = []
        ends = any(span.clean for span in run.spans)  # else the last block is as any other, to compilers too
        for index, block in enumerate(self.blocks):
            last = ends and index == len(self.blocks) - 1
            xs, cache = block(xs, run, None if past is None else past[index], last=last)
            if cache is not None:
                kept.append(cache)
        return xs, tuple(kept)

    def _leave(self, x_BLD: Tensor, noisy: Noisy, layout: Layout) -> Velocity:
        """From the last block's noisy tokens to both velocities."""
        tokens, video, audio = layout.length("video"), None, None
        if noisy.x_v is not None:
            latents_BLPC = patch_latents(noisy.x_v, self.config.patch)
            anchor = None
            if noisy.ref is not None:
                frames = latents_BLPC.shape[1] // (layout.grid[0] * layout.grid[1])
                anchor = patch_latents(noisy.ref, self.config.patch).repeat(1, frames, 1, 1)
            v_BLPC = self.head(x_BLD[:, :tokens], latents_BLPC, noisy.time.tokens(slice(0, tokens)), anchor)
            video = unpatch_latents(v_BLPC, layout.grid, self.config.patch).to(noisy.x_v.dtype)
        if noisy.x_a is not None and noisy.encoded is not None and noisy.audio_time is not None:
            audio = self.audio.decode(noisy.encoded, x_BLD[:, tokens:], noisy.x_a, noisy.audio_time)
        return Velocity(video=video, audio=audio)

    def _check(self, layout: Layout, x_v: Tensor | None, x_a: Tensor | None, c_a: Tensor | None) -> None:
        """The noisy inputs against the layout."""
        config = self.config
        if layout.video or x_v is not None:
            self._check_latents("x_v", x_v, layout, layout.video)
        for name, tensor, width in (
            ("x_a", x_a, config.audio_channels),
            ("c_a", c_a, config.condition_width),
        ):
            got = None if tensor is None else tuple(tensor.shape[1:])
            expected = (layout.audio, width) if layout.audio else None
            if got != expected:
                raise InputError(
                    f"{name}: expected (batch, tokens, width) with {expected} after the batch, got {got}; "
                    "build the layout with dit.layout(conditions, x_v, x_a)"
                )

    def _check_conditions(self, layout: Layout, conditions: Conditions) -> None:
        for name in CONDITIONS:
            latents = getattr(conditions, name)
            if latents is not None or getattr(layout, name):
                self._check_latents(name, latents, layout, getattr(layout, name))

    def _check_latents(self, name: str, latents: Tensor | None, layout: Layout, frames: int) -> None:
        patch = self.config.patch
        size = (frames * patch[0], layout.grid[0] * patch[1], layout.grid[1] * patch[2])
        expected = (self.config.video_channels, *size)
        if self.config.places not in (None, layout.grid):
            raise InputError(
                f"{name}: expected {self.config.places} tokens a frame, whose places the model knows, got {layout.grid}"
            )
        if latents is None or tuple(latents.shape[1:]) != expected:
            got = None if latents is None else tuple(latents.shape)
            raise InputError(
                f"{name}: expected latents (batch, *{expected}) for {layout}, got {got}; "
                "build the layout with dit.layout(conditions, x_v, x_a)"
            )
