"""Streams out of clips: a state that stands where a clip does, and a student's streams to look at.

Shape letters: T frames, H height, W width, S samples.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamchar import clock
from streamchar.codecs.audio import ToonAudioCodec
from streamchar.codecs.video import ToonVideoCodec
from streamchar.config.model import ModelConfig
from streamchar.data.dataset import progress_at
from streamchar.data.shards import ClipRecord
from streamchar.errors import DataError
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.models import Models
from streamchar.stream.session import decode, sampler_of, without
from streamchar.stream.state import StreamState
from streamchar.types import AudioCodec, Transcript

log = logging.getLogger(__name__)

J = clock.AUDIO_LATENTS_PER_CHUNK
STRIP = 8
"""Frames of a film strip."""
WINDOW = 1024
"""Samples of a spectrogram's window: 21 ms."""
FLOOR = -9.0
"""Logarithm of the magnitude that is drawn black."""


def transcript_of(clip: ClipRecord) -> Transcript:
    """The clip's own tokens; which words they belong to is not stored and only captions ask."""
    ids = tuple(clip.tokens.tolist())
    return Transcript(text=clip.text, ids=ids, token_word=(-1,) * len(ids), words=())


def true_cursor(clip: ClipRecord, chunks: np.ndarray) -> np.ndarray:
    """Tokens spoken when these chunks begin, from the clip's timings."""
    return progress_at(clip.token_start.numpy().astype(np.float64), chunks * float(clock.CHUNK_SECONDS))


def begin(models: Models, clip: ClipRecord, *, seed: int, first: int = 0) -> StreamState:
    """The state of a stream that has played the clip's first `first` chunks (0: none yet)."""
    if clip.video is None or clip.still is None:
        raise DataError("expected clips with video, found speech alone; give the folder that joint training read")
    device, lasting = models.device, min(first, clock.MAX_HISTORY_CHUNKS)
    borders = true_cursor(clip, np.arange(first - lasting, first + 1))
    reference = clip.reference[: models.config.orchestrator.max_reference]
    video, audio = clip.video, clip.audio[(first - lasting) * J : first * J]
    state = StreamState(
        model=models.name, text=clip.text, prompt=clip.prompt, seed=seed, steps=models.steps,
        guidance=models.guidance, picture_guidance=models.picture_guidance,
        picture_guidance_above=models.picture_guidance_above, temperature=models.temperature,
        picture_temperature=models.picture_temperature,
        still=clip.still[None].float().to(device),
        voice=reference[None].float().to(device) if len(reference) else None, chunk=first,
        cursor=float(borders[-1]), borders=tuple(borders[:-1].tolist()), window_start=int(borders[0]),
        sink=video[None, 0].float().to(device) if first else None,
        motion=video[None, first - 1].float().to(device) if first else None,
        history=audio[None].float().to(device) if first else None,
    )
    return without(state, sink=models.sink, history=models.history)


def film_strip(frames_THWC: Tensor) -> Tensor:
    """(3, H, STRIP W) uint8: frames at even distances, side by side."""
    picks = torch.linspace(0, len(frames_THWC) - 1, STRIP).round().long()
    return frames_THWC[picks].permute(3, 1, 0, 2).flatten(2)


def spectrogram(samples_S: Tensor) -> Tensor:
    """(1, frequencies, time) in [0, 1]: logarithm of the magnitude, low tones at the bottom."""
    window = torch.hann_window(WINDOW)
    bins = torch.stft(samples_S, WINDOW, WINDOW // 2, window=window, return_complex=True).abs()
    level = bins.div(window.sum() / 2).clamp(min=1e-9).log()
    return (1 - level / FLOOR).clamp(0, 1).flip(0)[None]


class Gallery:
    """Film strips and spectrograms of the same few streams, from save to save, in TensorBoard.

    Only every so many saves (`every`), the first among them: what takes long must not be done too often."""

    def __init__(self, out: Path, clips: list[ClipRecord], chunks: int = 2, every: int = 1) -> None:
        self.out, self.clips, self.chunks, self.every, self.saves = out, clips, chunks, every, 0

    @functools.cached_property
    def add_image(self) -> Callable[[str, Any, int], None] | None:
        """Opened when something is shown: the process that leads a team alone does that."""
        return _images(self.out / "samples")

    def due(self) -> bool:
        """Whether this save is one of those that show something; counts it."""
        self.saves += 1
        return (self.saves - 1) % self.every == 0 and self.add_image is not None

    @torch.no_grad()
    def hear(self, audio_BTC: Tensor, codec: AudioCodec, step: int, name: str) -> None:
        """Write what latents sound like."""
        if self.add_image is None:
            return
        for index, latents in enumerate(audio_BTC.float()):
            samples, _ = codec.decode(latents[None], None)
            self.add_image(f"{name}/{index}", spectrogram(samples[0].float().cpu()), step)

    @torch.no_grad()
    def show(self, models: Models, step: int) -> None:
        """Play the first chunks of each clip's text and write what is seen and heard."""
        if self.add_image is None:
            return
        for index, clip in enumerate(self.clips):
            frames, samples = play(models, clip, self.chunks)
            self.add_image(f"film/{index}", film_strip(frames), step)
            self.add_image(f"sound/{index}", spectrogram(samples), step)


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """What makes latents visible and audible."""

    video: ToonVideoCodec
    audio: ToonAudioCodec


def codecs_for(config: ModelConfig, folder: Path | None) -> Codecs | None:
    """The codecs in `folder` (video_codec/, audio_codec/), or the shipped ones; None, and one line in the log, where
    they are not of this model's latents."""
    place = folder or Path(str(resources.files("streamchar") / "assets" / "toon"))
    if config.video.family != "toon":
        log.info("no film strips: the codecs of %s are not trained here", config.name)
        return None
    video, audio = ToonVideoCodec.load(place / "video_codec"), ToonAudioCodec.load(place / "audio_codec")
    stride = video.config.spatial_stride
    found = (video.config.latent_channels, (config.height // stride, config.width // stride))
    if found != (config.dit.video_channels, config.latent_size):
        log.info("no film strips: the codec in %s has latents of %s, this model of %s; give --codecs", place, found,
                 (config.dit.video_channels, config.latent_size))
        return None
    return Codecs(video=video.eval(), audio=audio.eval())


def play(models: Models, clip: ClipRecord, chunks: int) -> tuple[Tensor, Tensor]:
    """(T, H, W, 3) uint8 frames and (S,) samples of at most `chunks` chunks of the clip's text."""
    state, transcript = begin(models, clip, seed=0), transcript_of(clip)
    sampler, memory, decoder = sampler_of(models, state), None, models.audio_codec.begin(state.voice)
    frames, samples = [], []
    while len(frames) < chunks and not state.finished:
        made, state = generate_chunk(models, state, sampler, transcript=transcript, memory=memory)
        memory, state = made.memory, without(state, sink=models.sink, history=models.history)
        picture, sound, decoder, _ = decode(models, made, decoder)
        frames.append(picture)
        samples.append(sound)
    return torch.cat(frames), torch.cat(samples)


def _images(folder: Path) -> Callable[[str, Any, int], None] | None:
    """TensorBoard's images if it is installed (extra `train`), else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (extra `train`): no film strips")
        return None
    writer = SummaryWriter(str(folder))

    def add(name: str, image: Any, step: int) -> None:
        writer.add_image(name, image, step)
        writer.flush()

    return add
