"""Training of the small video codec (`codecs/video.py`) on clips of `video_clips.py`.

Latents are power-constrained: in training they are divided by their own overall root mean square and disturbed by
white noise of a fixed relative size. The codec then has to spend its one budget of variance where the picture needs
it, and nearby latents have to decode to nearby pictures: what a diffusion model wants, without a KL term to tune.

Shape letters as in `codecs/video.py`.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamchar.codecs.video import ToonVideoCodec, in_time
from streamchar.config.model import VideoCodecConfig
from streamchar.config.presets import toon
from streamchar.errors import DataError, StateError
from streamchar.train.checkpoint import cleared, recover, swap
from streamchar.train.energy import energy_axes, fold, latents_of, pixel_metric
from streamchar.train.muon import Muon
from streamchar.train.principal import principal_start
from streamchar.train.video_clips import ClipShards, Crop

log = logging.getLogger(__name__)

MOVED = 0.2
"""Weight of a moved picture's own distance from the frames, on four scales: what its flow is learned by where the
mixture does not take it yet."""
MUON_RATE = 1.0
ADAM_RATE = 0.4  # of Muon's: what Adam trains (pixels, latents, gains) diverged at 2e-3
SLOW_RATE = 0.04  # ends whose outputs are small numbers: at ten times this, a step is as large as what is to be learned


@dataclass(frozen=True, kw_only=True)
class VideoCodecTraining:
    """How to train; `minutes` of wall time drive the schedule, as the machine is shared."""

    minutes: float
    crops: tuple[Crop, ...] = (
        Crop(size=96, batch=10, groups=2, about="mouth"),
        Crop(size=96, batch=10, groups=2, about="hand"),
        Crop(size=96, batch=10, groups=2, about="eye"),
        Crop(size=128, batch=6, groups=1),
        Crop(size=96, batch=8, groups=3, about="mouth"),
        Crop(size=96, batch=8, groups=3, about="hand"),
        Crop(size=96, batch=8, groups=3, about="eye"),
        Crop(size=256, batch=1, groups=3),
    )
    """In turn: mouths, hands and eyes, which are few of a picture's pixels and move most, small crops for variety,
    whole pictures for the border's sake."""
    rate: float = 2e-3
    warmup_steps: int = 60
    noise: float = 0.12
    """Size of the noise on the latents, relative to their root mean square."""
    ema: float = 0.995
    decoder_only: bool = False
    """Freeze encoder, mean and scale: latents that others have stored stay valid."""
    steps: int | None = None
    """Stop after so many steps even if time is left."""
    calibration: int = 8
    """Batches of four clips from which mean and scale are taken."""
    energy_pictures: int = 6
    """Batches of two pairs of crops from which the latents' coordinates are taken at the end."""
    save_minutes: float = 8.0
    seed: int = 0


def reconstruction_loss(error_BCTHW: Tensor, weight_BTHW: Tensor) -> Tensor:
    """Weighted error of pixels, of three coarser scales, of edges and of changes in time.

    `weight_BTHW` has a mean of about 1 and is greater where people look (mouth, eyes, hands).
    """
    weight = (weight_BTHW / weight_BTHW.mean()).unsqueeze(1)
    charbonnier = (error_BCTHW.square() + 1e-4).sqrt()
    loss = (charbonnier * weight).mean() + (error_BCTHW.square() * weight).mean()
    flat = error_BCTHW.transpose(1, 2).flatten(0, 1)
    flat_weight = weight.transpose(1, 2).flatten(0, 1)
    loss = loss + 0.5 * ((flat[..., 1:] - flat[..., :-1]).abs() * flat_weight[..., 1:]).mean()
    loss = loss + 0.5 * ((flat[..., 1:, :] - flat[..., :-1, :]).abs() * flat_weight[..., 1:, :]).mean()
    for _ in range(3):
        flat = F.avg_pool2d(flat, 2)
        loss = loss + 0.5 * flat.abs().mean()
    if error_BCTHW.shape[2] > 1:
        loss = loss + 0.25 * ((error_BCTHW[:, :, 1:] - error_BCTHW[:, :, :-1]).abs() * weight[:, :, 1:]).mean()
    return loss


def reconstruction_gradient(
    out_BCTHW: Tensor, frames_BCTHW: Tensor, weight_BTHW: Tensor
) -> tuple[float, Tensor]:
    """The mean of `reconstruction_loss` over the batch and its gradient at `out_BCTHW`.

    Clip by clip: with a whole batch the loss's 14 MB temporaries cost twice as much time as the network (fresh
    pages for every one of them); those of a single clip stay in the cache.
    """
    grad_BCTHW, total, batch = torch.empty_like(out_BCTHW), 0.0, out_BCTHW.shape[0]
    for i in range(batch):
        out = out_BCTHW[i : i + 1].detach().float().requires_grad_(True)
        loss = reconstruction_loss(out - frames_BCTHW[i : i + 1], weight_BTHW[i : i + 1]) / batch
        (grad_BCTHW[i : i + 1],) = torch.autograd.grad(loss, out)
        total += loss.item()
    return total, grad_BCTHW


def distance(error_BCTHW: Tensor) -> Tensor:
    """Mean absolute error on four scales."""
    flat, total = error_BCTHW.transpose(1, 2).flatten(0, 1), error_BCTHW.new_zeros(())
    for _ in range(4):
        total, flat = total + flat.abs().mean(), F.avg_pool2d(flat, 2)
    return total


class Trainer:
    """One run: model, its moving average, optimiser and elapsed time."""

    def __init__(self, codec: ToonVideoCodec, settings: VideoCodecTraining) -> None:
        self.codec, self.settings = codec, settings
        self.average = copy.deepcopy(codec).requires_grad_(False)
        codec.requires_grad_(False).eval()
        self.part().requires_grad_(True).train()
        self.parameters = {name: p for name, p in codec.named_parameters() if p.requires_grad}
        rates = {id(p): rate for end, rate in self.ends().items() for p in end.parameters()}
        groups: dict[float, list[nn.Parameter]] = {MUON_RATE: []}
        for p in self.parameters.values():
            groups.setdefault(rates.get(id(p), MUON_RATE if p.ndim > 1 else ADAM_RATE), []).append(p)
        inner, *others = ({"params": group, "part": part} for part, group in groups.items())
        adam = torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.97), eps=1e-7, weight_decay=0.0)
        self.optimisers = Muon([inner], lr=settings.rate), adam
        self.step, self.elapsed = 0, 0.0

    def part(self) -> nn.Module:
        """What is trained."""
        return self.codec.decoder if self.settings.decoder_only else self.codec

    def ends(self) -> dict[nn.Conv2d, float]:
        """Layers that are Adam's: pixels or latents, and so no hidden layer, on one side; and their rates."""
        encoder, decoder = self.codec.encoder, self.codec.decoder
        moving = () if decoder.motion is None else (decoder.motion.key, decoder.motion.flow, decoder.motion.share)
        return dict.fromkeys((encoder.stem, encoder.head, decoder.stem, decoder.head, *moving), ADAM_RATE)

    @property
    def device(self) -> torch.device:
        return self.codec.mean_C.device

    def modules(self) -> dict[str, nn.Module]:
        """What a stored state holds."""
        return {"model": self.codec, "average": self.average}

    def rate(self) -> float:
        """Warm-up by steps, then a cosine over the run's wall time down to 2 %."""
        progress = min(1.0, self.elapsed / (60 * self.settings.minutes))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        return self.settings.rate * cosine * min(1.0, (self.step + 1) / self.settings.warmup_steps)

    def reconstruct(self, frames_BCTHW: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Frames in [-1, 1] through the noisy latent; and what the decoder's motion makes of them, if it has one."""
        noise_of = self.settings.noise
        with torch.autocast(frames_BCTHW.device.type, torch.bfloat16):
            if self.settings.decoder_only:
                with torch.no_grad():
                    raw = self.codec.analyse(frames_BCTHW)
                sigma = noise_of * self.codec.scale
            else:
                raw = self.codec.analyse(frames_BCTHW)
                raw = raw.float() / raw.float().square().mean().sqrt()
                sigma = torch.tensor(noise_of, device=raw.device)
            eps = torch.randn(raw.shape, generator=generator).to(raw.device)
            # a tenth of the clips stays clean, so that the decoder is at its best on exact latents too
            keep = (torch.rand(raw.shape[0], 1, 1, 1, 1, generator=generator) > 0.1).float().to(raw.device)
            decoder = self.codec.decoder
            found = decoder.pictures(decoder.features(raw + sigma * keep * eps))
        return [in_time(part, raw.shape[2]) for part in found if part is not None]

    def differentiate(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> float:
        """The loss on frames in [-1, 1] and their weights; leaves its gradients."""
        frames_BCTHW, weight_BTHW = (part.to(self.device) for part in batch)
        out = self.reconstruct(frames_BCTHW, generator)
        loss, grad_BCTHW = reconstruction_gradient(out[0], frames_BCTHW, weight_BTHW)
        grads = [grad_BCTHW]
        for moved in out[1:]:
            given, weight = moved.detach().float().requires_grad_(True), weight_BTHW / weight_BTHW.mean()
            off = MOVED * distance((given - frames_BCTHW) * weight[:, None])
            grads += torch.autograd.grad(off, given)
        torch.autograd.backward(out, grads)
        return loss

    def update(self, batch: Any, generator: torch.Generator) -> float:
        """One optimiser step; returns the loss."""
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = self.rate() * group["part"]
        self.codec.zero_grad(set_to_none=True)
        loss = self.differentiate(batch, generator)
        nn.utils.clip_grad_norm_(self.parameters.values(), 0.5)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        decay = min(self.settings.ema, self.step / (self.step + 20))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.codec.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return loss

    @torch.no_grad()
    def calibrate(self, shards: ClipShards, *, sort: bool) -> None:
        """Fix the average's mean per channel and its ONE scale from the data; nothing with a frozen encoder.

        The decoder was trained on latents of root mean square 1; the factor that brings them there is folded into
        the encoder's last layer first, so that raw latents at inference are those of training. `sort`: then bring
        them into the picture's own metric (`train/energy.py`).
        """
        codec = self.average
        if self.settings.decoder_only:
            return
        draw = torch.Generator().manual_seed(1)
        batches = shards.batches(Crop(size=shards.size, batch=4, groups=4), draw)
        frames = [next(batches)[0].to(self.device) for _ in range(self.settings.calibration)]
        size = latents_of(codec, frames).square().mean().sqrt()
        codec.encoder.head.weight.div_(size)
        codec.encoder.head.bias.div_(size)  # type: ignore[union-attr]
        if sort:
            sort_by_energy(codec, shards, self.settings.energy_pictures)
        codec.mean_C.copy_(latents_of(codec, frames).mean(dim=1))
        codec.scale.copy_(motion_size(codec, frames))

    def save(self, folder: Path) -> None:
        """Training state, next to the weights that `average.save` writes; it replaces the one before when it is
        whole."""
        state: dict[str, Tensor] = {}
        for prefix, module in self.modules().items():
            state |= {f"{prefix}.{name}": value.clone() for name, value in module.state_dict().items()}
        for name, parameter in self.parameters.items():
            for optimiser in self.optimisers:
                for key, value in optimiser.state.get(parameter, {}).items():
                    state[f"optimiser.{key}.{name}"] = value.clone()
        state = {name: value.contiguous() for name, value in state.items()}
        part = cleared(folder)
        save_file(state, part / "training.safetensors")
        record = {"step": self.step, "elapsed": self.elapsed, "settings": asdict(self.settings)}
        (part / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        swap(folder, part)

    def load(self, folder: Path) -> None:
        """Continue from `save`. Raises `StateError`."""
        recover(folder)
        try:
            state = load_file(folder / "training.safetensors")
            record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            self.step, self.elapsed = int(record["step"]), float(record["elapsed"])
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise StateError(
                f"cannot resume from {folder}, its training state is missing or damaged ({error}); train without "
                "--resume into another --out, from weights that are left with --start"
            ) from None
        for prefix, module in self.modules().items():
            try:
                module.load_state_dict({name: state[f"{prefix}.{name}"] for name in module.state_dict()})
            except (KeyError, RuntimeError) as error:
                what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
                raise StateError(f"cannot resume from {folder}, it is of another codec: {what}") from None
        for name, parameter in self.parameters.items():
            kept = (("momentum",), ("step", "exp_avg", "exp_avg_sq"))
            for optimiser, keys in zip(self.optimisers, kept, strict=True):
                stored = {key: state.get(f"optimiser.{key}.{name}") for key in keys}
                own = {key: value for key, value in stored.items() if value is not None}
                if len(own) == len(keys):  # Adam's step count stays where Adam keeps it
                    optimiser.state[parameter] = {
                        key: value if key == "step" else value.to(parameter.device) for key, value in own.items()
                    }


def train_video_codec(
    data: Path,
    out: Path,
    minutes: float,
    resume: bool = False,
    *,
    settings: VideoCodecTraining | None = None,
    config: VideoCodecConfig | None = None,
    start: Path | None = None,
    device: str = "cpu",
    freeze_encoder: bool = False,
    rate: float | None = None,
) -> ToonVideoCodec:
    """Train on the shards in `data` for `minutes` and write the codec (moving average) to `out`.

    `start` is a codec folder to begin from (fine-tuning); `resume` continues an interrupted run in `out`, with its
    own weights; `freeze_encoder` trains the decoder alone, `rate` is the highest one, unless `settings` say otherwise.
    """
    settings = settings or VideoCodecTraining(
        minutes=minutes, decoder_only=freeze_encoder, rate=rate or VideoCodecTraining.rate
    )
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    shards = ClipShards(data)
    if not len(shards):
        raise DataError(f"no clips in {data}; render them first (render_clips)")
    config = config or toon().video
    if resume and (out / "config.json").is_file():
        codec = ToonVideoCodec.load(out)  # its parts; the weights are the training state's
    elif start is not None:
        codec = widened(ToonVideoCodec.load(start), motion=config.motion)
    else:
        codec = ToonVideoCodec(replace(config, motion=False))
        sample, _ = next(shards.batches(Crop(size=shards.size, batch=64, groups=1), generator))
        principal_start(codec, sample)
        codec = widened(codec, motion=config.motion)
    trainer = Trainer(codec.to(device), settings)
    if resume:
        if start is not None:
            log.info("the weights in --start %s are not used: a resumed run goes on with its own", start)
        trainer.load(out / "training")
        generator.manual_seed(settings.seed + trainer.step)
    batches = [shards.batches(crop, generator) for crop in settings.crops]
    turns = (next(batches[trainer.step % len(batches)]) for _ in itertools.count())
    carry_out(trainer, turns, generator, lambda final: _write(trainer, shards, out, final=final))
    return trainer.average


def widened(
    codec: ToonVideoCodec, *, motion: bool = False, reference: bool = False, parts: int = 0
) -> ToonVideoCodec:
    """The same codec with these things in its decoder, new ones where it has none."""
    had = codec.config
    wider = replace(
        had, motion=had.motion or motion, reference=had.reference or reference, parts=had.parts or parts
    )
    if wider == had:
        return codec
    found = ToonVideoCodec(wider)
    found.load_state_dict(codec.state_dict(), strict=False)
    if found.decoder.motion is not None and not had.motion:
        found.decoder.motion.begin(found.decoder.head)
    return found.eval()


def carry_out(
    trainer: Trainer, batches: Iterator[Any], generator: torch.Generator, write: Callable[[bool], None]
) -> None:
    """Train until the run's minutes, or its steps, are over; `write(whether it is the end)` now and then."""
    settings = trainer.settings
    begun = saved = time.monotonic()
    before, recent = trainer.elapsed, 0.0
    while trainer.elapsed < 60 * settings.minutes and (settings.steps is None or trainer.step < settings.steps):
        loss = trainer.update(next(batches), generator)
        trainer.elapsed = before + time.monotonic() - begun
        recent = loss if not recent else 0.95 * recent + 0.05 * loss
        if trainer.step % 50 == 0:
            log.info("step=%d loss=%.4f rate=%.2e seconds=%.0f", trainer.step, recent, trainer.rate(), trainer.elapsed)
        if time.monotonic() - saved > 60 * settings.save_minutes:
            write(False)
            saved = time.monotonic()
    write(True)


@torch.no_grad()
def motion_size(codec: ToonVideoCodec, frames: list[Tensor]) -> Tensor:
    """Root mean square of the latents' change since their clip's first one: the ONE scale.

    What moves has size 1, not what stands: a still is given, and noise of size 1 has to hide and reveal the rest.
    With the whole variance as the unit, the moving mouth had a size of 0.39, below the noise of all but the last
    step or two of a shifted schedule.
    """
    raws = [codec.analyse(clip).float() for clip in frames]
    moved = torch.cat([(raw[:, :, 1:] - raw[:, :, :1]).flatten() for raw in raws])
    return moved.square().mean().sqrt()


def sort_by_energy(codec: ToonVideoCodec, shards: ClipShards, pictures: int) -> None:
    """Latents in the picture's own metric, strongest channel first (`train/energy.py`)."""
    draw = torch.Generator().manual_seed(2)
    device = codec.mean_C.device
    near = shards.batches(Crop(size=96, batch=2, groups=2, about="mouth"), draw)
    far = shards.batches(Crop(size=96, batch=2, groups=2), draw)
    frames = [next(part)[0].to(device) for _ in range(pictures) for part in (near, far)]
    forward, inverse = energy_axes(pixel_metric(codec, frames, draw), latents_of(codec, frames))
    fold(codec, forward, inverse)


def _write(trainer: Trainer, shards: ClipShards, out: Path, *, final: bool = False) -> None:
    trainer.save(out / "training")
    plain = copy.deepcopy(trainer.average)
    trainer.calibrate(shards, sort=final)
    trainer.average.save(out, torch.float16)
    trainer.average = plain  # the calibrated copy is for others; training goes on with its own scale
    log.info("wrote %s at step %d", out, trainer.step)
