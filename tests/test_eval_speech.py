"""Word error rates: known edits, cutting at pauses, recognisers behind one interface.

The listener of these tests hears Morse-like speech: each word of the list is a tone of its own.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch

from streamchar.errors import ConfigError
from streamchar.eval.metric import ImpossibleError, Options, Unavailable
from streamchar.eval.recognisers import RECOGNISER_RATE, Command, Moonshine, Whisper, pieces, recogniser, transcribe
from streamchar.eval.sample import Sample
from streamchar.eval.speech import WordErrorRate, metrics, normalise, sound, tally

WORDS = [*map(str, "river candle orange window basket yellow garden pencil monkey silver ladder button".split())]
SECOND = RECOGNISER_RATE


class Listener:
    """Tells the tones apart; a tone that is cut in two is heard twice."""

    name = "listener"

    def __init__(self, limit: float = 30.0) -> None:
        self.limit = limit
        self.lengths: list[float] = []

    def __call__(self, samples_S: np.ndarray) -> str:
        self.lengths.append(len(samples_S) / SECOND)
        loud = np.abs(samples_S) > 0.01
        loud = np.convolve(loud, np.ones(160), mode="same") > 0
        edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
        heard = []
        for start, stop in edges.reshape(-1, 2):
            spectrum = np.abs(np.fft.rfft(samples_S[start:stop], n=SECOND))
            heard.append(WORDS[round((int(spectrum.argmax()) - 400) / 200)])
        return " ".join(heard)


def say(words: list[str], every: float = 1.0) -> np.ndarray:
    """One word each `every` seconds, 0.4 s long; "" is silence."""
    step, t = round(every * SECOND), np.arange(round(0.4 * SECOND)) / SECOND
    out = np.zeros(step * len(words), np.float32)
    for i, word in enumerate(words):
        if word:
            at = i * step + round(0.1 * SECOND)
            out[at : at + len(t)] = 0.3 * np.sin(2 * np.pi * (400 + 200 * WORDS.index(word)) * t)
    return out


def saved(samples_S: np.ndarray, path: Path, transcript: str) -> Sample:
    soundfile.write(path, samples_S, SECOND, subtype="FLOAT")
    return Sample(name=path.stem, video=path, transcript=transcript)


def words(count: int, seed: int = 0) -> list[str]:
    return [WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=torch.Generator().manual_seed(seed))]


@pytest.fixture
def metric() -> WordErrorRate:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    return WordErrorRate(Listener())


def test_known_edits_give_known_rates(metric: WordErrorRate, tmp_path: Path) -> None:
    wanted = WORDS[:10]
    right = metric.measure(
        saved(say(wanted), tmp_path / "a.wav", "River, candle; orange WINDOW " + " ".join(wanted[4:]))
    )
    assert right.values["wer"] == right.values["cer"] == 0 and right.notes["heard"] == " ".join(wanted)
    # one wrong, one missing, two added
    edited = ["silver", *wanted[1:4], *wanted[5:], "ladder", "button"]
    reading = metric.measure(saved(say(edited), tmp_path / "b.wav", " ".join(wanted)))
    assert reading.values["wer"] == pytest.approx(4 / 10)
    assert reading.notes["errors"] == "1 wrong, 1 missing, 2 added of 10 words"
    assert reading.values["wer_first_minute"] is None and "120 s" in reading.reasons["wer_first_minute"]
    reading = metric.measure(saved(say(["silver"]), tmp_path / "c.wav", "silvan"))
    assert reading.values["cer"] == pytest.approx(2 / 6) and reading.values["wer"] == 1
    assert metric.measure(saved(say(WORDS[:3]), tmp_path / "d.wav", "monkey")).values["wer"] == 3


def test_nothing_said_and_nothing_to_say(metric: WordErrorRate, tmp_path: Path) -> None:
    assert normalise("...and so ... It's five past nine...") == "and so it is 5 past 9" and normalise("...") == ""
    with pytest.raises(ImpossibleError, match="transcript"):
        metric.measure(saved(say(["river"]), tmp_path / "a.wav", " ... "))
    reading = metric.measure(saved(np.zeros(SECOND, np.float32), tmp_path / "b.wav", "river candle"))
    assert reading.values["wer"] == reading.values["cer"] == 1
    assert reading.notes["heard"] == "" and "no speech" in reading.notes["sound"]
    assert not metric.recogniser.lengths  # recognisers invent words in silence  # pyright: ignore
    path = tmp_path / "mute.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    mute = Sample(name="mute", video=path, transcript="river")
    assert sound(mute, SECOND) is None
    reading = metric.measure(mute)
    assert reading.values["wer"] == 1 and "no sound" in reading.notes["sound"]


@pytest.mark.parametrize(("seconds", "limit"), [(29.5, 30.0), (30.5, 30.0), (75.0, 30.0), (7.3, 1.0), (12.0, math.inf)])
def test_cuts_cover_everything(seconds: float, limit: float) -> None:
    noise = np.random.default_rng(0).standard_normal(round(seconds * SECOND)).astype(np.float32)
    spans = pieces(noise, limit)
    assert spans[0][0] == 0 and spans[-1][1] == len(noise)
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(0.02 * SECOND < stop - start <= limit * SECOND for start, stop in spans)
    assert (len(spans) == 1) == (seconds <= limit)


def test_no_word_is_lost_or_cut() -> None:
    said = words(100)
    recording = say(said)
    listener = Listener(limit=10.0)
    heard = transcribe(listener, recording)
    assert " ".join(h.text for h in heard).split() == said
    assert max(listener.lengths) <= 10 and len(heard) >= 10
    # a cut in the middle of each word would be heard: the listener is no flatterer
    middle = round(0.3 * SECOND)
    torn = [listener(recording[i : i + SECOND]) for i in range(middle, 20 * SECOND, SECOND)]
    assert len(" ".join(torn).split()) > 30
    # a wanted cut goes to the pause next to it
    (first, _), (second, _) = pieces(recording, math.inf, wanted=(50.3,))
    assert first == 0 and abs(second / SECOND - 50) < 3.5 and not recording[second - 100 : second + 100].any()


def test_first_and_last_minute(metric: WordErrorRate, tmp_path: Path) -> None:
    said = words(150, seed=1)
    wrong = list(said)
    for i in (3, 20):  # of the first minute: missing, wrong
        wrong[i] = ""
        wrong[i + 10] = WORDS[(WORDS.index(said[i + 10]) + 5) % 12]
    for i in range(100, 140, 4):
        wrong[i] = WORDS[(WORDS.index(said[i]) + 6) % 12]
    values = metric.measure(saved(say(wrong), tmp_path / "a.wav", " ".join(said))).values
    assert values["wer"] == pytest.approx(14 / 150, abs=0.01)
    assert values["wer_first_minute"] == pytest.approx(4 / 60, abs=0.01)
    assert values["wer_last_minute"] == pytest.approx(10 / 60, abs=0.02)
    silent = metric.measure(saved(say(said[:80] + [""] * 70), tmp_path / "b.wav", " ".join(said)))
    assert silent.values["wer"] == pytest.approx(70 / 150) and silent.values["wer_first_minute"] == 0
    assert silent.values["wer_last_minute"] is None and "no word" in silent.reasons["wer_last_minute"]


def chunk(kind: str, ref: tuple[int, int], hyp: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        type=kind, ref_start_idx=ref[0], ref_end_idx=ref[1], hyp_start_idx=hyp[0], hyp_end_idx=hyp[1]
    )


def test_words_missing_at_the_cut_belong_to_nobody() -> None:
    alignment = [
        chunk("delete", (0, 1), (0, 0)),
        chunk("equal", (1, 9), (0, 8)),
        chunk("insert", (9, 9), (8, 10)),
        chunk("delete", (9, 14), (10, 10)),
        chunk("equal", (14, 22), (10, 18)),
        chunk("substitute", (22, 24), (18, 20)),
    ]
    first, last = tally(alignment, 0, 10, 20), tally(alignment, 10, 20, 20)
    assert (first.errors, first.words, first.edge) == (3, 9, 5)
    assert (last.errors, last.words, last.edge) == (2, 10, 5)
    with pytest.raises(ImpossibleError, match="5 words"):
        _ = first.wer
    assert tally(alignment, 12, 20, 20).wer == pytest.approx(2 / 8)
    with pytest.raises(ImpossibleError, match="no word"):
        _ = tally(alignment, 20, 20, 20).wer


PROGRAM = """import sys, wave
w = wave.open(sys.argv[1])
print("heard", w.getframerate(), w.getnchannels(), w.getnframes())
print("  'quoted words' ")
sys.exit(int(sys.argv[2]))
"""


def test_any_command_can_listen(tmp_path: Path) -> None:
    program = tmp_path / "listen.py"
    program.write_text(PROGRAM)
    chosen = recogniser(Options(recogniser=f"command:{sys.executable} {program} {{wav}} 0"))
    assert isinstance(chosen, Command) and chosen.limit == math.inf
    assert chosen(say(WORDS[:2])) == f"heard 16000 1 {2 * SECOND} 'quoted words'"
    with pytest.raises(ImpossibleError, match="ended with 3"):
        Command(f"{sys.executable} {program} {{wav}} 3")(say(WORDS[:2]))
    with pytest.raises(ConfigError, match="expected {wav}"):
        Command("program file.wav")
    with pytest.raises(ConfigError, match="no-such-program"):
        Command("no-such-program {wav}")


@pytest.mark.parametrize("name", ["whisperer", "whisper", "whisper:", "command:", "moonshine:huge", ""])
def test_unknown_recognisers_are_errors(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected .*(moonshine.*command|tiny or base)"):
        recogniser(Options(recogniser=name))
    with pytest.raises(ConfigError, match="encoder_model.onnx"):
        recogniser(Options(recogniser_folder=tmp_path))
    with pytest.raises(ConfigError, match="expected one model"):
        recogniser(Options(recogniser="whisper:some/where", recogniser_folder=tmp_path))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name in (("moonshine_onnx", "moonshine"), ("faster_whisper", "faster-whisper")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delenv("STREAMCHAR_MOONSHINE", raising=False)
        (found,) = metrics(Options(recogniser=name))
        assert isinstance(found, Unavailable) and "pip install" in found.reason and name in found.reason
        assert {f.key for f in found.figures} >= {"wer", "cer"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of random weights, made and saved by the real classes."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder = tmp_path_factory.mktemp("whisper")
    letters = {chr(97 + i): i for i in range(26)}
    tokenizer = WhisperTokenizer(vocab=letters, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    end, start, english, task, plain = (tokenizer.get_vocab()[s] for s in special)
    config = WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=32, pad_token_id=end,
        bos_token_id=end, eos_token_id=end, decoder_start_token_id=start, num_mel_bins=80,
    )  # fmt: skip
    torch.manual_seed(3)
    model = WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight)
    model.generation_config = GenerationConfig(
        is_multilingual=True, lang_to_id={"<|en|>": english}, task_to_id={"transcribe": task}, max_length=12,
        no_timestamps_token_id=plain, suppress_tokens=[*range(26, 64)], begin_suppress_tokens=[], pad_token_id=end,
        bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def test_whisper_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    chosen = recogniser(Options(recogniser=f"whisper:{checkpoint}"))
    assert isinstance(chosen, Whisper) and "greedy" in chosen.name
    speech = say(WORDS[:2])
    processor = WhisperProcessor.from_pretrained(checkpoint)
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    features = processor(speech, sampling_rate=SECOND, return_tensors="pt").input_features
    tokens = model.generate(features, language="english", task="transcribe")
    wanted = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert chosen(speech) == wanted and len(wanted) > 3
    with pytest.raises(ConfigError, match="at most 30 s"):
        chosen(np.zeros(31 * SECOND, np.float32))
    with pytest.raises(ConfigError, match="Whisper checkpoint"):
        Whisper(str(tmp_path))


def test_moonshine_hears_the_teacher(tmp_path: Path) -> None:
    if not os.environ.get("STREAMCHAR_MOONSHINE"):
        pytest.skip("STREAMCHAR_MOONSHINE names no folder with Moonshine's ONNX files")
    for module in ("moonshine_onnx", "jiwer", "whisper_normalizer"):
        pytest.importorskip(module)
    from streamchar.eval.speech import to_recogniser
    from streamchar.world.voice import speak

    text = "It is easy to tell the depth of a well."
    (found,) = metrics(Options())
    assert isinstance(found, WordErrorRate) and isinstance(found.recogniser, Moonshine)
    speech = to_recogniser(speak(text).samples)
    reading = found.measure(saved(speech, tmp_path / "a.wav", text))
    assert reading.values["wer"] is not None and reading.values["wer"] <= 0.1
    assert found.measure(saved(speech, tmp_path / "b.wav", "nothing of the kind")).values["wer"] >= 1  # type: ignore
