"""Training of toon's audio decoder by the spectra that the teacher itself spoke with; the encoder stands still.

The decoder is harmonics and noise, and so is the teacher (`world/voice.py`): what the decoder should say of each
frame is known exactly, and not only as one sound drawn from it. A loss on waveforms sees the noise's spectrum through
single draws of it, and leaves open what is harmonic and what is noise; so formants were averaged away (decisions.md,
twelfth session: a speaker's likeness 0.58 to 0.755, a recogniser's errors 13.5 to 9.9 %, in 51 minutes of a core).
Nothing is synthesised here, which makes a step cheap. A critic of spectra keeps the detail that an L1 loss blurs.

Shapes: B batch, T latents (24 Hz), F frames (96 Hz), K bins, G groups of bins.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as tf

from streamchar import clock
from streamchar.codecs.audio import BINS, HOP, OVERLAP, WINDOW, Spectra, ToonAudioCodec
from streamchar.errors import DataError
from streamchar.train.muon import Muon
from streamchar.types import Filters

log = logging.getLogger(__name__)

TEACHER_HZ = 20.0
TEACHER_FRAMES = 80.0
HARMONIC = math.log(2 / 600)
"""The teacher's harmonic of size 1 in the decoder's measure: 1 / 600 after its inverse transform, ours has a half."""
NOISE = math.log(1 / 30) - math.log(WINDOW**0.5 / 2)
"""The same of noise: its frames are drawn apart and add up to a deviation of 1 / 30, ours are one noise, filtered."""
FLOOR = -11.5
"""Nepers under which nothing is heard."""
SINGLE, GROWTH, TOP = 64, 0.04, 500
"""Groups: single bins to 1.5 kHz, then each 4 % of its frequency wide, up to 12 kHz."""
WEIGHTS = {"harmonic": 1.0, "noise": 1.0, "phase": 0.4, "pitch": 2.0, "voiced": 0.3}
CHEAT, MATCH = 0.1, 1.0
"""Weights of what the critic says, and of the distance between what it sees in both."""
CRITIC = "critic.safetensors"
"""Beside the codec's weights while it is trained; not shipped."""
Draw = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, Tensor]]]
"""A batch: samples (B, S); pitch (B, F), `targets` (B, F, G) and the voice's "reference" (B, S)."""
UNKNOWN = 0.15
"""Share of the clips without a reference."""
NOISY, DEVIATION = 0.7, 0.2
"""Share of the clips whose latents are disturbed, by up to this deviation, as a sampler's are not exact."""


def group_edges() -> list[int]:
    """First bin of each group, and the end of the last."""
    edges = list(range(SINGLE + 1))
    while edges[-1] < TOP:
        edges.append(min(TOP, edges[-1] + max(1, round(edges[-1] * GROWTH))))
    return edges


GROUPS = len(group_edges()) - 1


def group_centres() -> Tensor:
    """(G,) the bin in the middle of each group."""
    edges = torch.tensor(group_edges())
    return (edges[:-1] + edges[1:] - 1) // 2


def group_filters() -> Tensor:
    """(K, G): the mean over each group's bins."""
    edges = group_edges()
    filters = torch.zeros(BINS, GROUPS)
    for g, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        filters[low:high, g] = 1 / (high - low)
    return filters


def grouped(log_size: Tensor, filters_KG: Tensor) -> Tensor:
    """(..., K) log magnitudes -> (..., G) half the log of each group's mean power, not under the floor."""
    power = torch.exp(2 * log_size) @ filters_KG
    return 0.5 * (power + math.exp(2 * FLOOR)).log()


def targets(filters: Filters, frames: int) -> dict[str, np.ndarray]:
    """The teacher's spectra at the decoder's frames and groups: three arrays (F, G) of float16.

    Frame i's window begins at block i, so its middle is at (i + 2) / 96 s.
    """
    middle = (torch.arange(frames) * HOP + WINDOW // 2) / clock.AUDIO_RATE * TEACHER_FRAMES
    when, late = _between(middle, filters.harmonic.shape[1])
    hz = torch.arange(BINS) * (clock.AUDIO_RATE / WINDOW)
    where, high = _between(hz / TEACHER_HZ, filters.harmonic.shape[0])
    known = hz < TEACHER_HZ * (filters.harmonic.shape[0] - 1)

    def at(x_KF: Tensor) -> Tensor:
        x = x_KF.float()
        x = x[:, when] * (1 - late) + x[:, when + 1] * late
        x = x.T[:, where] * (1 - high) + x.T[:, where + 1] * high
        return x

    mean_KG = group_filters()
    silent = torch.tensor(2 * FLOOR)
    found = {
        "harmonic": grouped(torch.where(known, at(filters.harmonic) + HARMONIC, silent), mean_KG),
        "noise": grouped(torch.where(known, at(filters.noise) + NOISE, silent), mean_KG),
        "phase": at(filters.phase)[:, group_centres()],
    }
    return {name: value.numpy().astype(np.float16) for name, value in found.items()}


def _between(position: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The index before each position, and how far it is past it."""
    index = position.long().clamp(0, count - 2)
    return index, (position - index).clamp(0, 1)


class SpectrumCritic(nn.Module):
    """A patch discriminator on pictures of harmonics and noise, (B, 2, F, G)."""

    FRAMES = 96
    """Looked at of a segment."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        def leak() -> nn.Module:
            return nn.LeakyReLU(0.2)

        self.layers = nn.Sequential(
            nn.Conv2d(2, width, (3, 5), padding=(1, 2)), leak(),
            nn.Conv2d(width, 2 * width, (3, 5), stride=(1, 2), padding=(1, 2)), leak(),
            nn.Conv2d(2 * width, 2 * width, (3, 5), stride=(2, 2), padding=(1, 2)), leak(),
            nn.Conv2d(2 * width, 3 * width, (3, 3), stride=(2, 2), padding=1), leak(),
            nn.Conv2d(3 * width, 1, (3, 3), padding=1),
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and inner features."""
        h, features = (picture + 8) / 2.5, []
        for layer in self.layers:
            h = layer(h)
            if isinstance(layer, nn.LeakyReLU):
                features.append(h)
        return h, features


def heard(harmonic: Tensor, noise: Tensor) -> Tensor:
    """Harmonics over the noise that masks them, which fills the bins between them too and so counts less."""
    return 0.5 * torch.logaddexp(2 * harmonic, 2 * (noise - 1.5))


def compare(spectra: Spectra, given: dict[str, Tensor], filters_KG: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The supervised terms of spectra against `targets` and pitch (B, F); then the critic's pictures, made and true."""
    ahead = tf.pad(given["pitch"][:, OVERLAP:], (0, OVERLAP))
    voiced = (ahead > 0).float()
    voiced[:, -OVERLAP:] = 0
    v, frames = voiced[..., None], voiced.sum().clamp(min=1)
    true_h, true_n = given["harmonic"].float(), given["noise"].float()
    harmonic, noise = grouped(spectra.harmonic, filters_KG), grouped(spectra.noise, filters_KG)
    phase = spectra.phase[..., group_centres().to(v.device)]
    clear = torch.sigmoid(true_h - true_n + 1) * torch.sigmoid(true_h + 8)  # where a phase can be heard
    off = (spectra.pitch.log() - ahead.clamp(min=40).log()).abs()
    terms = {
        "harmonic": ((heard(harmonic, true_n) - heard(true_h, true_n)).abs() * v).sum() / frames / GROUPS,
        "noise": (noise - true_n).abs().mean(),
        "phase": ((1 - torch.cos(phase - given["phase"])) * clear * v).sum() / frames / GROUPS,
        "pitch": (off * voiced).sum() / frames,
        "voiced": tf.binary_cross_entropy_with_logits(
            spectra.voiced[:, :-OVERLAP], (ahead > 0)[:, :-OVERLAP].float()
        ),
    }
    floor = torch.full_like(true_h, FLOOR)
    made = torch.stack([torch.where(v > 0, heard(harmonic, noise), floor), noise], dim=1)
    true = torch.stack([torch.where(v > 0, heard(true_h, true_n), floor), true_n], dim=1)
    return terms, made, true


class VocoderTrainer:
    """The decoder, its moving average, its critic, and what moves them."""

    def __init__(self, codec: ToonAudioCodec, rate: float, seed: int) -> None:
        self.codec, self.rate = codec.requires_grad_(False), rate
        self.decoder = codec.decoder.requires_grad_(True).train()
        self.average = {name: p.detach().clone() for name, p in self.decoder.named_parameters()}
        device = codec.mean.device
        self.filters, self.critic = group_filters().to(device), SpectrumCritic().to(device)
        outer = (self.decoder.lift, self.decoder.spectrum, self.decoder.pitch, self.decoder.timbre)
        edge = {id(p) for part in outer if part is not None for p in part.parameters()}
        inner = [p for p in self.decoder.parameters() if p.ndim == 2 and id(p) not in edge]
        others = [p for p in self.decoder.parameters() if p.ndim != 2 or id(p) in edge]
        self.optimisers = (
            Muon(inner, lr=rate), torch.optim.AdamW(others, lr=0.6 * rate, betas=(0.9, 0.98), weight_decay=0.0)
        )
        self.judge = torch.optim.AdamW(self.critic.parameters(), 4e-4, betas=(0.5, 0.9))
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0

    def _disturbed(self, z_BTC: Tensor) -> Tensor:
        count = z_BTC.shape[0]
        some = torch.rand(count, 1, 1, generator=self.generator) < NOISY
        size = some * DEVIATION * torch.rand(count, 1, 1, generator=self.generator)
        return z_BTC + (size * torch.randn(z_BTC.shape, generator=self.generator)).to(z_BTC.device)

    def _voice(self, reference_BS: Tensor) -> Tensor | None:
        """(B, V) of the references, none of some."""
        timbre = self.decoder.timbre
        if timbre is None:
            return None
        with torch.no_grad():
            z = self.codec.encoder(reference_BS).float()
        known = torch.rand(len(z), 1, generator=self.generator) >= UNKNOWN
        return timbre.hear(z) * known.to(z)

    def _judged(self, made: Tensor, true: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """One update of the critic (hinge), then its adversarial and feature-matching terms."""
        last = made.shape[2] - self.critic.FRAMES
        at = int(torch.randint(0, last + 1, (), generator=self.generator)) if last > 0 else 0
        made, true = made[:, :, at : at + self.critic.FRAMES], true[:, :, at : at + self.critic.FRAMES]
        real, features = self.critic(true)
        fake, _ = self.critic(made.detach())
        parts["critic"] = tf.relu(1 - real).mean() + tf.relu(1 + fake).mean()
        self.judge.zero_grad()
        parts["critic"].backward()
        self.judge.step()
        score, seen = self.critic(made)
        pairs = list(zip(seen, features, strict=True))
        match = torch.stack([(a - b.detach()).abs().mean() / b.detach().abs().mean() for a, b in pairs]).mean()
        parts["match"] = match
        return MATCH * match - CHEAT * score.mean()

    def update(self, samples_BS: Tensor, given: dict[str, Tensor], share: float, *, critic: bool) -> dict[str, float]:
        """One step; `share` of the time is over. Returns the terms."""
        factor = min(1.0, (self.step + 1) / 60) * _schedule(share)
        for optimiser, own in zip(self.optimisers, (1.0, 0.6), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = self.rate * own * factor
        device = samples_BS.device.type
        with torch.no_grad():
            z = self.codec.encoder(samples_BS).float()
        with torch.autocast(device, torch.bfloat16):
            spectra, _ = self.decoder(self._disturbed(z), (), self._voice(given["reference"]))
        parts, made, true = compare(spectra, given, self.filters)
        total = torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
        if critic:
            with torch.autocast(device, torch.bfloat16):
                total = total + self._judged(made, true, parts)
        self.decoder.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        with torch.no_grad():
            for name, p in self.decoder.named_parameters():
                self.average[name].lerp_(p, 1 - min(0.995, self.step / (self.step + 20)))
        return {name: float(value.detach()) for name, value in parts.items()}

    def save(self, out: Path) -> None:
        """Write the codec with the decoder's moving average."""
        now = {name: p.detach().clone() for name, p in self.decoder.named_parameters()}
        for weights in (self.average, now):
            with torch.no_grad():
                for name, p in self.decoder.named_parameters():
                    p.copy_(weights[name])
            if weights is self.average:
                self.codec.save(out)
        save_file(self.critic.state_dict(), out / CRITIC)

    def load_critic(self, out: Path) -> bool:
        """Go on with the critic of the run before, if there was one: a new one knows nothing for hundreds of steps."""
        if not (out / CRITIC).exists():
            return False
        try:
            self.critic.load_state_dict(load_file(out / CRITIC))
        except (SafetensorError, RuntimeError) as error:
            raise DataError(f"{out / CRITIC} is not a critic of this size ({error}); delete it to begin anew") from None
        return True


def _schedule(share: float) -> float:
    """Full for two fifths of the time, then a cosine to 2 %."""
    return 1.0 if share < 0.4 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - 0.4) / 0.6))


def train_decoder(
    draw: Draw, codec: ToonAudioCodec, out: Path, minutes: float, *, batch: int, rate: float, critic_after: float,
    seed: int,
) -> None:
    """Train `codec`'s decoder on batches that `draw` gives for `minutes` and write the codec, and its critic, to `out`.

    A critic that lies in `out` goes on at once; a new one joins after `critic_after` of the time.
    """
    trainer, rng = VocoderTrainer(codec, rate, seed), np.random.default_rng(seed)
    if trainer.load_critic(out):
        critic_after = -1.0
    device = codec.mean.device
    start = saved = time.monotonic()
    average: dict[str, float] = {}
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        samples, given = draw(batch, rng)
        given = {name: value.to(device) for name, value in given.items()}
        for name, value in trainer.update(samples.to(device), given, share, critic=share > critic_after).items():
            average[name] = 0.98 * average.get(name, value) + 0.02 * value
        if trainer.step % 50 == 0:
            rounded = {name: round(value, 4) for name, value in average.items()}
            log.info("step %d share %.2f %s", trainer.step, share, json.dumps(rounded))
        if time.monotonic() - saved > 240:
            saved = time.monotonic()
            trainer.save(out)
    trainer.save(out)


