"""What the DiT is conditioned on, and the keys and values that conditioning leaves behind.

Condition tokens never see noise, so their keys and values hold for every sampling step; ref and sink do not
see motion either, so theirs hold for the whole stream (paper section 3.3, timestep-invariant conditioning).

Shape letters: B batch, C latent channels, T latent frames, H W latent height and width, L text tokens,
D text width, S keys, N heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamchar.dit.layout import CONDITIONS, Layout
from streamchar.errors import ConfigError
from streamchar.nn.attention import KeyValue, join
from streamchar.nn.rope import Rotation


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Clean latents and text states. `None` means that no sample of the batch has this segment."""

    text: Tensor | None
    """(B, L, D) states of the frozen text encoder; None where a cache with their keys is handed in as well."""
    ref: Tensor | None = None
    """(B, C, 1, H, W)."""
    sink: Tensor | None = None
    """(B, C, 9, H, W): the stream's first chunk."""
    motion: Tensor | None = None
    """(B, C, 9, H, W): the chunk before this one."""
    has_ref: Tensor | None = None
    """(B,) bool: which samples have `ref`; None: all. Only a batch that mixes needs it (and pays for a mask)."""
    has_sink: Tensor | None = None
    has_motion: Tensor | None = None

    def latents(self) -> dict[str, Tensor]:
        """The segments that are there, in order."""
        found = {name: getattr(self, name) for name in CONDITIONS}
        return {name: latents for name, latents in found.items() if latents is not None}

    def anchor(self) -> Tensor | None:
        """The reference as the head's anchor: zero for samples that have none."""
        if self.ref is None or self.has_ref is None:
            return self.ref
        return self.ref * self.has_ref.to(self.ref.dtype)[:, None, None, None, None]

    def presence(self) -> dict[str, Tensor]:
        """The segments that only some samples have."""
        found = {name: getattr(self, f"has_{name}") for name in CONDITIONS}
        return {name: has for name, has in found.items() if has is not None}


@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """One block's keys and values: of the condition tokens (rotated) and of the text."""

    text: KeyValue
    self_attention: KeyValue | None
    """(B, S, N, E): ref, sink, motion in order; None without condition tokens."""

    def prefix(self, tokens: int) -> LayerCache:
        """The cache of the first `tokens` condition tokens."""
        if tokens == 0 or self.self_attention is None:
            return LayerCache(text=self.text, self_attention=None)
        return LayerCache(text=self.text, self_attention=self.self_attention.prefix(tokens))


@dataclass(frozen=True, kw_only=True)
class ConditionCache:
    """Keys and values of all condition tokens at every block; a value, shared by all sampling steps."""

    layout: Layout
    layers: tuple[LayerCache, ...]
    presence: dict[str, Tensor]
    """(B,) bool for segments that only some samples have."""
    ref: Tensor | None = None
    """(B, C, 1, H, W) the reference latent itself, for the video's way out."""
    turn: Rotation | None = None
    """Rotation of all tokens of `layout`, made once rather than at every sampling step."""

    def reusable(self, layout: Layout) -> int:
        """Leading tokens whose keys hold in `layout` as well: ref, then sink, while both have them equal."""
        if layout.grid != self.layout.grid:
            return 0
        tokens = 0
        for name in ("ref", "sink"):
            if getattr(layout, name) != getattr(self.layout, name):
                break
            tokens = layout.segment(name).stop
        return tokens

    def detach(self) -> ConditionCache:
        """The same cache without its graph: rollouts that do not train through conditions."""

        def cut(keys: KeyValue) -> KeyValue:
            return KeyValue(keys.key.detach(), keys.value.detach())

        layers = tuple(
            LayerCache(text=cut(layer.text), self_attention=layer.self_attention and cut(layer.self_attention))
            for layer in self.layers
        )
        ref = None if self.ref is None else self.ref.detach()
        return replace(self, layers=layers, ref=ref)


def stacked(caches: Sequence[ConditionCache]) -> ConditionCache:
    """Caches of several streams as one of a batch, in their order.

    A segment that only some of them have is filled with zeros in the others and hidden by the mask, as `Conditions`
    with `has_...` are. Raises `ConfigError` where segments have different lengths.
    """
    first = caches[0]
    lengths: dict[str, int] = {}
    for name in CONDITIONS:
        found = {getattr(cache.layout, name) for cache in caches} - {0}
        if len(found) > 1 or any(cache.layout.grid != first.layout.grid for cache in caches):
            raise ConfigError(
                f"streams of one step must have one picture size and one length of {name}, got "
                f"{sorted(found)} on grids {sorted({cache.layout.grid for cache in caches})}; run them one by one"
            )
        lengths[name] = max(found, default=0)
    layout = replace(first.layout, **lengths)
    presence: dict[str, Tensor] = {}
    for name in CONDITIONS:
        partial = any(name in cache.presence or getattr(cache.layout, name) != lengths[name] for cache in caches)
        if lengths[name] and partial:
            presence[name] = torch.cat([_has(cache, name) for cache in caches])
    layers = []
    for parts in zip(*(cache.layers for cache in caches), strict=True):
        text = _batched([layer.text for layer in parts])
        keys = [_filled(layer.self_attention, cache, layout) for layer, cache in zip(parts, caches, strict=True)]
        layers.append(
            LayerCache(text=text, self_attention=None if layout.condition_tokens == 0 else _batched(keys))
        )  # fmt: skip
    anchors = [cache.ref for cache in caches]
    shape = next((anchor for anchor in anchors if anchor is not None), None)
    ref = None
    if shape is not None:
        ref = torch.cat([torch.zeros_like(shape) if anchor is None else anchor for anchor in anchors])
    turn = next((cache.turn for cache in caches if cache.layout == layout), None)
    return ConditionCache(layout=layout, layers=tuple(layers), presence=presence, ref=ref, turn=turn)


def _has(cache: ConditionCache, name: str) -> Tensor:
    if name in cache.presence:
        return cache.presence[name]
    key = cache.layers[0].text.key
    return torch.full((key.shape[0],), getattr(cache.layout, name) > 0, device=key.device)


def _batched(parts: list[KeyValue]) -> KeyValue:
    return KeyValue(torch.cat([part.key for part in parts]), torch.cat([part.value for part in parts]))


def _filled(keys: KeyValue | None, cache: ConditionCache, layout: Layout) -> KeyValue:
    """One stream's condition keys with zeros where `layout` has a segment that it does not have."""
    if keys is not None and cache.layout.same_conditions(layout):
        return keys
    like = cache.layers[0].text.key
    parts = []
    for name in CONDITIONS:
        own = cache.layout.segment(name)
        if keys is not None and own.stop > own.start:
            parts.append(KeyValue(keys.key[:, own], keys.value[:, own]))
        elif layout.length(name):
            empty = like.new_zeros(like.shape[0], layout.length(name), *like.shape[2:])
            parts.append(KeyValue(empty, empty))
    return join(parts) if parts else KeyValue(like[:, :0], like[:, :0])


def seen_keys(layout: Layout, presence: dict[str, Tensor], group: tuple[str, ...], keys: int) -> Tensor | None:
    """(B, keys) bool: the keys that a group sees of its prefix; None when every sample has every segment.

    A group's own segment is always seen: a row that sees nothing would be NaN, and what an absent segment's
    own tokens make of themselves is seen by no one else.
    """
    absent = {name: has for name, has in presence.items() if name not in group and layout.segment(name).start < keys}
    if not absent:
        return None
    first = next(iter(absent.values()))
    seen = torch.ones(first.shape[0], keys, dtype=torch.bool, device=first.device)
    for name, has in absent.items():
        seen[:, layout.segment(name)] = has.bool()[:, None]
    return seen
