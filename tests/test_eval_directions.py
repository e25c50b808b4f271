"""Do drawn clips count as what they were directed to do, and not as something else?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamchar import clock
from streamchar.errors import CheckpointError, InputError
from streamchar.eval import directions
from streamchar.eval.directions import FIELDS, FOLDER, PromptFollowed, load_directions
from streamchar.eval.identity import still
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.suite import REGISTRY
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk, Speech, Word
from streamchar.world.character import character
from streamchar.world.motion import plan
from streamchar.world.pose import HANDS, POSES, mirrored, poses
from streamchar.world.prompt import ENERGIES, GESTURES, MOODS, Direction
from streamchar.world.render import render

CAST = {13: ("happy", "waving", "high"), 36: ("angry", "nodding", "medium"), 33: ("sad", "open hands", "low")}
"""Held-out characters: the nets have not seen them."""
CHUNKS = 3
SIZE = 160


def chatter(seconds: float) -> Speech:
    """Noise in bursts of a word each: all that the motion asks of a speech."""
    torch.manual_seed(1)
    n = round(seconds * clock.AUDIO_RATE)
    starts = [0.5 * i for i in range(int(2 * seconds) - 1)]
    samples = torch.zeros(n)
    for start in starts:
        first, last = round(start * clock.AUDIO_RATE), round((start + 0.35) * clock.AUDIO_RATE)
        samples[first:last] = 0.2 * torch.randn(last - first)
    words = tuple(Word(text="la", start=s, end=s + 0.35) for s in starts)
    pitch = torch.full((round(96 * seconds),), 150.0)
    return Speech(samples=samples, text="la", phonemes=(), words=words, pitch=pitch)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """One film a character, as the world draws it."""
    folder, found = tmp_path_factory.mktemp("directions"), []
    frames = CHUNKS * clock.FRAMES_PER_CHUNK
    for number, (mood, gesture, energy) in CAST.items():
        direction = Direction(mood=mood, gesture=gesture, energy=energy)
        track = plan(chatter(frames / 24), direction, number, frames)
        path = folder / f"{number}.mp4"
        with Muxer(path) as muxer:
            for i, part in enumerate(render(character(number), track, SIZE).permute(0, 2, 3, 1).split(33)):
                sound = torch.zeros(clock.SAMPLES_PER_CHUNK)
                muxer.write(Chunk(index=i, frames=part.contiguous(), samples=sound, last=i == CHUNKS - 1))
        found.append(Sample(
            name=path.stem, video=path, transcript="la", character=number, direction=(mood, gesture, energy)
        ))  # fmt: skip
    return found


def asked(sample: Sample, direction: tuple[str, str, str] | None, **changes: object) -> Sample:
    """The clip as of another prompt."""
    kept = {"name": sample.name, "video": sample.video, "transcript": "la", "character": sample.character}
    return Sample(**{**kept, "direction": direction, **changes})  # type: ignore[arg-type]


def test_truth_follows_its_prompt_and_no_other(clips: list[Sample]) -> None:
    metric = PromptFollowed()
    assert isinstance(metric, ClipMetric)
    own = [metric.measure(clip) for clip in clips]
    other = [metric.measure(asked(a, b.direction)) for a, b in zip(clips, clips[1:] + clips[:1], strict=True)]
    for reading in own + other:
        assert set(reading.values) == {f.key for f in metric.figures} == set(REGISTRY["directions"])
        parts = [reading.values[f"prompt_{field}"] for field in FIELDS]
        assert reading.values["prompt_adherence"] == pytest.approx(sum(v or 0.0 for v in parts) / 3)
    truth = sum(r.values["prompt_adherence"] or 0.0 for r in own) / len(own)
    wrong = sum(r.values["prompt_adherence"] or 0.0 for r in other) / len(other)
    assert truth > 0.75 and wrong < 0.3
    assert sum(r.values["prompt_gesture"] == 1.0 for r in own) == len(own)
    assert own[0].notes["prompt_gesture"] == "asked for waving, seen waving"
    for reading in own:  # the curves are probabilities, a window each
        assert all(len(v) == 1 and 0 <= v[0] <= 1 for v in reading.series.values())


def test_what_is_not_known_is_said(clips: list[Sample], tmp_path: Path) -> None:
    metric, one = PromptFollowed(), clips[0]
    with pytest.raises(ImpossibleError, match="without a world character"):
        metric.measure(asked(one, one.direction, character=None))
    with pytest.raises(ImpossibleError, match="expected `direction`"):
        metric.measure(asked(one, None))
    with pytest.raises(ImpossibleError, match="mood must be one of calm.* got 'hungry'"):
        metric.measure(asked(one, ("hungry", "still", "low")))
    short = tmp_path / "short.mp4"
    with Muxer(short) as muxer:
        frames = still(13)[None, :, :SIZE, :SIZE].expand(33, -1, -1, -1).permute(0, 2, 3, 1).contiguous()
        muxer.write(Chunk(index=0, frames=frames, samples=torch.zeros(clock.SAMPLES_PER_CHUNK), last=True))
    with pytest.raises(ImpossibleError, match=r"at least 2.5 s, got 1\.\d+ s"):
        metric.measure(asked(one, one.direction, video=short))


def test_without_weights_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CheckpointError("expected a component folder with config.json")

    monkeypatch.setattr(directions, "load_directions", missing)
    (found,) = directions.metrics(Options())
    assert isinstance(found, Unavailable) and "config.json" in found.reason
    assert {f.key for f in found.figures} == set(REGISTRY["directions"])


def test_the_shipped_net_knows_the_worlds_labels() -> None:
    net = load_directions()
    assert net.version.startswith("directions ") and net.config.poses == POSES
    assert {f: tuple(v) for f, v in net.config.labels.items()} == {
        "mood": tuple(MOODS), "gesture": tuple(GESTURES), "energy": tuple(ENERGIES)
    }  # fmt: skip
    assert (FOLDER / "model.safetensors").stat().st_size < 400_000
    with pytest.raises(InputError, match=r"expected \(N, 3, H, W\) uint8, got \(2, 3, 64, 64\) torch.float32"):
        net.prepare(torch.zeros(2, 3, 64, 64))


def test_a_long_clip_is_cut_into_equal_windows() -> None:
    net = load_directions()
    assert net.windows(100) == [(0, 100)] and net.windows(144) == [(0, 144)]
    cut = net.windows(1000)
    assert [a for a, _ in cut[1:]] == [b for _, b in cut[:-1]] and (cut[0][0], cut[-1][1]) == (0, 1000)
    assert len(cut) == 7 and {b - a for a, b in cut} <= {142, 143}


def test_a_mirror_swaps_hands_and_turns() -> None:
    track = plan(chatter(4.0), Direction(gesture="pointing up", energy="high"), 5, 96)
    pose = poses(track)
    there = mirrored(pose)
    assert torch.equal(mirrored(there), pose)
    left, right = POSES.index(HANDS[0]), POSES.index(HANDS[5])
    assert pose[:, [left, right]].max() > 1 and torch.equal(there[:, left], pose[:, right])
    assert torch.equal(there[:, POSES.index("yaw")], -pose[:, POSES.index("yaw")])
    assert torch.equal(there[:, POSES.index("smile")], pose[:, POSES.index("smile")])
