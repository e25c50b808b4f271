"""The one truth about the DiT's sequence: segments, positions, modality, and who sees what.

The sequence is `[ref, sink, motion, x_v, x_a]` (eq. 4, with the sink of section 4.2). Conditions are clean
video; the two noisy segments form one group that sees everything. A group sees the keys up to its own end, so
attention is one call per group over a prefix of the keys, and no mask tensor exists outside the tests.

Shape letters: L tokens, A position axes (time, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import ConfigError

CONDITIONS = ("ref", "sink", "motion")
NOISY = ("video", "audio")
SEGMENTS = CONDITIONS + NOISY

SEES: dict[str, tuple[str, ...]] = {
    "ref": ("ref",),
    "sink": ("ref", "sink"),
    "motion": ("ref", "sink", "motion"),
    "video": SEGMENTS,
    "audio": SEGMENTS,
}
"""Which segments each segment attends to (section 3.3, asymmetric masking; design section 3)."""

PERIOD = clock.VIDEO_LATENTS_PER_CHUNK
"""Temporal positions from one chunk to the next: motion's 9 latents end where the new chunk's 0 begins."""
MOTION_END, SINK_START, REF_START = 0, -2 * PERIOD, -2 * PERIOD - 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tokens that see the same keys: token `start` to `stop`, which see keys 0 to `stop`."""

    names: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which tokens stand in the sequence. `ref` to `video` count latent frames, `audio` counts tokens."""

    grid: tuple[int, int]
    """Video tokens of one latent frame, vertically and horizontally."""
    ref: int = 1
    sink: int = 0
    motion: int = 0
    video: int = clock.VIDEO_LATENTS_PER_CHUNK
    audio: int = clock.AUDIO_LATENTS_PER_CHUNK

    def __post_init__(self) -> None:
        for name in SEGMENTS:
            if getattr(self, name) < 0:
                raise ConfigError(f"layout: {name} must not be negative, got {getattr(self, name)}; use 0 to omit it")
        if self.video + self.audio == 0:
            raise ConfigError("layout: expected noisy video, noisy audio or both, got neither; set video or audio")
        for name in ("sink", "motion"):
            if getattr(self, name) > PERIOD:
                raise ConfigError(
                    f"layout: {name} must be one chunk at most ({PERIOD} latents), got {getattr(self, name)}; "
                    "hand in the latents of one chunk"
                )
        window = clock.AUDIO_LATENTS_PER_CHUNK
        if self.audio > window and self.audio % window:
            raise ConfigError(
                f"layout: audio beyond one chunk must be a multiple of {window} tokens, got {self.audio}; "
                f"nearest: {self.audio // window * window} or {(self.audio // window + 1) * window}"
            )

    def length(self, name: str) -> int:
        """Tokens of segment `name`."""
        count: int = getattr(self, name)
        return count if name == "audio" else count * self.grid[0] * self.grid[1]

    def segment(self, name: str) -> slice:
        """Where segment `name` stands in the sequence (empty when it is absent)."""
        start = sum(self.length(before) for before in SEGMENTS[: SEGMENTS.index(name)])
        return slice(start, start + self.length(name))

    @property
    def condition_tokens(self) -> int:
        """Tokens of ref, sink and motion: the part of the sequence that never sees noise."""
        return self.segment("motion").stop

    @property
    def noisy_tokens(self) -> int:
        return self.tokens - self.condition_tokens

    @property
    def tokens(self) -> int:
        return self.segment("audio").stop

    @property
    def noisy(self) -> slice:
        """Where the noisy tokens stand."""
        return slice(self.condition_tokens, self.tokens)

    def groups(self, start: int, stop: int) -> tuple[Group, ...]:
        """The non-empty attention groups between tokens `start` and `stop`, which must be group borders."""
        spans = [((name,), self.segment(name)) for name in CONDITIONS] + [(NOISY, self.noisy)]
        return tuple(
            Group(names=names, start=span.start, stop=span.stop)
            for names, span in spans
            if start <= span.start < span.stop <= stop
        )

    def routes(self, start: int, stop: int) -> tuple[tuple[str, slice], ...]:
        """FFN expert ("video" or "audio") of the tokens between `start` and `stop`, slices from `start` on."""
        audio = self.segment("audio").start
        edges = (("video", start, min(stop, audio)), ("audio", max(start, audio), stop))
        return tuple((expert, slice(low - start, high - start)) for expert, low, high in edges if low < high)

    def same_conditions(self, other: Layout) -> bool:
        """Whether keys cached for `other` stand at this layout's positions."""
        return self.grid == other.grid and all(getattr(self, name) == getattr(other, name) for name in CONDITIONS)

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """(L, 3) float64 positions (time, height, width) of all tokens.

        New video latents stand at 0, 1, ...; audio token j at j / 4 (section 3.3: base frequency times 1/4);
        motion ends at -1; the sink fills -18 to -10; the reference stands at -19. A further chunk begins 9
        later, as the new chunk does after motion. Audio has no place in space: 0.
        """
        kind: dict[str, Any] = {"device": device, "dtype": torch.float64}
        times = {
            "ref": REF_START - self.ref + 1 + torch.arange(self.ref, **kind),
            "sink": SINK_START + torch.arange(self.sink, **kind),
            "motion": MOTION_END - self.motion + torch.arange(self.motion, **kind),
            "video": torch.arange(self.video, **kind),
        }
        height, width = self.grid
        rows = torch.arange(height, **kind).repeat_interleave(width)
        frame = torch.stack((rows, torch.arange(width, **kind).repeat(height)), dim=1)
        parts = []
        for time_T in times.values():
            time_L = time_T.repeat_interleave(height * width)
            parts.append(torch.cat((time_L[:, None], frame.repeat(len(time_T), 1)), dim=1))
        index = torch.arange(self.audio, **kind)
        chunk = index.div(clock.AUDIO_LATENTS_PER_CHUNK, rounding_mode="floor")
        within = index - chunk * clock.AUDIO_LATENTS_PER_CHUNK
        time_L = chunk * PERIOD + within / clock.AUDIO_PER_VIDEO_LATENT
        parts.append(torch.stack((time_L, torch.zeros_like(time_L), torch.zeros_like(time_L)), dim=1))
        return torch.cat(parts)

    def mask(self) -> Tensor:
        """(L, L) bool, query by key: the table that the grouped attention must equal. For tests only."""
        table = torch.zeros(self.tokens, self.tokens, dtype=torch.bool)
        for query, seen in SEES.items():
            for key in seen:
                table[self.segment(query), self.segment(key)] = True
        return table
