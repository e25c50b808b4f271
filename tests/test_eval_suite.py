"""The suite with small metrics of its own: cache, resuming, failures, protocols, intervals, what may be compared."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.text import Text
from torch import Tensor

from streamchar import clock
from streamchar.errors import DataError, InputError
from streamchar.eval import evaluation, protocol, suite
from streamchar.eval.bootstrap import interval
from streamchar.eval.cache import Cache, code_hash, fingerprint, source_hash
from streamchar.eval.compare import compare_folders, dashes, differences, table
from streamchar.eval.driving import export_audio
from streamchar.eval.metric import Figure, ImpossibleError, Reading, Unavailable
from streamchar.eval.pages.comparison import compare
from streamchar.eval.protocol import Item, Protocol
from streamchar.eval.sample import Sample, read_samples
from streamchar.stream.mux import Muxer
from streamchar.types import Word
from streamchar.world.splits import is_held_out_character, is_held_out_sentence

NAMES = ("a", "b", "c", "d")


class Light:
    """Mean brightness; counts its calls."""

    figures = (Figure(key="light", title="Light", unit="levels", better="higher"),)

    def __init__(self, version: str = "1") -> None:
        self.version, self.calls = version, Counter[str]()

    def measure(self, sample: Sample) -> Reading:
        self.calls[sample.name] += 1
        frames = sample.frames(4).float()
        return Reading(values={"light": float(frames.mean())}, series={"quality": frames.mean((1, 2, 3)).tolist()})


class Bulk(Light):
    """Measures many at once."""

    def __init__(self) -> None:
        super().__init__("bulk")
        self.batches: list[list[str]] = []

    def prepare(self, samples: Sequence[Sample]) -> None:
        self.batches.append([s.name for s in samples])


class Fragile:
    """Cannot measure a, breaks on b, has no number for c; d is 1."""

    figures = (Figure(key="fragile", title="Fragile", unit="1", better="zero"),)
    version = "1"

    def measure(self, sample: Sample) -> Reading:
        if sample.name == "a":
            raise ImpossibleError("a is too short")
        if sample.name == "b":
            raise ValueError("shapes differ")
        return Reading(values={"fragile": math.nan if sample.name == "c" else 1.0})


class Apart:
    """Distance of the mean brightness of two sets."""

    figures = (Figure(key="fid_world", title="Apart", unit="levels", better="lower"),)
    version = "1"

    def __init__(self) -> None:
        self.calls = 0

    def features(self, sample: Sample) -> Tensor:
        self.calls += 1
        return sample.frames(4).float().mean((1, 2, 3))[:, None]

    def compare(self, made: Sequence[Tensor], reference: Sequence[Tensor]) -> Reading:
        gap = torch.cat(list(made)).mean() - torch.cat(list(reference)).mean()
        return Reading(values={"fid_world": float(gap.abs())}, notes={"samples": f"{len(made)}", "warning": "few"})


@dataclass
class Painter:
    """One chunk of one grey level, the noise seed's; stops or fails where told."""

    level: int = 60
    stop_at: str = ""
    fail_at: tuple[str, ...] = ()
    wall: float | None = 2.75
    made: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"painter {self.level}"

    def __call__(self, item: Item, target: Path) -> suite.Generated:
        if item.name == self.stop_at:
            raise KeyboardInterrupt
        if item.name in self.fail_at:
            raise InputError("this cannot be said")
        self.made.append(item.name)
        frames = torch.full((33, 64, 64, 3), self.level + 10 * item.noise_seed, dtype=torch.uint8)
        with Muxer(target) as muxer:
            muxer.add(frames, 0.1 * torch.sin(torch.arange(clock.SAMPLES_PER_CHUNK) / 20))
        return suite.Generated(seconds=1.375, wall_seconds=self.wall, words=(Word(text="one", start=0.1, end=0.4),))


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """Four items with pictures of their own, on a machine with nothing else to do."""
    from PIL import Image

    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5), raising=False)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "who.png")
    items = tuple(
        Item(name=n, transcript=f"one {n}", picture=tmp_path / "who.png", noise_seed=i) for i, n in enumerate(NAMES)
    )
    return Protocol(name="cards", seconds=1.375, items=items)


def plan(cards: Protocol, out: Path, painter: Painter, **more) -> evaluation.Plan:
    return evaluation.Plan(protocol=cards, out=out, generator=painter, settings={"seed": 0, "steps": 4}, **more)


def test_a_run_writes_every_key_and_a_reason_for_every_null(cards: Protocol, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", Cache(tmp_path / "cache")
    missing = Unavailable(figures=(suite.REQUIRED[0],), reason="no recogniser: pip install one")
    value = evaluation.run(plan(cards, out, Painter()), [Light(), Fragile(), missing], cache)
    assert json.loads((out / "metrics.json").read_text()) == value
    required = {f.key for f in suite.REQUIRED}
    assert required | {"light", "fragile"} == set(value["mean"]) == set(value["figures"]) == set(value["count"])
    for key, mean in value["mean"].items():
        assert (mean is None) == (key in value["reasons"])
        for clip in value["clips"]:
            assert (clip[key] is None) == (key in clip["reasons"])
    assert value["reasons"]["wer"] == "no recogniser: pip install one"
    assert value["mean"]["rtf"] == 2.0 and value["count"]["light"] == 4
    assert value["mean"]["light"] == pytest.approx(75, abs=2)
    assert 60 <= value["interval"]["light"][0] < 75 < value["interval"]["light"][1] <= 92
    series = json.loads((out / "series.json").read_text())
    assert len(series["a"]["quality"]) == 6 and sorted(series) == list(NAMES)
    assert json.loads((out / "clips" / "b.words.json").read_text()) == [["one", 0.1, 0.4]]
    again = read_samples(out / "clips", out / "transcripts.jsonl")
    assert [s.rtf for s in again] == [2.0] * 4 and all(s.picture and s.picture.is_file() for s in again)


def test_a_metric_that_fails_costs_one_figure_of_one_clip(cards: Protocol, tmp_path: Path) -> None:
    value = evaluation.run(plan(cards, tmp_path / "out", Painter()), [Fragile(), Light()], Cache(tmp_path / "cache"))
    reasons = [clip["reasons"].get("fragile") for clip in value["clips"]]
    assert reasons == ["a is too short", "ValueError: shapes differ", "the metric gave nan", None]
    assert (value["mean"]["fragile"], value["interval"]["fragile"], value["count"]["fragile"]) == (1.0, None, 1)
    assert value["count"]["light"] == 4
    assert value["warnings"] == ["Fragile on b: ValueError: shapes differ"]


def test_a_stopped_run_goes_on_and_measures_nothing_twice(cards: Protocol, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", Cache(tmp_path / "cache")
    first = Painter(stop_at="c")
    with pytest.raises(KeyboardInterrupt):
        evaluation.run(plan(cards, out, first), [Light()], cache)
    assert first.made == ["a", "b"] and not (out / "metrics.json").exists()
    second, light, apart = Painter(), Light(), Apart()
    value = evaluation.run(plan(cards, out, second), [light, apart], cache)
    assert second.made == ["c", "d"] and light.calls == Counter(NAMES) and apart.calls == 4
    third, light, apart = Painter(), Light(), Apart()
    again = evaluation.run(plan(cards, tmp_path / "other", third), [light, apart], cache)
    assert third.made == [] and not light.calls and apart.calls == 0
    assert again["clips"][0]["light"] == value["clips"][0]["light"]
    newer = Light(version="2")
    evaluation.run(plan(cards, out, Painter()), [newer], cache)
    assert newer.calls == Counter(NAMES)  # another version measures anew


def test_what_is_faster_in_bulk_gets_all_clips_that_are_not_known_yet(cards: Protocol, tmp_path: Path) -> None:
    first, second = Bulk(), Bulk()
    evaluation.run(plan(cards, tmp_path / "out", Painter()), [first], Cache(tmp_path / "cache"))
    assert first.batches == [list(NAMES)] and first.calls == Counter(NAMES)
    evaluation.run(plan(cards, tmp_path / "other", Painter()), [second], Cache(tmp_path / "cache"))
    assert second.batches == [[]] and not second.calls


def test_a_speed_measured_beside_other_work_says_so(
    cards: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for load, busy in ((0.9, False), (64.0 + (os.cpu_count() or 1), True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load), raising=False)
        cache = Cache(tmp_path / f"cache{load}")
        value = evaluation.run(plan(cards.first(1), tmp_path / f"{load}", Painter()), [], cache)
        assert any("busy machine" in w for w in value["warnings"]) == busy


def test_other_noise_or_another_model_is_another_clip(cards: Protocol, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    evaluation.run(plan(cards, tmp_path / "0", Painter()), [], cache)
    other, moved = Painter(level=61), Painter()
    evaluation.run(plan(cards, tmp_path / "1", other), [], cache)
    evaluation.run(plan(cards.later(1), tmp_path / "2", moved), [], cache)
    assert len(other.made) == 4 and len(moved.made) == 4


def test_what_a_reading_depends_on(cards: Protocol, tmp_path: Path) -> None:
    evaluation.run(plan(cards, tmp_path / "out", Painter()), [], Cache(tmp_path / "cache"))
    sample = read_samples(tmp_path / "out" / "clips", tmp_path / "out" / "transcripts.jsonl")[0]
    same = replace(sample, name="x", rtf=9.0)
    assert fingerprint(same) == fingerprint(sample) != fingerprint(replace(sample, transcript="two"))
    assert sample.words is not None
    before = fingerprint(sample)
    sample.words.write_text("[]")
    assert fingerprint(sample) != before


def test_a_clip_that_cannot_be_made_is_listed_and_does_not_count(cards: Protocol, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    value = evaluation.run(plan(cards, tmp_path / "out", Painter(fail_at=("b",))), [Light()], cache)
    assert value["count"]["light"] == 3 and len(value["clips"]) == 4
    lost = next(c for c in value["clips"] if c["name"] == "b")
    assert lost["video"] is None and "this cannot be said" in lost["reasons"]["light"]
    assert any("b could not be made" in w for w in value["warnings"])
    with pytest.raises(InputError, match="cannot be said"):
        evaluation.run(plan(cards, tmp_path / "none", Painter(fail_at=NAMES)), [Light()], Cache(tmp_path / "empty"))


def test_a_set_is_compared_with_its_reference(cards: Protocol, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    evaluation.run(plan(cards, tmp_path / "truth", Painter()), [], cache)
    for level, gap in ((60, 0.0), (90, 30.0)):
        out = tmp_path / str(level)
        evaluation.run(plan(cards, out, Painter(level=level)), [], cache)
        samples = read_samples(out / "clips", out / "transcripts.jsonl", reference=tmp_path / "truth" / "clips")
        value = evaluation.score(samples, tmp_path / f"scored{level}", [Apart()], cache)
        assert value["mean"]["fid_world"] == pytest.approx(gap, abs=1.5)
        assert value["count"]["fid_world"] == 4 and value["interval"]["fid_world"] is None
        assert {c["reasons"]["fid_world"] for c in value["clips"]} == {suite.OVER_A_SET}
        assert value["warnings"] == ["Apart: 4; few"] and value["protocol"]["reference"] == "4 given videos"
        video = tmp_path / f"scored{level}" / value["clips"][0]["video"]
        assert video.resolve() == (out / "clips" / "a.mp4").resolve()


def test_a_folder_belongs_to_one_evaluation(cards: Protocol, tmp_path: Path) -> None:
    cache, out = Cache(tmp_path / "cache"), tmp_path / "out"
    evaluation.run(plan(cards.first(2), out, Painter()), [], cache)
    evaluation.run(plan(cards, out, Painter()), [], cache)  # more clips of the same are welcome
    with pytest.raises(InputError, match="holds another evaluation .protocol"):
        evaluation.run(plan(replace(cards, name="others"), out, Painter()), [], cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        evaluation.run(plan(cards, tmp_path / "mine", Painter()), [], cache)


def test_code_counts_and_comments_do_not(tmp_path: Path) -> None:
    texts = ("x = 1\n", '"""Doc."""\nx = 1  # why\n', "x = 2\n")
    files = [tmp_path / f"{i}.py" for i in range(3)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    a, b, c = map(code_hash, files)
    assert a == b != c
    lip, world = Path(suite.__file__).parent / "mouth.py", Path(evaluation.__file__).parents[1] / "world" / "render.py"
    assert source_hash(lip) != code_hash(lip) and source_hash(lip) != source_hash(world)


def test_the_interval_is_that_of_theory() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400).tolist()
    bounds = interval(values)
    assert bounds is not None and bounds == interval(values)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert bounds[0] == pytest.approx(np.mean(values) - half, abs=0.03)
    assert bounds[1] == pytest.approx(np.mean(values) + half, abs=0.03)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0) and interval([2.0]) is None and interval([]) is None


@pytest.mark.parametrize(("name", "count", "low", "high"), [
    ("short", 150, 9.0, 10.5), ("long", 50, 295, 302), ("short-fast", 24, 4.2, 5.2), ("long-fast", 4, 61, 65),
])  # fmt: skip
def test_the_shipped_protocols(name: str, count: int, low: float, high: float) -> None:
    found = protocol.load(name)
    assert len(found.items) == count and len({i.character for i in found.items}) == count
    assert found.fast == name.endswith("-fast")
    for item in found.items:
        assert item.character is not None and is_held_out_character(item.character)
        assert item.seconds is not None and low <= item.seconds <= high
        assert item.voice_text and is_held_out_sentence(item.voice_text) and item.voice_text not in item.transcript
        assert item.prompt and item.direction and item.speaker is not None
        assert name != "long" or len(item.transcript.split()) > 300
    assert len({i.noise_seed for i in found.items}) == count
    assert protocol.load(name.removesuffix("-fast"), fast=True).name.endswith("-fast")


def test_a_protocol_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    (tmp_path / "p.png").write_bytes(b"png")
    good = {"name": "x", "transcript": "One.", "picture": "p.png"}

    def write(*items: dict, **more) -> str:
        path.write_text(json.dumps({"schema": protocol.SCHEMA, "name": "my", "seconds": 3, "items": items} | more))
        return str(path)

    (item,) = protocol.load(write(good)).items
    assert item.picture == tmp_path / "p.png" and item.fingerprint != replace(item, noise_seed=1).fingerprint
    for fault, items in {
        "did you mean 'transcript'": [good | {"transcrpt": "x"}],
        "names of their own": [good, good],
        "one of picture": [{"name": "x", "transcript": "One."}],
        "no file": [good | {"picture": "q.png"}],
        "expected a transcript": [good | {"transcript": " "}],
        "whole number": [good | {"noise_seed": -1}],
        "goes with a character": [good | {"voice": 3}],
        "expected a name": [good | {"name": "../x"}],
        "got no item": [],
        r"item 1 \(x\): picture must be text, got 5": [good | {"picture": 5}],
        r"item 1 \(x\): direction must be \[mood": [good | {"direction": 3}],
        r"direction must be \[mood, gesture, energy\], got \[1, 2, 3\]": [good | {"direction": [1, 2, 3]}],
        "prompt must be text, got": [good | {"prompt": ["happy"]}],
        "seconds must be a number": [good | {"seconds": "3"}],
        "voice must be a whole number": [good | {"voice": [1]}],
        "expected {": ["x"],
    }.items():
        with pytest.raises(DataError, match=fault):
            protocol.load(write(*items))
    with pytest.raises(DataError, match="expected seconds"):
        protocol.load(write(good, seconds=None))
    for more, fault in (({"seed": "x"}, "seed must be a whole number"), ({"name": [1]}, "name must be text, got")):
        with pytest.raises(DataError, match=rf"my.json: {fault}"):
            protocol.load(write(good, **more))
    assert protocol.load(write(good, seed=None, name=None)).seed == 0
    with pytest.raises(InputError, match="--clips must be from 1 to 1"):
        protocol.load(write(good)).first(2)
    with pytest.raises(InputError, match="unknown protocol"):
        protocol.load("shrt")


def test_only_like_is_compared_with_like(cards: Protocol, tmp_path: Path) -> None:
    cache, page = Cache(tmp_path / "cache"), tmp_path / "page"
    dark, lit, other = (tmp_path / n for n in ("dark", "lit", "other"))
    evaluation.run(plan(cards, dark, Painter(wall=1.0)), [Light()], cache)
    evaluation.run(plan(cards, lit, Painter(level=90, wall=2.0)), [Light(), Fragile()], cache)
    found, html = compare_folders([dark, lit], page)
    assert html.is_file() and (page / "compare.md").is_file()
    light = next(c for c in found.columns if c.figure.key == "light")
    rtf = next(c for c in found.columns if c.figure.key == "rtf")
    assert light.ranks == (2, 1) and rtf.ranks == (1, 2)  # higher is better, lower is better
    cells = list(table(found).columns[1].cells)
    assert [str(c.spans[0].style) for c in cells if isinstance(c, Text) and c.plain != "–"] == [
        "bold",
        "underline",
    ]  # rtf, light
    assert any(line.startswith("Fragile: dark: not a part") for line in dashes(found))
    evaluation.run(plan(cards, other, Painter()), [Light(version="2")], cache)
    with pytest.raises(InputError, match="light measured by '1' and '2'.*--anyway"):
        compare_folders([dark, other], page)
    assert compare_folders([dark, other], page, anyway=True)[0].columns
    evaluation.run(plan(cards.first(3), tmp_path / "three", Painter()), [Light()], cache)
    (fault,) = differences(compare([dark, tmp_path / "three"]).evaluations)
    assert "1 names in one only" in fault
    with pytest.raises(InputError, match="is an evaluation"):
        compare_folders([dark, lit], dark)


def test_our_sound_for_audio_driven_systems(cards: Protocol, tmp_path: Path) -> None:
    import soundfile

    run, out = tmp_path / "run", tmp_path / "drive"
    evaluation.run(plan(cards, run, Painter()), [], Cache(tmp_path / "cache"))
    assert export_audio(run, out) == 4
    sound, rate = soundfile.read(out / "a.wav")
    assert rate == 48_000 and abs(len(sound) - 66_000) < 1100 and 0.05 < np.abs(sound[2000:60_000]).max() < 0.2
    scored = read_samples(run / "clips", out / "transcripts.jsonl")  # as if another system had made these videos
    assert [s.transcript for s in scored] == [i.transcript for i in cards.items]
    assert all(s.rtf is None and s.picture is not None and s.picture.parent == out for s in scored)
    with pytest.raises(InputError, match="not empty"):
        export_audio(run, out)
    with pytest.raises(DataError, match="eval run"):
        export_audio(tmp_path, tmp_path / "new")


def test_metrics_are_chosen_by_key_or_module() -> None:
    from streamchar.eval.metric import Options

    keys = {f.key for m in suite.build_metrics(Options(), ["dynamic"]) for f in m.figures}
    assert keys == {"dynamic", "dynamic_flow"}
    with pytest.raises(InputError, match="unknown 'wers'"):
        suite.build_metrics(Options(), ["wers"])
