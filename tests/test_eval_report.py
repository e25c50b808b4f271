"""The report and the comparison: what stands in them, and what a person is told where something is missing."""

from __future__ import annotations

import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from streamchar import clock
from streamchar.errors import DataError
from streamchar.eval.pages.clips import by_quality
from streamchar.eval.pages.comparison import compare, meeting, ranking, write_comparison
from streamchar.eval.pages.evaluation import interval_text, number, read_evaluation
from streamchar.eval.pages.film import RATE, ROWS, loudness_by_pitch
from streamchar.eval.pages.words import align, marked
from streamchar.eval.plots import Bar, Line, bar_chart, histogram, line_chart, thinned, ticks
from streamchar.eval.report import write_report
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk

TEXTS = {"one": "Hello <b>there</b> my friend.", "two": "Two & two are four."}
FIGURES = {
    "wer": ("Word error rate", "errors per word", "lower"),
    "sync_d": ("Sync-D", "distance", "lower"),
    "sync_offset_frames": ("Sync offset", "frames of 25 fps", "zero"),
    "fid": ("FID", "distance", "lower"),
    "fvd": ("FVD", "distance", "lower"),
    "identity": ("Identity", "mean cosine", "higher"),
    "pointer_words": ("Pointer error", "words", "lower"),
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.375 s that go from dark to light, with a tone."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = (torch.arange(33) * 6 + 20)[:, None, None, None].expand(33, 64, 64, 3).to(torch.uint8).contiguous()
    samples = 0.3 * torch.sin(2 * math.pi * 440 * torch.arange(clock.SAMPLES_PER_CHUNK) / clock.AUDIO_RATE)
    with Muxer(path) as muxer:
        muxer.write(Chunk(index=0, frames=frames, samples=samples, last=True))
    return path


def evaluation(folder: Path, video: Path, name: str, values: Mapping[str, tuple[float, float]], **other: Any) -> Path:
    """An evaluation folder of two clips; `values` has each figure's value for both."""
    (folder / "clips").mkdir(parents=True)
    clips = []
    for i, (clip, text) in enumerate(TEXTS.items()):
        shutil.copyfile(video, folder / "clips" / f"{clip}.mp4")
        (folder / "clips" / f"{clip}.words.json").write_text('[["Hello", 0.1, 0.4], ["there", 0.4, 0.8]]')
        found = {k: values[k][i] if k in values else None for k in FIGURES}
        clips.append({
            "name": clip, "video": f"clips/{clip}.mp4", "transcript": text, **found,
            "reasons": {k: "over a set" for k, v in found.items() if v is None},
            "notes": {"heard": "hello there my friends" if i == 0 else "two and are four"},
        })  # fmt: skip
    mean = {k: sum(values[k]) / 2 if k in values else None for k in FIGURES}
    value = {
        "schema": "streamchar-eval/1", "name": name, "created": "2026-11-21T12:00:00+00:00",
        "protocol": {"name": "short-fast", "seconds": 5, "exact": "exactly <so>", "reference": "none"},
        "environment": {"python": "3.12", "gpu": None, "packages": {"jiwer": "4.0"}}, "model": None,
        "mean": mean, "interval": {k: [min(v), max(v)] for k, v in values.items()},
        "count": dict.fromkeys(values, 2), "reasons": {k: "no <weights> given" for k, v in mean.items() if v is None},
        "figures": {k: dict(title=t, unit=u, better=b, version="net 1") for k, (t, u, b) in FIGURES.items()},
        "clips": clips, "warnings": ["few clips"],
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(value | other))
    curve = {"quality": [0.9, 0.8, 0.7], "sync_distance": [abs(k) + 1.0 for k in range(-15, 16)]}
    curve |= {"opening": [i % 5 / 5 for i in range(33)], "loudness": [i % 7 / 7 for i in range(33)]}
    curve |= {"words_pointer": [0.0, 1.0, 2.0], "words_spoken": [0.0, 0.0, 2.0]}
    (folder / "series.json").write_text(json.dumps(dict.fromkeys(TEXTS, curve)))
    return folder


@pytest.fixture
def ours(tmp_path: Path, video: Path) -> Path:
    values = {"wer": (0.2, 0.0), "sync_d": (8.0, 7.0), "sync_offset_frames": (-3.0, -3.0), "identity": (0.7, 0.9)}
    values["pointer_words"] = (0.2, 0.4)
    return evaluation(tmp_path / "ours", video, "ours", values)


class Checked(HTMLParser):
    """Text of a page, addresses that it loads, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v for k, v in attrs if v and (k == "src" or (tag == "link" and k == "href"))]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("line", "rect", "circle", "polyline"), f"<{tag}/> is no void element of HTML"

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_ranking_by_direction() -> None:
    assert ranking([3.0, 1.0, 2.0], "higher") == [1, 3, 2]
    assert ranking([3.0, 1.0, 2.0], "lower") == [3, 1, 2]
    assert ranking([-3.0, 1.0, -1.0, 2.0], "zero") == [3, 1, 1, 2]
    assert ranking([None, 2.0, math.nan, 1.0], "lower") == [None, 2, None, 1]
    assert ranking([1.0, 2.0], "neither") == [None, None]
    assert ranking([], "higher") == []


def test_report_is_one_file_with_everything(ours: Path) -> None:
    page = write_report(ours)
    text = page.read_text(encoding="utf-8")
    found = Checked(text)
    assert found.loads and all(address.startswith("data:") for address in found.loads)
    assert len(text) < 500_000
    assert sum(address.startswith("data:image/jpeg") for address in found.loads) == 4  # strip and spectrogram of each
    for expected in (
        "Hello <b>there</b> my friend.", "no <weights> given", "few clips", "exactly <so>", "errors per word",
        "0.100", "−3.00", "net 1", "not measured", "jiwer 4.0",
    ):  # fmt: skip
        assert expected.replace("friend.", "") in found.text, expected
    assert "<b>there</b>" not in text  # what others wrote is text, not a page
    for title in (
        "Quality over time",
        "Sync offset",
        "Distance over shift",
        "WER by clip",
        "Mouth against loudness",
        "Pointer against speech",
    ):
        assert title in found.text
    assert 'data-video="clips/one.mp4"' in text


def test_markdown_says_the_same(ours: Path) -> None:
    write_report(ours)
    text = (ours / "report.md").read_text(encoding="utf-8")
    assert "| Word error rate ↓ | 0.100 | 0.000 to 0.200 | 2 | errors per word | net 1 |" in text
    assert "- FID · FVD: no <weights> given" in text
    assert "~~friend.~~ **friends**" in text
    assert text.index("| two |") < text.index("| one |")  # the better clip first


def test_missing_video_and_damaged_video_are_said(ours: Path) -> None:
    (ours / "clips" / "one.mp4").unlink()
    (ours / "clips" / "two.mp4").write_bytes(b"nothing")
    found = Checked(write_report(ours).read_text(encoding="utf-8"))
    assert found.text.count("no pictures:") == 2
    assert not any(address.startswith("data:image/jpeg") for address in found.loads)


def test_ceiling(ours: Path, video: Path, tmp_path: Path) -> None:
    values = {"wer": (0.0, 0.04), "sync_d": (5.0, 5.5)}
    assert "ceiling" not in Checked(write_report(ours).read_text(encoding="utf-8")).text
    truth = evaluation(tmp_path / "truth", video, "truth", values)
    assert "ceiling 0.0200" in Checked(write_report(ours).read_text(encoding="utf-8")).text
    metrics = json.loads((truth / "metrics.json").read_text())
    metrics["figures"]["wer"]["version"] = "another recogniser"
    (truth / "metrics.json").write_text(json.dumps(metrics))
    assert "ceiling 0.0200" not in Checked(write_report(ours).read_text(encoding="utf-8")).text
    metrics["clips"] = metrics["clips"][:1]
    (truth / "metrics.json").write_text(json.dumps(metrics))
    assert "ceiling" not in Checked(write_report(ours).read_text(encoding="utf-8")).text
    with pytest.raises(DataError, match="same protocol"):
        write_report(ours, truth=truth)


def test_best_clip_first(ours: Path) -> None:
    assert [c.name for c in by_quality(read_evaluation(ours))] == ["two", "one"]


def test_folder_that_is_no_evaluation(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        write_report(tmp_path / "nothing")
    path = ours / "metrics.json"
    whole = json.loads(path.read_text())
    for broken, match in (
        (whole | {"schema": "other/1"}, "expected schema"),
        ({k: v for k, v in whole.items() if k != "clips"}, "incomplete"),
        (whole | {"reasons": {}}, "without a reason"),
        (whole | {"clips": [{k: v for k, v in whole["clips"][0].items() if k != "fid"}]}, "lacks fid"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=match):
            write_report(ours)
    path.write_text(json.dumps(whole).replace("0.1", "NaN", 1))
    with pytest.raises(DataError, match="NaN"):
        write_report(ours)


def test_comparison(ours: Path, video: Path, tmp_path: Path) -> None:
    better = {"wer": (0.1, 0.0), "sync_d": (5.0, 5.2), "sync_offset_frames": (2.0, 2.0), "identity": (0.5, 0.6)}
    theirs = evaluation(tmp_path / "theirs", video, "theirs", better)
    third = evaluation(tmp_path / "third", video, "ours", {"wer": (0.3, 0.5)})
    found = compare([ours, theirs, third])
    assert [e.name for e in found.evaluations] == ["ours (ours)", "theirs", "ours (third)"]
    ranks = {c.figure.key: c.ranks for c in found.columns}
    assert ranks["wer"] == (2, 1, 3) and ranks["sync_offset_frames"] == (2, 1, None)
    assert ranks["identity"] == (1, 2, None) and ranks["fid"] == (None, None, None)
    close = {c.figure.key: c.close for c in found.columns}
    assert close["wer"] == (True, False, False)  # 0 to 0.2 meets 0 to 0.1; 0.3 to 0.5 does not
    page = write_comparison([ours, theirs, third], tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    shown = Checked(text)
    assert all(address.startswith("data:") for address in shown.loads)
    assert '<span class="best">0.0500</span>' in text and '<span class="second">0.100</span>' in text
    assert "no <weights> given" in shown.text and "–" in shown.text
    markdown = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| theirs | **0.0500** (0.0000 to 0.1000) |" in markdown
    assert "<u>0.100</u> ≈" in markdown and "- Sync-D: ours (third): no <weights> given" in markdown
    with pytest.raises(DataError, match="at least two"):
        compare([ours])


def test_what_does_not_compare_is_not_ranked(ours: Path, video: Path, tmp_path: Path) -> None:
    values = {"wer": (0.1, 0.0), "fid": (3.0, 4.0), "sync_d": (5.0, 6.0)}
    other = {"protocol": {"name": "short-fast", "reference": "12 given videos"}}
    a = evaluation(tmp_path / "a", video, "a", values)
    b = evaluation(tmp_path / "b", video, "b", values, **other)
    columns = {c.figure.key: c for c in compare([a, b]).columns}
    assert columns["wer"].ranks == (1, 1)
    assert columns["fid"].ranks == (None, None) and "references" in columns["fid"].note
    path = b / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["figures"]["wer"]["version"] = "net 2"
    path.write_text(json.dumps(metrics))
    columns = {c.figure.key: c for c in compare([a, b]).columns}
    assert columns["wer"].ranks == (None, None) and "net 2" in columns["wer"].note
    assert columns["sync_d"].ranks == (1, 1)
    metrics["clips"][0]["transcript"] = "Something else."
    path.write_text(json.dumps(metrics))
    found = compare([a, b])
    assert all(set(c.ranks) == {None} for c in found.columns)
    assert "not measured on the same clips" in found.warnings[0]


def test_intervals_that_meet() -> None:
    assert meeting((0, 1), (1, 2), "lower") and not meeting((0, 1), (1.1, 2), "lower")
    assert meeting((-3, -2), (1, 2.5), "zero") and not meeting((-3, -2), (-1, 1), "zero")
    assert not meeting(None, (0, 1), "higher")


def test_alignment_of_words() -> None:
    steps = align("The cat sat on the mat.", "the cat sad on a the mat")
    assert [s.kind for s in steps] == ["same", "same", "changed", "same", "added", "same", "same"]
    assert [s.kind for s in align("one two", "")] == ["missing", "missing"]
    left, right = marked("one <two>", "one 2")
    assert left == 'one <mark class="changed" title="heard: 2">&lt;two&gt;</mark>'
    assert right == 'one <mark class="changed" title="should be: &lt;two&gt;">2</mark>'


def test_numbers() -> None:
    assert [number(v) for v in (0.0, 0.03541, 1.234, 12.34, 1234.5, None)] == [
        "0.000", "0.0354", "1.23", "12.3", "1234.5", "–",
    ]  # fmt: skip
    assert number(-2.0, signed=True) == "−2.00" and number(2.0, signed=True) == "+2.00"
    assert number(-0.0001, like=1.0) == "0.00"


def test_interval_has_the_decimals_of_its_value(ours: Path) -> None:
    entry = read_evaluation(ours).entries["sync_d"]
    assert interval_text(entry) == "7.00 to 8.00"


def test_spectrogram_shows_the_tone() -> None:
    time = torch.arange(RATE) / RATE
    level = loudness_by_pitch(0.5 * torch.sin(2 * math.pi * 1000 * time))
    row = int(level.mean(1).argmax())
    top = 2595 * math.log10(1 + 8000 / 700)
    mel = (ROWS - 1 - row) / (ROWS - 1) * top  # high pitch on top
    assert abs(700 * (10 ** (mel / 2595) - 1) - 1000) < 60
    assert float(loudness_by_pitch(torch.zeros(RATE)).max()) == 0
    late = loudness_by_pitch(torch.cat([torch.zeros(RATE), torch.sin(2 * math.pi * 1000 * time)]))
    assert float(late[:, :460].max()) < 0.05 < float(late[row, 500:].min())
    with pytest.raises(DataError, match="samples"):
        loudness_by_pitch(torch.zeros(10))


def test_plots_are_svg_and_place_values() -> None:
    drawn = line_chart([Line(xs=[0, 1, 2], ys=[1.0, 3.0, 2.0], label="a & b")], title="t", x_label="x", y_label="y")
    points = ElementTree.fromstring(drawn).find("polyline").attrib["points"].split()  # type: ignore[union-attr]
    ys = [float(p.split(",")[1]) for p in points]
    assert ys[1] < ys[2] < ys[0]  # up is less in SVG
    bars = histogram([("a", [0, 0, -3.0, 99], "s0")], low=-15, high=15, title="t", x_label="x", y_label="y")
    tips = [e.text for e in ElementTree.fromstring(bars).iter("title")]
    assert tips == ["a: 1 at -3", "a: 2 at 0", "a: 1 at +15"]
    rects = list(ElementTree.fromstring(bar_chart(
        [Bar(label="x", value=0.1), Bar(label="y", value=0.2)], title="t", x_label="x", y_label="y"
    )).iter("rect"))  # fmt: skip
    assert abs(float(rects[1].attrib["height"]) / float(rects[0].attrib["height"]) - 2) < 0.01


def test_ticks_and_thinning() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    assert ticks(0, 2.1, whole=True) == [0, 1, 2] and ticks(3, 3) == [3]
    xs, ys = thinned(range(1000), [float(i) for i in range(1000)], 100)
    assert len(ys) == 100 and ys[0] == 4.5 and sum(ys) / 100 == 499.5 and xs == ys
