"""Raw clips of the cartoon world on disk, for the video codec: one chunk (33 frames) a clip.

A shard is a pair of npy files: `frames-0000.npy` (N, 33, 3, H, W) uint8 and `boxes-0000.npy` (N, 33, B, 4) float32,
boxes as left, top, right, bottom in fractions of the picture: mouth, left and right eye, left and right hand (empty
where a hand is not to be seen; older shards have no hands).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import DataError
from streamchar.types import Speech
from streamchar.world.character import Character, character
from streamchar.world.motion import MotionTrack, plan
from streamchar.world.prompt import sample_direction
from streamchar.world.render import eye_boxes, hand_boxes, mouth_box, render
from streamchar.world.splits import is_held_out_character
from streamchar.world.text import sentences
from streamchar.world.voice import speak

log = logging.getLogger(__name__)

BOX_WEIGHTS = (5.0, 3.0, 3.0, 3.0, 3.0)
"""Added to a pixel's weight inside a box: the mouth counts six times, eyes and hands four times."""
BOXES = {"mouth": slice(0, 1), "eye": slice(1, 3), "hand": slice(3, 5)}
GRID = 32  # pixels of a latent cell: crops of the mouth keep the phase that it has in a whole picture


SHARD = 8  # clips
SENTENCES = 16  # spoken by all of a set's characters: what differs are the mouths' shapes, not the words


def render_clips(folder: Path, count: int, *, held_out: bool, seed: int = 0, size: int = 256) -> None:
    """Render `count` chunks, each of another character, to shards in `folder`.

    Characters come from the training split, or with `held_out` from the other; `seed` is where their numbers start.
    """
    rng = random.Random(f"streamchar/video-clips/{seed}/{held_out}")
    texts = sentences(seed, SENTENCES, held_out=held_out)
    speeches = [speak(text, tempo=rng.choice((0.9, 1.0, 1.15)), seed=i) for i, text in enumerate(texts)]
    number, done = seed, 0
    frames, boxes = [], []
    while done < count:
        number += 1
        if is_held_out_character(number) != held_out:
            continue
        one_frames, one_boxes = _render_clip(number, rng.choice(speeches), rng, size)
        frames.append(one_frames)
        boxes.append(one_boxes)
        done += 1
        if len(frames) == SHARD or done == count:
            write_shard(folder, (seed + done - 1) // SHARD, np.stack(frames), np.stack(boxes))
            frames, boxes = [], []
            log.info("rendered %d of %d clips", done, count)


def _render_clip(number: int, speech: Speech, rng: random.Random, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Character `number` somewhere in `speech`: frames (33, 3, H, W) and boxes (33, 5, 4)."""
    who = character(number)
    begin = rng.uniform(-0.3, max(0.0, speech.seconds - 1.2))
    track = plan(speech, sample_direction(number), number, clock.FRAMES_PER_CHUNK, offset=-begin)
    return render(who, track, size).numpy(), boxes_of(who, track, size).numpy()


def boxes_of(who: Character, track: MotionTrack, size: int) -> Tensor:
    """(T, 5, 4) in fractions of the picture, in the order of a shard."""
    mouth = mouth_box(who, track, size)[:, None]
    return torch.cat([mouth, eye_boxes(who, track, size), hand_boxes(who, track, size)], 1) / size


def write_shard(folder: Path, index: int, frames_NTCHW: np.ndarray, boxes_NTB4: np.ndarray) -> None:
    """Write one shard."""
    if frames_NTCHW.dtype != np.uint8 or frames_NTCHW.shape[1] != clock.FRAMES_PER_CHUNK:
        raise DataError(f"frames must be (N, 33, 3, H, W) uint8, got {frames_NTCHW.shape} {frames_NTCHW.dtype}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("boxes", boxes_NTB4.astype(np.float32)), ("frames", frames_NTCHW)):
        part = folder / f"part-{name}-{index:04d}.npy"  # a shard is whole or absent
        np.save(part, array)
        part.replace(folder / f"{name}-{index:04d}.npy")


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """A file of a shard. Raises `DataError`."""
    try:
        return np.load(path, mmap_mode=mmap_mode)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable array ({error}); delete it, and it is drawn again") from None


def weight_map(boxes_TB4: np.ndarray, size: int) -> Tensor:
    """(T, H, W) weights: 1, and more inside the boxes."""
    weight_THW = torch.ones(len(boxes_TB4), size, size)
    for t, boxes in enumerate(boxes_TB4):
        for i, (left, top, right, bottom) in enumerate(np.clip(np.rint(boxes * size), 0, size).astype(int)):
            weight_THW[t, top:bottom, left:right].clamp_(min=1 + BOX_WEIGHTS[i])
    return weight_THW


@dataclass(frozen=True, kw_only=True)
class Crop:
    """What one training step sees."""

    size: int
    """Pixels, in both directions."""
    batch: int
    groups: int
    """Of four frames after the first."""
    about: Literal["mouth", "eye", "hand", ""] = ""
    """Holds one, on the latent grid, of a clip that shows one; else, or where no clip does, it lies anywhere."""


class ClipShards:
    """All shards of a folder, memory-mapped, with random crops as an endless iterator."""

    def __init__(self, folder: Path | str) -> None:
        paths = sorted(Path(folder).glob("frames-*.npy"))
        self.frames = [read_array(path, mmap_mode="r") for path in paths]
        self.boxes = [read_array(path.with_name(path.name.replace("frames", "boxes"))) for path in paths]
        self.clips = [(s, i) for s, shard in enumerate(self.frames) for i in range(len(shard))]
        self.showing = {
            about: [(s, i) for s, i in self.clips if seen(self.boxes[s][i][:, which]).any()]
            for about, which in BOXES.items()
        }
        """The clips that show one."""

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def size(self) -> int:
        """Height and width of the pictures in pixels."""
        return self.frames[0].shape[-1]

    def clip(self, index: int) -> tuple[Tensor, np.ndarray]:
        """Clip `index`: (33, 3, H, W) uint8 and its boxes (33, B, 4)."""
        shard, row = self.clips[index]
        return torch.from_numpy(np.array(self.frames[shard][row])), self.boxes[shard][row]

    def batches(self, crop: Crop, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (B, 3, 1 + 4 groups, size, size) in [-1, 1] with weights (B, 1 + 4 groups, size, size).

        Half are mirrored."""
        while True:
            samples = [self._crop(crop, generator) for _ in range(crop.batch)]
            yield torch.stack([frames for frames, _ in samples]), torch.stack([weight for _, weight in samples])

    def _crop(self, crop: Crop, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def draw(end: int) -> int:
            return int(torch.randint(end, (), generator=generator))

        clips = self.showing.get(crop.about) or self.clips
        shard, row = clips[draw(len(clips))]
        length, size = 1 + clock.VIDEO_STRIDE * crop.groups, min(crop.size, self.size)
        last, box = clock.FRAMES_PER_CHUNK - length, None
        start = draw(last + 1)
        if clips is not self.clips:
            shown = self.boxes[shard][row][:, BOXES[crop.about]]
            times, which = np.nonzero(seen(shown))
            pick = draw(len(times))
            start = min(max(0, int(times[pick]) - draw(length)), last)
            box = shown[times[pick], which[pick]]
        boxes = self.boxes[shard][row][start : start + length]
        room = self.size - size
        top, left = draw(room + 1), draw(room + 1)
        if box is not None:
            x0, y0, x1, y1 = (box * self.size).tolist()
            left, top = (_around(a, b, size, room, draw) for a, b in ((x0, x1), (y0, y1)))
        window = (slice(start, start + length), slice(None), slice(top, top + size), slice(left, left + size))
        frames = torch.from_numpy(np.array(self.frames[shard][row][window])).float().div_(127.5).sub_(1)
        weight = weight_map(boxes, self.size)[:, top : top + size, left : left + size]
        if draw(2):
            frames, weight = frames.flip(-1), weight.flip(-1)
        return frames.transpose(0, 1), weight


def seen(boxes_NB4: np.ndarray) -> np.ndarray:
    """(N, B): whether a box holds something of the picture."""
    return (boxes_NB4[..., 2] > boxes_NB4[..., 0]) & (boxes_NB4[..., 3] > boxes_NB4[..., 1])


def _around(low: float, high: float, size: int, room: int, draw: Callable[[int], int]) -> int:
    """A start on the latent grid from which `size` pixels hold low..high, or the nearest one to that."""
    starts = [start for start in range(0, room + 1, GRID) if start <= low and high <= start + size]
    if starts:
        return starts[draw(len(starts))]
    middle = (low + high - size) / 2
    return min(range(0, room + 1, GRID), key=lambda start: abs(start - middle))
