"""Examples that the video decoder's mixer is trained on (`train/reference.py`): what a student makes of clips.

Chunks of joint training's clips are drawn again from their seeds, beside four versions of their latents. The true ones,
and three that a student makes of them: noised to the level of its last step and predicted in one step, to that of the
step before and predicted in two, and so on. Those stand where the clip stands and are smeared as what the student plays
is; so the mixer learns to trust the still where the student's latents are not to be trusted.

Shape letters as in `codecs/video.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamchar import clock
from streamchar.codecs.component import fingerprint
from streamchar.data.origin import NAME, settle
from streamchar.data.shards import ClipRecord, Shard, shard_paths
from streamchar.errors import DataError
from streamchar.flow.path import clean_from_velocity, interpolate
from streamchar.flow.sampler import Latents, VelocityField
from streamchar.flow.schedule import Schedule
from streamchar.stream.chunk import generate_chunk
from streamchar.stream.models import Models
from streamchar.stream.session import sampler_of
from streamchar.stream.state import StreamState
from streamchar.train.streams import begin, transcript_of
from streamchar.train.video_clips import boxes_of, weight_map
from streamchar.world.clips import make_clip
from streamchar.world.displacement import bare_arms, displacement
from streamchar.world.limbs import skin_tones
from streamchar.world.render import draw_frame

log = logging.getLogger(__name__)

STEPS = {"near": 1, "far": 2, "farther": 3}
"""Of a student's last, that an estimate takes."""
KINDS = ("truth", "near", "far", "far", "farther", "farther")
"""Latents of an example, as often as they are drawn."""
FILE = 16
"""Examples of a file."""
PER_CLIP = 2
CELL = 4
"""Pixels of a cell of the known displacements."""
MOUTH, EYE, CHEEK = 1, 2, 3
"""What acts: a mouth or a hand, an eye and its brow, cheeks that may blush."""
GROUPS = 2
"""Of four frames behind the first that one step sees."""


class Estimate:
    """A sampler that begins from a true chunk, noised to `sigmas[0]`, instead of from noise."""

    def __init__(self, truth: Latents, sigmas: list[float], schedule: Schedule, deviations: tuple[float, ...]) -> None:
        self.truth, self.sigmas, self.schedule, self.deviations = truth, sigmas, schedule, deviations

    def __call__(self, field: VelocityField, noise: Latents, generator: torch.Generator) -> Latents:
        clean = self.truth
        for step, sigma in enumerate(self.sigmas):
            level = torch.full((1,), sigma, device=clean[0].device)
            fresh = [
                deviation * torch.randn(c.shape, generator=generator).to(c)
                for deviation, c in zip(self.deviations, clean, strict=True)
            ]
            x = tuple(interpolate(c, e, level) for c, e in zip(clean, fresh, strict=True))
            v = field(x, sigma, step == len(self.sigmas) - 1)
            clean = tuple(clean_from_velocity(a, b, level) for a, b in zip(x, v, strict=True))
        return clean


@torch.inference_mode()
def example(models: Models, clip: ClipRecord, chunk: int, seed: int) -> dict[str, Tensor]:
    """One chunk of a clip: "frames" (33, 3, H, W) and the still's "picture" (3, H, W), uint8, "boxes" (33, B, 4) in
    fractions of the picture, "displacement" (33, 2, H / 4, W / 4) in pixels, what of it is "acted" and where it is
    "known", how "bare" arms are in the same cells and the colour of that "skin", the latents of the "still" and the
    four kinds of the chunk's."""
    assert clip.video is not None and clip.still is not None
    world = make_clip(clip.seed, short=clip.short)
    size, span = models.config.height, (clock.frames(chunk), clock.frames(chunk + 1))
    track, who = world.track, world.character
    state = begin(models, clip, seed=seed, first=chunk)
    J = clock.AUDIO_LATENTS_PER_CHUNK
    moved, acted, known = displacement(who, track.slice(*span), size, CELL)
    truth = clip.video[None, chunk], clip.audio[None, chunk * J : (chunk + 1) * J]
    found = {
        "frames": world.frames(*span, size), "boxes": boxes_of(who, track, size)[slice(*span)].float().contiguous(),
        "displacement": moved.half(), "acted": acted.half(), "known": known.byte(),
        "bare": bare_arms(who, track.slice(*span), size, CELL).mul(255).round().byte(),
        "skin": torch.tensor(skin_tones(who)[0]).mul(2).sub(1), "still": clip.still.half(),
        "picture": draw_frame(who, size), "truth": truth[0][0].half(),
    }  # fmt: skip
    for kind, steps in STEPS.items():
        found[kind] = _estimated(models, clip, state, truth, steps)
    return found


def _estimated(models: Models, clip: ClipRecord, state: StreamState, truth: Latents, steps: int) -> Tensor:
    schedule = sampler_of(models, state).schedule
    sigmas = schedule.sigmas().tolist()[:-1][-steps:]
    clean = tuple(part.float().to(models.device) for part in truth)
    sampler = Estimate(clean, sigmas, schedule, state.temperatures)
    made, _ = generate_chunk(models, state, sampler, transcript=transcript_of(clip))
    return made.video[0].half().cpu()


def draw_examples(models: Models, data: Path, folder: Path, count: int, *, seed: int = 0) -> None:
    """Write `count` examples to `folder`, in files of `FILE`; those that are there already stay, and must be of the
    same model. Raises `InputError`."""
    folder.mkdir(parents=True, exist_ok=True)
    origin = {
        "seed": seed, "dit": fingerprint(models.dit), "orchestrator": fingerprint(models.orchestrator),
        "video_codec": fingerprint(models.video_codec),
    }  # fmt: skip
    settle(folder / NAME, origin, begun=any(folder.glob("examples-*")))
    order = random.Random(f"reference-{seed}")
    shards = [Shard(path) for path in shard_paths(data)]
    entries = [(s, i) for s, shard in enumerate(shards) if shard.has_video for i in range(len(shard))]
    if not entries:
        raise DataError(f"expected clips with video in {data}, found speech alone; give the folder of joint training")
    order.shuffle(entries)
    per_file = FILE // PER_CLIP
    for number in range(-(-count // FILE)):
        path = folder / f"examples-{number:05d}.safetensors"
        if path.exists():
            continue
        made = []
        for place in range(number * per_file, (number + 1) * per_file):
            clip = shards[entries[place % len(entries)][0]][entries[place % len(entries)][1]]
            draw = random.Random(f"reference-{seed}-{place}")
            assert clip.video is not None
            for chunk in draw.choices(range(len(clip.video)), k=PER_CLIP):
                made.append(example(models, clip, chunk, draw.randrange(2**31)))
        part = path.with_suffix(".part")
        save_file({name: torch.stack([one[name] for one in made]) for name in made[0]}, part)
        part.replace(path)
        log.info("drew %d of %d examples", (number + 1) * FILE, count)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A piece of an example: 1 + k latents of one kind, the 1 + 4 k frames from the first one's last on."""

    frames_BCTHW: Tensor
    weight_BTHW: Tensor
    latents_BCKHW: Tensor
    still_BC1HW: Tensor
    picture_BCHW: Tensor
    displacement_B2Thw: Tensor
    acted_B2Thw: Tensor
    known_BThw: Tensor
    """Where the still shows what a frame shows, in pixels from there, how much of that is a face's acting, and whether
    it does."""
    acting_BTHW: Tensor
    """Where a face acts: `MOUTH`, `EYE`, `CHEEK` or 0."""
    bare_BThw: Tensor
    """How much of each cell is bare skin of arms and hands."""
    skin_B3: Tensor
    """Its colour."""
    estimate: bool
    """Whether the latents are a student's."""


class Examples:
    """What `draw_examples` wrote. Raises `DataError`."""

    def __init__(self, folder: Path) -> None:
        try:
            self.files = [safe_open(path, "pt") for path in sorted(folder.glob("examples-*.safetensors"))]
            self.index = [(f, i) for f in self.files for i in range(f.get_slice("bare").get_shape()[0])]
        except (SafetensorError, OSError) as error:
            raise DataError(f"{folder} holds an example that cannot be read ({error}); delete it") from None

    def cut(self, number: int, kind: str, first: int, groups: int) -> Cut:
        """Latents `first` to `first + groups` of example `number`."""
        file, row = self.index[number]
        span = slice(clock.VIDEO_STRIDE * first, clock.VIDEO_STRIDE * (first + groups) + 1)
        frames = file.get_slice("frames")[row, span].float().div(127.5).sub(1)
        boxes = file.get_slice("boxes")[row, span].numpy()
        return Cut(
            frames_BCTHW=frames.transpose(0, 1)[None],
            weight_BTHW=weight_map(with_brows(boxes), frames.shape[-1])[None],
            acting_BTHW=acting(boxes, frames.shape[-1])[None], estimate=kind != "truth",
            latents_BCKHW=file.get_slice(kind)[row, :, first : first + groups + 1].float()[None],
            still_BC1HW=file.get_slice("still")[row].float()[None],
            picture_BCHW=file.get_slice("picture")[row].float().div(127.5).sub(1)[None],
            displacement_B2Thw=file.get_slice("displacement")[row, span].float().transpose(0, 1)[None],
            acted_B2Thw=file.get_slice("acted")[row, span].float().transpose(0, 1)[None],
            known_BThw=file.get_slice("known")[row, span].float()[None],
            bare_BThw=file.get_slice("bare")[row, span].float().div(255)[None],
            skin_B3=file.get_slice("skin")[row].float()[None],
        )  # fmt: skip

    def batches(self, size: int, draw: random.Random) -> Iterator[list[Cut]]:
        """Endless batches of short pieces."""
        last = clock.VIDEO_LATENTS_PER_CHUNK - 1 - GROUPS
        while True:
            yield [
                self.cut(draw.randrange(len(self.index)), draw.choice(KINDS), draw.randint(0, last), GROUPS)
                for _ in range(size)
            ]


def with_brows(boxes_TB4: np.ndarray) -> np.ndarray:
    """Boxes of mouth, eyes and the rest; the eyes' as much higher as they are high, for the brows."""
    boxes_TB4 = boxes_TB4.copy()
    boxes_TB4[:, 1:3, 1] -= boxes_TB4[:, 1:3, 3] - boxes_TB4[:, 1:3, 1]
    return boxes_TB4


def acting(boxes_TB4: np.ndarray, size: int) -> Tensor:
    """(T, H, W): `MOUTH` on the mouth (first box) and hands (the last), `EYE` on eyes and brows (the second and third,
    and above), `CHEEK` from eye to mouth, with room around; else 0.

    What a student's estimate of a mouth or a hand lacks is not in the still either, and the mean of both speaks less,
    or is half a hand. So there the decoder's own picture is the target. Eyes are the still's, moved, also in a
    blink; a blush is a tint of it."""
    mask_THW = torch.zeros(len(boxes_TB4), size, size)
    for t, (mouth, left, right, *hands) in enumerate(boxes_TB4 * size):
        wide = 0.4 * (left[2] - left[0])
        areas = [(left[0] - wide, max(left[3], right[3]), right[2] + wide, mouth[3], CHEEK)]
        parts = (left, 1.0, 0.0, EYE), (right, 1.0, 0.0, EYE), (mouth, 0.1, 0.1, MOUTH)
        for part, above, below, what in (*parts, *((hand, 0.1, 0.6, MOUTH) for hand in hands)):  # and its sleeve
            wide, high = 0.2 * (part[2] - part[0]), part[3] - part[1]
            areas.append((part[0] - wide, part[1] - above * high, part[2] + wide, part[3] + below * high, what))
        for *sides, what in areas:
            x0, y0, x1, y1 = (max(0, round(float(v))) for v in sides)
            mask_THW[t, y0:y1, x0:x1] = what
    return mask_THW
