"""The audio VAE of `toon`: 49,152 Hz, stride 2048, 64 channels, with a harmonic-plus-noise decoder.

Why not `AutoencoderOobleck` at small width: a plain convolutional waveform decoder needs days to
learn clean phase; a decoder that predicts pitch, a harmonic and a noise spectrum a frame speaks
clearly after minutes on two cores, and costs a hundredth (docs/decisions.md).

The latents are noise-regularised: the encoder pays for amplitude and every channel carries the same
noise in training, so variance goes where it buys quality, and stays there: one global scale, never
one per channel (a whitened space made a prototype ignore its text). A rotation sorts them by variance.

Shapes: B batch, S samples, T latents (24 Hz), F frames (96 Hz, 512 samples), C channels, K bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from streamchar import clock
from streamchar.codecs.component import load_component, save_component
from streamchar.config.model import AudioCodecConfig
from streamchar.errors import InputError

HOP = 512
WINDOW = 2048
FRAMES_PER_LATENT = clock.AUDIO_STRIDE // HOP  # 4
OVERLAP = WINDOW // HOP - 1  # 3 later blocks that a frame's window reaches into
BINS = WINDOW // 2 + 1
MELS = 100
LOW_WINDOW = 4096
LOW_BINS = 96  # 12 Hz each: resolves the harmonics of low voices up to 1.1 kHz
TOP_HZ = 12_000.0
VOICED_HZ = 45.0
NOISE_BLOCKS = 256
LISTENING = 96
"""Width of the network that hears whose voice a reference is."""


def mel_filters(bins: int, mels: int, rate: int, low: float = 30.0, high: float = 14_000.0) -> Tensor:
    """(bins, mels) triangular filters, evenly spaced on the mel scale, each of unit area."""
    def to_mel(f: float) -> float:
        return 2595.0 * math.log10(1.0 + f / 700.0)

    edges = torch.linspace(to_mel(low), to_mel(high), mels + 2)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    hz = torch.linspace(0, rate / 2, bins)[:, None]
    rise = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rise, fall).clamp(min=0)
    return filters / filters.sum(0, keepdim=True).clamp(min=1e-6)


class Block(nn.Module):
    """A residual block over time: depthwise convolution, then a gated pointwise expansion.

    Causal blocks take and return the left context, so that a stream equals a batch."""

    def __init__(self, width: int, kernel: int, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.reach = causal, kernel - 1
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 3 * width)
        self.contract = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(
        self, x_BTC: Tensor, left_BTC: Tensor | None = None, timbre_B2C: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`timbre_B2C`: how much larger, and by what more, the normed channels are for a voice."""
        x = x_BTC.transpose(1, 2)
        if self.causal:
            left = x.new_zeros(x.shape[0], x.shape[1], self.reach) if left_BTC is None else left_BTC
            wide = torch.cat([left, x], dim=2)
            after = wide[:, :, wide.shape[2] - self.reach :]
        else:
            wide = tf.pad(x, (self.reach // 2, self.reach - self.reach // 2))
            after = wide[:, :, :0]
        h = self.norm(self.depthwise(wide).transpose(1, 2))
        if timbre_B2C is not None:
            h = torch.addcmul(h + timbre_B2C[:, 1:], h, timbre_B2C[:, :1])
        return x_BTC + self.scale * self.contract(tf.gelu(self.expand(h))), after


class Encoder(nn.Module):
    """Waveform -> latents, with look-ahead: it runs in training and on reference audio only."""

    mel: Tensor
    window: Tensor
    low_window: Tensor

    def __init__(self, width: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mel", mel_filters(BINS, MELS, clock.AUDIO_RATE), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("low_window", torch.hann_window(LOW_WINDOW), persistent=False)
        self.lift = nn.Linear(MELS + LOW_BINS, width)
        self.fine = nn.ModuleList(Block(width, 7, causal=False) for _ in range(blocks // 2))
        self.down = nn.Linear(FRAMES_PER_LATENT * width, width)
        self.coarse = nn.ModuleList(Block(width, 5, causal=False) for _ in range(blocks // 2))
        self.head = nn.Linear(width, channels)

    def features(self, samples_BS: Tensor) -> Tensor:
        """(B, S) -> (B, F, MELS + LOW_BINS); frame i is centred on sample 512 i + 1024."""
        frames = samples_BS.shape[1] // HOP
        padded = tf.pad(samples_BS.float(), (0, WINDOW - HOP))
        spectrum = torch.fft.rfft(padded.unfold(1, WINDOW, HOP)[:, :frames] * self.window)
        mel = spectrum.abs() @ self.mel
        margin = (LOW_WINDOW - WINDOW) // 2
        padded = tf.pad(samples_BS.float(), (margin, WINDOW - HOP + margin))
        low = torch.fft.rfft(padded.unfold(1, LOW_WINDOW, HOP)[:, :frames] * self.low_window)[..., :LOW_BINS].abs()
        return torch.cat([(mel + 1e-3).log() * 0.5 + 1.0, (low + 1e-2).log() * 0.5 - 0.5], dim=-1)

    def forward(self, samples_BS: Tensor) -> Tensor:
        h = self.lift(self.features(samples_BS))
        for block in self.fine:
            h, _ = block(h)
        b, f, c = h.shape
        h = self.down(h.reshape(b, f // FRAMES_PER_LATENT, FRAMES_PER_LATENT * c))
        for block in self.coarse:
            h, _ = block(h)
        return self.head(h)


class Timbre(nn.Module):
    """Whose voice it is: the latents of a reference -> a scale and a shift for each of the decoder's blocks.

    Latents of a sampler say less exactly how long a throat is than what it says. A reference says it: it is sound, and
    stays the same for a whole stream. At initialisation nothing is changed.
    """

    def __init__(self, channels: int, voice: int, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.inward = nn.Linear(channels, LISTENING)
        self.across = nn.Linear(LISTENING, LISTENING)
        self.voice = nn.Linear(2 * LISTENING, voice)
        self.outward = nn.Linear(voice, blocks * 2 * width, bias=False)
        nn.init.zeros_(self.outward.weight)

    def hear(self, z_BTC: Tensor) -> Tensor:
        """Raw latents (B, any, C) -> (B, voice): from mean and deviation over time of what a network makes of each."""
        h = tf.gelu(self.across(tf.gelu(self.inward(z_BTC)))).float()
        heard = torch.cat([h.mean(1), h.std(1, correction=0)], dim=1)
        return torch.tanh(self.voice(heard))

    def forward(self, voice_BV: Tensor) -> list[Tensor]:
        """(B, voice) -> (B, 2, width) for each block. A voice of zeros is none: nothing changes."""
        said = self.outward(voice_BV).unflatten(1, (self.blocks, 2, self.width))
        return list(said.unbind(1))


@dataclass(frozen=True)
class DecoderState:
    """What the decoder must remember between two pieces of a stream."""

    left: tuple[Tensor, ...]
    """Left context of each causal block; none before the first latents."""
    blocks: int
    """Blocks of 512 samples decoded so far."""
    excitation: Tensor
    """(B, 1536) pulses already made for the next three blocks."""
    phase: Tensor
    """(B,) phase of the pulse train in cycles, float64."""
    pitch: Tensor
    """(B,) last frame's pitch in Hz."""
    overlap: Tensor
    """(B, 1536) unfinished output."""
    voice: Tensor | None = None
    """(B, V) whose voice it is, where the decoder was made to know."""


@dataclass(frozen=True)
class Spectra:
    """The decoder's parameters of sound, a frame: harmonic log magnitude and phase, noise log
    magnitude (B, F, K), pitch in Hz of the block three ahead and the logit of its being voiced (B, F)."""

    harmonic: Tensor
    phase: Tensor
    noise: Tensor
    pitch: Tensor
    voiced: Tensor


class Decoder(nn.Module):
    """Latents -> spectra, causally; with a `Timbre` where the config wants one."""

    def __init__(self, width: int, blocks: int, channels: int, voice: int = 0) -> None:
        super().__init__()
        self.lift = nn.Linear(channels, width)
        self.coarse = nn.ModuleList(Block(width, 4, causal=True) for _ in range(blocks // 2))
        self.up = nn.Linear(width, FRAMES_PER_LATENT * width)
        self.fine = nn.ModuleList(Block(width, 7, causal=True) for _ in range(blocks - blocks // 2))
        self.norm = nn.LayerNorm(width)
        self.spectrum = nn.Linear(width, 3 * BINS)
        self.pitch = nn.Linear(width, 2)
        self.timbre = Timbre(channels, voice, width, blocks) if voice else None
        with torch.no_grad():
            self.spectrum.weight.mul_(0.1)
            quiet, hiss = torch.full((BINS,), -4.0), torch.full((BINS,), -5.0)
            self.spectrum.bias.copy_(torch.cat([quiet, torch.zeros(BINS), hiss]))

    def forward(
        self, z_BTC: Tensor, left: tuple[Tensor, ...] = (), voice_BV: Tensor | None = None
    ) -> tuple[Spectra, tuple[Tensor, ...]]:
        """Raw latents, each block's left context (none at a beginning), whose voice it is (None: nobody said)."""
        after, blocks = [], len(self.coarse) + len(self.fine)
        context = iter(left or [None] * blocks)
        timbre = iter([None] * blocks if voice_BV is None or self.timbre is None else self.timbre(voice_BV))
        h = self.lift(z_BTC)
        for block in self.coarse:
            h, keep = block(h, next(context), next(timbre))
            after.append(keep)
        b, t, c = h.shape
        h = self.up(h).reshape(b, t * FRAMES_PER_LATENT, c)
        for block in self.fine:
            h, keep = block(h, next(context), next(timbre))
            after.append(keep)
        h = self.norm(h)
        harmonic, phase, noise = self.spectrum(h).float().split(BINS, dim=-1)
        with torch.autocast(h.device.type, enabled=False):  # 1 % of pitch is audible, 8 bits are not enough
            log_pitch, voiced = self.pitch(h.float()).unbind(-1)
        return Spectra(
            harmonic=harmonic.clamp(-14, 6),
            phase=math.pi * torch.tanh(phase),
            noise=noise.clamp(-14, 4),
            pitch=(150.0 * torch.exp(log_pitch.clamp(-1.3, 1.5))),
            voiced=voiced,
        ), tuple(after)


class ToonAudioCodec(nn.Module):
    """See the module's text. Satisfies the `AudioCodec` protocol."""

    stride = clock.AUDIO_STRIDE
    lookahead = 0

    rotation: Tensor
    mean: Tensor
    scale: Tensor
    window: Tensor
    noise: Tensor

    def __init__(self, config: AudioCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = config.latent_channels
        self.encoder = Encoder(config.width, config.blocks, config.latent_channels)
        self.decoder = Decoder(
            config.width, config.decoder_blocks or config.blocks, config.latent_channels, config.voice
        )
        self.register_buffer("rotation", torch.eye(config.latent_channels))
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        noise = torch.randn(NOISE_BLOCKS * HOP, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def encode(self, samples_BS: Tensor) -> Tensor:
        if samples_BS.ndim != 2 or samples_BS.shape[1] % self.stride or samples_BS.shape[1] == 0:
            raise InputError(
                f"audio to encode must be (batch, samples) with samples a multiple of {self.stride}, "
                f"got {tuple(samples_BS.shape)}; pad it with silence"
            )
        return (self.encoder(samples_BS).float() - self.mean) @ self.rotation * self.scale

    def unscale(self, latents_BTC: Tensor) -> Tensor:
        """Normalised latents -> what the decoder network takes."""
        return (latents_BTC.float() / self.scale) @ self.rotation.T + self.mean

    @torch.no_grad()
    def begin(self, reference_BTC: Tensor | None) -> DecoderState | None:
        """The state before the first latents of a stream that speaks in the voice of `reference_BTC` (B, R, C)."""
        if reference_BTC is None or self.decoder.timbre is None:
            return None
        voice = self.decoder.timbre.hear(self.unscale(reference_BTC))
        empty, rest = voice.new_zeros(len(voice), 0), voice.new_zeros(len(voice))
        return DecoderState(
            left=(), blocks=0, excitation=empty, phase=rest.double(), pitch=rest, overlap=empty, voice=voice
        )

    def decode(self, latents_BTC: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        given = ((), None) if state is None else (state.left, state.voice)
        spectra, left = self.decoder(self.unscale(latents_BTC), *given)
        pitch = torch.where(spectra.voiced > 0, spectra.pitch, torch.zeros_like(spectra.pitch))
        return self.synthesize(spectra, pitch, left, state)

    def synthesize(
        self, spectra: Spectra, pitch_BF: Tensor, left: tuple[Tensor, ...], state: DecoderState | None
    ) -> tuple[Tensor, DecoderState]:
        """Spectra and a pitch track (0 = unvoiced) -> samples. Frame i's window starts at block i, so
        its pulses reach into three blocks whose pitch the same frame already knows."""
        b, f = pitch_BF.shape
        zeros = spectra.harmonic.new_zeros
        if state is None or not state.blocks:
            pitch_BF = torch.cat([pitch_BF[:, :1].expand(b, OVERLAP), pitch_BF], dim=1)
            excitation, phase, last = zeros(b, 0), pitch_BF.new_zeros(b, dtype=torch.float64), pitch_BF[:, 0]
            overlap, done = zeros(b, OVERLAP * HOP), 0
        else:
            excitation, phase, last = state.excitation, state.phase, state.pitch
            overlap, done = state.overlap, state.blocks
        pulses, phase = pulse_train(pitch_BF, last, phase)
        excitation = torch.cat([excitation, pulses], dim=1)
        index = (torch.arange((f + OVERLAP) * HOP, device=pulses.device) + done * HOP) % self.noise.shape[0]
        window = self.window * (2.0 / WINDOW)
        source = torch.fft.rfft(excitation.unfold(1, WINDOW, HOP) * window)
        hiss = torch.fft.rfft(self.noise[index].unfold(0, WINDOW, HOP) * self.window * (WINDOW**-0.5))
        spectrum = source * torch.polar(spectra.harmonic.exp(), spectra.phase) + hiss * spectra.noise.exp()
        frames = torch.fft.irfft(spectrum, n=WINDOW) * self.window * (WINDOW / 3.0)
        total = zeros(b, (f + OVERLAP) * HOP)
        total[:, : OVERLAP * HOP] += overlap
        for k in range(OVERLAP + 1):
            total[:, k * HOP : (k + f) * HOP] += frames[:, :, k * HOP : (k + 1) * HOP].reshape(b, f * HOP)
        after = DecoderState(
            left=left, blocks=done + f, excitation=excitation[:, f * HOP :], phase=phase, pitch=pitch_BF[:, -1],
            overlap=total[:, f * HOP :], voice=None if state is None else state.voice,
        )
        return total[:, : f * HOP], after

    def save(self, folder: Path) -> None:
        save_component(self, self.config, folder)

    @classmethod
    def load(cls, folder: Path) -> ToonAudioCodec:
        return load_component(cls, AudioCodecConfig, folder)


def pulse_train(pitch_BF: Tensor, last_B: Tensor, phase_B: Tensor) -> tuple[Tensor, Tensor]:
    """Band-limited pulses: every harmonic under 12 kHz at unit amplitude, silence where pitch is 0.

    The pitch glides from the previous block's value to its own over each block (no glide into or out
    of silence). Returns (B, 512 F) samples and the phase in cycles after them."""
    before = torch.cat([last_B[:, None], pitch_BF[:, :-1]], dim=1)
    both = (before > 0) & (pitch_BF > 0)
    start = torch.where(both, before, pitch_BF)
    ramp = torch.arange(1, HOP + 1, device=pitch_BF.device, dtype=torch.float64) / HOP
    hz = start.double()[..., None] + (pitch_BF - start).double()[..., None] * ramp
    hz = hz.flatten(1)
    cycles = phase_B[:, None] + torch.cumsum(hz / clock.AUDIO_RATE, dim=1)
    angle = (2 * math.pi * (cycles - cycles.floor())).float()
    count = torch.floor(TOP_HZ / hz.float().clamp(min=VOICED_HZ)) + 0.5
    half = torch.sin(angle / 2)
    near = half.abs() < 1e-3
    wave = torch.sin(count * angle) / torch.where(near, torch.ones_like(half), 2 * half) - 0.5
    wave = torch.where(near, count - 0.5, wave)
    return wave * (hz > VOICED_HZ), cycles[:, -1] - cycles[:, -1].floor()
