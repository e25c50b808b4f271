"""Two networks that judge lips by the method of SyncNet, and what they are shown.

`PublicSyncNet` is the network of the published `syncnet_v2.model` (its state names, so that a user's file loads);
`ToonSyncNet` is a small one of ours for the cartoon world (`train/syncnet.py`). Both embed 0.2 s: five pictures at
25 fps and twenty MFCC frames at 100 Hz. Their distances are on different scales and never compared.

Source: Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016, and its public evaluation code.

Shape letters: T pictures, H height, W width, S samples, M MFCC frames, C coefficients, N windows, D width.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamchar.codecs.component import load_component
from streamchar.errors import CheckpointError, ConfigError
from streamchar.eval.metric import ImpossibleError
from streamchar.eval.sample import Sample
from streamchar.world.character import Character
from streamchar.world.motion import neutral
from streamchar.world.render import mouth_box

FPS = 25
RATE = 16_000
WINDOW = 5
"""Pictures of a window: 0.2 s."""
PER_PICTURE = 4
"""MFCC frames of a picture: 100 Hz against 25 fps."""
SOUND_WINDOW = WINDOW * PER_PICTURE
SAMPLES_PER_PICTURE = RATE // FPS

COEFFICIENTS, FILTERS, POINTS = 13, 26, 512
FRAME, STEP = 400, 160
"""Samples of an MFCC frame (25 ms, no window function) and between two (10 ms)."""
PREEMPHASIS, LIFTER = 0.97, 22
TINY = torch.finfo(torch.float64).eps

TOON_SIZE = (48, 64)
"""Height and width of the crop that `ToonSyncNet` sees."""
TOON_HALF = (33 / 256, 44 / 256)
"""Half its height and width in shares of the picture, about the middle of the resting mouth: 17 pixels of 256 more
than the mouth above and below, 20 at the sides. 98 % of the world's heads move less than 12."""
TOON_FOLDER = Path(__file__).parent.parent / "assets" / "syncnet_toon"


# ---- sound ------------------------------------------------------------------------------------


def mel_filters() -> Tensor:
    """(26, 257) triangles between 0 and 8 kHz, their corners on whole FFT bins."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    mels = torch.linspace(0, top, FILTERS + 2, dtype=torch.float64)
    corners = ((POINTS + 1) * 700 * (10 ** (mels / 2595) - 1) / RATE).floor()
    bins = torch.arange(POINTS // 2 + 1, dtype=torch.float64)
    low, peak, high = (corners[i : FILTERS + i, None] for i in range(3))
    rising, falling = (bins - low) / (peak - low), (high - bins) / (high - peak)
    shape = torch.where(bins < peak, rising, falling)
    return torch.where((bins >= low) & (bins < high), shape, torch.zeros((), dtype=torch.float64))


def cosines() -> Tensor:
    """(13, 26) orthonormal type-II cosine transform, each row lifted by 1 + 11 sin(pi n / 22)."""
    n = torch.arange(COEFFICIENTS, dtype=torch.float64)[:, None]
    k = torch.arange(FILTERS, dtype=torch.float64)
    rows = math.sqrt(2 / FILTERS) * torch.cos(math.pi * n * (2 * k + 1) / (2 * FILTERS))
    rows[0] /= math.sqrt(2)
    return rows * (1 + LIFTER / 2 * torch.sin(math.pi * n / LIFTER))


def mfcc(samples_S: Tensor) -> Tensor:
    """(S,) sound at 16 kHz in [-1, 1] -> (13, M) float32 MFCC, the first one the log energy.

    Counted as 16-bit integers, which the published weights expect. Agrees with `python_speech_features.mfcc`.
    """
    if samples_S.ndim != 1 or samples_S.shape[0] == 0:
        raise ConfigError(f"expected mono sound of at least one sample, (S,), got {tuple(samples_S.shape)}")
    x = (samples_S.double() * 32768).round().clamp(-32768, 32767)
    x = torch.cat([x[:1], x[1:] - PREEMPHASIS * x[:-1]])
    frames = 1 + max(0, -(-(x.shape[0] - FRAME) // STEP))
    x = F.pad(x, (0, (frames - 1) * STEP + FRAME - x.shape[0]))
    power = torch.fft.rfft(x.unfold(0, FRAME, STEP), POINTS).abs().square() / POINTS
    energy = power.sum(1).clamp(min=TINY)
    bands = (power @ mel_filters().T).clamp(min=TINY)
    out = bands.log() @ cosines().T
    out[:, 0] = energy.log()
    return out.T.float()


# ---- networks ---------------------------------------------------------------------------------


class SyncModel(Protocol):
    """What embeds windows of a clip: one every picture, side by side in time."""

    version: str

    def pictures(self, crops_T3HW: Tensor) -> Tensor:
        """uint8 crops -> (T - 4, D)."""
        ...

    def sounds(self, mfcc_CM: Tensor, windows: int) -> Tensor:
        """(13, M) -> (windows, D)."""
        ...


@dataclass(frozen=True)
class _Stage:
    """A convolution with batch norm and ReLU, and what pools after it."""

    out: int
    kernel: tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    pool: nn.Module | None = None


def _stack(channels: int, stages: list[_Stage], conv: type[nn.Module], norm: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in stages:
        layers += [conv(channels, stage.out, stage.kernel, stage.stride, stage.padding), norm(stage.out), nn.ReLU()]
        layers += [stage.pool] if stage.pool is not None else []
        channels = stage.out
    return nn.Sequential(*layers)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, width))


class PublicSyncNet(nn.Module):
    """The network of `syncnet_v2.model`: 224x224 colour crops and 13x20 MFCC, 1024-d, not normalised."""

    SIZE = (224, 224)
    BATCH = 20
    """Windows at a time: bounds the memory of the first convolution."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        wide, flat = (0, 1, 1), (1, 3, 3)
        lip = [
            _Stage(96, (5, 7, 7), (1, 2, 2), 0, nn.MaxPool3d(flat, (1, 2, 2))),
            _Stage(256, (1, 5, 5), (1, 2, 2), wide, nn.MaxPool3d(flat, (1, 2, 2), wide)),
            _Stage(256, flat, 1, wide),
            _Stage(256, flat, 1, wide),
            _Stage(256, flat, 1, wide, nn.MaxPool3d(flat, (1, 2, 2))),
            _Stage(512, (1, 6, 6)),
        ]
        sound = [
            _Stage(64, (3, 3), 1, 1, nn.MaxPool2d(1, 1)),  # pools nothing; it holds a number in the state's names
            _Stage(192, (3, 3), 1, 1, nn.MaxPool2d(3, (1, 2))),
            _Stage(384, (3, 3), 1, 1),
            _Stage(256, (3, 3), 1, 1),
            _Stage(256, (3, 3), 1, 1, nn.MaxPool2d(3, 2)),
            _Stage(512, (5, 4)),
        ]
        self.netcnnaud = _stack(1, sound, nn.Conv2d, nn.BatchNorm2d)
        self.netfcaud = _head(width)
        self.netcnnlip = _stack(3, lip, nn.Conv3d, nn.BatchNorm3d)
        self.netfclip = _head(width)
        self.version = "SyncNet, untrained"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def pictures(self, crops_T3HW: Tensor) -> Tensor:
        """(T, 3, 224, 224) uint8 RGB -> (T - 4, 1024). The network knows blue first and 0 to 255."""
        windows = crops_T3HW.flip(1).unfold(0, WINDOW, 1).permute(0, 1, 4, 2, 3)
        parts = (part.to(self.device).float() for part in windows.split(self.BATCH))
        return torch.cat([self.netfclip(self.netcnnlip(part).flatten(1)).cpu() for part in parts])

    @torch.no_grad()
    def sounds(self, mfcc_CM: Tensor, windows: int) -> Tensor:
        """(13, M) -> (windows, 1024)."""
        parts = mfcc_CM.unfold(1, SOUND_WINDOW, PER_PICTURE)[:, :windows].transpose(0, 1)[:, None].to(self.device)
        return torch.cat([self.netfcaud(self.netcnnaud(part).flatten(1)).cpu() for part in parts.split(256)])


def load_public(path: Path) -> PublicSyncNet:
    """The published weights, a state dictionary; nothing but tensors is read from the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"cannot read SyncNet's weights {path} ({reason}); expected syncnet_v2.model") from None
    model = PublicSyncNet()
    own = model.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"expected a state dictionary in {path}, got {type(state).__name__}")
    missing = sorted(k for k in set(own) - set(state) if not k.endswith("num_batches_tracked"))  # older than that count
    extra = sorted(set(state) - set(own))
    wrong = sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape)
    if missing or extra or wrong:
        raise CheckpointError(
            f"{path} is not syncnet_v2.model: missing {missing[:3]}, unexpected {extra[:3]}, wrong shape {wrong[:3]} "
            f"({len(missing)}, {len(extra)}, {len(wrong)} in all)"
        )
    model.load_state_dict(own | state)
    model.version = f"SyncNet {path.name} (sha256 {digest(path)})"
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class ToonSyncNetConfig:
    """Widths of `ToonSyncNet`."""

    picture: tuple[int, ...] = (16, 32, 64, 96)
    """Of the four halvings of a picture."""
    sound: tuple[int, ...] = (64, 96, 128)
    """Of the convolutions at 100 Hz; the last one steps to 25 Hz."""
    hidden: int = 192
    width: int = 128


def _fold1d(inside: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv1d(inside, out, kernel, stride, bias=False), nn.BatchNorm1d(out), nn.ReLU()]


class ToonSyncNet(nn.Module):
    """The cartoon world's: 48x64 colour crops of the mouth and the same MFCC, to 128-d of length 1.

    A picture is encoded once and not once a window: convolutions without padding over time give each window of five
    pictures, or twenty MFCC frames, what it would get by itself.
    """

    def __init__(self, config: ToonSyncNetConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 3
        for i, out in enumerate(config.picture):
            kernel = 5 if i == 0 else 3
            layers += [nn.Conv2d(channels, out, kernel, 2, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        cells = math.prod(-(-side // 2 ** len(config.picture)) for side in TOON_SIZE)
        self.picture = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * cells, config.width))
        end = [nn.Conv1d(config.hidden, config.width, 1)]
        self.picture_window = nn.Sequential(*_fold1d(config.width, config.hidden, WINDOW), *end)
        a, b, c = config.sound
        fields = [*_fold1d(COEFFICIENTS, a, 3), *_fold1d(a, b, 3), *_fold1d(b, c, 4, PER_PICTURE)]  # 8 frames, then 20
        end = [nn.Conv1d(config.hidden, config.width, 1)]
        self.sound = nn.Sequential(nn.BatchNorm1d(COEFFICIENTS), *fields, *_fold1d(c, config.hidden, 4), *end)
        self.version = "ToonSyncNet, untrained"

    def embed_pictures(self, crops_BT3HW: Tensor) -> Tensor:
        """(B, T, 3, 48, 64) in [0, 1] -> (B, T - 4, D) of length 1."""
        each = self.picture(crops_BT3HW.flatten(0, 1).sub(0.5).mul(4)).unflatten(0, crops_BT3HW.shape[:2])
        return F.normalize(self.picture_window(each.transpose(1, 2)).transpose(1, 2), dim=-1)

    def embed_sounds(self, mfcc_BCM: Tensor) -> Tensor:
        """(B, 13, M) -> (B, (M - 20) // 4 + 1, D) of length 1."""
        return F.normalize(self.sound(mfcc_BCM).transpose(1, 2), dim=-1)

    @torch.no_grad()
    def pictures(self, crops_T3HW: Tensor) -> Tensor:
        """(T, 3, 48, 64) uint8 -> (T - 4, D)."""
        return self.embed_pictures(crops_T3HW[None].float() / 255)[0]

    @torch.no_grad()
    def sounds(self, mfcc_CM: Tensor, windows: int) -> Tensor:
        """(13, M) -> (windows, D)."""
        return self.embed_sounds(mfcc_CM[None])[0, :windows]


def load_toon(folder: Path = TOON_FOLDER) -> ToonSyncNet:
    """The network of the cartoon world that ships with the package."""
    model = load_component(ToonSyncNet, ToonSyncNetConfig, folder)
    model.version = f"ToonSyncNet of the cartoon world (sha256 {digest(folder / 'model.safetensors')})"
    return model.requires_grad_(False)


def digest(path: Path) -> str:
    """First eight digits of a file's SHA-256: which weights a figure was measured with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


# ---- what they are shown ----------------------------------------------------------------------


def toon_crop(
    frames_T3HW: Tensor, who: Character, size: tuple[int, int] = TOON_SIZE, half: tuple[float, float] = TOON_HALF
) -> Tensor:
    """uint8 pictures of any square size -> (T, 3, *size) about the mouth of the resting pose, the same for all."""
    side = frames_T3HW.shape[-1]
    if frames_T3HW.shape[-2] != side:
        raise ConfigError(f"expected square pictures of the cartoon world, got {side}x{frames_T3HW.shape[-2]}")
    x0, y0, x1, y1 = mouth_box(who, neutral(), size=side)[0].tolist()
    top, low = (round((y0 + y1) / 2 + sign * half[0] * side) for sign in (-1, 1))
    left, right = (round((x0 + x1) / 2 + sign * half[1] * side) for sign in (-1, 1))
    part = square(frames_T3HW, (left, top, right, low)).float()
    part = F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False)
    return part.round().clamp(0, 255).to(torch.uint8)


def square(frames_T3HW: Tensor, box: tuple[int, int, int, int], level: int = 110) -> Tensor:
    """The pixels in left, top, right, bottom; grey (110, as the public code pads) where that leaves the picture."""
    left, top, right, low = box
    _, _, high, wide = frames_T3HW.shape
    inside = frames_T3HW[:, :, max(0, top) : max(0, low), max(0, left) : max(0, right)]
    beyond = (max(0, -left), max(0, right - wide), max(0, -top), max(0, low - high))
    return F.pad(inside, beyond, value=level)


class FaceCrops:
    """What the published weights know: a face in 224x224, as the public pipeline cuts it.

    Videos of 224x224 are taken to be cut already. In others, OpenCV's frontal-face cascade looks at every fifth
    picture, and its box is widened as the public code widens its own detector's (S3FD), so that figures come near the
    public pipeline's and are not the same. Without OpenCV the middle square of the picture is taken for the face.
    """

    SIDE, EVERY, WIDER = 224, 5, 0.4
    SMOOTH = 3
    """Detections whose median counts: 13 pictures, nearly."""

    def __init__(self) -> None:
        self.cascade = None
        self.note = "224x224 as it is, else the middle square (for a face detector: pip install 'opencv-python<5')"
        try:
            self.cv2 = importlib.import_module("cv2")
            cascade = self.cv2.CascadeClassifier(f"{self.cv2.data.haarcascades}haarcascade_frontalface_default.xml")
        except (ImportError, AttributeError):  # OpenCV 5 has no cascades
            return
        if not cascade.empty():
            self.cascade = cascade
            self.note = f"224x224 as it is, else faces of OpenCV {self.cv2.__version__}'s frontal cascade"

    def __call__(self, sample: Sample) -> Iterator[Tensor]:
        """(T, 3, 224, 224) uint8 pieces at 25 fps. Raises ImpossibleError if no face is seen."""
        track, done = None, 0
        for block in sample.blocks(FPS, length=32):
            _, _, high, wide = block.shape
            if high == wide == self.SIDE:
                yield block
            elif self.cascade is None:
                half = min(high, wide) / 2
                yield self.cut(block, torch.tensor([[wide / 2, high / 2 - half, half / (1 + self.WIDER)]]))
            else:
                track = self.follow(sample) if track is None else track
                rows = track[done : done + len(block)]
                yield torch.cat([self.cut(block[i : i + 1], rows[i : i + 1]) for i in range(len(block))])
            done += len(block)

    def cut(self, frames_T3HW: Tensor, face_13: Tensor) -> Tensor:
        """A square from the face's top (y) down, twice 1.4 times its half size wide, at 224x224."""
        x, top, half = face_13[0].tolist()
        reach = half * (1 + self.WIDER)
        box = (int(x - reach), int(top), int(x - reach) + int(2 * reach), int(top) + int(2 * reach))
        part = F.interpolate(square(frames_T3HW, box).float(), (self.SIDE, self.SIDE), mode="bilinear")
        return part.round().clamp(0, 255).to(torch.uint8)

    def follow(self, sample: Sample) -> Tensor:
        """(T, 3) middle x, top and half size of the face in every picture."""
        seen, looked, total = [], 0, 0
        for block in sample.blocks(FPS, length=32):
            for i in range(-total % self.EVERY, len(block), self.EVERY):
                looked += 1
                box = self.largest(block[i])
                if box is not None:
                    seen.append((total + i, *box))
            total += len(block)
        if 2 * len(seen) < looked:
            raise ImpossibleError(f"a face was found in {len(seen)} of {looked} pictures; crop the video to 224x224")
        rows = torch.tensor(seen, dtype=torch.float64)
        ends = F.pad(rows[:, 1:].T[None], (self.SMOOTH // 2,) * 2, mode="replicate")[0]
        smooth = ends.unfold(1, self.SMOOTH, 1).median(-1).values
        at = np.arange(total)
        return torch.from_numpy(np.stack([np.interp(at, rows[:, 0].numpy(), row.numpy()) for row in smooth], 1))

    def largest(self, frame_3HW: Tensor) -> tuple[float, float, float] | None:
        """Middle x, top and half size of the largest face."""
        assert self.cascade is not None
        grey = self.cv2.cvtColor(frame_3HW.permute(1, 2, 0).contiguous().numpy(), self.cv2.COLOR_RGB2GRAY)
        least = max(24, min(grey.shape) // 8)
        faces = self.cascade.detectMultiScale(grey, 1.1, 5, minSize=(least, least))
        if len(faces) == 0:
            return None
        x, y, wide, high = max(faces, key=lambda f: f[2] * f[3])
        return float(x + wide / 2), float(y), float(max(wide, high)) / 2
