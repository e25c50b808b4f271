"""Training of the cartoon-world net (`eval/worldnet.py`) on drawn frames.

    streamchar world --clips-raw DIR --clips 1000 --seed 1
    python -m streamchar.train.worldnet --data DIR --out DIR --minutes 9

The clips are of a thousand characters, one mood each; further characters are drawn small, in three moods each. A batch
has two pictures of every character. The heads' cross-entropy says what a picture shows; the embedding's says which of
the others in the batch is the same character. Pictures are spoilt lightly (JPEG, blur, noise, shifts), as the net will
judge generated ones. Shape letters as in the net.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from streamchar.codecs.component import save_component
from streamchar.errors import DataError, InputError
from streamchar.eval.worldnet import WorldNet, WorldNetConfig
from streamchar.train.raw import CLIPS, SEEDS
from streamchar.train.video_clips import SHARD, read_array
from streamchar.world.character import BACKDROPS, CLOTH, HAIRS, IRISES, SKINS, Character, character
from streamchar.world.motion import plan
from streamchar.world.prompt import ENERGIES, GESTURES, MOODS, Direction, sample_direction
from streamchar.world.render import draw_frame, render
from streamchar.world.splits import is_held_out_character
from streamchar.world.text import sentences
from streamchar.world.voice import speak

log = logging.getLogger(__name__)

MOOD = "mood"
HEADS = (
    "kind", "age", "face_shape", "skin", "hair_style", "hair_colour", "facial_hair", "eye_shape", "iris", "brows",
    "lips", "clothes", "cloth", "accessory", "scene", "backdrop",
)  # fmt: skip
"""Attributes that are seen; `nose` and `ears` follow from `kind`, `presentation` is not drawn as such."""
COLOURS = {"skin": SKINS, "hair_colour": HAIRS, "iris": IRISES, "cloth": CLOTH, "backdrop": BACKDROPS, MOOD: MOODS}
FIRST = 40_000_000
"""Numbers of the drawn characters start here: no clips have them, nor the evaluation its held-out ones."""
MOMENTS = 3
"""Of a drawn character, besides its still; drawn at the net's own size, for a fifth of the time that 256 takes."""


@dataclass(frozen=True, kw_only=True)
class WorldNetTraining:
    """How to train. The minutes are the processor's (the machine may be shared), drawing and reading included."""

    minutes: float
    moments: int = 5
    """Frames taken of each clip."""
    drawing: float = 0.45
    """Share of the minutes for drawing further characters."""
    pairs: int = 32
    """Characters in a batch, with two pictures each."""
    rate: float = 3e-3
    dropout: float = 0.1
    """Of the features, for the heads."""
    temperature: float = 0.1
    contrast: float = 0.5
    """Weight of the embedding's loss; the heads' mean has 1 and the mood 0.3."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What was drawn of one character: (N, 3, size, size) uint8."""

    frames_N3HW: Tensor
    labels: tuple[int, ...]
    """Of `HEADS`."""
    moods: tuple[int, ...]
    """Of every frame; -1: not to be learnt."""


def clip_characters(shard: int, clips: int, *, held_out: bool) -> list[int]:
    """Numbers of the characters in `frames-{shard}.npy` of `raw_clips`: pieces of `CLIPS` clips start at multiples of
    `SEEDS` and take the next numbers of their split, as `render_clips` does."""
    piece = shard * SHARD // SEEDS * SEEDS
    first = (shard - piece // SHARD) * SHARD
    if not 0 <= first < CLIPS:
        raise DataError(
            f"frames-{shard}.npy is no shard of `streamchar world --clips-raw`; write them with that command"
        )
    numbers, number = [], piece
    while len(numbers) < first + clips:
        number += 1
        if is_held_out_character(number) == held_out:
            numbers.append(number)
    return numbers[first:]


def heads() -> dict[str, tuple[str, ...]]:
    """Labels of every head: what a thousand characters have, and all colours and moods."""
    people = [character(n).attributes() for n in range(1000)]
    found = {name: tuple(COLOURS.get(name) or sorted({p[name] for p in people})) for name in HEADS}
    return {**found, MOOD: tuple(MOODS)}


def _jpeg(frame_3HW: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame_3HW.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).transpose(2, 0, 1)


def _shrunk(frames_N3HW: np.ndarray, size: int) -> Tensor:
    frames = torch.from_numpy(np.ascontiguousarray(frames_N3HW)).float()
    frames = F.interpolate(frames, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return frames.round().clamp(0, 255).to(torch.uint8)


def _labels(who: Character, config: WorldNetConfig) -> tuple[int, ...]:
    return tuple(config.heads[name].index(who.attributes()[name]) for name in HEADS)


def read_clips(data: Path, config: WorldNetConfig, settings: WorldNetTraining, *, held_out: bool) -> list[Pictures]:
    """Some moments of every clip, half of them through JPEG, with their character's labels."""
    rng = random.Random(settings.seed)
    out: list[Pictures] = []
    for path in sorted(data.glob("frames-*.npy")):
        shard = read_array(path, mmap_mode="r")
        numbers = clip_characters(int(path.stem.split("-")[1]), len(shard), held_out=held_out)
        for clip, number in zip(shard, numbers, strict=True):
            steps = sorted(rng.sample(range(len(clip)), settings.moments))
            frames = [np.asarray(clip[t]) for t in steps]
            frames = [f if held_out or i % 2 else _jpeg(f, rng.randint(12, 70)) for i, f in enumerate(frames)]
            out.append(Pictures(
                frames_N3HW=_shrunk(np.stack(frames), config.size), labels=_labels(character(number), config),
                moods=(config.heads[MOOD].index(sample_direction(number).mood),) * len(frames),
            ))  # fmt: skip
    if not out:
        raise DataError(f"no clips in {data}; write them with: streamchar world --clips-raw {data} --clips 1000")
    return out


def draw_characters(config: WorldNetConfig, settings: WorldNetTraining, deadline: float) -> list[Pictures]:
    """As many further characters of the training split as time allows: the still, and three moments of talking in
    three moods. A character's mood can so not be known from who it is, nor who it is from the mood."""
    rng = random.Random(f"worldnet/{settings.seed}")
    speeches = [speak(text, seed=i) for i, text in enumerate(sentences(settings.seed, 4, held_out=False))]
    out: list[Pictures] = []
    number = FIRST
    while time.process_time() < deadline:
        number += 1
        if is_held_out_character(number):
            continue
        who, moods = character(number), rng.sample(list(MOODS), MOMENTS)
        frames = [draw_frame(who, config.size)]
        for mood in moods:
            direction = Direction(mood=mood, gesture=rng.choice(list(GESTURES)), energy=rng.choice(list(ENERGIES)))
            speech = rng.choice(speeches)
            begin, seed = rng.uniform(0, speech.seconds - 1), rng.randrange(2**31)
            track = plan(speech, direction, seed, 24, offset=-begin)
            moment = rng.randrange(24)
            frames.append(render(who, track, config.size, moment, moment + 1)[0])
        out.append(Pictures(
            frames_N3HW=torch.stack(frames), labels=_labels(who, config),
            moods=(-1, *(config.heads[MOOD].index(mood) for mood in moods)),
        ))  # fmt: skip
    return out


def spoil(x_N3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and zoom by some pixels, mirror half, blur half, and add noise and a cast of light to (N, 3, H, W)."""
    n, _, high, _ = x_N3HW.shape

    def draw(low: float, top: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (top - low) + low

    theta = torch.zeros(n, 2, 3)
    zoom, mirror = draw(0.94, 1.06), (draw(0, 1) < 0.5).float() * 2 - 1
    theta[:, 0, 0], theta[:, 1, 1] = zoom * mirror, zoom
    theta[:, :, 2] = draw(-0.07, 0.07, 2)
    grid = F.affine_grid(theta, list(x_N3HW.shape), align_corners=False)
    x = F.grid_sample(x_N3HW, grid, padding_mode="border", align_corners=False)
    low = int(torch.randint(high * 2 // 5, high, (), generator=generator))  # one blur a batch, for half of it
    half = x[: n // 2]
    small = F.interpolate(half, (low, low), mode="bilinear", align_corners=False, antialias=True)
    x[: n // 2] = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    gain, lift = draw(0.95, 1.05, 1, 1, 1), draw(-0.04, 0.04, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * draw(0, 0.08, 1, 1, 1)
    return (x * gain + lift + noise).clamp(-1, 1)


def batches(pictures: list[Pictures], settings: WorldNetTraining) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (x (2P, 3, H, W), labels (2P, heads), mood (2P,)), a character's two pictures P apart."""
    rng, generator = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    while True:
        chosen = rng.sample(pictures, settings.pairs)
        picks = [rng.sample(range(len(p.moods)), 2) for p in chosen]
        order = [(p, pick[k]) for k in range(2) for p, pick in zip(chosen, picks, strict=True)]
        x = torch.stack([p.frames_N3HW[i] for p, i in order]).float().div(127.5).sub(1)
        mix = torch.randperm(len(order), generator=generator)  # `spoil` blurs the first half
        spoilt = torch.empty_like(x)
        spoilt[mix] = spoil(x[mix], generator)
        yield spoilt, torch.tensor([p.labels for p, _ in order]), torch.tensor([p.moods[i] for p, i in order])


def loss_of(net: WorldNet, batch: tuple[Tensor, Tensor, Tensor], settings: WorldNetTraining) -> tuple[Tensor, ...]:
    """Heads' mean cross-entropy, mood's, and the embedding's (which of the batch is the same character)."""
    x, labels, mood = batch
    with torch.autocast("cpu", torch.bfloat16):  # half the time
        features = net(x.contiguous(memory_format=torch.channels_last))
    features = features.float()
    logits = net.logits(F.dropout(features, settings.dropout))
    seen = torch.stack([F.cross_entropy(logits[name], labels[:, i]) for i, name in enumerate(HEADS)]).mean()
    feeling = F.cross_entropy(logits[MOOD], mood, ignore_index=-1)
    first, second = net.embed(features).chunk(2)
    alike = first @ second.T / settings.temperature
    same = torch.arange(len(alike))
    return seen, feeling, (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2


def train_worldnet(data: Path, out: Path, minutes: float, settings: WorldNetTraining | None = None) -> WorldNet:
    """Train on the clips in `data` and write the net to `out`."""
    settings = settings or WorldNetTraining(minutes=minutes)
    begin = time.process_time()
    end = begin + 60 * settings.minutes
    torch.manual_seed(settings.seed)
    config = WorldNetConfig(heads=heads())
    net = WorldNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = read_clips(data, config, settings, held_out=False)
    pictures = [replace(p, moods=(-1,) * len(p.moods)) for p in pictures]  # one a character: learnt by heart
    log.info("%d characters read after %.0f s", len(pictures), time.process_time() - begin)
    drawn = draw_characters(config, settings, begin + 60 * minutes * settings.drawing)
    log.info("%d characters drawn after %.0f s", len(drawn), time.process_time() - begin)
    pictures += drawn
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=0.05)
    start, curve = time.process_time(), []
    net.train()
    for step, batch in enumerate(batches(pictures, settings)):
        share = (time.process_time() - start) / max(1e-3, end - start)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 50, (1 - share) / 0.7)  # falls over the last 70 %
        seen, feeling, same = loss_of(net, batch, settings)
        optimiser.zero_grad(set_to_none=True)
        (seen + 0.3 * feeling + settings.contrast * same).backward()
        optimiser.step()
        if step % 50 == 0:
            curve.append([step, round(seen.item(), 3), round(feeling.item(), 3), round(same.item(), 3)])
            log.info("step %d, %.0f %%: attributes %.3f, mood %.3f, same %.3f", step, 100 * share, *curve[-1][1:])
    net.eval()
    save_component(net, config, out, torch.int8)
    facts = {"steps": step, "characters": len(pictures), "drawn": len(drawn), "minutes": minutes, "curve": curve}
    (out / "training.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return net


@torch.no_grad()
def held_out_figures(net: WorldNet, pictures: list[Pictures]) -> dict[str, object]:
    """How right the net is about characters that it was not trained on: share of frames by head, share of clips by
    mean logit for the mood, and cosines of the embedding between frames of one character and of two."""
    right = dict.fromkeys((*HEADS, MOOD), 0.0)
    clips, means, within = 0.0, [], []
    for p in pictures:
        features = net.features(p.frames_N3HW)
        logits = net.logits(features)
        for i, name in enumerate(HEADS):
            right[name] += (logits[name].argmax(-1) == p.labels[i]).float().mean().item() / len(pictures)
        right[MOOD] += (logits[MOOD].argmax(-1) == p.moods[0]).float().mean().item() / len(pictures)
        clips += float(logits[MOOD].mean(0).argmax() == p.moods[0]) / len(pictures)
        points = net.embed(features)
        within.append((points @ points[0])[1:].mean().item())
        means.append(points[0])
    between = torch.stack(means) @ torch.stack(means).T
    others = between[~torch.eye(len(means), dtype=torch.bool)]
    return {
        "clips": len(pictures),
        "frames": {name: round(share, 3) for name, share in right.items()},
        "mood_of_clips": round(clips, 3),
        "same_cosine": round(sum(within) / len(within), 3), "same_cosine_lowest": round(min(within), 3),
        "other_cosine": round(others.mean().item(), 3), "other_cosine_highest": round(others.max().item(), 3),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m streamchar.train.worldnet", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `streamchar world --clips-raw`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--minutes", type=float, default=9.0, help="processor time")
    parser.add_argument("--held-out", type=Path, help="folder of held-out clips, for figures.json")
    given = parser.parse_args()
    if not given.data.is_dir():
        raise InputError(f"there is no folder {given.data}; write one with: streamchar world --clips-raw {given.data}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    net = train_worldnet(given.data, given.out, given.minutes)
    if given.held_out is not None:
        settings = WorldNetTraining(minutes=given.minutes, moments=12)
        found = held_out_figures(net, read_clips(given.held_out, net.config, settings, held_out=True))
        (given.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
