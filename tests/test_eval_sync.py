"""Lip sync by the method of SyncNet: MFCC, the public network's state, distances and their sign, whole videos."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import CheckpointError, ConfigError
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.sync import REACH, LipSync, embed, lip_distances, metrics, score
from streamchar.eval.syncnet import (
    FaceCrops,
    PublicSyncNet,
    ToonSyncNet,
    ToonSyncNetConfig,
    cosines,
    load_public,
    load_toon,
    mel_filters,
    mfcc,
    square,
    toon_crop,
)
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk
from streamchar.world.clips import Clip, make_clip
from streamchar.world.portrait import head_of

SMALL = ToonSyncNetConfig(picture=(4, 4, 8, 8), sound=(8, 8, 8), hidden=12, width=6)


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


# ---- MFCC -------------------------------------------------------------------------------------


def test_mel_filters_are_triangles() -> None:
    filters = mel_filters()
    assert (
        filters.shape == (26, 257)
        and float(filters.min()) == 0
        and torch.equal(filters.max(1).values, torch.ones(26).double())
    )
    peaks = filters.argmax(1)
    assert bool((peaks.diff() > 0).all())
    low = int(peaks[0])  # between two peaks, one falls as the other rises: they sum to 1
    assert torch.allclose(filters[:, low : int(peaks[-1]) + 1].sum(0), torch.ones(1).double())
    hertz = peaks[13] * 16_000 / 512
    assert abs(2595 * math.log10(1 + hertz / 700) - 14 * 2595 * math.log10(1 + 8000 / 700) / 27) < 30


def test_cosines_are_orthonormal_but_for_the_lifter() -> None:
    lift = 1 + 11 * torch.sin(math.pi * torch.arange(13, dtype=torch.float64) / 22)
    rows = cosines() / lift[:, None]
    assert torch.allclose(rows @ rows.T, torch.eye(13).double(), atol=1e-12)


def test_louder_sound_moves_only_the_energy() -> None:
    quiet, loud = mfcc(noise(0.5)), mfcc(2 * noise(0.5))
    assert quiet.shape == (13, 1 + math.ceil((8000 - 400) / 160)) and quiet.dtype == torch.float32
    assert torch.allclose(loud[0] - quiet[0], torch.full_like(quiet[0], math.log(4)), atol=0.01)
    assert torch.allclose(loud[1:], quiet[1:], atol=0.05)


def test_later_sound_is_later_mfcc() -> None:
    sound = noise(0.5)
    assert torch.allclose(mfcc(sound[320:])[:, 1:40], mfcc(sound)[:, 3:42], atol=1e-4)


def test_silence_is_finite_and_nothing_an_error() -> None:
    assert bool(mfcc(torch.zeros(1600)).isfinite().all())
    with pytest.raises(ConfigError, match="at least one sample"):
        mfcc(torch.zeros(0))


def test_mfcc_equals_python_speech_features() -> None:
    theirs = pytest.importorskip("python_speech_features")
    whole = (noise(0.73) * 32768).round().clamp(-32768, 32767)
    expected = torch.from_numpy(theirs.mfcc(whole.to(torch.int16).numpy(), 16_000)).float().T
    assert torch.allclose(mfcc(whole / 32768), expected, atol=1e-4)


# ---- the public network -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the published names, without the counts that older files lack."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save({k: v for k, v in PublicSyncNet().state_dict().items() if "num_batches" not in k}, path)
    return path


def test_public_state_has_the_published_names() -> None:
    shapes = {k: tuple(v.shape) for k, v in PublicSyncNet().state_dict().items()}
    expected = {
        "netcnnaud.0.weight": (64, 1, 3, 3), "netcnnaud.4.weight": (192, 64, 3, 3), "netcnnaud.8.bias": (384,),
        "netcnnaud.14.weight": (256, 256, 3, 3), "netcnnaud.18.weight": (512, 256, 5, 4),
        "netcnnaud.19.running_var": (512,), "netfcaud.0.weight": (512, 512), "netfcaud.3.weight": (1024, 512),
        "netcnnlip.0.weight": (96, 3, 5, 7, 7), "netcnnlip.4.weight": (256, 96, 1, 5, 5),
        "netcnnlip.14.weight": (256, 256, 1, 3, 3), "netcnnlip.18.weight": (512, 256, 1, 6, 6),
        "netfclip.1.running_mean": (512,), "netfclip.3.bias": (1024,),
    }  # fmt: skip
    assert {k: shapes.get(k) for k in expected} == expected and len(shapes) == 102


def test_public_weights_load_and_embed(weights: Path) -> None:
    model = load_public(weights)
    assert "sha256" in model.version and not model.training
    pictures = model.pictures(torch.randint(0, 255, (6, 3, 224, 224), dtype=torch.uint8))
    assert pictures.shape == (2, 1024) and model.sounds(mfcc(noise(0.3)), 3).shape == (3, 1024)


def test_other_files_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    bad = tmp_path / "bad.model"
    torch.save({k: v for k, v in state.items() if k != "netfcaud.3.bias"} | {"more": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match=r"missing \['netfcaud.3.bias'\], unexpected \['more'\]"):
        load_public(bad)
    torch.save({"path": Path("x")}, bad)  # an object, which only unpickling code could make
    with pytest.raises(CheckpointError, match="cannot read"):
        load_public(bad)
    (found,) = metrics(Options(syncnet=tmp_path / "none.model"))
    assert isinstance(found, Unavailable) and "none.model" in found.reason


# ---- distances --------------------------------------------------------------------------------


def test_distances_follow_the_public_definition() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(20, 8, generator=g), torch.randn(20, 8, generator=g)
    curve = lip_distances(a, b)
    for late in (-15, -4, 0, 7, 15):
        expected = [((a[i] - (b[i - late] if 0 <= i - late < 20 else 0) + 1e-6) ** 2).sum().sqrt() for i in range(20)]
        assert torch.allclose(curve[REACH + late], torch.stack(expected).mean(), atol=1e-5)
    found = score(curve)
    assert found.distance == pytest.approx(float(curve.min()))
    assert found.confidence == pytest.approx(float(curve.sort().values[15] - curve.min()))
    with pytest.raises(ConfigError, match="equally many"):
        lip_distances(a, b[1:])


@pytest.mark.parametrize("late", [-7, 0, 3])
def test_a_late_picture_has_a_positive_offset(late: int) -> None:
    sounds = torch.randn(80, 8, generator=torch.Generator().manual_seed(2))
    pictures = sounds.roll(late, 0)  # what is heard at n is seen at n + late
    assert score(lip_distances(pictures[20:60], sounds[20:60])).offset_frames == late


# ---- the network of the cartoon world ---------------------------------------------------------


def test_a_window_is_the_same_alone_and_among_others() -> None:
    torch.manual_seed(0)
    model = ToonSyncNet(SMALL).eval()
    crops = torch.randint(0, 255, (12, 3, 48, 64), dtype=torch.uint8)
    sound = torch.randn(13, 48)
    pictures, sounds = model.pictures(crops), model.sounds(sound, 8)
    assert pictures.shape == sounds.shape == (8, 6)
    alone = torch.cat([model.pictures(crops[n : n + 5]) for n in range(8)])
    assert torch.allclose(pictures, alone, atol=1e-5)
    alone = torch.cat([model.sounds(sound[:, 4 * n : 4 * n + 20], 1) for n in range(8)])
    assert torch.allclose(sounds, alone, atol=1e-5)


def test_pieces_of_any_length_are_the_whole() -> None:
    torch.manual_seed(0)
    model = ToonSyncNet(SMALL).eval()
    crops = torch.randint(0, 255, (40, 3, 48, 64), dtype=torch.uint8)
    whole = embed(model, [crops], noise(1.58))[0]
    assert len(whole) == 39 - 5  # the sound is 39 pictures long
    for length in (1, 3, 7):
        assert torch.allclose(embed(model, crops.split(length), noise(1.58))[0], whole, atol=1e-5)
    with pytest.raises(ImpossibleError, match="at least 0.84 s"):
        embed(model, [crops[:20]], noise(3))


def test_the_crop_holds_the_mouth_at_any_size() -> None:
    clip = make_clip(3, "Oh, how low.", held_out=True)
    crops = [toon_crop(clip.frames(8, 9, size=size), clip.character) for size in (128, 256)]
    assert crops[0].shape == crops[1].shape == (1, 3, 48, 64) and crops[0].dtype == torch.uint8
    assert float((crops[0].float() - crops[1].float()).abs().mean()) < 6
    assert head_of(clip.character).mouth_rx * 1.1 * 2 * 0.727 < 64  # its full width
    with pytest.raises(ConfigError, match="square"):
        toon_crop(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), clip.character)


# ---- whole videos -----------------------------------------------------------------------------

Write = Callable[..., Sample]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return make_clip(41, "The old sailor mopped his boat, and then a huge wave washed it away.", held_out=True)


@pytest.fixture(scope="module")
def write(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """The clip's pictures, small, with any sound, as an mp4."""
    frames = clip.frames(size=128).permute(0, 2, 3, 1).contiguous()
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str, samples: Tensor, character: int | None = clip.character.seed) -> Sample:
        with Muxer(folder / f"{name}.mp4") as muxer:
            for k, part in enumerate(samples.split(clock.SAMPLES_PER_CHUNK)):
                shown = frames[33 * k : 33 * k + 33]
                muxer.write(Chunk(index=k, frames=shown, samples=part, last=k == clip.chunks - 1))
        return Sample(name=name, video=folder / f"{name}.mp4", transcript=clip.speech.text, character=character)

    return make


def test_truth_shifts_and_other_sounds(clip: Clip, write: Write) -> None:
    (metric,) = metrics(Options())
    assert isinstance(metric, ClipMetric) and "ToonSyncNet" in metric.version
    samples, shift = clip.speech.samples, round(3 / 25 * clock.AUDIO_RATE)
    truth = metric.measure(write("truth", samples))
    assert set(truth.values) == {f.key for f in metric.figures} and len(truth.series["sync_distance"]) == 31
    offset, confidence = truth.values["sync_offset_frames"], truth.values["sync_c"]
    assert offset is not None and confidence is not None and abs(offset) <= 1
    late_sound = metric.measure(write("late", samples.roll(shift)))
    early_sound = metric.measure(write("early", samples.roll(-shift)))
    assert late_sound.values["sync_offset_frames"] == offset - 3
    assert early_sound.values["sync_offset_frames"] == offset + 3  # the sound leads: the picture is late
    other = make_clip(42, "Nobody knew why the quiet garden was full of tiny yellow umbrellas.").speech.samples
    count = len(samples)
    swapped = metric.measure(write("swapped", other.repeat(1 + count // len(other))[:count]))
    assert (swapped.values["sync_c"] or 0) < 0.5 * confidence
    assert (swapped.values["sync_d"] or 0) > (truth.values["sync_d"] or 9)


def test_what_cannot_be_measured_says_why(clip: Clip, write: Write) -> None:
    metric = LipSync(load_toon())
    with pytest.raises(ImpossibleError, match=r"syncnet_v2\.model"):
        metric.measure(write("nobody", clip.speech.samples, character=None))
    with pytest.raises(ImpossibleError, match="silent"):
        metric.measure(write("silent", torch.zeros_like(clip.speech.samples)))


# ---- faces for the published weights ----------------------------------------------------------


def video_of(path: Path, frames_THWC: Tensor) -> Sample:
    with Muxer(path) as muxer:
        muxer.write(Chunk(index=0, frames=frames_THWC, samples=torch.zeros(clock.SAMPLES_PER_CHUNK), last=True))
    return Sample(name=path.stem, video=path, transcript="x")


def test_cut_videos_stay_and_others_lose_their_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    faces = FaceCrops()
    assert "middle square" in faces.note
    picture = torch.zeros(33, 224, 224, 3, dtype=torch.uint8)
    picture[:, :112] = 200
    sample = video_of(tmp_path / "cut.mp4", picture)
    assert torch.equal(torch.cat(list(faces(sample))), sample.frames(25))
    wide = torch.full((33, 96, 160, 3), 200, dtype=torch.uint8)
    wide[:, :, :32] = wide[:, :, 128:] = 0
    crops = torch.cat(list(faces(video_of(tmp_path / "wide.mp4", wide))))
    assert crops.shape[1:] == (3, 224, 224) and float(crops.float().mean()) > 190


class Bright(FaceCrops):
    """Takes a bright patch for the face."""

    def __init__(self) -> None:
        super().__init__()
        self.cascade = "bright"

    def largest(self, frame_3HW: Tensor) -> tuple[float, float, float] | None:
        at = (frame_3HW[0] > 128).nonzero()
        if len(at) == 0:
            return None
        (y0, x0), (_, x1) = at.min(0).values.tolist(), at.max(0).values.tolist()
        return (x0 + x1 + 1) / 2, y0, (x1 + 1 - x0) / 2


def test_the_crop_follows_a_face(tmp_path: Path) -> None:
    frames = torch.zeros(33, 128, 256, 3, dtype=torch.uint8)
    for t in range(33):
        frames[t, 30:70, 40 + 2 * t : 80 + 2 * t] = 255
    crops = torch.cat(list(Bright()(video_of(tmp_path / "moving.mp4", frames))))
    bright = crops[:, 0].float() > 128
    assert bool(bright[:, 40, 112].all())  # in the middle, from the top on, for 224 / 1.4 pixels
    high, wide = bright[:, :, 112].sum(1).float(), bright[:, 80].sum(1).float()
    assert bool(((high - 160).abs() < 8).all()) and bool(((wide - 160).abs() < 8).all())
    with pytest.raises(ImpossibleError, match="0 of 7 pictures"):
        list(Bright()(video_of(tmp_path / "dark.mp4", torch.zeros_like(frames))))


def test_opencv_sees_no_face_in_noise() -> None:
    pytest.importorskip("cv2")
    faces = FaceCrops()
    if faces.cascade is None:
        pytest.skip("this OpenCV has no cascades")
    frame = torch.randint(0, 255, (3, 120, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert "OpenCV" in faces.note and faces.largest(frame) is None


def test_beyond_the_picture_is_grey() -> None:
    part = square(torch.zeros(1, 3, 10, 10, dtype=torch.uint8), (-2, 4, 6, 12))
    assert part.shape == (1, 3, 8, 8)
    assert part[0, 0, :, :2].eq(110).all() and part[0, 0, 6:].eq(110).all() and part[0, 0, :6, 2:].eq(0).all()


@pytest.mark.skipif(
    not {"STREAMCHAR_SYNCNET", "STREAMCHAR_SYNCNET_EXAMPLE"} <= set(os.environ),
    reason="needs STREAMCHAR_SYNCNET (syncnet_v2.model) and STREAMCHAR_SYNCNET_EXAMPLE (its example video)",
)
def test_the_published_example() -> None:
    (metric,) = metrics(Options(syncnet=Path(os.environ["STREAMCHAR_SYNCNET"])))
    assert isinstance(metric, ClipMetric)
    sample = Sample(name="example", video=Path(os.environ["STREAMCHAR_SYNCNET_EXAMPLE"]), transcript="")
    values = metric.measure(sample).values
    assert values["sync_offset_frames"] == 3
    assert values["sync_d"] == pytest.approx(5.353, abs=0.1)  # the public code goes through JPEG files
    assert values["sync_c"] == pytest.approx(10.021, abs=0.1)
