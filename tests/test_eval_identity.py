"""Identity, attributes and motion of clips: truth, swapped characters, stills, known translations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import CheckpointError, DataError, InputError
from streamchar.eval import identity
from streamchar.eval.dynamic import Dynamic, brightness, largest, optical_flow
from streamchar.eval.identity import AttributesKept, Identity, read_picture, readable, still
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.worldnet import load_worldnet
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk, Speech
from streamchar.world.character import character
from streamchar.world.motion import plan
from streamchar.world.prompt import Direction
from streamchar.world.render import render

ONE, OTHER = 13, 36  # held out: the net has not seen them
SILENCE = Speech(samples=torch.zeros(0), text="", phonemes=(), words=(), pitch=torch.zeros(0))


def film(path: Path, frames_T3HW: Tensor, **known: object) -> Sample:
    """A video of one chunk."""
    with Muxer(path) as muxer:
        frames = frames_T3HW.permute(0, 2, 3, 1).contiguous()
        muxer.write(Chunk(index=0, frames=frames, samples=torch.zeros(clock.SAMPLES_PER_CHUNK), last=True))
    return Sample(name=path.stem, video=path, transcript="x", **known)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def alive(folder: Path) -> Sample:
    """A character that listens: breathes, blinks, turns."""
    track = plan(SILENCE, Direction(gesture="nodding", energy="high"), 1, 33)
    return film(folder / "alive.mp4", render(character(ONE), track), character=ONE)


@pytest.fixture(scope="module")
def swapped(folder: Path, alive: Sample) -> Sample:
    """Another character takes over in the middle."""
    frames = torch.cat([alive.frames()[:16], still(OTHER).expand(17, -1, -1, -1)])
    return film(folder / "swapped.mp4", frames, character=ONE)


@pytest.fixture(scope="module")
def frozen(folder: Path) -> Sample:
    return film(folder / "frozen.mp4", still(ONE).expand(33, -1, -1, -1), character=ONE)


# ---- identity -----------------------------------------------------------------------------------


def value(metric: ClipMetric, sample: Sample) -> float:
    reading = metric.measure(sample)
    found = reading.values[metric.figures[0].key]
    assert found is not None and set(reading.values) == {f.key for f in metric.figures}
    return found


def test_another_character_lowers_identity(alive: Sample, swapped: Sample, frozen: Sample) -> None:
    metric = Identity()
    assert isinstance(metric, ClipMetric)
    own, half, same = value(metric, alive), value(metric, swapped), value(metric, frozen)
    assert same > 0.97 and own > 0.75 and half < own - 0.15
    curve = metric.measure(swapped).series["identity"]
    assert min(curve[:16]) > max(curve[17:])
    reading = metric.measure(alive)
    assert reading.notes["identity_reference"] == f"still of character {ONE}"
    assert reading.notes["identity_model"].startswith("worldnet")


def test_the_reference_is_the_given_picture(alive: Sample, folder: Path) -> None:
    from PIL import Image

    path = folder / "other.png"
    Image.fromarray(still(OTHER).permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(read_picture(path), still(OTHER))
    given = Sample(name="a", video=alive.video, transcript="x", character=ONE, picture=path)
    assert value(Identity(), given) < value(Identity(), alive) - 0.3
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="as a picture"):
        read_picture(folder / "broken.png")


class BrightFace:
    """A face embedding for which brightness is the person; it sees no face in dark frames."""

    name = "brightness"

    def __call__(self, frame_3HW: Tensor) -> Tensor | None:
        mean = frame_3HW.float().mean((1, 2))
        return mean if mean.mean() > 20 else None


def test_photographs_need_a_face_embedding(alive: Sample, folder: Path) -> None:
    unknown = Sample(name="a", video=alive.video, transcript="x")
    with pytest.raises(ImpossibleError, match="face embedding"):
        Identity(face=None).measure(unknown)
    with pytest.raises(ImpossibleError, match="not known"):
        AttributesKept().measure(unknown)
    metric = Identity(face=BrightFace())
    assert value(metric, unknown) > 0.99 and "brightness" in metric.version
    assert metric.measure(unknown).notes["identity_reference"] == "the clip's own first frame"
    frames = alive.frames()
    frames[10:20] = 0
    dark = film(folder / "dark.mp4", frames)
    assert "10 of 32" in metric.measure(dark).notes["identity_unseen"]
    with pytest.raises(ImpossibleError, match="reference picture"):
        metric.measure(film(folder / "black.mp4", torch.zeros_like(frames)))


# ---- attributes ---------------------------------------------------------------------------------


def test_another_character_loses_attributes(alive: Sample, swapped: Sample, frozen: Sample) -> None:
    metric = AttributesKept()
    assert isinstance(metric, ClipMetric)
    parts = readable(metric.net, character(ONE))
    assert parts, "the test's character must be one that the net reads"
    own, half = value(metric, alive), value(metric, swapped)
    assert value(metric, frozen) > 0.9 and own > 0.6 and half < own - 0.2
    curve = metric.measure(swapped).series["attributes_kept"]
    assert sum(curve[18:]) / len(curve[18:]) <= 0.34  # at most one part of the other is alike


def test_parts_that_the_net_misreads_are_left_out(alive: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_worldnet()
    true = net.read
    wrong = lambda features: true(features) | {"iris": ["none such"] * len(features)}  # noqa: E731
    monkeypatch.setattr(net, "read", wrong)
    reading = AttributesKept(net).measure(alive)
    assert "left out" in reading.notes["eyes"] and reading.values["attributes_kept"]
    every = {name: ["none such"] for names in identity.PARTS.values() for name in names}
    monkeypatch.setattr(net, "read", lambda features: every)
    with pytest.raises(ImpossibleError, match="no attribute"):
        AttributesKept(net).measure(alive)


def test_the_net_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone() -> None:
        raise CheckpointError(f"expected a component folder with config.json, found none at {tmp_path}")

    monkeypatch.setattr(identity, "load_worldnet", gone)
    (missing,) = identity.metrics(Options())
    assert isinstance(missing, Unavailable) and "component folder" in missing.reason
    assert [f.key for f in missing.figures] == ["identity", "attributes_kept"]


# ---- motion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (0, -3), (6, -4), (-9, 5)])
def test_flow_finds_a_known_translation(right: int, down: int) -> None:
    first = still(ONE)[None]
    second = torch.roll(first, (down, right), (2, 3))
    a = brightness(first)
    flow = 2 * optical_flow(a, brightness(second))[:, :, 12:-12, 12:-12]
    sharp = (a[..., 1:, 1:] - a[..., :-1, :-1]).abs()[0, 0, 11:-12, 11:-12] > 0.05  # elsewhere nothing tells
    assert flow[0, 0][sharp].median().item() == pytest.approx(right, abs=0.25)
    assert flow[0, 1][sharp].median().item() == pytest.approx(down, abs=0.25)


def test_flow_is_the_same_in_a_batch_and_refuses_what_it_cannot() -> None:
    first = brightness(torch.stack([still(ONE), still(OTHER)]))
    second = torch.roll(first, (1, 2), (2, 3))
    both = largest(first, second)
    assert torch.allclose(both, torch.cat([largest(first[i : i + 1], second[i : i + 1]) for i in (0, 1)]), atol=1e-4)
    with pytest.raises(InputError, match="32 pixels"):
        optical_flow(torch.zeros(1, 1, 16, 64), torch.zeros(1, 1, 16, 64))


def test_a_still_does_not_move_and_the_living_do(alive: Sample, frozen: Sample, folder: Path) -> None:
    metric = Dynamic()
    assert isinstance(metric, ClipMetric)
    moves, rests = metric.measure(alive), metric.measure(frozen)
    assert moves.values["dynamic"] == 1 and rests.values["dynamic"] == 0
    assert rests.values["dynamic_flow"] < 0.05 < moves.values["dynamic_flow"]  # type: ignore[operator]
    noise = torch.randn(33, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    flicker = (still(ONE) + 5 * noise).clamp(0, 255).to(torch.uint8)
    assert metric.measure(film(folder / "flicker.mp4", flicker)).values["dynamic"] == 0
    one = film(folder / "blink.mp4", torch.cat([still(ONE)[None].expand(32, -1, -1, -1), still(OTHER)[None]]))
    assert metric.measure(one).values["dynamic"] == 0  # one cut is not motion
