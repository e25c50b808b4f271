"""Distribution matching distillation (DMD; paper section 4.2): the mathematics. Tensors in, tensors out.

A few-step student is moved so that its samples' distribution becomes the teacher's: down the gradient of the
reverse Kullback-Leibler divergence between the two, both noised. That gradient is a difference of two scores - the
teacher's (real) and that of a network that follows the student's samples (fake) - and needs no pair of noise and
data, hence no regression.

Scores are given here as estimates of the data z from x_t: score = ((1 - sigma) z - x) / sigma^2, so a difference of
scores is one of estimates, up to a factor that the normalisation takes out. Axis 0 is the sample in every tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamchar.flow.path import shift_sigma

LEAST, MOST = 0.02, 0.98
"""Noise levels of the scores: nearer to 0 they have nothing to say of the other's mistakes, nearer to 1 no sample
is left in x_t."""
SMALLEST = 1e-6
"""Against a division by nothing where the sample is the real estimate itself."""


def score_sigma(shape: tuple[int, ...], shift: float, draw: torch.Generator | None = None) -> Tensor:
    """Noise levels at which the scores are compared: uniform, warped by `shift`, within [LEAST, MOST]."""
    low, high = (float(unshift_sigma(torch.tensor(edge), shift)) for edge in (LEAST, MOST))
    return shift_sigma(low + (high - low) * torch.rand(shape, generator=draw), shift)


def unshift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The level that `shift_sigma` warps to `sigma`."""
    return sigma / (shift - (shift - 1) * sigma)


def guided(conditional: Tensor, blank: Tensor, weight: float | Tensor) -> Tensor:
    """Classifier-free guidance: away from what holds without the condition. `weight`: one, or broadcast."""
    return blank + weight * (conditional - blank)


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """(B,) with as many axes as `like`."""
    return value.reshape(value.shape + (1,) * (like.ndim - 1))


def dmd_gradient(sample: Tensor, real: Tensor, fake: Tensor, group_B: Tensor | None = None) -> Tensor:
    """The gradient of the divergence by the student's sample: (fake - real) / mean |sample - real|.

    `real`, `fake`: both networks' estimates of the data from the same noised sample. The divisor, one a sample,
    takes the noise level out: the estimate is far off where there is much noise. `group_B` (int64, counted from 0)
    names the sequence that a sample is a part of: parts of one sequence share the divisor.
    """
    distance_B = (sample - real).abs().flatten(1).mean(1)
    if group_B is not None:
        groups = int(group_B.max()) + 1
        total = distance_B.new_zeros(groups).index_add(0, group_B, distance_B)
        distance_B = (total / group_B.bincount(minlength=groups).clamp(min=1))[group_B]
    return (fake - real) / per_sample(distance_B.clamp(min=SMALLEST), sample)


def dmd_loss(sample: Tensor, gradient: Tensor, weight: Tensor | None = None) -> Tensor:
    """A scalar whose derivative by `sample` is `weight * gradient` over the number of values.

    Its value, half the mean square of the weighted gradient, says how far the two scores are apart; it does not
    fall to zero as a loss does while the noise of both networks stays.
    """
    target = (sample - gradient).detach()
    squared = (sample - target).square()
    return 0.5 * (squared if weight is None else squared * weight).mean()
