"""What a decoder that looks at both sides remembers of a stream: the latents just heard."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentTail:
    """Decoding state of `OobleckAudioCodec`, apart from it so that a saved stream can be read without diffusers."""

    tail_BTC: Tensor
    """(B, at most `reach`, C): the last latents, which the next ones' samples depend on."""
