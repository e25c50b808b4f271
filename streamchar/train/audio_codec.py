"""Training of the `toon` audio codec on the world's voices.

Losses: multi-resolution STFT (log and linear magnitude) and loudness over time between the synthesised and
the given sound, pitch and voicing against the teacher's, an adversarial term on spectrograms once the rest
has settled, the latents' amplitude (so that variance stays where it buys quality), and a linear phoneme
read-out of the latents (so that what is spoken is laid out linearly).
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from streamchar import clock, phonemes
from streamchar.codecs.audio import HOP, OVERLAP, WINDOW, Spectra, ToonAudioCodec, mel_filters
from streamchar.config.model import AudioCodecConfig
from streamchar.errors import ConfigError, DataError
from streamchar.train.vocoder import targets, train_decoder
from streamchar.world.splits import HELD_OUT_VOICES
from streamchar.world.text import sentences
from streamchar.world.voice import VOICES, Voice, log_uniform, random_voice, speak

log = logging.getLogger(__name__)

LATENT_NOISE = 0.2
SEGMENT = clock.SAMPLES_PER_CHUNK
FRAMES = SEGMENT // HOP
CHEAT, MATCH = 0.1, 1.0
"""Weights of what the critic says of the sound, and of the distance between what it sees in both."""
ARRAYS = ("sound", "pitch", "label")
SPECTRA = ("harmonic", "phase", "noise")
SPOKEN = ("disguise", "bounds", "speaker")
"""Beside the teacher's spectra: the same said by a throat of another length, where each sentence begins, and whose it
is."""
SAYINGS = 3
"""Sentences in a row that a voice says."""
DISGUISED = 0.4
"""Share of the segments that are heard in disguise: what a sampler says is not always in the reference's voice, and
the decoder is to speak in that."""
RESOLUTIONS = ((4096, 1024), (2048, 512), (1024, 256), (512, 128), (256, 64))


def prepare_speech(folder: Path, hours: float, seed: int) -> None:
    """Write one shard of speech: int16 samples; pitch, phoneme ids and the teacher's spectra at 96 Hz; bounds of the
    sentences, and whose each is; and the same sentences in disguise, with the same pitch and times."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"speech-{seed:05d}.npz"
    if target.exists():
        return
    rng = random.Random(f"codec-{seed}")
    sounds, disguises, pitches, labels, bounds, total = [], [], [], [], [0], 0
    spectra: dict[str, list[np.ndarray]] = {name: [] for name in SPECTRA}
    named = [v for i, v in enumerate(VOICES) if i not in HELD_OUT_VOICES]
    voice = other = VOICES[0]
    for number, text in enumerate(sentences(seed, int(hours * 3600 / 2))):
        if number % SAYINGS == 0:
            voice = rng.choice(named) if rng.random() < 0.4 else random_voice(rng)
            other = disguised(voice, rng)
        speech = speak(text, voice, seed=rng.randrange(2**31), with_filters=True)
        blocks = speech.samples.shape[0] // HOP
        label = np.zeros(blocks, np.uint8)
        for mark in speech.phonemes:
            label[round(mark.start * 96) : round(mark.end * 96)] = phonemes.ALPHABET.index(mark.symbol)
        gain = log_uniform(rng, 0.6, 1.2)
        again = speak(text, other, seed=rng.randrange(2**31))
        for said, into in ((speech, sounds), (again, disguises)):
            into.append((said.samples[: blocks * HOP].numpy() * gain * 32767).clip(-32767, 32767).astype(np.int16))
        pitch = np.zeros(blocks, np.float16)
        given = speech.pitch.numpy()[:blocks]
        pitch[: len(given)] = given
        pitches.append(pitch)
        labels.append(label)
        assert speech.filters is not None
        for name, value in targets(speech.filters, blocks).items():
            louder = 0.0 if name == "phase" else math.log(gain)
            spectra[name].append((value + louder).astype(np.float16))
        total += blocks
        bounds.append(total)
        if total * HOP / clock.AUDIO_RATE > hours * 3600:
            break
    part = target.with_suffix(".part.npz")
    np.savez(part, sound=np.concatenate(sounds), pitch=np.concatenate(pitches), label=np.concatenate(labels),
             disguise=np.concatenate(disguises), bounds=np.array(bounds),
             speaker=np.arange(len(bounds) - 1) // SAYINGS,
             **{name: np.concatenate(parts) for name, parts in spectra.items()})
    part.replace(target)


def disguised(voice: Voice, rng: random.Random) -> Voice:
    """A voice of another throat, with the pitch and the tempo of `voice`."""
    return replace(
        voice, name="disguised", tract=min(1.35, max(0.72, voice.tract * log_uniform(rng, 0.87, 1.15))),
        breath=max(0.0, voice.breath + rng.uniform(-0.4, 0.4)), tilt=voice.tilt + rng.uniform(-0.5, 0.5),
    )


class Speeches:
    """Random 1.375 s segments of the shards in `folder`; the teacher's spectra only where they are asked for."""

    def __init__(self, folder: Path, *, with_spectra: bool = False) -> None:
        files = sorted(folder.glob("speech-?????.npz"))
        if not files:
            raise DataError(f"expected speech-*.npz shards in {folder}, found none; run prepare_speech first")
        shards = [_read(file, ARRAYS + SPECTRA + SPOKEN if with_spectra else ARRAYS) for file in files]
        self.sound, self.pitch, self.label = (np.concatenate([s[n] for s in shards]) for n in ARRAYS)
        if not with_spectra:
            return
        self.filters = {n: np.concatenate([s[n] for s in shards]) for n in SPECTRA}
        self.disguise = np.concatenate([s["disguise"] for s in shards])
        first = np.cumsum([0] + [len(s["pitch"]) for s in shards])
        self.starts = np.concatenate([s["bounds"][:-1] + at for s, at in zip(shards, first, strict=False)])
        self.ends = np.concatenate([s["bounds"][1:] + at for s, at in zip(shards, first, strict=False)])
        voices = np.cumsum([0] + [int(s["speaker"][-1]) + 1 for s in shards])
        speaker = np.concatenate([s["speaker"] + at for s, at in zip(shards, voices, strict=False)])
        self.own = np.searchsorted(speaker, speaker), np.searchsorted(speaker, speaker, side="right") - 1
        """First and last sentence of each sentence's voice."""

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S) samples, (B, F) pitch in Hz, (B, F) phoneme ids."""
        at = rng.integers(0, len(self.pitch) - FRAMES, size)
        sound = np.stack([self.sound[a * HOP : (a + FRAMES) * HOP] for a in at])
        pitch = np.stack([self.pitch[a : a + FRAMES] for a in at])
        label = np.stack([self.label[a : a + FRAMES] for a in at])
        return (
            torch.from_numpy(sound.astype(np.float32) / 32767),
            torch.from_numpy(pitch.astype(np.float32)),
            torch.from_numpy(label.astype(np.int64)),
        )

    def spectra(self, size: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, S) samples, some in disguise; pitch (B, F) and what the teacher spoke with (B, F, groups), and the
        voice's "reference" (B, S), where it says something else."""
        places = [self._place(int(a), rng) for a in rng.integers(0, len(self.pitch), size)]
        heard = (self.disguise if rng.random() < DISGUISED else self.sound for _ in places)
        cut = {
            "sound": [x[a * HOP : (a + FRAMES) * HOP] for x, (a, _) in zip(heard, places, strict=True)],
            "reference": [self.sound[b * HOP : (b + FRAMES) * HOP] for _, b in places],
        }
        samples = {name: torch.from_numpy(np.stack(x).astype(np.float32) / 32767) for name, x in cut.items()}
        given = {
            name: torch.from_numpy(np.stack([x[a : a + FRAMES] for a, _ in places]).astype(np.float32))
            for name, x in {"pitch": self.pitch, **self.filters}.items()
        }
        return samples.pop("sound"), {**samples, **given}

    def _place(self, at: int, rng: np.random.Generator) -> tuple[int, int]:
        """Blocks at which a segment of one voice, near `at`, and its reference begin: a part of the longer stretch of
        that voice beside the sentences which the segment has."""
        first, last = (int(x[np.searchsorted(self.ends, at, side="right")]) for x in self.own)
        begin, end = int(self.starts[first]), int(self.ends[last])
        at = max(begin, min(at, end - FRAMES))
        inside = np.searchsorted(self.ends, [at, at + FRAMES - 1], side="right").clip(max=len(self.ends) - 1)
        before, after = int(self.starts[inside[0]]), int(self.ends[inside[1]])
        low, high = (begin, before) if before - begin > end - after else (after, end)
        if high - low < FRAMES:  # a voice of few words: the nearest there is, though it may say a part of the same
            low = max(begin, min(low, end - FRAMES))
            high = low + FRAMES
        top = len(self.pitch) - FRAMES
        return min(at, top), min(int(rng.integers(low, high - FRAMES + 1)), top)


def _read(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is not readable speech ({error}); delete it, and it is spoken again") from None


def spectrogram(samples_BS: Tensor, window: int, hop: int) -> Tensor:
    """(B, frames, bins) magnitudes."""
    hann = torch.hann_window(window, device=samples_BS.device)
    frames = torch.fft.rfft(samples_BS.unfold(1, window, hop) * hann)
    return (frames.real.square() + frames.imag.square() + 1e-7).sqrt()


def stft_loss(made_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Mean over resolutions of the log-magnitude L1 and the relative linear L1."""
    total = made_BS.new_zeros(())
    for window, hop in RESOLUTIONS:
        keep = 1 + window * 14_000 // clock.AUDIO_RATE
        made, real = spectrogram(made_BS, window, hop)[..., :keep], spectrogram(real_BS, window, hop)[..., :keep]
        floor = 1e-4 * window**0.5
        total = total + ((made + floor).log() - (real + floor).log()).abs().mean()
        total = total + (made - real).abs().mean() / real.mean().clamp(min=floor)
    return total / len(RESOLUTIONS)


def loudness_loss(made_BS: Tensor, real_BS: Tensor) -> Tensor:
    """L1 between the loudness of both over time, in units of 20 dB, for windows of 21 and 83 ms.

    Magnitudes alone leave it open: the L1 of noisy bins is smallest at their median, well below their
    power, and most so where it is loud; speech then comes out flattened and mouths follow it badly.
    """
    total = made_BS.new_zeros(())
    for window in (1024, 4096):
        made, real = (x.float().unfold(1, window, window // 2).square().mean(2) for x in (made_BS, real_BS))
        total = total + 0.5 * ((made + 1e-6).log10() - (real + 1e-6).log10()).abs().mean()
    return total / 2


class Critic(nn.Module):
    """Patch discriminators on three views of a sound: mel spectra of 42 and 21 ms, and single harmonics up to 4 kHz.

    Small and on mels, since a look at whole spectrograms cost seven codec steps on one core."""

    CROP = 60 * HOP
    """Samples looked at: 0.6 s of a segment."""
    LOW = 320

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.views = ((2048, 512, 100), (1024, 256, 80), (4096, 512, None))
        for window, _, mels in self.views:
            if mels is not None:
                filters = mel_filters(window // 2 + 1, mels, clock.AUDIO_RATE)
                self.register_buffer(f"mel_{window}", filters, persistent=False)
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, width, (3, 5), padding=(1, 2)), nn.LeakyReLU(0.2),
                nn.Conv2d(width, 2 * width, (3, 5), stride=(1, 2), padding=(1, 2)), nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 2 * width, (3, 5), stride=(2, 2), padding=(1, 2)), nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 2 * width, (3, 3), stride=(2, 2), padding=1), nn.LeakyReLU(0.2),
                nn.Conv2d(2 * width, 1, (3, 3), padding=1),
            )
            for _ in self.views
        )

    def forward(self, samples_BS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Scores and inner features."""
        scores, features = [], []
        for net, (window, hop, mels) in zip(self.nets, self.views, strict=True):
            h = spectrogram(samples_BS.float(), window, hop)
            h = h[..., : self.LOW] if mels is None else h @ getattr(self, f"mel_{window}")
            h = (h + 1e-3).log()[:, None] * 0.5 + 1.0
            for layer in net:
                h = layer(h)
                if isinstance(layer, nn.LeakyReLU):
                    features.append(h)
            scores.append(h)
        return scores, features


def widened(codec: ToonAudioCodec, config: AudioCodecConfig) -> ToonAudioCodec:
    """The same codec with the further decoder blocks and the knowledge of voices that `config` asks for; they pass on
    what they get until they are trained."""
    had = codec.config
    wanted = replace(had, decoder_blocks=config.decoder_blocks or had.decoder_blocks, voice=had.voice or config.voice)
    if wanted == had:
        return codec
    wider, known = ToonAudioCodec(wanted), codec.state_dict()
    for name, value in wider.state_dict().items():
        if name not in known and name.endswith((".contract.weight", ".contract.bias")):
            value.zero_()
    wider.load_state_dict(known, strict=False)
    return wider


def reconstruct(codec: ToonAudioCodec, samples: Tensor, pitch: Tensor, noise: float) -> tuple[Tensor, Tensor, Spectra]:
    """Training path: teacher's pitch in the synthesis. Returns samples, latent means, spectra."""
    mean = codec.encoder(samples).float()
    z = mean + noise * torch.randn_like(mean)
    spectra, left = codec.decoder(z)
    ahead = tf.pad(pitch[:, OVERLAP:], (0, OVERLAP))
    made, _ = codec.synthesize(spectra, ahead, left, None)
    return made, mean, spectra


class CodecLoss(nn.Module):
    """The supervised terms; `forward` returns the sum, the parts and the synthesised samples."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.phoneme = nn.Conv1d(channels, 4 * len(phonemes.ALPHABET), 3, padding=1)

    def forward(
        self, codec: ToonAudioCodec, samples: Tensor, pitch: Tensor, label: Tensor
    ) -> tuple[Tensor, dict, Tensor]:
        made, mean, spectra = reconstruct(codec, samples, pitch, LATENT_NOISE)
        ahead = tf.pad(pitch[:, OVERLAP:], (0, OVERLAP))
        voiced = ahead > 0
        off = (spectra.pitch.log() - ahead.clamp(min=40).log()).abs()
        parts = {
            "stft": stft_loss(made[:, WINDOW:], samples[:, WINDOW:]),
            "loudness": loudness_loss(made[:, WINDOW:], samples[:, WINDOW:]),
            "pitch": (off * voiced).sum() / voiced.sum().clamp(min=1),
            "voiced": tf.binary_cross_entropy_with_logits(spectra.voiced[:, :-OVERLAP], voiced[:, :-OVERLAP].float()),
            "energy": mean.square().mean(),
        }
        logits = self.phoneme((mean + LATENT_NOISE * torch.randn_like(mean)).transpose(1, 2)).transpose(1, 2)
        logits = logits.reshape(label.shape[0], -1, len(phonemes.ALPHABET))
        parts["phoneme"] = tf.cross_entropy(logits.flatten(0, 1), label.flatten())
        total = (
            parts["stft"] + 2.0 * parts["loudness"] + 3.0 * parts["pitch"] + 0.3 * parts["voiced"]
            + 0.02 * parts["energy"] + 0.15 * parts["phoneme"]
        )
        return total, {k: float(v.detach()) for k, v in parts.items()}, made


@torch.no_grad()
def calibrate(codec: ToonAudioCodec, data: Speeches, rng: np.random.Generator) -> Tensor:
    """Set mean, rotation (principal axes, largest first) and the one global scale. Returns the
    standard deviation of each channel after it."""
    device = codec.mean.device
    z = torch.cat([codec.encoder(data.batch(32, rng)[0].to(device)) for _ in range(8)]).flatten(0, 1).double()
    codec.mean.copy_(z.mean(0))
    values, axes = torch.linalg.eigh(torch.cov(z.T))
    order = values.argsort(descending=True)
    codec.rotation.copy_(axes[:, order])
    codec.scale.copy_(values.sum().div(len(values)).rsqrt())
    return values[order].clamp(min=0).sqrt() * float(codec.scale)


def train_audio_codec(
    data: Path, out: Path, minutes: float, *, config: AudioCodecConfig, batch: int = 12, rate: float | None = None,
    adversarial_after: float | None = None, resume: bool = False, seed: int = 0, freeze_encoder: bool = False,
    bf16: bool = True, device: str = "cpu",
) -> None:
    """Train for `minutes` and write the component folder `out`; `resume` begins with the weights that are there.

    `freeze_encoder`: the decoder alone, by the teacher's own spectra (`vocoder.py`); stored latents stay valid.
    `adversarial_after`: share of the minutes after which a critic joins, 0.55 unless given, 0.1 for the decoder alone.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + (1000 if resume else 0))
    codec = widened(ToonAudioCodec.load(out), config).train() if resume else ToonAudioCodec(config)
    where = torch.device(device)
    if freeze_encoder:
        if not resume:
            raise ConfigError(f"expected a codec in {out} whose encoder is to stay; put one there and give --resume")
        train_decoder(
            Speeches(data, with_spectra=True).spectra, codec.to(where), out, minutes, batch=batch, rate=rate or 1e-3,
            critic_after=0.1 if adversarial_after is None else adversarial_after, seed=seed,
        )
        return
    rate, adversarial_after = rate or 1.5e-3, 0.55 if adversarial_after is None else adversarial_after
    speeches, loss_net, critic = Speeches(data), CodecLoss(config.latent_channels), Critic()
    for net in (codec, loss_net, critic):
        net.to(where)
    trained = [p for p in [*codec.parameters(), *loss_net.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, betas=(0.9, 0.98), weight_decay=1e-4)
    judge = torch.optim.AdamW(critic.parameters(), 4e-4, betas=(0.5, 0.9))
    start, step, average = time.monotonic(), 0, {}
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * share)))
        samples, pitch, label = (t.to(where) for t in speeches.batch(batch, rng))
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=bf16):
            total, parts, made = loss_net(codec, samples, pitch, label)
        if share > adversarial_after:
            with torch.autocast(where.type, dtype=torch.bfloat16, enabled=bf16):
                total = total + _adversarial(critic, judge, made[:, WINDOW:], samples[:, WINDOW:], parts)
        optimizer.zero_grad()
        total.backward()
        parts["norm"] = float(nn.utils.clip_grad_norm_(trained, 1.0))
        optimizer.step()
        step += 1
        for key, value in parts.items():
            average[key] = 0.98 * average.get(key, value) + 0.02 * value
        if step % 50 == 0:
            log.info("step %d share %.2f %s", step, share, json.dumps({k: round(v, 4) for k, v in average.items()}))
        if step % 500 == 0:
            calibrate(codec, speeches, rng)
            codec.save(out)
    deviations = calibrate(codec, speeches, rng)
    log.info("deviation of the sorted channels: %s", [round(float(d), 3) for d in deviations])
    codec.save(out)


def _adversarial(critic: Critic, judge: torch.optim.Optimizer, made: Tensor, real: Tensor, parts: dict) -> Tensor:
    """One critic update (hinge), then the codec's adversarial and feature-matching loss, on a part of the segments."""
    at = int(torch.randint(0, made.shape[1] - critic.CROP, ()))
    made, real = made[:, at : at + critic.CROP], real[:, at : at + critic.CROP]
    real_scores, real_features = critic(real)
    fake_scores, _ = critic(made.detach())
    loss = sum((tf.relu(1 - r).mean() + tf.relu(1 + f).mean()) for r, f in zip(real_scores, fake_scores, strict=True))
    judge.zero_grad()
    loss.backward()
    judge.step()
    scores, features = critic(made)
    pairs = zip(features, real_features, strict=True)
    match = sum((a - b.detach()).abs().mean() / b.detach().abs().mean() for a, b in pairs) / len(features)
    cheat = -sum(s.mean() for s in scores) / len(scores)
    parts["critic"], parts["match"] = float(loss.detach()), float(match.detach())
    return CHEAT * cheat + MATCH * match
