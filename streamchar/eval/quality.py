"""How good does each frame of a video look? Models of picture quality, by name, for the drift over a long video.

`auto` needs no weights: it judges every frame against the video's own first seconds, in [0, 1], by three deviations:

- colour: of what stood still in the first seconds, how far its colour has moved (OKLab);
- sharpness: how fine detail has changed against coarse detail, wherever it is;
- identity: how much of what was to be seen in the first seconds is gone from where it was, or near there.

Each is divided by its entry of `SCALES` and the three add up as squares, quality = exp(-(sum of squares) / 2): a
talking head's small deviations vanish, a real change does not. It says how alike, not how good: a video that becomes
sharper than it began loses as much as one that becomes as much softer; a change of colour counts as one of identity
too. `colour`, `sharpness` and `identity` are its parts by themselves.

`pyiqa:MODEL` and `torchscript:FILE` judge each frame by itself. Shape letters: T frames, H height, W width, N tiles,
P pixels of a tile.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.errors import ConfigError
from streamchar.eval.metric import ImpossibleError

Judge = Callable[[Tensor], Tensor]
"""(T, 3, H, W) uint8 frames of one video -> (T,) float64 quality."""

SMALL = 64
"""Pixels of the short side at which colours are compared."""
TILE = 8
"""Side of a tile there: the median of a tile's pixels does not see an arm that crosses it."""
STILL = 0.02
"""Mean deviation (OKLab) in the first seconds below which a pixel stood still: about one just noticeable step."""
LEAST_STILL = 0.25
"""Share of a tile's pixels that must have stood still for the tile to count."""
ENTERED = 0.1
"""Share of the tiles, those whose colour moved most, that are left out: the figure came there. What changes only
there is a matter of identity."""
STEADIEST = 0.25
"""Where the camera moves: at least this share of the pixels, the steadiest, count as standing still."""
FINE = 512
"""Pixels of the short side, at most, at which sharpness is judged."""
DETAIL_TILE = 16
EDGES = 0.25
"""Tiles with less coarse detail than this share of the mean hold nothing that could be sharp."""
COARSE = 32
"""Pixels of the short side at which what was to be seen is looked for."""
REACH = 3
"""Pixels there, a tenth of the picture, within which it may have moved."""
ALIKE = 0.04
"""Colour distance (OKLab) at which two pixels are as much the same as not: exp(-1/2)."""

SCALES = {"colour": 0.05, "sharpness": 0.5, "identity": 0.15}
"""The deviation that costs 1 - exp(-1/2) = 39 % of the quality: a cast of 15 % between red and blue; half-way to the
mean of 3 x 3 pixels at 256; the hair and clothes of another. Six true world clips of 29 to 84 s stay within a fifth of
each in the mean of any 5 s."""

NAMES = ("auto", *SCALES, "pyiqa:MODEL", "torchscript:FILE")


class QualityModel(Protocol):
    """Judges the frames of a video, given its first seconds."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def version(self) -> str: ...

    def judge(self, first_T3HW: Tensor) -> Judge:
        """`first_T3HW`: (T, 3, H, W) uint8, the first 5 s, for models that compare with them."""
        ...


def oklab(frames_T3HW: Tensor) -> Tensor:
    """sRGB in [0, 1] -> OKLab (Ottosson 2020): lightness in [0, 1], green-red, blue-yellow."""
    x = frames_T3HW
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055).clamp(min=0) ** 2.4)
    to_cones = linear.new_tensor(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]
    )  # fmt: skip
    to_lab = linear.new_tensor(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]
    )  # fmt: skip
    cones = torch.einsum("ij,tjhw->tihw", to_cones, linear).clamp(min=0) ** (1 / 3)
    return torch.einsum("ij,tjhw->tihw", to_lab, cones)


def _resized(frames_T3HW: Tensor, short: int) -> Tensor:
    """In [0, 1], the short side `short` pixels if it is longer."""
    x = frames_T3HW.float() / 255
    high, wide = x.shape[-2:]
    scale = short / min(high, wide)
    if scale >= 1:
        return x
    return F.interpolate(x, size=(round(high * scale), round(wide * scale)), mode="area")


def detail(frames_T3HW: Tensor) -> Tensor:
    """(T,) log of the energy of the finest detail over that of detail four times as large, the median of the tiles
    that have any: blur lowers it; motion, contrast and an arm that comes into the picture leave it."""
    x = _resized(frames_T3HW, FINE).mean(1, keepdim=True)
    line = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (line[:, None] * line[None, :])[None, None]
    energies = []
    for octave in range(3):
        soft = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel)
        energies.append(F.avg_pool2d((x - soft).square(), DETAIL_TILE >> octave).flatten(1))
        x = soft[..., ::2, ::2]
    count = min(energies[0].shape[1], energies[2].shape[1])  # an odd side rounds up when halved
    fine, coarse = energies[0][:, :count], energies[2][:, :count]
    ratio = torch.log((fine + 1e-7) / (coarse + 1e-7))
    return ratio.masked_fill(coarse < EDGES * coarse.mean(1, keepdim=True), torch.nan).nanmedian(1).values


class _Likeness:
    """The first seconds of a video, and how far a frame is from them."""

    def __init__(self, first_T3HW: Tensor) -> None:
        small, coarse = oklab(_resized(first_T3HW, SMALL)), oklab(_resized(first_T3HW, COARSE))
        self.small_3HW = small.median(0).values
        wander_HW = (small - self.small_3HW).norm(dim=1).mean(0)
        self.moves_HW = wander_HW > max(STILL, float(wander_HW.flatten().quantile(STEADIEST)))
        self.detail = detail(first_T3HW).mean()
        self.coarse_3HW = coarse.median(0).values
        self.found_HW = self._found(coarse).mean(0)

    def colour(self, frames_T3HW: Tensor) -> Tensor:
        """(T,) mean over the tiles of how far the median colour of what stood still has moved, in OKLab."""
        gone = (oklab(_resized(frames_T3HW, SMALL)) - self.small_3HW).masked_fill(self.moves_HW, torch.nan)
        tiles_TCNP = gone.unfold(2, TILE, TILE).unfold(3, TILE, TILE).flatten(2, 3).flatten(3)
        shift_TN = tiles_TCNP.nanmedian(3).values.norm(dim=1)
        known = (~tiles_TCNP[0, 0].isnan()).float().mean(1) >= LEAST_STILL
        known = known if bool(known.any()) else ~shift_TN[0].isnan()
        sorted_TN = shift_TN[:, known].sort(1).values
        return sorted_TN[:, : max(1, round((1 - ENTERED) * sorted_TN.shape[1]))].mean(1)

    def sharpness(self, frames_T3HW: Tensor) -> Tensor:
        """(T,) by how much finer the detail is: a natural logarithm of energies, negative for softer."""
        return detail(frames_T3HW) - self.detail

    def identity(self, frames_T3HW: Tensor) -> Tensor:
        """(T,) share of what the first seconds kept showing that is no more there, less their own share."""
        here = self._found(oklab(_resized(frames_T3HW, COARSE)))
        return ((self.found_HW - here) * self.found_HW).sum((1, 2)) / self.found_HW.sum()

    def _found(self, lab_T3HW: Tensor) -> Tensor:
        """(T, H, W) in [0, 1]: is the colour of that place still there, or within `REACH`?"""
        high, wide = lab_T3HW.shape[-2:]
        padded = F.pad(lab_T3HW, (REACH,) * 4, mode="replicate")
        nearest = lab_T3HW.new_full((lab_T3HW.shape[0], high, wide), torch.inf)
        for y in range(2 * REACH + 1):
            for x in range(2 * REACH + 1):
                away = padded[:, :, y : y + high, x : x + wide] - self.coarse_3HW
                nearest = torch.minimum(nearest, away.square().sum(1))
        return torch.exp(-nearest / (2 * ALIKE**2))


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Likeness to the video's own first seconds (see the module).

    Source: our own. Unit: [0, 1], 1 is as it began; higher is better. It misses what was bad from the first second
    on, changes of what moves within its tenth of the picture, and a face's finer features; a cut to another scene
    counts as another identity.
    """

    name: str = "auto"
    parts: tuple[str, ...] = ("colour", "sharpness", "identity")
    unit: str = "likeness to the first 5 s, 0 to 1"

    @property
    def version(self) -> str:
        scales = ", ".join(f"{part} {SCALES[part]:g}" for part in self.parts)
        return f"likeness to the first 5 s, version 1 ({scales})"

    def judge(self, first_T3HW: Tensor) -> Judge:
        if min(first_T3HW.shape[-2:]) < SMALL:
            raise ImpossibleError(
                f"quality `{self.name}` takes pictures of at least {SMALL} x {SMALL} pixels, "
                f"these have {first_T3HW.shape[-1]} x {first_T3HW.shape[-2]}"
            )
        reference = _Likeness(first_T3HW)

        def values(frames_T3HW: Tensor) -> Tensor:
            apart = [getattr(reference, part)(frames_T3HW).double() / SCALES[part] for part in self.parts]
            return torch.exp(-0.5 * torch.stack(apart).square().sum(0))

        return values


class _Framewise:
    """A model that knows one frame and no reference: (T, 3, H, W) in [0, 1] -> T values."""

    def __init__(self, name: str, unit: str, version: str, model: Callable[[Tensor], Tensor]) -> None:
        self.name, self.unit, self.version = name, unit, version
        self._model = model

    def judge(self, first_T3HW: Tensor) -> Judge:
        def values(frames_T3HW: Tensor) -> Tensor:
            with torch.inference_mode():
                each = [self._model(frame.float()[None] / 255).double().flatten() for frame in frames_T3HW]
            if any(v.numel() != 1 for v in each):
                raise ConfigError(
                    f"quality model {self.name}: expected one value for a (1, 3, H, W) picture, "
                    f"got {each[0].numel()}; give a model that scores single pictures"
                )
            return torch.cat(each)

        return values


class AbsentError(ConfigError):
    """The chosen model's package or weights are not here."""


def _pyiqa(model: str) -> QualityModel:
    """Source: the package pyiqa (`musiq-spaq` is VBench's imaging quality). Unit and direction: the model's own."""
    try:
        import pyiqa  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AbsentError(f"quality `pyiqa:{model}` needs the package pyiqa: pip install pyiqa") from None
    if model not in pyiqa.list_models():
        close = ", ".join(difflib.get_close_matches(model, pyiqa.list_models(), n=3)) or "pyiqa.list_models() has them"
        raise ConfigError(f"expected a model of pyiqa, got {model!r}; did you mean: {close}")
    try:
        metric = pyiqa.create_metric(model, device=torch.device("cpu"))
    except Exception as error:  # its weights come over the network: whatever its client raises
        raise AbsentError(f"pyiqa found no weights of {model} ({type(error).__name__}: {error})"[:300]) from None
    better = "lower" if getattr(metric, "lower_better", False) else "higher"
    package = getattr(pyiqa, "__version__", "of unknown version")
    return _Framewise(f"pyiqa:{model}", f"{model}, {better} is better", f"pyiqa {package}, {model}", metric)


def _torchscript(file: str) -> QualityModel:
    """Source: the user's TorchScript file, (1, 3, H, W) in [0, 1] -> one value. Unit and direction: its own."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"expected a TorchScript file after `torchscript:`, found none at {path}")
    try:
        model = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ConfigError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return _Framewise(f"torchscript:{file}", f"units of {path.name}", f"torchscript {path.name} sha256 {digest}", model)


def quality_model(name: str) -> QualityModel:
    """The model of that name.

    Raises `AbsentError` if its package or weights are missing, `ConfigError` if there is no such model.
    """
    kind, _, rest = name.partition(":")
    if kind == "auto" and not rest:
        return Likeness()
    if kind in SCALES and not rest:
        return Likeness(name=kind, parts=(kind,))
    if kind == "pyiqa" and rest:
        return _pyiqa(rest)
    if kind == "torchscript" and rest:
        return _torchscript(rest)
    raise ConfigError(f"expected a quality model ({', '.join(NAMES)}), got {name!r}")
