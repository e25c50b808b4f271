"""Training of the cartoon world's SyncNet (`eval/syncnet.py`): does this mouth say this sound, now?

    python -m streamchar.train.syncnet --out DIR --minutes N [--data DIR]

Clips of two chunks, three of each character, are drawn once to `--data`: the mouth with a rim around it, and the MFCC
of the sound, clean and damaged. Half of the clips have been through h264. A step takes a few clips; each window's sound
is to be found by its pictures among all windows of the step, the same clip's at other times included, and the reverse
(InfoNCE). Pictures are shifted, blurred, mirrored, made noisy, brighter or paler first, because the network will judge
generated frames. The same seed and steps give the same weights on the same machine; `--minutes` may end them early.

Shape letters: B clips, T pictures, H height, W width, S samples, C coefficients, M MFCC frames, N windows, D width.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar import clock
from streamchar.codecs.component import save_component
from streamchar.errors import ConfigError, DataError
from streamchar.eval.sync import REACH, lip_distances, score
from streamchar.eval.syncnet import (
    FPS,
    PER_PICTURE,
    RATE,
    SOUND_WINDOW,
    TOON_HALF,
    TOON_SIZE,
    WINDOW,
    ToonSyncNet,
    ToonSyncNetConfig,
    mfcc,
    toon_crop,
)
from streamchar.world.character import Character
from streamchar.world.clips import make_clip, pick_character
from streamchar.world.text import sentences

log = logging.getLogger(__name__)

CHUNKS = 2
RIM = 8
"""Pixels kept around the crop on each side: the room for training's shifts."""
DRAWN = (TOON_SIZE[0] + 2 * RIM, TOON_SIZE[1] + 2 * RIM)
PICTURES = int(CHUNKS * clock.CHUNK_SECONDS * FPS)
"""Of a clip, at 25 fps: 68."""
VARIANTS = 3
"""Soundtracks of a clip: clean, and two damaged ones."""
FIRST = 7_000_000
"""Clips of training start here, far from the seeds that measuring takes."""
SIDE = 192
"""Pictures are drawn at this size: a pixel of the crop is then a pixel of the picture."""
EACH = 3
"""Clips of a character, with other words: preparing a character to be drawn takes longer than drawing two chunks."""
SENTENCES = 3
"""Of a clip, from which two chunks are taken."""


# ---- data -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SyncClips:
    """Mouths and sounds of many clips."""

    pictures_BT3HW: np.ndarray
    """uint8 at 25 fps, with the rim."""
    sounds_BVCM: np.ndarray
    """MFCC of each variant, float32."""

    def __len__(self) -> int:
        return len(self.pictures_BT3HW)


def draw_clips(folder: Path, count: int, *, held_out: bool, seed: int = 0) -> None:
    """Draw `count` clips of two chunks, three of each character, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "part-pictures.npy"
    pictures = np.lib.format.open_memmap(part, "w+", np.uint8, (count, PICTURES, 3, *DRAWN))
    sounds = []
    for index in range(count):
        who = pick_character(FIRST + seed + 101 * (index // EACH), held_out=held_out)
        pictures[index], sound = _draw_clip(FIRST + seed + index, who, held_out)
        sounds.append(sound)
        if index % 50 == 49:
            log.info("drawn %d of %d clips", index + 1, count)
    np.save(folder / "sounds.npy", np.stack(sounds))
    del pictures
    part.replace(folder / "pictures.npy")  # last: the set is whole or absent


def _draw_clip(number: int, who: Character, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    clip = make_clip(number, " ".join(sentences(number, SENTENCES, held_out=held_out)), who=who, held_out=held_out)
    draw = np.random.default_rng(number)
    first = int(draw.integers(max(1, clip.chunks - CHUNKS + 1))) * clock.FRAMES_PER_CHUNK
    if clip.chunks < CHUNKS:
        raise DataError(f"expected clips of at least {CHUNKS} chunks, clip {number} has {clip.chunks}")
    frames = clip.frames(first, first + CHUNKS * clock.FRAMES_PER_CHUNK, size=SIDE)
    rim = (1 + 2 * RIM / TOON_SIZE[0], 1 + 2 * RIM / TOON_SIZE[1])
    wide = toon_crop(frames, clip.character, size=DRAWN, half=(TOON_HALF[0] * rim[0], TOON_HALF[1] * rim[1]))
    if draw.random() < 0.5:
        wide = through_h264(wide, int(draw.integers(20, 36)))
    begin = first * clock.AUDIO_STRIDE
    samples = clip.speech.samples[begin : begin + CHUNKS * clock.SAMPLES_PER_CHUNK].numpy()
    sound = soxr.resample(samples, clock.AUDIO_RATE, RATE).astype(np.float32)
    variants = [sound, *(damaged(sound, draw) for _ in range(VARIANTS - 1))]
    length = PICTURES * PER_PICTURE - 1  # the last MFCC frame that lies within the pictures
    return wide[ticks()].numpy(), np.stack([mfcc(torch.from_numpy(v))[:, :length].numpy() for v in variants])


def ticks() -> list[int]:
    """Which of a clip's pictures at 24 fps is seen at each tick of 25 fps: the nearest, as `Sample.frames` takes it."""
    return [math.floor(Fraction(n * clock.VIDEO_FPS, FPS) + Fraction(1, 2)) for n in range(PICTURES)]


def through_h264(frames_T3HW: Tensor, crf: int) -> Tensor:
    """What is left of frames after h264 at this quality."""
    _, _, high, wide = frames_T3HW.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=clock.VIDEO_FPS, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames_T3HW.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def damaged(sound_S: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Another loudness and tone, less treble perhaps, and noise 10 to 35 dB below."""
    spectrum = np.fft.rfft(sound_S)
    hertz = np.fft.rfftfreq(len(sound_S), 1 / RATE)
    tilt = draw.uniform(-6, 6) * np.log2(np.maximum(hertz, 100) / 1000) / 3
    cut = draw.choice([np.inf, draw.uniform(3000, 7000)])
    changed = np.fft.irfft(spectrum * 10 ** (tilt / 20) / (1 + (hertz / cut) ** 8), len(sound_S))
    level = np.sqrt(np.mean(changed**2)) * 10 ** (-draw.uniform(10, 35) / 20)
    out = (changed + level * draw.standard_normal(len(sound_S))) * 10 ** (draw.uniform(-12, 3) / 20)
    return np.clip(out, -1, 1).astype(np.float32)


def read_clips(folder: Path) -> SyncClips:
    """What `draw_clips` wrote; the pictures stay on disk."""
    try:
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        return SyncClips(pictures, np.load(folder / "sounds.npy"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read clips of {folder} ({error}); delete it, and they are drawn again") from None


# ---- pictures as generated ones look ----------------------------------------------------------


def roughened(wide_BT3HW: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 with the rim -> (B, T, 3, 48, 64) in [0, 1], each clip its own way, and alike for all of its pictures."""
    return torch.stack([_rough(clip, generator) for clip in wide_BT3HW])


def _rough(wide_T3HW: Tensor, generator: torch.Generator) -> Tensor:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    top, left = (int(torch.randint(2 * RIM + 1, (), generator=generator)) for _ in range(2))
    x = wide_T3HW[:, :, top : top + TOON_SIZE[0], left : left + TOON_SIZE[1]].float() / 255
    if draw(0, 1) < 0.5:
        x = x.flip(-1)
    if draw(0, 1) < 0.5:  # less detail: what a video codec's decoder draws
        share = draw(0.35, 0.9)
        small = (max(8, round(TOON_SIZE[0] * share)), max(8, round(TOON_SIZE[1] * share)))
        low = F.interpolate(x, small, mode="bilinear", antialias=True)
        x = F.interpolate(low, TOON_SIZE, mode="bilinear", align_corners=False)
    tone = torch.tensor([draw(0.9, 1.1) for _ in range(3)]).view(3, 1, 1)
    x = (x - 0.5) * draw(0.75, 1.2) + 0.5 + draw(-0.12, 0.12)
    return (x * tone + draw(0, 0.06) * torch.randn(x.shape, generator=generator)).clamp(0, 1)


# ---- training ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SyncTraining:
    """Settings of a run; one that ends by `minutes` depends on the machine's speed."""

    minutes: float = 12.0
    """Of processor time, at most."""
    steps: int = 2400
    batch: int = 16
    """Clips of a step."""
    pictures: int = 40
    """Of each clip; 36 windows."""
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not WINDOW <= self.pictures <= PICTURES:
            raise ConfigError(f"pictures of a step must be {WINDOW} to {PICTURES}, got {self.pictures}")


def contrast(pictures_BND: Tensor, sounds_BND: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE both ways over all windows of a step, of vectors of length 1: squared distance is 2 - 2 cosines."""
    logits = scale * pictures_BND.flatten(0, 1) @ sounds_BND.flatten(0, 1).T
    truth = torch.arange(len(logits))
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def _batch(clips: SyncClips, training: SyncTraining, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    pictures, sounds = [], []
    for index in torch.randperm(len(clips), generator=generator)[: training.batch].tolist():
        room = PICTURES - training.pictures + 1
        begin, variant = (int(torch.randint(end, (), generator=generator)) for end in (room, VARIANTS))
        pictures.append(torch.from_numpy(np.array(clips.pictures_BT3HW[index, begin : begin + training.pictures])))
        length = (training.pictures - WINDOW) * PER_PICTURE + SOUND_WINDOW
        whole = torch.from_numpy(clips.sounds_BVCM[index, variant])
        whole = F.pad(whole[None], (0, 1), mode="replicate")[0]  # the one MFCC frame that ends behind the last picture
        sounds.append(whole[:, begin * PER_PICTURE : begin * PER_PICTURE + length])
    return roughened(torch.stack(pictures), generator), torch.stack(sounds)


def train_syncnet(clips: SyncClips, training: SyncTraining, config: ToonSyncNetConfig | None = None) -> ToonSyncNet:
    """Train on `clips`; returns the network in evaluation mode."""
    torch.manual_seed(training.seed)
    generator = torch.Generator().manual_seed(training.seed)
    model = ToonSyncNet(config or ToonSyncNetConfig()).train()
    sharpness = nn.Parameter(torch.tensor(math.log(10.0)))
    parameters = [*model.parameters(), sharpness]
    optimiser = torch.optim.AdamW(parameters, lr=training.rate, weight_decay=0.02)
    begun, mean, warm = time.process_time(), 0.0, min(100, 1 + training.steps // 10)
    for step in range(training.steps):
        spent = (time.process_time() - begun) / (60 * training.minutes)
        if spent >= 1:
            break
        progress = max(step / training.steps, spent)
        for group in optimiser.param_groups:
            group["lr"] = (
                training.rate * min(1, (step + 1) / warm) * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
            )
        pictures, sounds = _batch(clips, training, generator)
        scale = sharpness.clamp(max=math.log(40.0)).exp()
        loss = contrast(model.embed_pictures(pictures), model.embed_sounds(sounds), scale)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 0:
            log.info("step=%d loss=%.4f scale=%.1f minutes=%.1f", step, mean, scale.item(), spent * training.minutes)
    log.info("ended after %d steps, loss %.4f", step + 1, mean)
    return model.eval()


@torch.no_grad()
def validate(model: ToonSyncNet, clips: SyncClips, *, rough: bool = False) -> dict[str, float]:
    """Sync-C, Sync-D and offset over `clips` (2.7 s each), with their own sound and with the next clip's."""
    generator = torch.Generator().manual_seed(1)
    own, other = [], []
    for index in range(len(clips)):
        wide = torch.from_numpy(np.array(clips.pictures_BT3HW[index]))[None]
        inner = wide[..., RIM : RIM + TOON_SIZE[0], RIM : RIM + TOON_SIZE[1]].float() / 255
        shown = model.embed_pictures(roughened(wide, generator) if rough else inner)[0]
        for found, which in ((own, index), (other, (index + 1) % len(clips))):
            heard = torch.from_numpy(clips.sounds_BVCM[which, int(rough)])
            windows = len(shown) - 1
            found.append(score(lip_distances(shown[:windows], model.sounds(heard, windows))))
    offsets = torch.tensor([float(s.offset_frames) for s in own])
    return {
        "clips": len(clips), "sync_c": _mean(own, "confidence"), "sync_d": _mean(own, "distance"),
        "within_1": float((offsets.abs() <= 1).float().mean()), "exact": float((offsets == 0).float().mean()),
        "sync_c_other": _mean(other, "confidence"), "sync_d_other": _mean(other, "distance"), "reach": REACH,
    }  # fmt: skip


def _mean(scores: list, name: str) -> float:
    return sum(getattr(s, name) for s in scores) / len(scores)


def main(arguments: list[str] | None = None) -> None:
    """Draw what is missing, train, validate on held-out characters and sentences, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--data", type=Path, help="folder of drawn clips (default: OUT/data)")
    parser.add_argument("--minutes", type=float, default=12.0, help="of processor time for training, at most")
    parser.add_argument("--steps", type=int, default=SyncTraining.steps)
    parser.add_argument("--clips", type=int, default=360, help="to draw for training, if --data is empty")
    parser.add_argument("--held-out", type=int, default=48, help="to draw for validation")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data = given.data or given.out / "data"
    for name, count, held_out in (("train", given.clips, False), ("held_out", given.held_out, True)):
        if not (data / name / "pictures.npy").exists():
            draw_clips(data / name, count, held_out=held_out)
    training = SyncTraining(minutes=given.minutes, steps=given.steps, seed=given.seed)
    model = train_syncnet(read_clips(data / "train"), training)
    save_component(model, model.config, given.out, torch.int8)
    held_out = read_clips(data / "held_out")
    for name, rough in (("clean", False), ("rough", True)):
        log.info("held out, %s: %s", name, json.dumps(validate(model, held_out, rough=rough)))


if __name__ == "__main__":
    main()
