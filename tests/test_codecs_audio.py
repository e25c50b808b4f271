"""The `toon` audio codec: streamed == batch, causality, the pulse train, and what it costs the latents."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from streamchar import clock
from streamchar.codecs.audio import (
    BINS,
    HOP,
    NOISE_BLOCKS,
    OVERLAP,
    WINDOW,
    Spectra,
    ToonAudioCodec,
    mel_filters,
    pulse_train,
)
from streamchar.config.presets import tiny
from streamchar.errors import CheckpointError, DataError, InputError
from streamchar.train.audio_codec import (
    CodecLoss,
    Speeches,
    calibrate,
    loudness_loss,
    stft_loss,
    train_audio_codec,
    widened,
)
from streamchar.types import AudioCodec

CONFIG = replace(tiny().audio, blocks=4, voice=0)
STRIDE = clock.AUDIO_STRIDE
RATE = clock.AUDIO_RATE


@pytest.fixture(scope="module")
def codec():
    """Untrained, but loud, and voiced about half of the time."""
    torch.manual_seed(0)
    model = ToonAudioCodec(CONFIG).eval()
    with torch.no_grad():
        model.decoder.spectrum.weight.mul_(10)
        model.decoder.pitch.weight.mul_(4)
        model.mean.normal_()
        model.scale.fill_(0.7)
        model.rotation.copy_(torch.linalg.qr(torch.randn(64, 64)).Q)
    return model


def latents(batch, count, seed=0):
    """Slow enough for the pitch to hold for a while."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, 64, generator=draw).cumsum(1)


def same_sound(made, wanted):
    """But for what a pitch that differs in its last bit does, as processors have it: it moves pulses, which are steep,
    by a little. Single samples were 6e-3 of the peak off, all together 2e-4 of the sound."""
    off = made - wanted
    assert off.abs().max() < 0.02 * wanted.abs().max()
    assert off.square().mean().sqrt() < 1e-3 * wanted.square().mean().sqrt()


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(1,) * 9, (3, 1, 5), (33, 33, 33)])
def test_streamed_equals_batch(codec, pieces):
    """Chunk by chunk, or latent by latent; the last case runs past the noise table's end."""
    z = latents(2, sum(pieces))
    whole, _ = codec.decode(z)
    assert sum(pieces) < 33 or sum(pieces) * 4 > NOISE_BLOCKS
    state, parts = None, []
    for start, stop in pairwise(np.cumsum([0, *pieces]).tolist()):
        part, state = codec.decode(z[:, start:stop], state)
        assert part.shape == (2, (stop - start) * STRIDE)
        parts.append(part)
    streamed = torch.cat(parts, dim=1)
    assert whole.std() > 0.01
    same_sound(streamed, whole)


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one(codec):
    z = latents(2, 12)
    both, state = codec.decode(z)
    more, _ = codec.decode(z[:, :3], state)
    for i in range(2):
        alone, state = codec.decode(z[i : i + 1])
        same_sound(alone[0], both[i])
        same_sound(codec.decode(z[i : i + 1, :3], state)[0][0], more[i])
    sound = torch.randn(2, 5 * STRIDE)
    together = codec.encode(sound)
    torch.testing.assert_close(codec.encode(sound[:1]), together[:1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decoding_leaves_its_state_alone(codec):
    """A state is a value: two streams may go on from it."""
    z = latents(1, 8)
    _, state = codec.decode(z[:, :4])
    before = [t.clone() for t in (*state.left, state.excitation, state.phase, state.pitch, state.overlap)]
    one, _ = codec.decode(z[:, 4:], state)
    codec.decode(-z[:, 4:], state)
    assert all(map(torch.equal, before, (*state.left, state.excitation, state.phase, state.pitch, state.overlap)))
    assert torch.equal(one, codec.decode(z[:, 4:], state)[0])


@pytest.fixture(scope="module")
def knowing(codec):
    """The same with a knowledge of voices, drawn at random."""
    torch.manual_seed(1)
    model = widened(codec, replace(CONFIG, voice=8)).eval()
    torch.nn.init.normal_(model.decoder.timbre.outward.weight, std=0.5)
    return model


@torch.no_grad()
def test_a_reference_changes_the_voice_for_a_whole_stream(codec, knowing):
    z, references = latents(2, 9), [latents(2, 12, seed=seed) for seed in (3, 4)]
    torch.testing.assert_close(knowing.decode(z)[0], codec.decode(z)[0], rtol=1e-5, atol=1e-6)  # nobody said whose
    assert codec.begin(references[0]) is None and knowing.begin(None) is None
    sounds = [knowing.decode(z, knowing.begin(reference))[0] for reference in references]
    loud = sounds[0].abs().max().item()
    assert all((sounds[0] - other).abs().max() > 0.05 * loud for other in (sounds[1], codec.decode(z)[0]))
    state, parts = knowing.begin(references[0]), []
    for start, stop in ((0, 2), (2, 3), (3, 9)):
        part, state = knowing.decode(z[:, start:stop], state)
        parts.append(part)
    same_sound(torch.cat(parts, dim=1), sounds[0])
    same_sound(knowing.decode(z[1:], knowing.begin(references[0][1:]))[0][0], sounds[0][1])


@torch.no_grad()
def test_whose_voice_it_is_does_not_depend_on_when_it_is_said(knowing):
    """A mean over time: the order counts for nothing, twice the same is the same."""
    reference = latents(1, 12, seed=3)
    voice = knowing.begin(reference).voice
    assert voice.shape == (1, 8) and voice.abs().max() < 1
    for other in (reference.flip(1), torch.cat([reference, reference], dim=1)):
        torch.testing.assert_close(knowing.begin(other).voice, voice, rtol=1e-3, atol=1e-4)
    assert (knowing.begin(latents(1, 12, seed=4)).voice - voice).abs().max() > 0.01


def test_decoding_is_causal(codec):
    """No sample depends on a latent that comes after it: a stream needs no look-ahead."""
    z = latents(1, 8).requires_grad_()
    samples, _ = codec.decode(z)
    samples[:, : 5 * STRIDE].square().sum().backward()
    grad = z.grad.abs().amax(-1)[0]
    assert (grad[:5] > 0).all() and not grad[5:].any()


@torch.no_grad()
def test_encoding_is_local(codec):
    """Reference audio may be cut anywhere: away from the cut the latents are the same."""
    sound = torch.randn(1, 40 * STRIDE)
    whole, part = codec.encode(sound), codec.encode(sound[:, : 30 * STRIDE])
    assert whole.shape == (1, 40, 64)
    torch.testing.assert_close(part[:, :20], whole[:, :20], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_unscaling_undoes_the_normalisation(codec):
    sound = torch.randn(1, 3 * STRIDE)
    torch.testing.assert_close(codec.unscale(codec.encode(sound)), codec.encoder(sound), rtol=1e-4, atol=1e-4)


def test_it_is_an_audio_codec(codec):
    assert isinstance(codec, AudioCodec)
    assert (codec.latent_channels, codec.stride) == (64, 2048)


# -- synthesis ---------------------------------------------------------------------------------------


def flat(frames, pitch, *, noise=-14.0, harmonic=0.0):
    shape = (1, frames, BINS)
    return Spectra(
        harmonic=torch.full(shape, harmonic), phase=torch.zeros(shape), noise=torch.full(shape, noise),
        pitch=torch.full((1, frames), pitch), voiced=torch.ones(1, frames),
    )


@torch.no_grad()
@pytest.mark.parametrize("pitch", [80.0, 220.0, 500.0])
def test_flat_spectra_pass_the_pulses_unchanged(codec, pitch):
    """Windows, overlap and scale cancel: what comes out is the pulse train itself."""
    frames = 40
    track = torch.full((1, frames), pitch)
    made, _ = codec.synthesize(flat(frames, pitch), track, (), None)
    pulses, _ = pulse_train(track, track[:, 0], torch.zeros(1, dtype=torch.float64))
    inner = slice(OVERLAP * HOP, None)
    torch.testing.assert_close(made[:, inner], pulses[:, inner], rtol=0, atol=2e-2)
    power = torch.fft.rfft(made[0, inner] * torch.hann_window(made.shape[1] - OVERLAP * HOP)).abs()
    peak = int(power[1 : len(power) // 8].argmax()) + 1
    assert peak * RATE / (made.shape[1] - OVERLAP * HOP) % pitch == pytest.approx(0, abs=2) or (
        peak * RATE / (made.shape[1] - OVERLAP * HOP) % pitch == pytest.approx(pitch, abs=2)
    )


@torch.no_grad()
def test_noise_is_flat_and_of_the_wanted_level(codec):
    frames = 200
    made, _ = codec.synthesize(flat(frames, 0.0, noise=-2.0), torch.zeros(1, frames), (), None)
    louder, _ = codec.synthesize(flat(frames, 0.0, noise=-1.0), torch.zeros(1, frames), (), None)
    assert (louder.std() / made.std()).item() == pytest.approx(np.e, rel=0.01)
    bands = torch.fft.rfft(made[0]).abs().square().chunk(8)
    levels = torch.stack([band.mean() for band in bands])
    assert (levels / levels.mean() - 1).abs().max() < 0.15


def test_pulses_come_at_the_pitch_and_stay_under_12_khz():
    pitch = torch.full((1, 96), 150.0)  # one second
    wave, phase = pulse_train(pitch, pitch[:, 0], torch.zeros(1, dtype=torch.float64))
    peaks = (wave[0] > 0.8 * wave.max()).float().diff().clamp(min=0).sum()
    assert peaks.item() == pytest.approx(150, abs=1)
    assert phase.item() == pytest.approx(0, abs=1e-6) or phase.item() == pytest.approx(1, abs=1e-6)
    spectrum = torch.fft.rfft(wave[0]).abs()
    assert spectrum[12_010:].max() < 1e-3 * spectrum.max()
    harmonics = spectrum[150 : 12_000 : 150]
    torch.testing.assert_close(harmonics / harmonics.mean(), torch.ones_like(harmonics), rtol=0.02, atol=0.02)


def test_pulses_go_on_across_pieces():
    pitch = 100 + 80 * torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    pitch[:, 12:15] = 0
    zero = torch.zeros(2, dtype=torch.float64)
    whole, end = pulse_train(pitch, pitch[:, 0], zero)
    first, phase = pulse_train(pitch[:, :17], pitch[:, 0], zero)
    second, last = pulse_train(pitch[:, 17:], pitch[:, 16], phase)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=2e-3)
    torch.testing.assert_close(last, end)
    assert not whole[:, 12 * HOP : 15 * HOP].any(), "no pulses where there is no pitch"


def test_mel_filters_have_unit_area_and_leave_no_gap():
    filters = mel_filters(BINS, 60, RATE)
    torch.testing.assert_close(filters.sum(0), torch.ones(60))
    covered = filters.sum(1) > 0
    hz = torch.linspace(0, RATE / 2, BINS)
    assert covered[(hz > 60) & (hz < 13_900)].all()
    assert not covered[hz > 14_100].any()


# -- on disk, and bad input --------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(codec, tmp_path):
    codec.save(tmp_path / "codec")
    loaded = ToonAudioCodec.load(tmp_path / "codec")
    z, sound = latents(1, 5), torch.randn(1, 4 * STRIDE)
    assert torch.equal(codec.decode(z)[0], loaded.decode(z)[0])
    assert torch.equal(codec.encode(sound), loaded.encode(sound))
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["config.json", "model.safetensors"]


def test_a_spoiled_component_is_refused(codec, tmp_path):
    with pytest.raises(CheckpointError, match="found none"):
        ToonAudioCodec.load(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    codec.save(tmp_path)
    good = config.read_text()
    for text, message in (
        ("{", "not a readable JSON file"),
        ("[]", "must hold one JSON object"),
        ('{"class": "JointDiT"}', "describes a JointDiT, expected ToonAudioCodec"),
        (json.dumps({**json.loads(good), "colour": 1}), "unknown settings"),
        ('{"class": "ToonAudioCodec"}', "is incomplete"),
        (good.replace('"width": 32', '"width": 16'), "does not fit ToonAudioCodec"),
    ):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            ToonAudioCodec.load(tmp_path)
    config.write_text(good)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        ToonAudioCodec.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="pickles are never read"):
        ToonAudioCodec.load(tmp_path)


@pytest.mark.parametrize("shape", [(1, 2047), (1, 0), (2048,), (1, 1, 2048)])
def test_sound_of_a_wrong_length_is_refused(codec, shape):
    with pytest.raises(InputError, match="samples a multiple of 2048"):
        codec.encode(torch.zeros(shape))


# -- training -----------------------------------------------------------------------------------------


def speech_shard(folder, seconds=6):
    """A shard of hum and hiss: what the trainer reads, without a teacher."""
    blocks = seconds * 96
    rng = np.random.default_rng(0)
    time = np.arange(blocks * HOP) / RATE
    hum = np.sign(np.sin(2 * np.pi * 180 * time)) * (np.sin(2 * np.pi * time) > 0)
    sound = 0.2 * hum + 0.01 * rng.standard_normal(len(time))
    pitch = np.where(np.sin(2 * np.pi * (np.arange(blocks) + 0.5) / 96) > 0, 180, 0).astype(np.float16)
    folder.mkdir(parents=True)
    np.savez(
        folder / "speech-00000.npz", sound=(sound * 32767).astype(np.int16), pitch=pitch,
        label=(pitch > 0).astype(np.uint8), bounds=np.array([0, blocks]),
    )
    return Speeches(folder)


def test_calibration_sorts_the_channels_and_keeps_their_proportions(tmp_path):
    torch.manual_seed(0)
    model, data = ToonAudioCodec(CONFIG).eval(), speech_shard(tmp_path / "data")
    deviations = calibrate(model, data, np.random.default_rng(0))
    assert (deviations.diff() <= 1e-6).all(), "largest first"
    assert deviations.square().mean().item() == pytest.approx(1, rel=1e-3), "one global scale"
    with torch.no_grad():
        rng = np.random.default_rng(0)
        z = torch.cat([model.encode(data.batch(32, rng)[0]) for _ in range(8)])
    z = z.flatten(0, 1).double()
    covariance = torch.cov(z.T)
    torch.testing.assert_close(covariance.diagonal().sqrt(), deviations, rtol=1e-2, atol=1e-3)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-2
    assert z.mean(0).abs().max() < 1e-2


def test_the_loss_reaches_every_parameter_and_prefers_the_truth(tmp_path):
    torch.manual_seed(0)
    model, loss, data = ToonAudioCodec(CONFIG), CodecLoss(64), speech_shard(tmp_path / "data")
    samples, pitch, label = data.batch(2, np.random.default_rng(0))
    total, parts, made = loss(model, samples, pitch, label)
    total.backward()
    assert made.shape == samples.shape and all(np.isfinite(v) for v in parts.values())
    named = [*model.named_parameters(), *loss.named_parameters()]
    assert [name for name, p in named if p.grad is None or not p.grad.any()] == []
    assert stft_loss(samples, samples).item() == 0
    assert stft_loss(0.5 * samples, samples) < stft_loss(torch.randn_like(samples), samples)


def test_the_loudness_loss_is_in_units_of_20_decibels():
    samples = 0.1 * torch.randn(1, 2 * 67_584, generator=torch.Generator().manual_seed(0))
    assert loudness_loss(samples, samples).item() == 0
    assert loudness_loss(0.1 * samples, samples).item() == pytest.approx(1.0, abs=0.01)
    swell = samples * torch.linspace(0.5, 1.5, samples.shape[1])
    assert loudness_loss(swell, samples) > 0.1


def test_a_deepened_codec_sounds_the_same_until_it_is_trained():
    torch.manual_seed(0)
    codec = ToonAudioCodec(CONFIG).eval()
    deeper = widened(codec, replace(CONFIG, decoder_blocks=CONFIG.blocks + 4)).eval()
    latents = torch.randn(1, 8, CONFIG.latent_channels)
    with torch.no_grad():
        sound = codec.decode(latents)[0]
        torch.testing.assert_close(deeper.decode(latents)[0], sound, rtol=1e-4, atol=1e-5)
        torch.nn.init.normal_(deeper.decoder.fine[-1].contract.weight)  # not silent, nor deaf to the new blocks
        assert (deeper.decode(latents)[0] - sound).abs().max() > 1e-3
    assert len(deeper.decoder.coarse) + len(deeper.decoder.fine) == CONFIG.blocks + 4
    assert deeper.config.decoder_blocks == CONFIG.blocks + 4


def test_training_writes_a_codec_that_loads(tmp_path):
    """A second of it, critic included."""
    speech_shard(tmp_path / "data")
    train_audio_codec(tmp_path / "data", tmp_path / "out", 0.003, config=CONFIG, batch=1, adversarial_after=-1.0)
    made = ToonAudioCodec.load(tmp_path / "out")
    assert made.config == CONFIG
    assert all(p.isfinite().all() for p in made.state_dict().values())


def test_training_needs_data(tmp_path):
    with pytest.raises(DataError, match="run prepare_speech first"):
        Speeches(tmp_path)
    (tmp_path / "speech-00000.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="speech-00000.npz is not readable speech .*spoken again"):
        Speeches(tmp_path)
    assert WINDOW == 4 * HOP
