"""Does a clip show what its prompt asks for: mood, gesture, energy? Read from the pictures of a cartoon-world clip.

Two small nets, trained by `train/directions.py` on the world alone. The reader looks at one picture beside the
character's still and says how the character is posed: smile, brows, head, hands. The judge hears the poses of some
seconds and says what direction they follow. So moods are told from what differs from the still, not from a face that
looks grim by nature, and gestures from their course.

Shape letters: N pictures, T instants, B clips, P pose values, H height, W width, C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.codecs.component import load_component
from streamchar.errors import CheckpointError, InputError
from streamchar.eval.identity import read_picture, still
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample

FOLDER = Path(__file__).parent.parent / "assets" / "directions"
"""The shipped weights."""
FIELDS = ("mood", "gesture", "energy")
"""In the order of `Sample.direction`."""
FACE = (0.25, 0.22, 0.5)
"""Left, top and side of the square that holds the face in all poses, in parts of the picture."""
BATCH = 32
LEAST_SECONDS = 2.5
"""Of less, a nod or a wave cannot be told from chance."""
MOST_SECONDS = 12.0
"""Of a window; longer clips are cut into equal ones."""

TITLES = {"mood": "Mood follows the prompt", "gesture": "Gesture follows the prompt", "energy": "Energy follows it"}
FIGURES = (
    *(Figure(key=f"prompt_{f}", title=TITLES[f], unit="share of clips or windows", better="higher") for f in FIELDS),
    Figure(key="prompt_adherence", title="Prompt followed", unit="mean share of the three", better="higher"),
)


@dataclass(frozen=True, kw_only=True)
class DirectionsConfig:
    """Sizes, the pose values by name, and each field's labels."""

    poses: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    rate: int = 12
    """Pictures a second."""
    whole: int = 64
    """Pixels of the whole picture, for hands and leaning."""
    face: int = 80
    """Pixels of the face's square."""
    widths: tuple[int, ...] = (16, 32, 56, 72)
    squeeze: int = 20
    hidden: int = 112
    listen: int = 64


def _tower(widths: tuple[int, ...], squeeze: int) -> nn.Sequential:
    """Halves the picture once a width; keeps where things are, for a pose is mostly places."""
    layers: list[nn.Module] = []
    width = 6
    for i, wider in enumerate(widths):
        layers += [nn.Conv2d(width, wider, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1, bias=False)]
        layers += [nn.BatchNorm2d(wider), nn.SiLU()]
        width = wider
    return nn.Sequential(*layers, nn.Conv2d(width, squeeze, 1), nn.SiLU(), nn.Flatten())


class Reader(nn.Module):
    """A picture beside the still -> pose values, each in units of its own spread."""

    def __init__(self, config: DirectionsConfig) -> None:
        super().__init__()
        halvings = 2 ** len(config.widths)
        inner = config.squeeze * ((config.whole // halvings) ** 2 + (config.face // halvings) ** 2)
        self.whole, self.face = _tower(config.widths, config.squeeze), _tower(config.widths, config.squeeze)
        self.join = nn.Sequential(nn.Linear(inner, config.hidden), nn.SiLU(), nn.Dropout(0.1))
        self.out = nn.Linear(config.hidden, len(config.poses))

    def forward(self, whole_N6HW: Tensor, face_N6HW: Tensor) -> Tensor:
        """(N, P)."""
        return self.out(self.join(torch.cat([self.whole(whole_N6HW), self.face(face_N6HW)], 1)))


class Judge(nn.Module):
    """Poses over time -> logits by field; of any length from about a second on."""

    def __init__(self, config: DirectionsConfig) -> None:
        super().__init__()
        poses, width = len(config.poses), config.listen
        self.hear = nn.Sequential(
            nn.Conv1d(poses, width, 5, padding=2), nn.SiLU(),
            nn.Conv1d(width, width, 5, padding=4, dilation=2), nn.SiLU(),
            nn.Conv1d(width, width, 5, padding=8, dilation=4), nn.SiLU(),
        )  # fmt: skip
        self.join = nn.Sequential(nn.Dropout(0.1), nn.Linear(3 * width + 3 * poses, 96), nn.SiLU())
        self.heads = nn.ModuleDict({field: nn.Linear(96, len(config.labels[field])) for field in FIELDS})

    def forward(self, poses_BTP: Tensor) -> dict[str, Tensor]:
        """By field: (B, C)."""
        heard_BCT = self.hear(poses_BTP.mT)
        step = (poses_BTP[:, 1:] - poses_BTP[:, :-1]).abs().mean(1)
        plain = (poses_BTP.mean(1), poses_BTP.std(1, correction=0), 3 * step)
        pooled = (heard_BCT.mean(2), heard_BCT.amax(2), heard_BCT.std(2, correction=0))
        joined = self.join(torch.cat([*pooled, *plain], 1))
        return {field: head(joined) for field, head in self.heads.items()}


class Directions(nn.Module):
    """Reader and judge."""

    def __init__(self, config: DirectionsConfig) -> None:
        super().__init__()
        self.config = config
        self.version = "directions, untrained"
        """Names the weights. Set by `load_directions`."""
        self.reader, self.judge = Reader(config), Judge(config)

    def prepare(self, frames_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 of any size -> the whole (N, 3, whole, whole) and the face (N, 3, face, face) in [-1, 1]; of oblong
        pictures the middle square."""
        if frames_N3HW.ndim != 4 or frames_N3HW.shape[1] != 3 or frames_N3HW.dtype != torch.uint8:
            raise InputError(f"expected (N, 3, H, W) uint8, got {tuple(frames_N3HW.shape)} {frames_N3HW.dtype}")
        high, wide = frames_N3HW.shape[-2:]
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        square = frames_N3HW[..., top : top + side, left : left + side].float().div(127.5).sub(1)
        x, y, part = (round(v * side) for v in FACE)
        face = square[..., y : y + part, x : x + part]
        return _resized(square, self.config.whole), _resized(face, self.config.face)

    @torch.no_grad()
    def read(self, frames_T3HW: Tensor, still_3HW: Tensor) -> Tensor:
        """Frames (uint8) of a character with this still -> poses (T, P)."""
        own = self.prepare(still_3HW[None])
        found = []
        for part in frames_T3HW.split(BATCH):
            pairs = (
                torch.cat([now, rest.expand_as(now)], 1) for now, rest in zip(self.prepare(part), own, strict=True)
            )
            found.append(self.reader(*pairs))
        return torch.cat(found)

    @torch.no_grad()
    def probabilities(self, poses_TP: Tensor) -> dict[str, Tensor]:
        """Of one window, by field: (C,)."""
        return {field: value[0].softmax(-1) for field, value in self.judge(poses_TP[None]).items()}

    def windows(self, n: int) -> list[tuple[int, int]]:
        """Equal pieces of `n` instants, as few as may be, none above `MOST_SECONDS`."""
        count = max(1, math.ceil(n / (MOST_SECONDS * self.config.rate)))
        edges = [round(i * n / count) for i in range(count + 1)]
        return list(zip(edges, edges[1:], strict=False))


def _resized(frames_N3HW: Tensor, size: int) -> Tensor:
    if frames_N3HW.shape[-2:] == (size, size):
        return frames_N3HW
    return F.interpolate(frames_N3HW, (size, size), mode="bilinear", align_corners=False, antialias=True)


@lru_cache(maxsize=2)
def load_directions(folder: Path = FOLDER) -> Directions:
    """The nets of a folder, in evaluation mode; raises `CheckpointError` if there are none."""
    net = load_component(Directions, DirectionsConfig, folder).requires_grad_(False)
    net.version = f"directions {hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()[:8]}"
    return net


class PromptFollowed:
    """Whether the pictures show the mood, the gesture and the energy that the prompt asks for.

    Source: our own (the world's directions, `world/prompt.py`), as attribute classifiers measure whether a generator
    obeys. Unit: 1 or 0 a clip, of clips above 12 s the share of equal windows; higher is better. What the nets read
    right on truth, and on truth through the codec, stands in `docs/metrics.md`: that is the ceiling, not 1. Missed:
    what the voice does with the mood; and a hand that a true performance would not have raised either, as no stressed
    word called for it, counts as missing.
    """

    figures = FIGURES

    def __init__(self, net: Directions | None = None) -> None:
        self.net = load_directions() if net is None else net
        self.version = f"{self.net.version}; {self.net.config.rate} pictures a second, windows to {MOST_SECONDS:g} s"

    def measure(self, sample: Sample) -> Reading:
        """Series: `direction_KIND`, the probability of what was asked for, a value a window."""
        asked = self._asked(sample)
        rest = still(sample.character) if sample.picture is None else read_picture(sample.picture)
        rate = self.net.config.rate
        poses_TP = torch.cat([self.net.read(block, rest) for block in sample.blocks(rate)])
        if len(poses_TP) < LEAST_SECONDS * rate:
            raise ImpossibleError(f"expected at least {LEAST_SECONDS:g} s, got {len(poses_TP) / rate:.2f} s")
        spans = self.net.windows(len(poses_TP))
        told = [self.net.probabilities(poses_TP[start:stop]) for start, stop in spans]
        values: dict[str, float | None] = {}
        series, notes = {}, {}
        for field, wanted in asked.items():
            labels = self.net.config.labels[field]
            seen = [labels[int(window[field].argmax())] for window in told]
            values[f"prompt_{field}"] = seen.count(wanted) / len(seen)
            series[f"direction_{field}"] = [float(window[field][labels.index(wanted)]) for window in told]
            counted = ", ".join(f"{seen.count(label)} x {label}" for label in dict.fromkeys(seen))
            notes[f"prompt_{field}"] = f"asked for {wanted}, seen {seen[0] if len(seen) == 1 else counted}"
        values["prompt_adherence"] = sum(values[f"prompt_{f}"] or 0.0 for f in FIELDS) / len(FIELDS)
        return Reading(values=values, series=series, notes=notes)

    def _asked(self, sample: Sample) -> dict[str, str]:
        """By field, what the prompt asks for."""
        if sample.character is None:
            raise ImpossibleError("video without a world character: the nets know the cartoon world only")
        if sample.direction is None:
            raise ImpossibleError(
                "what the prompt asks for is not known: expected `direction`, [mood, gesture, energy] of the world"
            )
        asked = dict(zip(FIELDS, sample.direction, strict=True))
        for field, wanted in asked.items():
            known = self.net.config.labels[field]
            if wanted not in known:
                raise ImpossibleError(f"{field} must be one of {', '.join(known)}; got {wanted!r}")
        return asked


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """`prompt_mood`, `prompt_gesture`, `prompt_energy` and their mean."""
    try:
        return [PromptFollowed(load_directions())]
    except CheckpointError as error:
        return [Unavailable(figures=FIGURES, reason=str(error))]
