"""`streamchar eval` from end to end with a small metric: names, folders, truth and its planted faults, bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from streamchar import clock
from streamchar.cli import generator
from streamchar.cli.main import main
from streamchar.eval import protocol, suite
from streamchar.eval.metric import Figure, Reading
from streamchar.eval.sample import Sample
from streamchar.types import Chunk, Transcript, Word

SIZE = 64


class Light:
    figures = (Figure(key="wer", title="Stands for WER", unit="levels", better="lower"),)
    version = "1"

    def measure(self, sample: Sample) -> Reading:
        return Reading(values={"wer": float(sample.frames(2).float().mean())})


class FakePipeline:
    """Three words a chunk of grey; says what it was started with."""

    started: list[dict[str, Any]]
    stalled = False
    endless = False

    def __init__(self) -> None:
        self.config = SimpleNamespace(height=SIZE, width=SIZE)
        self.models = SimpleNamespace(
            name="fake", steps=4, guidance=1.0, picture_guidance=None, picture_guidance_above=0.0, temperature=1.0,
            picture_temperature=None,
        )

    @classmethod
    def from_pretrained(cls, name: str, *, device: str = "cpu") -> FakePipeline:
        return cls()

    def components(self) -> dict[str, nn.Module]:
        return {"dit": nn.Linear(10, 10)}

    def tokenizer(self, text: str) -> Transcript:
        return Transcript(text=text, ids=tuple(map(ord, text)), token_word=(0,) * len(text), words=tuple(text.split()))

    def unspeakable(self, text: str) -> list[str]:
        return [mark for mark in text if not mark.isascii()]

    def prompt_warnings(self, prompt: str) -> list[str]:
        return []

    def start(self, text: str, **conditions: Any) -> str:
        self.started.append({"text": text, **conditions})
        return text

    def session(self, text: str) -> Any:
        words = text.split()

        def chunks() -> Iterator[Chunk]:
            count = 10_000 if self.endless else -(-len(words) // 3)
            for k in range(count):
                said = words[3 * k : 3 * k + 3]
                yield Chunk(
                    index=k, frames=torch.full((33, SIZE, SIZE, 3), 90, dtype=torch.uint8),
                    samples=torch.zeros(clock.SAMPLES_PER_CHUNK), last=k == count - 1,
                    words=tuple(Word(text=w, start=1.375 * k, end=1.375 * k + 0.3) for w in said),
                )  # fmt: skip

        return SimpleNamespace(
            __iter__=None, stalled=self.stalled, spoken_words=len(words), total_words=len(words), chunks=chunks
        )


class Session:
    """Makes a namespace iterable."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Chunk]:
        return self.inner.chunks()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakePipeline]:
    """An empty folder and cache, one cheap metric, and a fake pipeline."""
    build = suite.build_metrics
    monkeypatch.setattr(suite, "build_metrics", lambda options, chosen: build(options, chosen) if chosen else [Light()])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = FakePipeline.session
    fake = type("Pipeline", (FakePipeline,), {"started": [], "session": lambda s, t: Session(session(s, t))})
    module = ModuleType("streamchar.stream.pipeline")
    module.__dict__["StreamCharPipeline"] = fake
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    items = [
        {"name": n, "character": 14780574, "voice": 0, "voice_text": "Good morning to you.", "prompt": "a calm person",
         "direction": ["calm", "still", "low"], "transcript": "Hello there my friend.", "noise_seed": i}
        for i, n in enumerate("ab")
    ]  # fmt: skip
    Path("my.json").write_text(json.dumps({"schema": protocol.SCHEMA, "name": "my", "seconds": 1.4, "items": items}))
    return fake


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one line of a refused command, which writes nothing."""
    before = sorted(Path().rglob("*"))
    assert main(line.split()) == 2
    streams = capsys.readouterr()
    lines = streams.err.strip().splitlines()
    assert streams.out == "" and len(lines) == 1 and lines[0].startswith("error: "), streams.err
    assert sorted(Path().rglob("*")) == before
    return lines[0]


def test_run_with_a_model(capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]) -> None:
    assert main("eval run --model toon --protocol my.json --seed 5 --json".split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == "runs/eval/my/toon-4steps-seed5" and said["mean"]["wer"] == pytest.approx(90, abs=2)
    assert said["mean"]["rtf"] > 0 and said["mean"]["fid"] is None and said["reasons"]["fid"]
    out = Path(said["out"])
    value = json.loads((out / "metrics.json").read_text())
    assert value["name"] == "toon-4steps-seed5" and value["model"]["parameters"] == {"dit": 110}
    assert len(value["model"]["sha256"]) == 64 and value["protocol"]["steps"] == 4
    assert "--seed 5" in value["protocol"]["exact"] or "seed: 5" in value["protocol"]["exact"]
    assert Path(said["report"]).stat().st_size > 1000 and (out / "report.md").is_file()
    words = json.loads((out / "clips" / "a.words.json").read_text())
    assert [w[0] for w in words] == ["Hello", "there", "my", "friend."] and words[3][1] == 1.375
    first, second = pipeline.started
    assert (first["seed"], second["seed"], first["steps"], first["prompt"]) == (5, 6, 4, "a calm person")
    assert first["character"].shape == (3, SIZE, SIZE) and first["voice"].shape[0] > 24_000
    assert main("eval run --model toon --protocol my.json --seed 5".split()) == 0  # goes on: nothing is left to make
    assert len(pipeline.started) == 2 and "Stands for WER" in capsys.readouterr().out


def test_a_stream_that_stalls_or_never_ends_says_so(
    capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]
) -> None:
    pipeline.stalled = pipeline.endless = True
    assert main("eval run --model toon --protocol my.json --clips 1 --json".split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["out"] == "runs/eval/my-1/toon-4steps"
    assert any("a: cut after" in w for w in said["warnings"])
    assert any("a: the pointer stood still after 4 of 4 words" in w for w in said["warnings"])


def test_truth_shift_compare_and_export(capsys: pytest.CaptureFixture[str]) -> None:
    run = "eval run --model truth --protocol my.json --clips 1"
    assert main(run.split()) == 0 and main([*run.split(), "--shift-frames", "3"]) == 0
    folders = [Path("runs/eval/my-1") / name for name in ("truth", "truth-shift+3")]
    plain, shifted = (Sample(name="a", video=f / "clips" / "a.mp4", transcript="x") for f in folders)
    a, b = plain.samples(8000), shifted.samples(8000)
    assert torch.equal(plain.frames(2), shifted.frames(2))
    lag = max(range(-2000, 2001, 20), key=lambda k: float((a[2000:6000] * b[2000 - k : 6000 - k]).sum()))
    assert lag == pytest.approx(
        3 / 24 * 8000, abs=20
    )  # what was heard at t is heard 3 frames earlier: the picture is late
    first, moved = (json.loads((f / "clips" / "a.words.json").read_text()) for f in folders)
    assert first[1][1] - moved[1][1] == pytest.approx(0.125)
    value = json.loads((folders[1] / "metrics.json").read_text())
    assert value["reasons"]["rtf"] == "drawn by the world, not generated by a model"
    capsys.readouterr()
    assert main(["eval", "compare", *map(str, folders), "--out", "page"]) == 0
    shown = capsys.readouterr().out
    assert "truth-shift+3" in shown and "Stands for WER" in shown and Path("page/compare.html").is_file()
    assert main(["eval", "run", "--driven-by", str(folders[0]), "--out", "drive"]) == 0
    assert sorted(p.name for p in Path("drive").glob("a*")) == ["a.png", "a.voice.wav", "a.wav", "a.words.json"]
    scored = ["eval", "score", str(folders[0] / "clips"), "--transcripts", "drive/transcripts.jsonl", "--json"]
    capsys.readouterr()
    assert main([*scored, "--out", "scored"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"]["wer"] == value["mean"]["wer"]
    assert main(["eval", "compare", str(folders[0]), "scored", "--out", "page"]) == 0  # the same clips


def test_planted_faults_grow_with_time() -> None:
    frames = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 255
    progress = torch.tensor([0.0, 0.5, 1.0])
    for name in ("colour", "blur"):
        plant = generator.PLANTS[name]
        assert plant is not None
        moved = (plant(frames, progress) - frames).abs().mean((1, 2, 3))
        assert moved[0] < 1e-4 and 3 < moved[1] < moved[2]
    sharp = generator._blur(frames, progress).diff(dim=-1).abs().mean((1, 2, 3))
    assert sharp[0] > 2 * sharp[1] > 2 * sharp[2]


def test_another_character_takes_over_halfway() -> None:
    from streamchar.world.clips import make_clip, pick_character
    from streamchar.world.prompt import Direction

    clip = make_clip(1, "Hello.", who=pick_character(3, held_out=True), direction=Direction())
    other = make_clip(1, "Hello.", who=pick_character(4, held_out=True), direction=Direction())
    swap = generator.TruthGenerator(plant="identity")._frames(clip, other, 0, 2, torch.tensor([0.4, 0.6]))
    assert torch.equal(swap[0], clip.frames(0, 2)[0]) and torch.equal(swap[1], other.frames(0, 2)[1])
    assert not torch.equal(swap[1], clip.frames(0, 2)[1])


def test_sound_is_shifted_and_keeps_its_length() -> None:
    sound = torch.arange(1.0, 3 * clock.AUDIO_STRIDE + 1)
    early, late = generator.shifted(sound, 1), generator.shifted(sound, -1)
    assert early.shape == late.shape == sound.shape
    assert early[0] == clock.AUDIO_STRIDE + 1 and early[-1] == 0 and late[0] == 0 and late[clock.AUDIO_STRIDE] == 1


BAD = {
    "eval run --protocol short": "missing --model",
    "eval run --model toon": "missing --protocol",
    "eval run --model toon --protocol shrt": "unknown protocol 'shrt'",
    "eval run --model toon --protocol my.json --clips 3": "--clips must be from 1 to 2",
    "eval run --model toon --protocol my.json --fast": "--fast goes with the shipped",
    "eval run --model toon --protocol my.json --steps 0": "--steps must be from 1",
    "eval run --model toon --protocol my.json --shift-frames 3": "--shift-frames goes with --model truth",
    "eval run --model truth --protocol my.json --plant rain": "--plant must be one of colour, blur, identity",
    "eval run --model truth --protocol my.json --steps 4": "drawn, not sampled",
    "eval run --model truth --protocol none.json": "cannot read the protocol",
    "eval run --model toon --protocol my.json --metrics wers": "unknown 'wers'",
    "eval run --model toon --protocol my.json --syncnet no.model": "there is no no.model",
    "eval run --model toon --protocol my.json --device bogus": "--device bogus cannot be used",
    "eval run --model toon --driven-by x": "leave out --model",
    "eval run --driven-by x": "missing --out",
    "eval score .": "missing --transcripts",
    "eval score . --transcripts t.jsonl": "cannot read transcripts",
    "eval compare x --out page": "at least two",
    "eval compare x y": "missing --out",
    "eval study x y": "missing --out",
    "eval": "Missing command",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert BAD[line].lower() in refused(capsys, line).lower()


def test_what_the_model_cannot_speak_shows_before_any_work(
    capsys: pytest.CaptureFixture[str], pipeline: type[FakePipeline]
) -> None:
    text = Path("my.json").read_text().replace("friend", "друг")
    Path("my.json").write_text(text)
    assert "a: this model cannot speak" in refused(capsys, "eval run --model toon --protocol my.json")
    assert pipeline.started == []
