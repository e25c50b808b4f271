"""Voices and their quality: features against known tones, similarity against planted voices, MOS against noise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper
from torch import Tensor

from streamchar.errors import ConfigError
from streamchar.eval.metric import ImpossibleError, Options, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.voice import (
    BINS,
    DISTILL_SAMPLES,
    RATE,
    DistillMos,
    Dnsmos,
    Resemblyzer,
    SpeakerSimilarity,
    WeSpeaker,
    fbank,
    mel_bank,
    metrics,
    speaking,
)


def tone(hertz: float, seconds: float, level: float = 0.3) -> Tensor:
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * RATE)) / RATE)


def voice(pitch: float, tract: float, seconds: float, seed: int) -> Tensor:
    """A buzz through two formants that move: the seed is what is said, the rest who says it."""
    t = torch.arange(round(seconds * RATE)) / RATE
    rng = torch.Generator().manual_seed(seed)
    syllables = torch.rand(2, int(seconds * 4) + 2, generator=rng)
    at = (t * 4).long()
    out = torch.zeros_like(t)
    for k in range(1, int(4000 / pitch)):
        f = k * pitch
        first, second = (300 + 500 * syllables[0, at]) * tract, (900 + 1300 * syllables[1, at]) * tract
        gain = 1 / (1 + ((f - first) / 120) ** 2) + 0.5 / (1 + ((f - second) / 160) ** 2)
        out += gain * torch.sin(2 * torch.pi * f * t)
    return 0.1 * out * (0.6 + 0.4 * torch.sin(2 * torch.pi * 4 * t))


def saved(samples_S: Tensor, path: Path, voice: Path | None = None) -> Sample:
    soundfile.write(path, samples_S.numpy(), RATE, subtype="FLOAT")
    return Sample(name=path.stem, video=path, transcript="", voice=voice)


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 3500.0, 7000.0])
def test_a_tone_lies_in_its_bin(hertz: float) -> None:
    features = fbank(tone(hertz, 0.5))
    assert features.shape == (1 + (RATE // 2 - 400) // 160, BINS)
    mel = 1127 * np.log(1 + np.array([20.0, RATE / 2, hertz]) / 700)
    wanted = (mel[2] - mel[0]) / (mel[1] - mel[0]) * (BINS + 1) - 1  # bins peak at 1 ... BINS of BINS + 1 steps
    assert (features.argmax(1) - wanted).abs().max() <= 1
    louder = fbank(2 * tone(hertz, 0.5)) - features
    assert torch.allclose(louder, torch.tensor(4.0).log().expand_as(louder), atol=0.02)


def test_mel_triangles_share_each_frequency() -> None:
    bank = mel_bank()
    inside = bank[:, 8:246].sum(0)  # between the first peak and the last
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-5) and not bank[:, 0].any()
    assert fbank(torch.zeros(399)).shape == (0, BINS)
    assert torch.isfinite(fbank(torch.zeros(800))).all()


def test_features_equal_kaldis() -> None:
    samples = voice(120, 1.0, 1.0, 0)
    try:
        from torchaudio.compliance import kaldi  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        pytest.skip("no torchaudio for this torch")
    wanted = kaldi.fbank(samples[None] * 32768, num_mel_bins=BINS, window_type="hamming", dither=0.0)
    assert torch.allclose(fbank(samples), wanted, atol=2e-3)


def test_speech_is_told_from_silence() -> None:
    hiss = 1e-3 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    found = speaking(torch.cat([hiss, tone(300, 1.0), hiss]))
    assert not found[:96].any() and found[100:196].all() and not found[202:].any()
    assert not speaking(torch.zeros(RATE)).any() and speaking(torch.zeros(10)).shape == (0,)


class Pitch:
    """An encoder whose answers are known: a point on the circle for each pitch."""

    name = "pitch"

    def __init__(self) -> None:
        self.heard: list[int] = []

    def __call__(self, samples_S: Tensor) -> Tensor:
        self.heard.append(samples_S.shape[0])
        spectrum = torch.fft.rfft(samples_S).abs()
        angle = spectrum.argmax() / spectrum.shape[0] * (RATE / 2) * torch.pi / 2000  # 0..1000 Hz: a quarter turn
        return torch.stack([angle.cos(), angle.sin()])


def test_similarity_is_the_cosine(tmp_path: Path) -> None:
    metric = SpeakerSimilarity(Pitch())
    reference = tmp_path / "voice.wav"
    saved(tone(500, 1.0), reference)

    def similarity(samples_S: Tensor) -> float | None:
        return metric.measure(saved(samples_S, tmp_path / "a.wav", reference)).values["speaker_similarity"]

    assert similarity(tone(500, 2.0)) == pytest.approx(1, abs=1e-3)
    assert similarity(tone(1000, 2.0)) == pytest.approx(np.cos(np.pi / 4), abs=0.01)
    assert similarity(tone(1500, 2.0)) == pytest.approx(0, abs=0.01)
    assert similarity(tone(2500, 2.0)) == pytest.approx(-1, abs=0.01)


def test_long_speech_is_embedded_in_pieces(tmp_path: Path) -> None:
    encoder = Pitch()
    metric = SpeakerSimilarity(encoder)
    reference = tmp_path / "voice.wav"
    saved(tone(500, 1.0), reference)
    pause = torch.zeros(RATE)
    parts = [tone(500, 18.0), pause, tone(1500, 18.0), pause, tone(500, 18.0), 30 * [0]]
    recording = torch.cat([torch.as_tensor(p, dtype=torch.float32) for p in parts])
    reading = metric.measure(saved(recording, tmp_path / "a.wav", reference))
    assert len(encoder.heard) == 4 and max(encoder.heard) <= 20 * RATE
    assert reading.series["speaker_similarity"] == pytest.approx([1, 0, 1], abs=0.01)
    assert reading.values["speaker_similarity"] == pytest.approx(2 / 5**0.5, abs=0.01)  # two parts of three


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    metric = SpeakerSimilarity(Pitch())
    reference = tmp_path / "voice.wav"
    saved(tone(500, 1.0), reference)
    with pytest.raises(ImpossibleError, match="no reference voice"):
        metric.measure(saved(tone(500, 1.0), tmp_path / "a.wav"))
    with pytest.raises(ImpossibleError, match="the clip is silent"):
        metric.measure(saved(torch.zeros(RATE), tmp_path / "a.wav", reference))
    with pytest.raises(ImpossibleError, match="less than 0.5 s"):
        metric.measure(saved(torch.cat([tone(500, 0.3), torch.zeros(RATE)]), tmp_path / "a.wav", reference))
    saved(torch.zeros(RATE), reference)
    metric = SpeakerSimilarity(Pitch())
    with pytest.raises(ImpossibleError, match="reference voice voice.wav is silent"):
        metric.measure(saved(tone(500, 1.0), tmp_path / "a.wav", reference))


def network(path: Path, bins: int = BINS) -> Path:
    """(B, T, bins) -> each bin's spread over time: a voice print of the simplest kind."""
    nodes = [
        helper.make_node("Mul", ["feats", "feats"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["embs"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "speaker",
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, ["B", "T", bins])],
        [helper.make_tensor_value_info("embs", TensorProto.FLOAT, ["B", bins])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_wespeaker_takes_features_without_their_mean(tmp_path: Path) -> None:
    encoder = WeSpeaker(network(tmp_path / "net.onnx"))
    speech = voice(120, 1.0, 2.0, 0)
    features = fbank(speech)[speaking(speech)]
    wanted = torch.nn.functional.normalize(features.var(0, unbiased=False), dim=0)
    assert torch.allclose(encoder(speech), wanted, atol=1e-4)
    assert float(encoder(0.3 * speech) @ wanted) == pytest.approx(1, abs=1e-3)  # loudness is no voice
    followed = torch.cat([speech, torch.zeros(2 * RATE)])
    assert float(encoder(followed) @ wanted) == pytest.approx(1, abs=0.01)  # nor is silence
    with pytest.raises(ConfigError, match="80"):
        WeSpeaker(network(tmp_path / "other.onnx", bins=40))
    with pytest.raises(ConfigError, match="found none"):
        WeSpeaker(tmp_path / "nothing.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot read"):
        WeSpeaker(tmp_path / "damaged.onnx")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("resemblyzer", "speechmos", "speechmos.dnsmos", "distillmos"):
        monkeypatch.setitem(sys.modules, name, None)
    found = metrics(Options())
    assert all(isinstance(m, Unavailable) and "pip install" in m.reason for m in found)
    assert [f.key for m in found for f in m.figures] == ["speaker_similarity", "dnsmos", "distillmos"]
    assert isinstance(metrics(Options(speaker=network(tmp_path / "net.onnx")))[0], SpeakerSimilarity)


def test_resemblyzer_tells_voices_apart() -> None:
    pytest.importorskip("resemblyzer")
    encoder = Resemblyzer()
    man, again, child = (
        encoder(voice(pitch, tract, 3.0, seed)) for pitch, tract, seed in ((105, 0.9, 0), (105, 0.9, 1), (290, 1.25, 1))
    )
    assert float(man @ again) > float(man @ child) + 0.1
    with pytest.raises(ImpossibleError, match="of speech"):
        encoder(1e-3 * torch.randn(RATE, generator=torch.Generator().manual_seed(0)))


def test_windows_of_distillmos_cover_the_clip(tmp_path: Path) -> None:
    metric = object.__new__(DistillMos)
    seen: list[Tensor] = []
    metric.model = lambda x: seen.append(x) or x.mean()
    for seconds, count in ((3.0, 1), (9.5, 3), (70.0, 10)):
        seen.clear()
        ramp = torch.linspace(0.1, 1, round(seconds * RATE))
        reading = metric.measure(saved(ramp, tmp_path / "a.wav"))
        assert len(seen) == count and all(x.shape == (1, min(DISTILL_SAMPLES, ramp.shape[0])) for x in seen)
        assert float(seen[0][0, 0]) == pytest.approx(0.1) and float(seen[-1][0, -1]) == pytest.approx(1, abs=1e-3)
        assert reading.values["distillmos"] == pytest.approx(0.55, abs=0.01)  # of windows: no end weighs more
        assert len(reading.series.get("distillmos", [0])) == count
    with pytest.raises(ImpossibleError, match="silent"):
        metric.measure(saved(torch.zeros(RATE), tmp_path / "a.wav"))


@pytest.mark.parametrize("kind", [Dnsmos, DistillMos])
def test_noise_lowers_quality(kind: type[Dnsmos] | type[DistillMos], tmp_path: Path) -> None:
    name = "speechmos" if kind is Dnsmos else "distillmos"
    if importlib.util.find_spec(name) is None:  # importorskip would ask for what distillmos imports and we do not need
        pytest.skip(f"no package {name}")
    from streamchar.eval.speech import to_recogniser
    from streamchar.world.voice import speak

    metric = kind()
    clean = torch.from_numpy(to_recogniser(speak("The birch canoe slid on the smooth planks.").samples))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * clean.square().mean().sqrt()
    (key,) = (f.key for f in metric.figures)
    good, bad = (metric.measure(saved(x, tmp_path / "a.wav")).values[key] for x in (clean, clean + 0.5 * noise))
    assert good is not None and bad is not None
    assert 1 <= bad < good - 0.3 and good <= 5
    with pytest.raises(ImpossibleError, match="silent"):
        metric.measure(saved(torch.zeros(RATE), tmp_path / "a.wav"))
