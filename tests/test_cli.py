"""The command line against a fake pipeline: names, figures, and one clear line for every bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import nn

import streamchar
from streamchar.cli.main import main
from streamchar.clock import CHUNK_SECONDS, FRAMES_PER_CHUNK, SAMPLES_PER_CHUNK
from streamchar.errors import CheckpointError, StateError
from streamchar.stream.pipeline import StreamCharPipeline
from streamchar.types import Chunk, Transcript, Word

SIZE = 64
WORDS_PER_CHUNK = 3


@dataclass(frozen=True, kw_only=True)
class FakeState:
    text: str
    chunk: int = 0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"text": self.text, "chunk": self.chunk}))

    @classmethod
    def load(cls, path: Path) -> FakeState:
        try:
            return cls(**json.loads(path.read_text()))
        except ValueError as error:
            raise StateError(f"{path} is not a saved stream state") from error


class FakeSession:
    """Speaks three words a chunk."""

    def __init__(self, state: FakeState, fault: BaseException | None, stalled: bool) -> None:
        self.state = state
        self.words = state.text.split()
        self.fault = fault
        self.stalled = stalled
        self.total_words = len(self.words)

    @property
    def spoken_words(self) -> int:
        return min(self.total_words, self.state.chunk * WORDS_PER_CHUNK)

    def __iter__(self) -> Iterator[Chunk]:
        while self.spoken_words < self.total_words:
            index = self.state.chunk
            self.state = FakeState(text=self.state.text, chunk=index + 1)
            if self.fault and index == 1:
                raise self.fault
            begin = index * float(CHUNK_SECONDS)
            spoken = self.words[index * WORDS_PER_CHUNK :][:WORDS_PER_CHUNK]
            yield Chunk(
                index=index,
                frames=torch.full((FRAMES_PER_CHUNK, SIZE, SIZE, 3), 90, dtype=torch.uint8),
                samples=torch.zeros(SAMPLES_PER_CHUNK),
                words=tuple(Word(text=w, start=t, end=t + 0.3) for t, w in zip(count(begin, 0.4), spoken)),
                last=self.spoken_words == self.total_words,
                seconds={"orchestrate": 0.1, "denoise": 0.2, "decode_video": 0.1, "decode_audio": 0.01},
            )


class FakePipeline:
    """Records what it was started with."""

    started: dict[str, Any]
    fault: BaseException | None = None
    stalled = False

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            name="fake", height=SIZE, width=SIZE, tokenizer="words", orchestrator=SimpleNamespace(max_reference=24)
        )

    @classmethod
    def from_pretrained(cls, name: str) -> FakePipeline:
        if name != "toon":
            raise CheckpointError(f"there is no model {name!r}:\n  expected a folder with model_index.json")
        return cls()

    read = StreamCharPipeline.read

    def start(self, text: str, **conditions: Any) -> FakeState:
        type(self).started = {"text": text, **conditions}
        return FakeState(text=text)

    def session(self, state: FakeState) -> FakeSession:
        return FakeSession(state, self.fault, self.stalled)

    def tokenizer(self, text: str) -> Transcript:
        return Transcript(text=text, ids=tuple(map(ord, text)), token_word=(0,) * len(text), words=tuple(text.split()))

    def unspeakable(self, text: str) -> list[str]:
        return [mark for mark in text if not mark.isascii()]

    def prompt_warnings(self, prompt: str) -> list[str]:
        return [f"unknown prompt word {word!r}; known: happy" for word in prompt.split() if word != "happy"]

    def components(self) -> dict[str, nn.Module]:
        return {"dit": nn.Linear(10, 10), "audio_codec": nn.Linear(4, 4, bias=False)}


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakePipeline]:
    """A fresh fake in place of the real pipeline, in an empty folder."""
    fake = type("Pipeline", (FakePipeline,), {})
    for name, content in (("pipeline", {"StreamCharPipeline": fake}), ("state", {"StreamState": FakeState})):
        module = ModuleType(f"streamchar.stream.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    return fake


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints; checks exit code and what is left on disk."""
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    lines = streams.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), streams.err
    assert sorted(Path().rglob("*")) == before
    return lines[0]


def test_say_writes_a_video_and_its_figures(capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]) -> None:
    assert main(["say", "one two three four five", "-o", "a.mp4", "--captions", "a.vtt", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = {"chunks": 2, "frames": 66, "samples": 132_000, "seconds": 2.75, "spoken_words": 5, "total_words": 5}
    assert {key: report[key] for key in expected} == expected
    assert report["decode_ratio"] == pytest.approx(0.11 / 1.375, abs=1e-4)
    assert report["rtf"] > 0 and report["first_chunk_s"] >= 0 and report["peak_rss_mib"] > 10
    assert len(report["chunk_s"]) == len(report["rss_mib_chunks"]) == 2 and set(report["stage_s"]) >= {"denoise"}
    with av.open("a.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 66
    assert "one two three four five" in Path("a.vtt").read_text().replace("\n", " ")
    assert pipeline.started == {
        "text": "one two three four five", "character": 7, "prompt": "", "voice": None, "seed": 0, "steps": None
    }  # fmt: skip
    assert sorted(path.name for path in Path().iterdir()) == ["a.mp4", "a.vtt"]


def test_say_hands_every_condition_on(capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]) -> None:
    Image.new("RGB", (100, 80), "red").save("who.png")
    soundfile.write("voice.wav", 0.3 * np.sin(np.arange(32_000) / 20), 16_000)
    Path("text.txt").write_text("one two")
    arguments = "--file text.txt -o a.wav --character who.png --prompt happy --voice voice.wav --seed 3 --steps 4"
    assert main(["say", *arguments.split()]) == 0
    assert "a.wav: 1.4 s, 2/2 words" in capsys.readouterr().out
    started = pipeline.started
    assert started["character"].shape == (3, 1, SIZE, SIZE)
    assert started["voice"].shape == (49_152,)  # the model takes 24 latents: 1 s
    assert (started["text"], started["prompt"], started["seed"], started["steps"]) == ("one two", "happy", 3, 4)


def test_an_unknown_prompt_word_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["say", "one", "-o", "a.wav", "--prompt", "happy zorgle"]) == 0
    assert "unknown prompt word 'zorgle'; known: happy" in caplog.text


def test_a_stalled_pointer_still_gives_a_file(
    capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]
) -> None:
    pipeline.stalled = True
    assert main(["say", "one", "-o", "a.wav", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stalled"] is True
    assert Path("a.wav").exists()


def test_a_saved_stream_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = "one two three four five six seven"
    assert main(["say", text, "-o", "a.mp4", "--save-state", "s.state", "--max-chunks", "2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["chunks"], first["spoken_words"], len(first["chunk_s"])) == (2, 6, 2)
    assert main(["say", "--resume", "s.state", "-o", "b.mp4", "--captions", "b.vtt", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["chunks"], second["spoken_words"], second["total_words"]) == (1, 7, 7)
    assert "00:00:00.000 --> 00:00:00.800\nseven" in Path("b.vtt").read_text()


BAD = {
    "no text": (["-o", "a.mp4"], "got none"),
    "empty text": (["", "-o", "a.mp4"], "the text is empty"),
    "blank text": ([" \n ", "-o", "a.mp4"], "the text is empty"),
    "nothing speakable": (["?!...", "-o", "a.mp4"], "nothing in the text can be spoken"),
    "emoji": (["Hi 😀", "-o", "a.mp4"], "cannot speak: 😀 (U+1F600)"),
    "non-Latin": (["Привет", "-o", "a.mp4"], "cannot speak: П (U+041F)"),
    "missing file": (["--file", "no.txt", "-o", "a.mp4"], "cannot read the text file no.txt"),
    "not a text file": (["--file", "noise.bin", "-o", "a.mp4"], "noise.bin is not UTF-8"),
    "text and file": (["Hi", "--file", "empty.txt", "-o", "a.mp4"], "not both"),
    "no output": (["Hi"], "missing -o"),
    "unknown ending": (["Hi", "-o", "a.gif"], "must end in .mp4, .webm, .wav"),
    "output folder missing": (["Hi", "-o", "no/a.mp4"], "does not exist"),
    "output is a folder": (["Hi", "-o", "folder.mp4"], "is a folder"),
    "captions folder missing": (["Hi", "-o", "a.mp4", "--captions", "no/a.vtt"], "does not exist"),
    "one name twice": (["Hi", "-o", "a.mp4", "--captions", "./a.mp4"], "must be different files"),
    "output over input": (["Hi", "-o", "tone.wav", "--voice", "tone.wav"], "both an input and an output"),
    "unreadable image": (["Hi", "-o", "a.mp4", "--character", "empty.txt"], "not an image"),
    "missing image": (["Hi", "-o", "a.mp4", "--character", "no.png"], "no file 'no.png'"),
    "tiny image": (["Hi", "-o", "a.mp4", "--character", "dot.png"], "too small"),
    "huge image": (["Hi", "-o", "a.mp4", "--character", "huge.png"], "too large"),
    "negative character": (["Hi", "-o", "a.mp4", "--character", "-3"], "from 0 to"),
    "not audio": (["Hi", "-o", "a.mp4", "--voice", "noise.bin"], "not an audio file"),
    "no audio file": (["Hi", "-o", "a.mp4", "--voice", "no.wav"], "there is no file no.wav"),
    "silent audio": (["Hi", "-o", "a.mp4", "--voice", "silent.wav"], "is silent"),
    "no steps": (["Hi", "-o", "a.mp4", "--steps", "0"], "--steps must be from 1"),
    "steps not a number": (["Hi", "-o", "a.mp4", "--steps", "many"], "Invalid value for '--steps'"),
    "negative seed": (["Hi", "-o", "a.mp4", "--seed", "-1"], "--seed must be from 0"),
    "unknown option": (["Hi", "-o", "a.mp4", "--sped", "1"], "--sped"),
    "missing model": (["Hi", "-o", "a.mp4", "--model", "nowhere"], "there is no model 'nowhere': expected a folder"),
    "missing state": (["--resume", "no.state", "-o", "a.mp4"], "there is no file no.state"),
    "wrong state": (["--resume", "noise.bin", "-o", "a.mp4"], "noise.bin is not a saved stream state"),
    "finished state": (["--resume", "done.state", "-o", "a.mp4"], "already spoken its whole text"),
    "state and text": (["Hi", "--resume", "done.state", "-o", "a.mp4"], "leave out: text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("noise.bin").write_bytes(bytes(range(256)) * 9)
    Path("empty.txt").touch()
    Path("folder.mp4").mkdir()
    Path("done.state").write_text(json.dumps({"text": "Hi", "chunk": 1}))
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("1", (9000, 9000)).save("huge.png")
    soundfile.write("silent.wav", np.zeros(16_000), 16_000)
    soundfile.write("tone.wav", np.sin(np.arange(16_000)), 16_000)
    arguments, reason = BAD[case]
    assert reason in refused(capsys, "say", *arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("bogus", "No such command 'bogus'"),
        ("world", "got none"),
        ("world --text Hi", "missing -o"),
        ("world --text Hi --sheet a.png", "got --text, --sheet"),
        ("world --sheet a.xyz", "must end in .png"),
        ("world --shards d", "needs --hours"),
        ("world --shards d --hours -1", "needs --hours above 0"),
        ("world --shards d --hours 1 --workers 0", "--workers must be"),
        ("train dance", "unknown stage 'dance'"),
        ("train", "Missing argument"),
        ("train joint", "needs --data, --out, --minutes"),
        ("train joint --data no --out run --minutes 1", "there is no folder no"),
        ("train joint --data . --out run --minutes 0", "--minutes must be above 0"),
        ("train joint --data . --out run --minutes 1 --preset mega", "unknown preset 'mega'"),
        ("train joint --data . --out run --minutes 1 --batch 0", "--batch must be at least 1"),
        ("train joint --data . --out run --minutes 1 --rate 0", "--rate must be above 0"),
        ("train joint --data . --out run --minutes 1 --cooldown 2", "--cooldown is a share"),
        ("train joint --data . --out run --minutes 1 --start no", "--start: there is no folder no"),
        ("train joint --data . --out run --minutes 1 --device bogus", "--device bogus cannot be used"),
        ("train orchestrator --data . --out run --minutes 1 --speech .", "orchestrator does not take --speech"),
        ("train audio-codec --data no --out run --minutes 1", "streamchar world --speech-raw DIR --hours 3"),
        ("world --speech-raw d", "needs --hours above 0"),
        ("world --clips-raw d --clips 0", "needs --clips above 0"),
        ("train prompt-encoder --minutes 1", "needs --out"),
        ("train prompt-encoder --out run --minutes 1 --resume", "cannot be resumed"),
        ("train plan --batch 0", "--batch must be at least 1"),
        ("train audio-codec --data . --out made --minutes 1", "made holds weights already"),
        (f"info --model {'x' * 300}", "x"),
        ("info --model nowhere", "there is no model"),
    ],
)
def test_other_commands_refuse_as_clearly(arguments: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made").mkdir()
    Path("made/model.safetensors").touch()
    assert reason in refused(capsys, *arguments.split())


def test_train_hands_on_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamchar.cli import train as command

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(
        data: Path, out: Path, minutes: float, *, config: Any, resume: bool = False, batch: int = 4,
        rate: float = 1e-3, cooldown: float = 0.0, start: Path | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        given = {"batch": batch, "rate": rate, "cooldown": cooldown, "start": start, "device": device}
        calls.append(((data, out, minutes, config.name, resume), given))

    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(train_joint=stand_in))
    Path("data").mkdir()
    arguments = "train joint --data data --out run --minutes 2.5 --preset tiny"
    assert main(arguments.split()) == 0
    further = "--resume --batch 8 --rate 0.002 --cooldown 0.5 --start data --device cpu"
    assert main([*arguments.split(), *further.split()]) == 0
    plain = {"batch": 4, "rate": 1e-3, "cooldown": 0.0, "start": None, "device": "cpu"}
    asked = {"batch": 8, "rate": 0.002, "cooldown": 0.5, "start": Path("data"), "device": "cpu"}
    assert calls == [
        ((Path("data"), Path("run"), 2.5, "tiny", False), plain),
        ((Path("data"), Path("run"), 2.5, "tiny", True), asked),
    ]


def test_every_stage_has_a_function_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # distillation plays real streams: no fake in their place
    from importlib import import_module
    from inspect import signature

    from streamchar.cli.train import STAGES

    for name, stage in STAGES.items():
        parameters = list(signature(getattr(import_module(stage.module), stage.function)).parameters)
        first = ["data", "out", "minutes"] if stage.reads_data else ["out", "minutes"]
        assert parameters[: len(first)] == first, name
        assert "config" in parameters and ("resume" in parameters or not stage.reads_data), name
        assert "device" in parameters or not stage.reads_data, name


@pytest.mark.parametrize(("fault", "code"), [(KeyboardInterrupt(), 130), (StateError("broken off"), 2)])
def test_a_stream_that_breaks_off_leaves_nothing(
    fault: BaseException, code: int, pipeline: type[FakePipeline], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.fault = fault
    Path("a.mp4").write_text("before")
    arguments = ["say", "one two three four five", "-o", "a.mp4", "--captions", "a.vtt", "--save-state", "s.state"]
    assert main(arguments) == code
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("a.mp4", "before")]
    assert "Traceback" not in capsys.readouterr().err


def test_info_lists_the_components(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(part["name"], part["parameters"]) for part in figures["components"]] == [("dit", 110), ("audio_codec", 16)]
    assert figures["total"]["parameters"] == 126 and figures["machine"]["cores"] >= 1
    assert main(["info"]) == 0
    assert "audio_codec" in capsys.readouterr().out


def test_help_is_quick_and_names_every_command() -> None:
    root = Path(streamchar.__file__ or "").parents[1]
    start = time.perf_counter()
    call = [sys.executable, "-m", "streamchar", "--help"]
    done = subprocess.run(call, cwd=root, capture_output=True, text=True, timeout=60)
    elapsed = time.perf_counter() - start
    assert done.returncode == 0 and all(name in done.stdout for name in ("say", "info", "world", "train"))
    probe = "import sys, streamchar.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'av', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", probe], cwd=root, timeout=60).returncode == 0
    assert elapsed < 10  # 0.4 s on an idle machine
