"""How a character moves: every per-frame parameter of a clip from its speech, its direction and a seed.

Planning is O(frames): smooth noise, filtered envelopes and short lists of events (blinks, saccades,
strokes of a gesture). Shape letters: T frames.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.clock import AUDIO_RATE, VIDEO_FPS
from streamchar.errors import InputError
from streamchar.types import Speech
from streamchar.world.gesture import Arms, plan_arms
from streamchar.world.prompt import Direction
from streamchar.world.viseme import MouthTrack, mouth_track


@dataclass(frozen=True, kw_only=True)
class MotionTrack:
    """All parameters of a clip; every tensor is (T,) unless it says otherwise."""

    mouth: MouthTrack
    smile: Tensor
    """[-1, 1]: corners down to up."""
    blink: Tensor
    """[0, 1]: 1 shut."""
    widen: Tensor
    """[-1, 1]: narrowed to widened eyes."""
    gaze_x: Tensor
    gaze_y: Tensor
    """[-1, 1]: to the right, down."""
    brow_raise: Tensor
    brow_tilt: Tensor
    """[-1, 1]: inner ends down (anger) to up (sorrow)."""
    blush: Tensor
    roll: Tensor
    """Radians, clockwise."""
    yaw: Tensor
    pitch: Tensor
    """[-1, 1]: parallax to the right, down."""
    head_x: Tensor
    head_y: Tensor
    """Translation of the head in units."""
    body_x: Tensor
    body_y: Tensor
    body_roll: Tensor
    zoom: Tensor
    """Scale of the whole figure about the picture's bottom: leaning towards the camera."""
    arms: Arms

    def __len__(self) -> int:
        return self.smile.shape[0]

    @property
    def opening(self) -> Tensor:
        """(T,) in [0, 1]: the ground truth of all lip metrics."""
        return self.mouth.opening

    def slice(self, start: int, stop: int) -> MotionTrack:
        """Frames start..stop-1."""
        return _map(self, lambda t: t[start:stop])

    def to(self, device: torch.device | str) -> MotionTrack:
        return _map(self, lambda t: t.to(device))


def _map(value, change):
    parts = {f.name: getattr(value, f.name) for f in fields(value)}
    return replace(value, **{k: change(v) if isinstance(v, Tensor) else _map(v, change) for k, v in parts.items()})


def smooth_noise(n_frames: int, seconds: float, draw: random.Random) -> Tensor:
    """Continuous noise in about [-1, 1] that changes its mind every `seconds` -> (T,)."""
    step = seconds * VIDEO_FPS
    count = int(n_frames / step) + 4
    keys = torch.tensor([draw.uniform(-1, 1) for _ in range(count)], dtype=torch.float64)
    at = torch.arange(n_frames, dtype=torch.float64) / step
    i = at.long()
    u = at - i
    u = u * u * u * (u * (6 * u - 15) + 10)
    return (keys[i] * (1 - u) + keys[i + 1] * u).float()


def lowpass(values_T: Tensor, frames: float) -> Tensor:
    """Gaussian smoothing with a sigma in frames, edges held -> (T,)."""
    radius = max(1, math.ceil(2.5 * frames))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / frames) ** 2)
    padded = F.pad(values_T.view(1, 1, -1), (radius, radius), mode="replicate")
    return F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1)).view(-1)


def _envelope(speech: Speech, n_frames: int, offset: float) -> Tensor:
    """Loudness per frame relative to the utterance's loud parts -> (T,) in [0, 1]."""
    hop = AUDIO_RATE // VIDEO_FPS
    count = speech.samples.shape[-1] // hop
    out = torch.zeros(n_frames)
    if count == 0:
        return out
    loud = speech.samples[: count * hop].float().view(count, hop).square().mean(1).sqrt()
    loud = (loud / (loud.quantile(0.9) if count < 10_000 else loud.sort().values[int(0.9 * count)]).clamp(min=1e-4)).clamp(max=1)
    return _placed(loud, out, offset)


def _placed(values: Tensor, out: Tensor, offset: float) -> Tensor:
    """Values of the speech's own frames laid into the clip's, `offset` seconds in."""
    shift = round(offset * VIDEO_FPS)
    first, last = max(shift, 0), min(shift + len(values), len(out))
    if last > first:
        out[first:last] = values[first - shift : last - shift]
    return out


def _melody(speech: Speech, n_frames: int, offset: float) -> Tensor:
    """Pitch per frame in half octaves around the speaker's mean, 0 where unvoiced -> (T,) in [-1, 1]."""
    pitch = speech.pitch.float()
    count = pitch.shape[0] // 4  # 96 Hz -> 24 Hz
    out = torch.zeros(n_frames)
    voiced = pitch > 30
    if count == 0 or not bool(voiced.any()):
        return out
    log = torch.where(voiced, pitch.clamp(min=30).log2(), torch.zeros_like(pitch))
    mean = log.sum() / voiced.sum()
    rise = torch.where(voiced, (log - mean) * 2, torch.zeros_like(log))
    return _placed(rise[: count * 4].view(count, 4).mean(1).clamp(-1, 1), out, offset)


def stressed_times(speech: Speech, offset: float) -> list[float]:
    """When the stressed words are spoken (the start of their stressed syllable), in clip seconds."""
    times, previous = [], -1.0
    for p in speech.phonemes:
        if "ˈ" in p.symbol and p.start + offset - previous > 0.28:
            times.append(p.start + offset)
            previous = p.start + offset
    if not times:
        times = [w.start + offset for w in speech.words[::2]]
    return times


def _blinks(n_frames: int, draw: random.Random, rate: float) -> Tensor:
    """Blinks of 5-7 frames, 2-6 s apart, now and then doubled -> (T,) in [0, 1]."""
    out = torch.zeros(n_frames)
    shapes = ((0.45, 1.0, 0.85, 0.5, 0.15), (0.4, 1.0, 1.0, 0.65, 0.35, 0.1), (0.3, 0.8, 1.0, 0.9, 0.6, 0.3, 0.1))
    at = draw.uniform(0.4, 3.0) * VIDEO_FPS
    while at < n_frames:
        shape = torch.tensor(draw.choice(shapes))
        i = int(at)
        part = out[i : i + len(shape)]
        part.copy_(torch.maximum(part, shape[: len(part)]))
        gap = 8 / VIDEO_FPS if draw.random() < 0.14 else draw.uniform(2.0, 6.0) / rate
        at += gap * VIDEO_FPS
    return out


def _saccades(n_frames: int, draw: random.Random, wander: float, home: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Gaze that rests, mostly on the viewer, and jumps within two frames -> two (T,) in [-1, 1]."""
    x, y = torch.zeros(n_frames), torch.zeros(n_frames)
    i = 0
    while i < n_frames:
        hold = int(draw.uniform(0.5, 2.4) * VIDEO_FPS)
        away = draw.random() < wander
        x[i : i + hold] = home[0] + (draw.choice((-1, 1)) * draw.uniform(0.45, 0.95) if away else draw.uniform(-0.1, 0.1))
        y[i : i + hold] = home[1] + (draw.uniform(-0.5, 0.35) if away else draw.uniform(-0.08, 0.08))
        i += hold
    return lowpass(x, 0.6).clamp(-1, 1), lowpass(y, 0.6).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class _Temper:
    """What a mood does to the resting face."""

    smile: float = 0.15
    widen: float = 0.0
    brow_raise: float = 0.0
    brow_tilt: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    wander: float = 0.25
    drive: float = 1.0
    blush: float = 0.0


TEMPERS: dict[str, _Temper] = {
    "calm": _Temper(smile=0.38),
    "happy": _Temper(smile=0.95, widen=-0.12, brow_raise=0.25, drive=1.15, blush=0.35),
    "sad": _Temper(smile=-0.8, widen=-0.35, brow_raise=0.1, brow_tilt=0.9, pitch=0.4, gaze=(0.0, 0.4), drive=0.6),
    "angry": _Temper(smile=-0.6, widen=-0.3, brow_raise=-0.55, brow_tilt=-1.0, pitch=0.15, wander=0.08, drive=1.3),
    "surprised": _Temper(smile=0.0, widen=0.9, brow_raise=1.0, pitch=-0.25, wander=0.1, drive=1.1),
    "excited": _Temper(smile=1.0, widen=0.5, brow_raise=0.7, pitch=-0.1, drive=1.5, blush=0.5),
    "shy": _Temper(smile=0.35, widen=-0.1, brow_raise=0.15, brow_tilt=0.55, pitch=0.45, roll=0.10, gaze=(0.45, 0.35), wander=0.45, drive=0.6, blush=1.0),
    "serious": _Temper(smile=-0.18, widen=-0.08, brow_raise=-0.3, brow_tilt=-0.35, wander=0.08, drive=0.7),
}  # fmt: skip
DRIVES = {"low": 0.5, "medium": 1.0, "high": 1.7}
ARTICULATION = {"low": 0.98, "medium": 1.18, "high": 1.35}


def _beats(times: list[float], n_frames: int, width: float = 2.6) -> Tensor:
    """A bump on each stressed word -> (T,) in about [0, 1]."""
    pulses = torch.zeros(n_frames)
    for t in times:
        i = round(t * VIDEO_FPS)
        if 0 <= i < n_frames:
            pulses[i] = 1.0
    return (lowpass(pulses, width) * width * 2.5).clamp(max=1)


def _head_turns(
    gesture: str, talking_T: Tensor, start: float, drive: float, draw: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """What a head gesture adds: yaw, pitch and zoom -> three (T,). It swings from `start` on, the first stressed word."""
    n = talking_T.shape[0]
    phase = torch.arange(n) / VIDEO_FPS - start
    zero = torch.zeros(n)
    pace = 0.75 + 0.35 * drive
    bouts = (0.75 + 0.5 * smooth_noise(n, 1.6, draw)).clamp(0.3, 1) * (0.4 + 0.6 * talking_T)
    if gesture == "nodding":
        return zero, bouts * (0.7 + 0.3 * drive) * torch.sin(2 * math.pi * 1.35 * pace * phase), zero
    if gesture == "shaking head":
        return bouts * (0.75 + 0.3 * drive) * torch.sin(2 * math.pi * 1.05 * pace * phase), zero, zero
    if gesture == "leaning":
        sway = 0.5 - 0.5 * torch.cos(2 * math.pi * 0.22 * pace * phase)
        return zero, zero, (0.03 + 0.09 * sway) * (0.7 + 0.3 * drive)
    return zero, zero, zero


def plan(speech: Speech, direction: Direction, seed: int, n_frames: int, *, offset: float = 0.0) -> MotionTrack:
    """All motion of a clip of `n_frames` in which the speech starts `offset` seconds in.

    `seed` is the performance's (mix in the character's for a personal style). Raises InputError for
    fewer than one frame, DataError for unknown phonemes.
    """
    if n_frames < 1:
        raise InputError(f"a clip needs at least 1 frame, got n_frames={n_frames}")
    draw = random.Random(f"streamchar/motion/{int(seed)}")
    mood, drive = TEMPERS[direction.mood], DRIVES[direction.energy]
    mouth = mouth_track(speech, n_frames, offset=offset, strength=ARTICULATION[direction.energy])
    loud = lowpass(_envelope(speech, n_frames, offset), 2.0)
    talking = lowpass((loud > 0.08).float(), 5.0)
    melody = lowpass(_melody(speech, n_frames, offset), 2.2)
    times = stressed_times(speech, offset)
    beat = _beats(times, n_frames)
    force = drive * mood.drive
    life = 0.35 + 0.65 * talking * force  # in silence a character still breathes and shifts
    yaw_add, pitch_add, lean = _head_turns(direction.gesture, talking, times[0] if times else 0.0, drive, draw)
    breath = torch.sin(2 * math.pi * torch.arange(n_frames) / VIDEO_FPS / draw.uniform(3.2, 4.4) + draw.uniform(0, 6))
    sway = smooth_noise(n_frames, 2.6, draw)
    yaw = (0.38 * life * smooth_noise(n_frames, 1.1, draw) + yaw_add).clamp(-1, 1)
    pitch = (mood.pitch - 0.22 * force * melody + 0.4 * force * beat * talking + 0.16 * life * smooth_noise(n_frames, 0.8, draw) + pitch_add).clamp(-1, 1)
    gaze_x, gaze_y = _saccades(n_frames, draw, mood.wander, mood.gaze)
    flash = beat * talking * force
    return MotionTrack(
        mouth=mouth,
        smile=(mood.smile * (1 - 0.25 * mouth.opening) + 0.08 * smooth_noise(n_frames, 1.7, draw)).clamp(-1, 1),
        blink=_blinks(n_frames, draw, 1.3 if direction.mood in ("shy", "sad") else 1.0),
        widen=(mood.widen + 0.2 * flash + 0.06 * smooth_noise(n_frames, 1.5, draw)).clamp(-1, 1),
        gaze_x=(gaze_x - 0.35 * yaw).clamp(-1, 1), gaze_y=(gaze_y - 0.2 * (pitch - mood.pitch)).clamp(-1, 1),
        brow_raise=(mood.brow_raise + 0.35 * flash + 0.25 * force * melody + 0.08 * smooth_noise(n_frames, 1.3, draw)).clamp(-1.2, 1.4),
        brow_tilt=(mood.brow_tilt + 0.05 * smooth_noise(n_frames, 1.9, draw)).clamp(-1, 1),
        blush=torch.full((n_frames,), mood.blush),
        roll=mood.roll + 0.055 * life * smooth_noise(n_frames, 1.4, draw) + 0.02 * sway,
        yaw=yaw, pitch=pitch,
        head_x=2.4 * life * smooth_noise(n_frames, 1.5, draw) + 2.0 * yaw + 1.5 * sway,
        head_y=-0.7 * breath + 2.4 * pitch + 1.6 * pitch_add + (2.0 if direction.mood == "sad" else 0.0),
        body_x=1.8 * sway * life, body_y=-1.0 * breath - 1.6 * force * talking * beat + (2.5 if direction.mood == "sad" else 0.0),
        body_roll=0.012 * sway * life,
        zoom=1 + lean + 0.006 * force * talking * smooth_noise(n_frames, 2.0, draw),
        arms=plan_arms(direction.gesture, times, n_frames, drive, draw),
    )  # fmt: skip


def neutral(n_frames: int = 1) -> MotionTrack:
    """The reference pose: mouth closed, eyes open, facing the viewer, arms out of the picture."""
    zero = torch.zeros(n_frames)
    mouth = MouthTrack(opening=zero, width=zero, round=zero, teeth=zero, tongue=zero, press=zero)
    rest = {f.name: zero for f in fields(MotionTrack)}
    rest.update(mouth=mouth, smile=zero + 0.4, zoom=zero + 1, arms=Arms.down(n_frames))  # type: ignore[typeddict-item]
    return MotionTrack(**rest)  # type: ignore[arg-type]
