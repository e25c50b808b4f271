"""Sync-C and Sync-D: do the lips fit the sound, by the method of SyncNet.

Source: Chung and Zisserman, "Out of time", 2016, and its public evaluation code: the same windows (5 pictures at
25 fps, 20 MFCC frames), the same 31 shifts, zero vectors beyond the ends, and figures of the mean distance over time.
With the published weights these are the paper's Sync-C and Sync-D (Table 1); with the cartoon world's they are figures
of their own scale.

Shape letters: T pictures, H height, W width, N windows, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.errors import CheckpointError, ConfigError, DataError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.syncnet import (
    FPS,
    RATE,
    SAMPLES_PER_PICTURE,
    WINDOW,
    FaceCrops,
    PublicSyncNet,
    SyncModel,
    ToonSyncNet,
    load_public,
    load_toon,
    mfcc,
    toon_crop,
)
from streamchar.world.character import character

REACH = 15
"""Shifts tried to each side, in pictures of 25 fps."""
SILENCE = 1e-3
"""A sound that never rises above this is silence: there is nothing to be in time with."""


def lip_distances(pictures_ND: Tensor, sounds_ND: Tensor) -> Tensor:
    """(31,) mean distance of the pictures to the sound 15 pictures later ... 15 pictures earlier.

    Entry REACH + k is the distance if the picture is taken to be k pictures late. As in the public code, sound beyond
    the clip's ends is a vector of zeros.
    """
    if pictures_ND.shape != sounds_ND.shape:
        raise ConfigError(f"expected equally many windows of both, got {pictures_ND.shape} and {sounds_ND.shape}")
    padded = F.pad(sounds_ND, (0, 0, REACH, REACH))
    n = len(pictures_ND)
    late = [
        F.pairwise_distance(pictures_ND, padded[REACH - k : REACH - k + n]).mean() for k in range(-REACH, REACH + 1)
    ]
    return torch.stack(late)


@dataclass(frozen=True, kw_only=True)
class SyncScore:
    """What the curve of distances says."""

    confidence: float
    """Sync-C: median minus minimum."""
    distance: float
    """Sync-D: the minimum."""
    offset_frames: int
    """Where the minimum lies: positive, the picture is late; the public code's sign."""


def score(distances: Tensor) -> SyncScore:
    """Sync-C, Sync-D and offset of `lip_distances`."""
    least, at = distances.min(0)
    return SyncScore(confidence=float(distances.median() - least), distance=float(least), offset_frames=int(at) - REACH)


FIGURES = (
    Figure(key="sync_c", title="Sync-C", unit="distance (median minus minimum over shifts)", better="higher"),
    Figure(key="sync_d", title="Sync-D", unit="distance (minimum over shifts)", better="lower"),
    Figure(
        key="sync_offset_frames", title="Sync offset", unit="frames of 25 fps; positive: the picture is late",
        better="zero",
    ),
)  # fmt: skip


class LipSync:
    """Sync-C, Sync-D and the offset of picture against sound.

    Source: SyncNet and its public evaluation code; weights as `version` says. Unit: Euclidean distance of the network's
    embeddings, so figures of different weights cannot be compared: those of the cartoon world's network (vectors of
    length 1) are on a scale of their own and are not the paper's. Direction: Sync-C higher, Sync-D lower, offset
    nearer 0; positive means that the picture is late (the sound leads), the public code's sign.

    It misses: errors shorter than a frame of 40 ms; whether the mouth is drawn well or the words are right; a clip that
    is late in one half and early in the other gets one offset. The sound beyond the ends counts as zeros, so clips
    under about 3 s read differently from long ones. 24 fps videos are taken to 25 by repeating one picture in 24. Of
    pictures of the cartoon world it sees a fixed crop about the resting mouth; a mouth that leaves it is not followed.
    """

    figures = FIGURES

    def __init__(self, model: PublicSyncNet | ToonSyncNet) -> None:
        self.model = model
        self.faces = FaceCrops() if isinstance(model, PublicSyncNet) else None
        crop = self.faces.note if self.faces is not None else "fixed crop 88x66 of 256 about the resting mouth"
        self.version = f"{model.version}; {crop}; 25 fps, 16 kHz, shifts +-{REACH}"

    def measure(self, sample: Sample) -> Reading:
        """One curve over the whole clip, of any length."""
        if self.faces is None and sample.character is None:
            raise ImpossibleError(
                "the shipped SyncNet knows the cartoon world's characters only, and this clip names none: give the "
                "public weights, syncnet_v2.model"
            )
        crops = self.faces(sample) if self.faces is not None else _toon_crops(sample)
        curve = lip_distances(*embed(self.model, crops, _sound(sample)))
        found = score(curve)
        values = {
            "sync_c": found.confidence, "sync_d": found.distance, "sync_offset_frames": float(found.offset_frames),
        }  # fmt: skip
        return Reading(values=values, series={"sync_distance": curve.tolist()})


def embed(model: SyncModel, crops: Iterable[Tensor], sound_S: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures in pieces and sound at 16 kHz -> (N, D) each, of the windows that both have."""
    held, parts, count = None, [], 0
    for piece in crops:
        count += len(piece)
        held = piece if held is None else torch.cat([held, piece])
        if len(held) >= WINDOW:
            parts.append(model.pictures(held))
            held = held[1 - WINDOW :]  # the next piece's first windows begin here
    windows = min(count, sound_S.shape[0] // SAMPLES_PER_PICTURE) - WINDOW  # the public code leaves the last one out
    if windows <= REACH:
        least = (REACH + 1 + WINDOW) / FPS
        seconds = count / FPS, sound_S.shape[0] / RATE
        raise ImpossibleError(
            f"expected at least {least:.2f} s of picture and sound to shift by {REACH} frames, got {seconds[0]:.2f} s "
            f"and {seconds[1]:.2f} s"
        )
    return torch.cat(parts)[:windows], model.sounds(mfcc(sound_S), windows)


def _toon_crops(sample: Sample) -> Iterator[Tensor]:
    assert sample.character is not None
    who = character(sample.character)
    for block in sample.blocks(FPS):
        if block.shape[-1] != block.shape[-2]:
            raise ImpossibleError(f"the cartoon world is square, got pictures of {block.shape[-1]}x{block.shape[-2]}")
        yield toon_crop(block, who)


def _sound(sample: Sample) -> Tensor:
    try:
        sound = sample.samples(RATE)
    except DataError as error:
        raise ImpossibleError(str(error)) from None
    if sound.shape[0] == 0 or float(sound.abs().max()) < SILENCE:
        raise ImpossibleError("the sound is silent: there is nothing to be in time with")
    return sound


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """Lip sync by the user's public weights if given, else by the cartoon world's."""
    try:
        return [LipSync(load_public(options.syncnet) if options.syncnet is not None else load_toon())]
    except CheckpointError as error:
        return [Unavailable(figures=FIGURES, reason=str(error))]
