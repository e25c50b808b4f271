"""The state of a stream: a frozen value. Saved and loaded, it resumes the stream bit for bit.

What can be derived (keys and values) is not here: `stream/memory.py` computes it the same way each time.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamchar.codecs.audio import DecoderState
from streamchar.codecs.tail import LatentTail
from streamchar.errors import StateError

FORMAT = "streamchar-state-1"


def guidance_weights(speech: float, picture: float | None) -> tuple[float, float]:
    """Of picture and speech; the picture's is the speech's unless it has its own."""
    return speech if picture is None else picture, speech


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """Everything that the next chunk depends on."""

    model: str
    """Name of the model it belongs to."""
    text: str
    prompt: str
    seed: int
    steps: int
    guidance: float = 1.0
    """Weight of transcript, voice and prompt against their absence; 1 leaves the second pass out."""
    picture_guidance: float | None = None
    """The same for the picture; None: as `guidance`."""
    picture_guidance_above: float = 0.0
    """Noise level (sigma) down to which the picture is guided: below it only the speech is (a guidance interval)."""
    temperature: float = 1.0
    """Deviation of the noise that sampling starts from: below 1 gives up variety for clearer speech."""
    picture_temperature: float | None = None
    """The same for the picture; None: as `temperature`."""
    still: Tensor
    """(1, Cv, 1, h, w) latent of the reference frame."""
    picture: Tensor | None = None
    """(1, 3, H, W) uint8 reference frame, for a video decoder that uses it."""
    voice: Tensor | None = None
    """(1, R, C) latents of the reference audio."""
    chunk: int = 0
    """Index of the next chunk; with the seed it fixes all noise (no generator to carry along)."""
    cursor: float = 0.0
    """Transcript tokens spoken so far, from the pointer."""
    sink: Tensor | None = None
    """(1, Cv, 9, h, w) the first chunk."""
    motion: Tensor | None = None
    """(1, Cv, 9, h, w) the previous chunk."""
    history: Tensor | None = None
    """(1, 33 m, C) audio latents of the window's m last chunks."""
    borders: tuple[float, ...] = ()
    """Cursor at the start of each chunk in `history`."""
    window_start: int = 0
    """First transcript token of the orchestrator's window."""
    stalled: int = 0
    """Chunks in a row in which the pointer did not move."""
    next_word: int = 0
    """First word whose end has not been heard."""
    word_start: float | None = None
    """Time in seconds at which that word began, if it has."""
    finished: bool = False
    decoder: DecoderState | LatentTail | None = None
    """The audio decoder after the last decoded chunk."""

    @property
    def weights(self) -> tuple[float, float]:
        """Guidance of picture and speech."""
        return guidance_weights(self.guidance, self.picture_guidance)

    def weights_at(self, sigma: float) -> tuple[float, float]:
        """The same at a noise level."""
        picture, speech = self.weights
        return picture if sigma > self.picture_guidance_above else 1.0, speech

    @property
    def temperatures(self) -> tuple[float, float]:
        """Of picture and speech."""
        return self.temperature if self.picture_temperature is None else self.picture_temperature, self.temperature

    @property
    def guided(self) -> bool:
        """Whether a step takes a second pass, without transcript, voice and prompt."""
        return self.weights != (1.0, 1.0)

    @property
    def history_chunks(self) -> int:
        return len(self.borders)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, under a temporary name first."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"format": FORMAT}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value.detach().contiguous().clone()
            elif isinstance(value, DecoderState):
                tensors |= _decoder_tensors(value)
                plain["decoder_blocks"] = value.blocks
            elif isinstance(value, LatentTail):
                tensors["decoder.tail"] = value.tail_BTC.detach().contiguous().clone()
            elif field.name not in ("decoder",):
                plain[field.name] = value
        path = Path(path)
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata={"state": json.dumps(plain)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> StreamState:
        """Read a saved state; raises `StateError` if it is not one."""
        try:
            with safe_open(path, "pt") as file:
                plain = json.loads((file.metadata() or {})["state"])
                # clones are aligned like any of torch: on two threads products differ in the last bit otherwise
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            version = plain.pop("format", None)
        except (SafetensorError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise StateError(f"{path} is not a saved stream state ({error}); save one with --save-state") from None
        if version != FORMAT:
            raise StateError(f"{path} is a state of another version; expected {FORMAT}")
        try:
            decoder = None
            if "decoder.tail" in tensors:
                decoder = LatentTail(tail_BTC=tensors["decoder.tail"])
            if "decoder_blocks" in plain:
                decoder = _decoder_from(tensors, plain.pop("decoder_blocks"))
            plain["borders"] = tuple(plain.get("borders", ()))
            tensors = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
            return cls(**plain, **tensors, decoder=decoder)
        except (TypeError, KeyError) as error:
            raise StateError(f"{path} does not hold a whole stream state: {error}; save it again") from None


_DECODER = ("excitation", "phase", "pitch", "overlap")


def _decoder_tensors(state: DecoderState) -> dict[str, Tensor]:
    out = {f"decoder.{name}": getattr(state, name).contiguous().clone() for name in _DECODER}
    if state.voice is not None:
        out["decoder.voice"] = state.voice.contiguous().clone()
    return out | {f"decoder.left.{i}": t.contiguous().clone() for i, t in enumerate(state.left)}


def _decoder_from(tensors: dict[str, Tensor], blocks: int) -> DecoderState:
    left = []
    while f"decoder.left.{len(left)}" in tensors:
        left.append(tensors[f"decoder.left.{len(left)}"])
    known = {name: tensors[f"decoder.{name}"] for name in _DECODER}
    return DecoderState(left=tuple(left), blocks=blocks, voice=tensors.get("decoder.voice"), **known)


def chunk_generator(state: StreamState) -> torch.Generator:
    """All randomness of the next chunk. torch's CPU engine tells seeds apart below 2^32."""
    return torch.Generator().manual_seed((state.seed * 1_000_003 + state.chunk) % (2**63))
