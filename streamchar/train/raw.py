"""Raw material for the codecs, in parallel: speech with pitch and phonemes, and drawn pictures.

Piece i of a folder is a function of (seed, i) alone, is whole or absent, and is not made twice: a
stopped command goes on where pieces are missing. Its name tells both, so that seeds may lie side by side; clips of
held-out characters would have the same names as others, and need a folder of their own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from streamchar.data.origin import settle
from streamchar.train.audio_codec import prepare_speech
from streamchar.train.video_clips import SHARD, render_clips

log = logging.getLogger(__name__)

SPEECH_HOURS = 0.5
"""Of one piece: 180 MB."""
CLIPS = 4 * SHARD
"""Of one piece: 210 MB. Its sixteen sentences are spoken anew for every piece."""
SEEDS = 1000
"""Character numbers that a piece may use up; a piece of held-out ones needs ten times its clips."""
CLIPS_RECIPE = "clips-recipe.json"
"""Says of which half of the world a folder's clips are; a name of its own, as shards may lie in the same folder."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One worker's job."""

    folder: Path
    seed: int
    amount: float
    """Hours of speech, or number of clips."""
    held_out: bool = False


def raw_speech(folder: Path, hours: float, *, seed: int = 0, workers: int = 1) -> None:
    """Write about `hours` of speech for `train_audio_codec`, a multiple of half an hour if above it."""
    count = max(1, round(hours / SPEECH_HOURS))
    pieces = [
        Piece(folder=folder, seed=seed * SEEDS + i, amount=min(hours, SPEECH_HOURS)) for i in range(count)
    ]
    _all(_speech, pieces, workers)


def raw_clips(folder: Path, clips: int, *, held_out: bool = False, seed: int = 0, workers: int = 1) -> None:
    """Write `clips` chunks, each of another character, for `train_video_codec`. Raises `InputError` where the folder
    has those of the other half of the world."""
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder / CLIPS_RECIPE, {"held_out": held_out}, begun=any(folder.glob("frames-*.npy")))
    pieces = []
    for i, first in enumerate(range(0, clips, CLIPS)):
        begin = (seed * SEEDS + i) * SEEDS
        pieces.append(Piece(folder=folder, seed=begin, amount=min(CLIPS, clips - first), held_out=held_out))
    _all(_clips, pieces, workers)


def _speech(piece: Piece) -> None:
    prepare_speech(piece.folder, piece.amount, piece.seed)


def _clips(piece: Piece) -> None:
    count = int(piece.amount)
    shards = range(piece.seed // SHARD, (piece.seed + count - 1) // SHARD + 1)
    if not all((piece.folder / f"frames-{i:04d}.npy").exists() for i in shards):
        render_clips(piece.folder, count, held_out=piece.held_out, seed=piece.seed)


def _work(job: tuple[Callable[[Piece], None], Piece]) -> None:
    torch.set_num_threads(1)
    make, piece = job
    make(piece)


def _all(make: Callable[[Piece], None], pieces: list[Piece], workers: int) -> None:
    jobs = [(make, piece) for piece in pieces]
    if workers <= 1:
        for done, (_, piece) in enumerate(jobs, start=1):
            make(piece)
            log.info("piece %d of %d", done, len(jobs))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_work, jobs), start=1):
            log.info("piece %d of %d", done, len(jobs))
