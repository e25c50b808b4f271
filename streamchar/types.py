"""Frozen values that travel between layers, and the codec protocols.

Shape letters: B batch, T time, C channels, H height, W width, L tokens, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Phoneme:
    """One phoneme (or pause mark) of an utterance, in seconds from its start."""

    symbol: str
    start: float
    end: float
    word: int
    """Index into `Speech.words`; -1 for silence that belongs to no word."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """One written word with the time in which it is spoken, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a source-filter teacher shaped its pulses and its noise with: exact, where a sound only samples it."""

    harmonic: Tensor
    """(K, F) natural log of the size of each harmonic, K bins of 20 Hz from 0, frames centred at f / 80 s."""
    phase: Tensor
    """(K, F) their phase against the pulses, in radians within [-pi, pi]."""
    noise: Tensor
    """(K, F) natural log of the noise's spectral deviation."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """An utterance with exact timings: what a teacher voice returns."""

    samples: Tensor
    """(S,) float32 in [-1, 1] at 49,152 Hz."""
    text: str
    phonemes: tuple[Phoneme, ...]
    words: tuple[Word, ...]
    pitch: Tensor
    """(T,) fundamental frequency in Hz at 96 Hz frames (512 samples); 0 where unvoiced."""
    filters: Filters | None = None
    """If they were asked for; to the scale of the samples."""

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / 49_152


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One decoded chunk of a stream: 1.375 s of picture and sound."""

    index: int
    frames: Tensor
    """(33, H, W, 3) uint8."""
    samples: Tensor
    """(67584,) float32 at 49,152 Hz."""
    words: tuple[Word, ...] = ()
    """Words whose speaking ended in this chunk; times in seconds from the start of the stream."""
    last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage: `orchestrate`, `denoise`, `decode_video`, `decode_audio`."""


@runtime_checkable
class VideoCodec(Protocol):
    """A causal video VAE with the Wan first-frame rule: 1 + 4 k frames <-> 1 + k latents.

    Latents are normalised: one mean and one scale already applied, as the DiT wants them.
    """

    latent_channels: int
    spatial_stride: int
    temporal_stride: int

    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """(B, 3, 1+4k, H, W) in [-1, 1] -> (B, C, 1+k, H/s, W/s)."""
        ...

    def decode(
        self, latents_BCTHW: Tensor, still_BC1HW: Tensor | None = None, picture_BCHW: Tensor | None = None
    ) -> Tensor:
        """(B, C, 1+k, h, w) -> (B, 3, 1+4k, h*s, w*s) in [-1, 1]. A codec may use the picture that the stream began
        with: its latents, and itself."""
        ...


@runtime_checkable
class AudioCodec(Protocol):
    """A mono audio VAE at 49,152 Hz with stride 2048.

    `decode` takes and returns a state, so that a stream decoded chunk by chunk equals one decoded at once. A codec
    with a `lookahead` wants that many of the following latents as a third argument, where there are any.
    """

    latent_channels: int
    stride: int
    lookahead: int
    """0: decoding is causal."""

    def begin(self, reference_BTC: Tensor | None) -> Any | None:
        """The state of `decode` before a stream's first latents, for a decoder that uses whose voice it is: latents
        (B, R, C) of the reference audio, if there is one."""
        ...

    def encode(self, samples_BS: Tensor) -> Tensor:
        """(B, S) with S a multiple of 2048 -> (B, S/2048, C)."""
        ...

    def decode(self, latents_BTC: Tensor, state: Any | None = None) -> tuple[Tensor, Any]:
        """(B, T, C) and the state after the latents before -> (B, 2048 T) and the state after."""
        ...


@runtime_checkable
class PromptEncoder(Protocol):
    """The frozen text encoder of the DiT's cross-attention."""

    width: int
    max_tokens: int

    def encode(self, prompts: list[str]) -> Tensor:
        """-> (B, max_tokens, width), zero after each prompt's end as in Wan's pipeline."""
        ...


@runtime_checkable
class TranscriptTokenizer(Protocol):
    """Turns a transcript into the orchestrator's tokens and keeps where its words stand."""

    vocab_size: int

    def __call__(self, text: str) -> Transcript: ...


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """Tokens of a text, with the word that each token belongs to."""

    text: str
    ids: tuple[int, ...]
    token_word: tuple[int, ...]
    """For each token its index into `words`; -1 for tokens before the first word."""
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        return torch.tensor(self.ids, dtype=torch.long, device=device)
