"""Training of the nets that read directions from pictures (`eval/directions.py`), on the cartoon world alone.

    python -m streamchar.train.directions --out DIR --minutes 12

Everything is drawn and planned here, nothing is read. Clips' motion is planned by the thousand, for that costs
little; of it moments are drawn, of many characters, and the reader learns the pose that was planned. Then the reader
reads drawn clips of further characters: how it errs there is laid over the thousands of planned courses, from which
the judge learns. So the judge has heard far more performances than were ever drawn. Shape letters as in the nets.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from streamchar.clock import VIDEO_FPS
from streamchar.codecs.component import save_component
from streamchar.errors import InputError
from streamchar.eval.directions import FIELDS, MOST_SECONDS, Directions, DirectionsConfig
from streamchar.types import Speech
from streamchar.world.character import character
from streamchar.world.clips import talk
from streamchar.world.gesture import REST_Y
from streamchar.world.motion import MotionTrack, plan
from streamchar.world.pose import POSES, mirrored, poses
from streamchar.world.prompt import ENERGIES, GESTURES, MOODS, Direction
from streamchar.world.render import draw_frame, render
from streamchar.world.splits import is_held_out_character
from streamchar.world.text import sentences

log = logging.getLogger(__name__)

DRAWN = 160
"""Pixels of drawn pictures: half of it is the face's size, and it costs a fifth of 256."""
FIRST = 60_000_000
"""Numbers of the drawn characters start here: no clips have them."""
ARMS = ("waving", "pointing up", "open hands", "hand on chest")
"""Gestures that are seen only while a hand is up."""
LABELS = {"mood": tuple(MOODS), "gesture": tuple(GESTURES), "energy": tuple(ENERGIES)}


@dataclass(frozen=True, kw_only=True)
class DirectionsTraining:
    """How to train. Minutes are the processor's (the machine may be shared)."""

    minutes: float
    talks: int = 12
    courses: int = 1000
    """Planned performances."""
    kept: int = 120
    """Of them with all that it takes to draw them."""
    seconds: float = 12.0
    """Of a course."""
    drawing: float = 0.2
    """Share of the minutes; planning and the errors' clips come on top."""
    reading: float = 0.5
    """Share of the minutes for the reader; the judge has the rest."""
    moments: int = 14
    """Drawn of a character."""
    batch: int = 48
    rate: float = 3e-3
    clips: int = 30
    """Drawn whole, to see how the reader errs."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Course:
    """A planned performance."""

    track: MotionTrack | None
    """None where it will not be drawn."""
    poses_TP: Tensor
    """At the net's rate, in the world's units."""
    raised_T: Tensor
    """Whether a hand is up."""
    direction: Direction


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures of one character as the net takes them, the still first, in [0, 255]: uint8."""

    whole_N3HW: Tensor
    face_N3HW: Tensor
    poses_NP: Tensor
    """Of all but the still."""


def plan_courses(talks: list[Speech], count: int, settings: DirectionsTraining, rng: random.Random) -> list[Course]:
    """Performances of all directions; half of them begin with the speech, as clips do, the others within it."""
    step, out = VIDEO_FPS // DirectionsConfig.rate, []
    for i in range(count):
        direction = Direction(**{field: rng.choice(labels) for field, labels in LABELS.items()})
        speech, n = rng.choice(talks), round(settings.seconds * VIDEO_FPS)
        begin = rng.choice((0.0, rng.uniform(0, max(0.0, speech.seconds - settings.seconds))))
        n = min(n, int((speech.seconds - begin) * VIDEO_FPS))
        track = plan(speech, direction, rng.randrange(2**31), n, offset=-begin)
        phase = rng.randrange(step)
        raised = (track.arms.y < REST_Y - 60).any(1)
        out.append(Course(
            track=track if i < settings.kept else None, poses_TP=poses(track)[phase::step].clone(),
            raised_T=raised[phase::step].clone(), direction=direction,
        ))  # fmt: skip
    return out


def moments_of(tracks: list[MotionTrack], count: int, rng: random.Random) -> MotionTrack:
    """Single frames of several performances, as one track."""
    picked = []
    for _ in range(count):
        track = rng.choice(tracks)
        t = rng.randrange(len(track))
        picked.append(track.slice(t, t + 1))
    return joined(picked)


def joined(parts: list) -> MotionTrack:
    """Tracks one after the other."""
    values = {name: [getattr(p, name) for p in parts] for name in vars(parts[0])}
    return type(parts[0])(**{n: torch.cat(v) if isinstance(v[0], Tensor) else joined(v) for n, v in values.items()})


def training_characters(first: int) -> Iterator[int]:
    """Numbers of the training split from `first` on."""
    return (n for n in range(first, first + 10**7) if not is_held_out_character(n))


def jpeg(frame_3HW: Tensor, quality: int) -> Tensor:
    """A picture through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame_3HW.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


def draw_moments(
    net: Directions, tracks: list[MotionTrack], settings: DirectionsTraining, rng: random.Random, until: float
) -> list[Drawn]:
    """As many characters as time allows: the still and some moments, a third of them through JPEG."""
    out = []
    for number in training_characters(FIRST):
        if time.process_time() >= until:
            return out
        who, track = character(number), moments_of(tracks, settings.moments, rng)
        frames = render(who, track, DRAWN)
        spoilt = [jpeg(f, rng.randint(15, 75)) if rng.random() < 0.33 else f for f in frames]
        seen = net.prepare(torch.stack([draw_frame(who, DRAWN), *spoilt]))
        whole, face = (((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for x in seen)
        out.append(Drawn(whole_N3HW=whole, face_N3HW=face, poses_NP=poses(track)))
    return out


def spoil(pairs_N6HW: Tensor, generator: torch.Generator, least: float) -> Tensor:
    """Spoil the picture of each pair (its still stays as it is): blur half of them as a codec does, by `least` to 1 of
    the size, and add noise and a cast of light."""
    n, _, high, _ = pairs_N6HW.shape

    def draw(low: float, top: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (top - low) + low

    x, rest = pairs_N6HW[:, :3].clone(), pairs_N6HW[:, 3:]
    low = int(high * (least + (1 - least) * float(torch.rand((), generator=generator))))
    half = torch.randperm(n, generator=generator)[: n // 2]
    small = F.interpolate(x[half], (low, low), mode="bilinear", align_corners=False, antialias=True)
    x[half] = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    gain, lift = draw(0.94, 1.06, 1, 1, 1), draw(-0.05, 0.05, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * draw(0, 0.08, 1, 1, 1) * (draw(0, 1, 1, 1, 1) < 0.6)
    return torch.cat([(x * gain + lift + noise).clamp(-1, 1), rest], 1)


def shifted(pairs_N6HW: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Picture and still moved together, by at most `reach` pixels."""
    dx, dy = (int(v) for v in torch.randint(-reach, reach + 1, (2,), generator=generator))
    high, wide = pairs_N6HW.shape[-2:]
    padded = F.pad(pairs_N6HW, (reach,) * 4, mode="replicate")
    return padded[..., reach + dy : reach + dy + high, reach + dx : reach + dx + wide]


def batches(drawn: list[Drawn], settings: DirectionsTraining) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (whole (N, 6, H, W), face (N, 6, H, W), poses (N, P)), half of the batches mirrored."""
    rng, generator = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    while True:
        picks = [(p, rng.randrange(1, len(p.face_N3HW))) for p in rng.choices(drawn, k=settings.batch)]
        target = torch.stack([p.poses_NP[i - 1] for p, i in picks])
        pairs = []
        for name, least, reach in (("whole_N3HW", 0.5, 1), ("face_N3HW", 0.35, 2)):
            both = torch.stack([torch.cat([getattr(p, name)[i], getattr(p, name)[0]]) for p, i in picks])
            pairs.append(spoil(shifted(both.float() / 127.5 - 1, reach, generator), generator, least))
        if rng.random() < 0.5:
            pairs, target = [x.flip(-1) for x in pairs], mirrored(target)
        yield pairs[0], pairs[1], target


def train_reader(net: Directions, drawn: list[Drawn], scale_P: tuple[Tensor, Tensor], settings: DirectionsTraining,
                 until: float) -> list[list[float]]:  # fmt: skip
    """Fit the reader; targets are less `scale`'s mean, over its spread."""
    optimiser = torch.optim.AdamW(net.reader.parameters(), lr=settings.rate, weight_decay=0.05)
    start, curve = time.process_time(), []
    net.reader.train()
    for step, (whole, face, target) in enumerate(batches(drawn, settings)):
        share = (time.process_time() - start) / max(1e-3, until - start)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * min(1.0, (step + 1) / 50, (1 - share) / 0.7)
        with torch.autocast("cpu", torch.bfloat16):  # half the time
            told = net.reader(*(x.contiguous(memory_format=torch.channels_last) for x in (whole, face)))
        loss = F.smooth_l1_loss(told.float(), (target - scale_P[0]) / scale_P[1], beta=0.5)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 50 == 0:
            curve.append([step, round(loss.item(), 4)])
            log.info("reader, step %d, %.0f %%: %.4f", step, 100 * share, loss.item())
    net.reader.eval()
    return curve


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How the reader errs: its reading is `gain` times the truth, and a rest."""

    gain_P: Tensor
    rests: list[Tensor]
    """Of every drawn clip (T, P)."""


def observe(net: Directions, tracks: list[MotionTrack], scale_P: tuple[Tensor, Tensor], settings: DirectionsTraining,
            rng: random.Random) -> Errors:  # fmt: skip
    """Draw stretches of performances by characters that the reader has not seen, spoilt in half of them, and read
    them."""
    generator = torch.Generator().manual_seed(settings.seed)
    told, true = [], []
    step = VIDEO_FPS // net.config.rate
    for i, number in zip(range(settings.clips), training_characters(FIRST + 10**6), strict=False):
        who, track = character(number), rng.choice(tracks)
        n = min(len(track), 80)
        begin = rng.randrange(len(track) - n + 1)
        track = joined([track.slice(t, t + 1) for t in range(begin, begin + n, step)])
        frames, rest = render(who, track, DRAWN), draw_frame(who, DRAWN)
        if i % 2:
            pair = torch.cat([frames, rest.expand_as(frames)], 1).float() / 127.5 - 1
            frames = ((spoil(pair, generator, 0.3)[:, :3] + 1) * 127.5).round().to(torch.uint8)
        told.append(net.read(frames, rest))
        true.append((poses(track) - scale_P[0]) / scale_P[1])
    x, y = torch.cat(true), torch.cat(told)
    gain_P = ((x - x.mean(0)) * (y - y.mean(0))).mean(0) / x.var(0, correction=0)
    return Errors(gain_P=gain_P, rests=[a - gain_P * b for a, b in zip(told, true, strict=True)])


def heard(
    courses: list[Course], scale_P: tuple[Tensor, Tensor], errors: Errors, rng: random.Random, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of stretches as the reader would have told them (B, T, P), and their labels by field. A gesture of the
    arms in which no hand came up is `still`: that is what was done."""
    longest = sorted(len(c.poses_TP) for c in courses)[-max(1, len(courses) // 4)]  # so that a quarter can be picked
    n = round(rng.uniform(*(min(seconds * DirectionsConfig.rate, longest) for seconds in (3.0, MOST_SECONDS))))
    picked = rng.choices([c for c in courses if len(c.poses_TP) >= n], k=count)
    rows, labels = [], {field: [] for field in FIELDS}
    for course in picked:
        begin = rng.randrange(len(course.poses_TP) - n + 1)
        part, up = course.poses_TP[begin : begin + n], int(course.raised_T[begin : begin + n].sum())
        told = ((mirrored(part) if rng.random() < 0.5 else part) - scale_P[0]) / scale_P[1] * errors.gain_P
        rest, done = rng.choice(errors.rests), 0
        rest = rest if rng.random() < 0.5 else rest.flip(0)
        rests = []
        while done < n:  # to and fro, so that the error stays as smooth as it was
            rests.append(rest)
            rest, done = rest.flip(0), done + len(rest)
        rows.append(told + rng.uniform(0.5, 1.3) * torch.cat(rests)[:n])
        gesture = course.direction.gesture
        done_gesture = "still" if gesture in ARMS and up < 4 else gesture
        for field, value in zip(FIELDS, (course.direction.mood, done_gesture, course.direction.energy), strict=True):
            labels[field].append(LABELS[field].index(value))
    return torch.stack(rows), {field: torch.tensor(v) for field, v in labels.items()}


def train_judge(net: Directions, courses: list[Course], scale_P: tuple[Tensor, Tensor], errors: Errors,
                settings: DirectionsTraining, until: float) -> list[list[float]]:  # fmt: skip
    """Fit the judge."""
    rng = random.Random(settings.seed)
    optimiser = torch.optim.AdamW(net.judge.parameters(), lr=2e-3, weight_decay=0.05)
    start, curve, step = time.process_time(), [], 0
    net.judge.train()
    while (share := (time.process_time() - start) / max(1e-3, until - start)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50, (1 - share) / 0.7)
        x, labels = heard(courses, scale_P, errors, rng, settings.batch)
        logits = net.judge(x)
        losses = [F.cross_entropy(logits[f], labels[f], label_smoothing=0.03) for f in FIELDS]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimiser.step()
        if step % 50 == 0:
            curve.append([step, *(round(v.item(), 3) for v in losses)])
            log.info("judge, step %d, %.0f %%: mood %.3f, gesture %.3f, energy %.3f", step, 100 * share, *curve[-1][1:])
        step += 1
    net.judge.eval()
    return curve


def scale_of(courses: list[Course]) -> tuple[Tensor, Tensor]:
    """Mean and spread of every pose value, (P,) each."""
    every = torch.cat([c.poses_TP for c in courses])
    return every.mean(0), every.std(0).clamp(min=1e-3)


def train_directions(out: Path, settings: DirectionsTraining) -> Directions:
    """Train both nets and write them to `out`."""
    torch.manual_seed(settings.seed)
    config = DirectionsConfig(poses=POSES, labels=LABELS)
    net = Directions(config).eval()
    net.reader.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng, began = random.Random(f"directions/{settings.seed}"), time.process_time()
    talks = [
        talk(sentences(settings.seed * 1000 + i, 8, held_out=False), i % 10, rng) for i in range(settings.talks)
    ]  # fmt: skip
    courses = plan_courses(talks, settings.courses, settings, rng)
    scale = scale_of(courses)
    log.info("%d courses planned after %.0f s", len(courses), time.process_time() - began)
    minute = 60 * settings.minutes
    tracks = [c.track for c in courses if c.track is not None]
    drawn = draw_moments(net, tracks, settings, rng, time.process_time() + settings.drawing * minute)
    log.info("%d characters drawn after %.0f s", len(drawn), time.process_time() - began)
    reader = train_reader(net, drawn, scale, settings, time.process_time() + settings.reading * minute)
    errors = observe(net, tracks, scale, settings, rng)
    rests = torch.cat(errors.rests).std(0)
    pairs = zip(POSES, errors.gain_P.tolist(), rests.tolist(), strict=True)
    told = {name: [round(gain, 2), round(rest, 2)] for name, gain, rest in pairs}
    log.info("gain and rest: %s; after %.0f s", told, time.process_time() - began)
    left = max(0.05, 1 - settings.drawing - settings.reading) * minute
    judge = train_judge(net, courses, scale, errors, settings, time.process_time() + left)
    save_component(net, config, out, torch.int8)
    facts = {
        "courses": len(courses), "characters": len(drawn), "minutes": round((time.process_time() - began) / 60, 2),
        "reader": reader, "gain_and_rest": told, "judge": judge,
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return net


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m streamchar.train.directions", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--minutes", type=float, default=12.0, help="processor time, planning apart")
    given = parser.parse_args()
    if given.minutes <= 0:
        raise InputError(f"--minutes must be above 0, got {given.minutes:g}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    train_directions(given.out, DirectionsTraining(minutes=given.minutes))


if __name__ == "__main__":
    main()
