"""The audio decoder's training by the teacher's own spectra (`train/vocoder.py`)."""

import numpy as np
import pytest
import torch

from streamchar.codecs.audio import BINS, HOP, OVERLAP, Spectra, ToonAudioCodec
from streamchar.config.model import AudioCodecConfig
from streamchar.errors import ConfigError, DataError
from streamchar.train.audio_codec import FRAMES, Speeches, prepare_speech, spectrogram, train_audio_codec
from streamchar.train.vocoder import (
    CRITIC,
    FLOOR,
    GROUPS,
    VocoderTrainer,
    compare,
    group_edges,
    group_filters,
    targets,
)
from streamchar.types import Filters
from streamchar.world.voice import speak

CONFIG = AudioCodecConfig(family="toon", latent_channels=64, width=16, blocks=2, voice=4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    prepare_speech(folder, 0.005, seed=3)
    return folder


def wide(grouped_FG):
    """Each group's value at all of its bins."""
    out, edges = torch.full((grouped_FG.shape[0], BINS), FLOOR), group_edges()
    for g, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        out[:, low:high] = grouped_FG[:, g : g + 1].float()
    return out


def test_groups_cover_what_is_heard_once():
    filters = group_filters()
    assert filters.shape == (BINS, GROUPS)
    torch.testing.assert_close(filters.sum(0), torch.ones(GROUPS))
    assert ((filters > 0).sum(1)[: group_edges()[-1]] == 1).all() and not filters[group_edges()[-1] :].any()


def test_targets_lie_at_the_decoders_frames():
    """What begins at 1 s begins in the frame whose window's middle is there, two blocks after its own."""
    quiet = torch.full((601, 160), -9.0)
    loud = quiet.clone()
    loud[:, 80:] = -1.0
    found = targets(Filters(harmonic=loud, phase=torch.full_like(loud, 0.5), noise=quiet), 180)
    course = found["harmonic"][:, 20].astype(np.float32)
    assert course[93] < course[94] - 1 and course[93] < -13 + 2, "frame 94 is centred at 1 s"
    assert course[94:-2].std() < 0.01 and (found["phase"] == np.float16(0.5)).all()
    assert np.ptp(found["noise"][:, :60]) < 0.01


def test_the_teachers_spectra_are_its_sound():
    """Synthesised by the codec, they have the level and the spectrum of what was said: the two scales are right."""
    speech = speak("Where have all the little boats gone?", 0, with_filters=True)
    blocks = speech.samples.shape[0] // HOP
    given = {name: torch.from_numpy(x) for name, x in targets(speech.filters, blocks).items()}
    ahead = torch.nn.functional.pad(speech.pitch[OVERLAP:blocks], (0, OVERLAP))
    spectra = Spectra(
        harmonic=wide(given["harmonic"])[None], phase=wide(given["phase"])[None], noise=wide(given["noise"])[None],
        pitch=ahead[None], voiced=ahead[None],
    )
    made, _ = ToonAudioCodec(CONFIG).synthesize(spectra, ahead[None], (), None)
    a, b = (spectrogram(x, 1024, 512)[0] for x in (made, speech.samples[None, : blocks * HOP]))
    voiced = speech.pitch[: len(b)] > 0
    for part in (voiced, ~voiced):
        louder = 0.5 * float((a[part].square().sum() / b[part].square().sum()).log())
        assert abs(louder) < 0.25, "nepers; interpolation costs a tenth"
    coarse = [x[:, :240].unflatten(1, (24, 10)).mean(2).clamp(min=0.01).log() for x in (a, b)]
    assert float((coarse[0] - coarse[1]).abs().mean()) < 0.3


def test_the_truth_costs_least(shards):
    given = Speeches(shards, with_spectra=True).spectra(2, np.random.default_rng(0))[1]
    ahead = torch.nn.functional.pad(given["pitch"][:, OVERLAP:], (0, OVERLAP))
    def spectra(shift):
        fields = {name: torch.stack([wide(x) for x in given[name]]) for name in ("harmonic", "phase", "noise")}
        fields["harmonic"], fields["noise"] = fields["harmonic"] + shift, fields["noise"] + shift
        return Spectra(**fields, pitch=ahead.clamp(min=60) * (1 + shift), voiced=(ahead > 0).float() * 20 - 10)

    true, _, _ = compare(spectra(0.0), given, group_filters())
    off, made, real = compare(spectra(0.5), given, group_filters())
    for name in ("harmonic", "noise"):
        assert 3 * true[name] < off[name], "what is at the floor counts the floor twice here, and nothing else"
    assert true["phase"] < 1e-3 and true["pitch"] < 0.01 < off["pitch"] and true["voiced"] < 1e-3
    assert made.shape == real.shape == (2, 2, ahead.shape[1], GROUPS)


def test_a_reference_is_the_same_voice_saying_something_else(tmp_path):
    """Two voices of three sentences of 2 s each: a segment and its reference never are of both, and never overlap."""
    blocks, sentence = 12 * 96, 2 * 96
    sound = np.repeat(np.arange(blocks), HOP).astype(np.int16)
    tracks = {name: np.zeros((blocks, GROUPS), np.float16) for name in ("harmonic", "phase", "noise")}
    np.savez(
        tmp_path / "speech-00000.npz", sound=sound, disguise=sound, pitch=np.arange(blocks, dtype=np.float16),
        label=np.zeros(blocks, np.uint8), bounds=np.arange(0, blocks + 1, sentence), speaker=np.arange(6) // 3,
        **tracks,
    )
    (tmp_path / "speech-00001.npz").write_bytes((tmp_path / "speech-00000.npz").read_bytes())
    speeches, rng = Speeches(tmp_path, with_spectra=True), np.random.default_rng(0)
    for _ in range(20):
        samples, given = speeches.spectra(8, rng)
        first, other = ((x[:, 0] * 32767).round().long() for x in (samples, given["reference"]))
        assert samples.shape == given["reference"].shape == (8, FRAMES * HOP)
        last = (samples[:, -1] * 32767).round().long()
        assert torch.equal(first // (3 * sentence), last // (3 * sentence))
        assert torch.equal(first // (3 * sentence), other // (3 * sentence))
        assert ((other + FRAMES <= first) | (other >= first + FRAMES)).all()
        assert len(set(first.tolist())) > 2 and len(set(other.tolist())) > 2


def test_a_disguise_has_the_same_pitch_and_times(shards):
    """Another throat says the same at the same time: it is heard in the latents, and not in the pitch."""
    speeches = Speeches(shards, with_spectra=True)
    assert len(speeches.disguise) == len(speeches.sound) and not np.array_equal(speeches.disguise, speeches.sound)
    loud = [np.abs(x.astype(np.float32)).reshape(-1, HOP).mean(1) for x in (speeches.sound, speeches.disguise)]
    assert np.corrcoef(*loud)[0, 1] > 0.9


def test_the_voice_is_learned_from_the_reference(shards):
    torch.manual_seed(0)
    codec = ToonAudioCodec(CONFIG)
    trainer, speeches = VocoderTrainer(codec, 2e-2, 0), Speeches(shards, with_spectra=True)
    samples, given = speeches.spectra(2, np.random.default_rng(0))
    for _ in range(4):
        trainer.update(samples, given, 0.0, critic=False)
    timbre = trainer.decoder.timbre
    assert timbre.outward.weight.abs().max() > 0 and timbre.inward.weight.grad.abs().max() > 0


def test_training_leaves_the_encoder_and_lowers_the_loss(shards):
    torch.manual_seed(0)
    codec = ToonAudioCodec(CONFIG)
    before = {name: p.clone() for name, p in codec.state_dict().items() if not name.startswith("decoder.")}
    trainer, speeches = VocoderTrainer(codec, 2e-2, 0), Speeches(shards, with_spectra=True)
    samples, given = speeches.spectra(2, np.random.default_rng(0))
    terms = [trainer.update(samples, given, 0.0, critic=step > 40) for step in range(44)]
    assert terms[-1]["harmonic"] < 0.8 * terms[0]["harmonic"] and terms[-1]["noise"] < 0.8 * terms[0]["noise"]
    assert "match" not in terms[0] and np.isfinite(list(terms[-1].values())).all() and terms[-1]["match"] > 0
    assert all(torch.equal(codec.state_dict()[name], value) for name, value in before.items())


def test_the_command_needs_weights_and_spectra(shards, tmp_path):
    with pytest.raises(ConfigError, match="whose encoder is to stay"):
        train_audio_codec(shards, tmp_path / "new", 0.001, config=CONFIG, freeze_encoder=True)
    out = tmp_path / "out"
    ToonAudioCodec(CONFIG).save(out)
    train_audio_codec(
        shards, out, 0.003, config=CONFIG, freeze_encoder=True, resume=True, batch=1, adversarial_after=-1.0
    )
    assert all(p.isfinite().all() for p in ToonAudioCodec.load(out).state_dict().values())
    again = VocoderTrainer(ToonAudioCodec.load(out), 1e-3, 1)
    fresh = {name: value.clone() for name, value in again.critic.state_dict().items()}
    assert again.load_critic(out) and not VocoderTrainer(ToonAudioCodec.load(out), 1e-3, 1).load_critic(tmp_path)
    assert any(not torch.equal(value, fresh[name]) for name, value in again.critic.state_dict().items())
    (out / CRITIC).write_bytes(b"{}")
    with pytest.raises(DataError, match="delete it to begin anew"):
        again.load_critic(out)
    old = tmp_path / "old"
    old.mkdir()
    with np.load(next(shards.glob("*.npz"))) as file:
        np.savez(old / "speech-00000.npz", **{name: file[name] for name in ("sound", "pitch", "label", "bounds")})
    with pytest.raises(DataError, match="not readable speech .*harmonic"):
        train_audio_codec(old, out, 0.003, config=CONFIG, freeze_encoder=True, resume=True)
