"""Does anything move? Optical flow between frames an eighth of a second apart.

The flow is pyramidal Lucas-Kanade: at every pixel the translation that explains its neighbourhood's change, coarse to
fine, warping in between. Shape letters: N pairs, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamchar.errors import InputError
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample

DYNAMIC = Figure(key="dynamic", title="Dynamic", unit="1 moves, 0 does not", better="higher")
FLOW = Figure(key="dynamic_flow", title="Optical flow", unit="pixels per frame at 256 px, 24 fps", better="neither")

PAIR_FPS = 8
"""Frames of a pair are 1/8 s apart, as in VBench."""
SHORT_SIDE = 128
"""Pixels of the short side at which flow is found."""
REPORTED = 256
"""Pixels of the short side for which it is reported."""
LARGEST = 0.05
"""Share of the pixels, those with the largest flow, whose mean is a pair's flow (VBench)."""
MOVES = 1.5
"""Pixels per 1/8 s at 256 px from which a pair moves."""
PAIRS_MOVING = 0.25
"""Share of the pairs that must move for the clip to (VBench: 4 of 16)."""
MOST_PAIRS = 160
"""Pairs of a long clip that are looked at, evenly spread: 20 s worth."""

LEVELS = 4
ROUNDS = 3
"""Refinements on each level."""
RADIUS = 3
"""The neighbourhood is a Gaussian of this many pixels' reach either way."""
NOISE = 4e-4
"""Added to the structure tensor's diagonal (brightness in [0, 1]): flat pictures have no flow, not a wild one."""


def _kernel() -> Tensor:
    line = torch.exp(-0.5 * (torch.arange(-RADIUS, RADIUS + 1) / (RADIUS / 2)) ** 2)
    return line / line.sum()


def _smoothed(x_NCHW: Tensor) -> Tensor:
    kernel, channels = _kernel().to(x_NCHW), x_NCHW.shape[1]
    x = F.pad(x_NCHW, (RADIUS, RADIUS, RADIUS, RADIUS), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _warped(x_N1HW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """`x` seen at each pixel plus its flow."""
    _, _, high, wide = x_N1HW.shape
    rows = torch.arange(high, device=x_N1HW.device).view(1, -1, 1)
    columns = torch.arange(wide, device=x_N1HW.device).view(1, 1, -1)
    u = (flow_N2HW[:, 0] + columns + 0.5) * (2 / wide) - 1
    v = (flow_N2HW[:, 1] + rows + 0.5) * (2 / high) - 1
    return F.grid_sample(x_N1HW, torch.stack([u, v], -1), padding_mode="border", align_corners=False)


def _gradient(x_N1HW: Tensor) -> Tensor:
    """Central differences to the right and down -> (N, 2, H, W)."""
    x = F.pad(x_N1HW, (1, 1, 1, 1), mode="replicate")
    right = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    return torch.cat([right, down], 1)


def _refined(first_N1HW: Tensor, second_N1HW: Tensor, flow_N2HW: Tensor) -> Tensor:
    """One Lucas-Kanade step on one level: solve the 2 x 2 normal equations of every pixel's neighbourhood."""
    seen = _warped(second_N1HW, flow_N2HW)
    slope = (_gradient(first_N1HW) + _gradient(seen)) / 2
    change = seen - first_N1HW
    x, y = slope[:, :1], slope[:, 1:]
    xx, xy, yy, xt, yt = _smoothed(torch.cat([x * x, x * y, y * y, x * change, y * change], 1)).split(1, 1)
    xx, yy = xx + NOISE, yy + NOISE
    whole = xx * yy - xy * xy
    step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], 1) / whole
    return flow_N2HW + step.clamp(-1.5, 1.5)  # beyond that the linearisation does not hold


def optical_flow(first_N1HW: Tensor, second_N1HW: Tensor) -> Tensor:
    """Brightness in [0, 1] of two frames -> (N, 2, H, W) pixels to the right and down that the first one's content
    has moved by in the second. Raises InputError below 32 pixels or for unlike shapes."""
    if first_N1HW.shape != second_N1HW.shape or first_N1HW.shape[1] != 1 or min(first_N1HW.shape[-2:]) < 32:
        shapes = f"{tuple(first_N1HW.shape)} and {tuple(second_N1HW.shape)}"
        raise InputError(f"expected two (N, 1, H, W) of one shape with at least 32 pixels a side, got {shapes}")
    pyramid = [(first_N1HW, second_N1HW)]
    while len(pyramid) < LEVELS and min(pyramid[-1][0].shape[-2:]) >= 32:
        size = [s // 2 for s in pyramid[-1][0].shape[-2:]]
        a, b = (F.interpolate(_smoothed(x), size, mode="bilinear", align_corners=False) for x in pyramid[-1])
        pyramid.append((a, b))
    flow = torch.zeros_like(pyramid[-1][0]).expand(-1, 2, -1, -1)
    for a, b in reversed(pyramid):
        if flow.shape[-2:] != a.shape[-2:]:
            grown = [new / old for new, old in zip(a.shape[:-3:-1], flow.shape[:-3:-1], strict=True)]
            flow = F.interpolate(flow, a.shape[-2:], mode="bilinear", align_corners=False)
            flow = flow * torch.tensor(grown, device=flow.device).view(1, 2, 1, 1)
        for _ in range(ROUNDS):
            flow = _refined(a, b, flow)
        flow = _smoothed(flow)
    return flow


def brightness(frames_N3HW: Tensor) -> Tensor:
    """uint8 -> (N, 1, h, w) in [0, 1] with a short side of `SHORT_SIDE`."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=frames_N3HW.device).view(1, 3, 1, 1)
    grey = (frames_N3HW.float() * weights).sum(1, keepdim=True) / 255
    high, wide = grey.shape[-2:]
    scale = SHORT_SIDE / min(high, wide)
    size = [round(high * scale), round(wide * scale)]
    return F.interpolate(grey, size, mode="bilinear", align_corners=False, antialias=True)


def largest(first_N1HW: Tensor, second_N1HW: Tensor) -> Tensor:
    """(N,) of pairs of `brightness`: mean of the largest 5 % of the flow, in pixels at 256 px."""
    speed = optical_flow(first_N1HW, second_N1HW).norm(dim=1).flatten(1) * (REPORTED / SHORT_SIDE)
    return speed.topk(max(1, int(speed.shape[1] * LARGEST)), dim=1).values.mean(1)


class Dynamic:
    """Whether a clip moves, and how much: the dynamic degree of VBench on our own optical flow.

    Source: VBench's rule (a pair's flow is the mean of its largest 5 %; a clip moves if enough pairs exceed a
    threshold), with Lucas-Kanade in place of RAFT, so the figures are not VBench's. `dynamic`: 1 if at least a
    quarter of the pairs, 1/8 s apart, exceed 1.5 pixels at 256 px, else 0; the mean over clips is the share of clips
    that move; higher is better. `dynamic_flow`: the mean over pairs in pixels per frame at 24 fps; neither is better:
    truth has its own value, and jitter raises it. It misses what moves: a flickering backdrop counts, lips alone
    hardly do. Threshold: drawn truth lies above, stills (with a flicker of sensor-like noise) below; `docs/metrics.md`.
    """

    figures = (DYNAMIC, FLOW)
    version = (
        f"pyramidal Lucas-Kanade, {LEVELS} levels at {SHORT_SIDE} px; pairs at {PAIR_FPS} fps, at most {MOST_PAIRS}; "
        f"{MOVES:g} px in {PAIRS_MOVING:.0%} of pairs"
    )

    def measure(self, sample: Sample) -> Reading:
        flows = _clip_flows(sample)
        moving = sum(f >= MOVES for f in flows) / len(flows)
        gap = 24 / PAIR_FPS
        values = {DYNAMIC.key: float(moving >= PAIRS_MOVING), FLOW.key: sum(flows) / len(flows) / gap}
        notes = {"dynamic_pairs": f"{moving:.0%} of {len(flows)} pairs move"}
        return Reading(values=values, series={"dynamic_flow": [f / gap for f in flows]}, notes=notes)


def _clip_flows(sample: Sample) -> list[float]:
    """Of at most `MOST_PAIRS` pairs of neighbours at `PAIR_FPS`, evenly spread."""
    stride = max(1, -(-int(sample.seconds * PAIR_FPS) // MOST_PAIRS))
    flows: list[float] = []
    before: Tensor | None = None
    first = 0  # number of the pair that begins with the block's first frame
    for block in sample.blocks(PAIR_FPS, length=32):
        grey = brightness(block)
        if before is not None:
            grey = torch.cat([before, grey])
        chosen = [i for i in range(len(grey) - 1) if (first + i) % stride == 0]
        if chosen:
            with torch.no_grad():
                flows += largest(grey[chosen], grey[[i + 1 for i in chosen]]).tolist()
        first += len(grey) - 1
        before = grey[-1:]
    if not flows:
        raise ImpossibleError(
            f"motion needs two frames {1 / PAIR_FPS:g} s apart; the clip lasts {sample.seconds:.2f} s"
        )
    return flows


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """`dynamic` and `dynamic_flow`."""
    return [Dynamic()]
