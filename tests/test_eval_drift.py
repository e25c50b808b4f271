"""Quality drift: the sentence made exact, and what the default quality model sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock
from streamchar.errors import ConfigError
from streamchar.eval import drift
from streamchar.eval.drift import QualityDrift, segment_drifts
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options, Unavailable
from streamchar.eval.quality import quality_model
from streamchar.eval.sample import Sample
from streamchar.stream.mux import Muxer
from streamchar.types import Chunk

SIZE = 96
CHUNKS = 9  # 12.4 s


def picture(frames: int, figure: tuple[float, float, float] = (0.9, 0.6, 0.5)) -> Tensor:
    """(T, 3, H, W) in [0, 1]: a striped wall, a head that sways and a mouth that opens and shuts."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    stripes = torch.stack([torch.sin(17 * x), y, torch.sin(9 * y + 4 * x)])
    wall = 0.55 + 0.2 * torch.tanh(10 * stripes)
    t = torch.arange(frames)[:, None, None] / clock.VIDEO_FPS
    dx, dy = x - 0.06 * torch.sin(3 * t), y - 0.04 * torch.sin(5 * t)
    head = ((dx**2 + dy**2) < 0.25)[:, None]
    mouth = ((dx**2 / 0.03 + (dy - 0.2) ** 2 / (0.002 + 0.02 * torch.sin(9 * t) ** 2)) < 1)[:, None]
    out = torch.where(head, torch.tensor(figure)[:, None, None], wall)
    return torch.where(mouth, torch.tensor([0.3, 0.05, 0.08])[:, None, None], out)


def written(path: Path, video: Tensor) -> Sample:
    frames = (video.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    with Muxer(path) as muxer:
        for k, part in enumerate(frames.split(clock.FRAMES_PER_CHUNK)):
            muxer.write(Chunk(index=k, frames=part, samples=torch.zeros(clock.SAMPLES_PER_CHUNK)))
    return Sample(name=path.stem, video=path, transcript="x")


def lossless(path: Path, frames_THW3: np.ndarray) -> Sample:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=clock.VIDEO_FPS)
        stream.height, stream.width, stream.pix_fmt = *frames_THW3.shape[1:3], "bgr0"
        for image in frames_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return Sample(name=path.stem, video=path, transcript="x")


def value(sample: Sample, quality: str = "auto") -> float:
    found = QualityDrift(quality_model(quality)).measure(sample).values["quality_drift"]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return picture(CHUNKS * clock.FRAMES_PER_CHUNK)


@pytest.fixture(scope="module")
def untouched(plain: Tensor, tmp_path_factory: pytest.TempPathFactory) -> float:
    return value(written(tmp_path_factory.mktemp("drift") / "plain.mp4", plain))


def cast(video: Tensor, grown: Tensor) -> Tensor:
    return video * (1 + 0.2 * grown * torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1))


def blur(video: Tensor, grown: Tensor) -> Tensor:
    return torch.lerp(video, F.avg_pool2d(video, 3, 1, 1, count_include_pad=False), grown)


def swap(video: Tensor, grown: Tensor) -> Tensor:
    return torch.where(grown > 0.5, picture(len(video), figure=(0.35, 0.5, 0.8)), video)


@pytest.mark.parametrize(
    ("change", "part"),
    [(cast, "colour"), (blur, "sharpness"), (swap, "identity")],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_planted_drift_is_seen(
    change: Callable[[Tensor, Tensor], Tensor], part: str, plain: Tensor, untouched: float, tmp_path: Path
) -> None:
    grown = torch.linspace(0, 1, len(plain)).view(-1, 1, 1, 1)
    sample = written(tmp_path / "changed.mp4", change(plain, grown))
    assert value(sample) > max(10 * untouched, 0.1)
    assert value(sample, part) > max(10 * untouched, 0.1)  # the part that is meant to see it does


def test_motion_alone_is_hardly_drift(untouched: float) -> None:
    assert untouched < 0.02


def test_a_still_video_has_none(plain: Tensor, tmp_path: Path) -> None:
    image = (plain[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    sample = lossless(tmp_path / "still.mkv", np.broadcast_to(image, (300, SIZE, SIZE, 3)))
    reading = QualityDrift(quality_model("auto")).measure(sample)
    assert reading.values["quality_drift"] == 0
    assert reading.series["quality"] == pytest.approx([1.0] * 13)  # 12.5 s


def test_segments_end_every_30_s_and_the_last_counts_with_its_last_5_s() -> None:
    values = [1.0] * 5 + [0.0] * 20 + [0.5] * 5 + [0.0] * 25 + [2.0] * 5 + [0.25] * 3
    assert segment_drifts(values, rate=1) == [0.5, 1.0, abs((2 * 2.0 + 3 * 0.25) / 5 - 1.0)]
    assert segment_drifts(values[:60], rate=1) == [0.5, 1.0]  # exactly two segments, no third of 0 s
    assert segment_drifts([1.0] * 5 + [0.0] * 5, rate=1) == [1.0]
    with pytest.raises(ImpossibleError, match=r"at least 10 s.*got 9 s"):
        segment_drifts([0.0] * 9, rate=1)


def test_short_videos_and_small_pictures_have_no_value(plain: Tensor, tmp_path: Path) -> None:
    metric = QualityDrift(quality_model("auto"))
    with pytest.raises(ImpossibleError, match="at least 10 s"):
        metric.measure(written(tmp_path / "short.mp4", plain[: 4 * clock.FRAMES_PER_CHUNK]))
    with pytest.raises(ImpossibleError, match="64 x 64"):
        metric.measure(written(tmp_path / "small.mp4", plain[..., :32, :32]))


def test_models_by_name(plain: Tensor, untouched: float, tmp_path: Path) -> None:
    (metric,) = drift.metrics(Options())
    assert isinstance(metric, ClipMetric) and metric.figures[0].key == "quality_drift" and "auto" in metric.version
    with pytest.raises(ConfigError, match="expected a quality model"):
        quality_model("beauty")
    with pytest.raises(ConfigError, match="TorchScript"):
        quality_model(f"torchscript:{tmp_path / 'none.pt'}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyiqa", None)
    (metric,) = drift.metrics(Options(quality="pyiqa:musiq-spaq"))
    assert isinstance(metric, Unavailable) and "pip install pyiqa" in metric.reason


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_users_own_model(plain: Tensor, tmp_path: Path) -> None:
    class Brightness(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    file = tmp_path / "brightness.pt"
    torch.jit.save(torch.jit.trace(Brightness(), torch.rand(1, 3, 64, 64)), str(file))
    darker = torch.linspace(1, 0.5, len(plain)).view(-1, 1, 1, 1)
    found = value(written(tmp_path / "dark.mp4", plain * darker), f"torchscript:{file}")
    middle = 1 - 2.5 / (CHUNKS * 1.375)  # the last 5 s are darker by about this share of the way
    assert found == pytest.approx(float(plain.mean()) * 0.5 * (2 * middle - 1), rel=0.05)
