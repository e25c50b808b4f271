"""DMD on distributions whose scores are known: modes and widths are kept, and nothing moves what is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from streamchar.flow.path import interpolate
from streamchar.train.dmd import LEAST, MOST, dmd_gradient, dmd_loss, guided, score_sigma, unshift_sigma

WEIGHTS, MEANS, WIDTHS = torch.tensor([0.35, 0.65]), torch.tensor([-2.0, 2.0]), torch.tensor([0.5, 0.3])
PARTS = 16
RATE, STEPS, SHIFT = 2e-2, 400, 5.0


def mixture(count, draw, weights=WEIGHTS):
    """(count, PARTS) independent values. A sample has several, as a latent has: its divisor is their mean."""
    mode = torch.multinomial(weights, count * PARTS, replacement=True, generator=draw)
    values = MEANS[mode] + WIDTHS[mode] * torch.randn(count * PARTS, generator=draw)
    return values.reshape(count, PARTS)


def posterior(x, sigma, weights=WEIGHTS, means=MEANS, widths=WIDTHS):
    """E[z | x_t] of a mixture of Gaussians, value by value: exact."""
    x, s = x[..., None], sigma[:, None, None]
    variance = (1 - s) ** 2 * widths**2 + s**2
    off = x - (1 - s) * means
    share = (weights.log() - 0.5 * variance.log() - 0.5 * off**2 / variance).softmax(-1)
    return (share * (means + (1 - s) * widths**2 / variance * off)).sum(-1)


def empirical(x, sigma, samples):
    """E[z | x_t] where the data are these values: what a fake score network that has learned them says."""
    off = x[..., None] - (1 - sigma)[:, None, None] * samples.flatten()
    return (-0.5 * (off / sigma[:, None, None]) ** 2).softmax(-1) @ samples.flatten()


def gradient_at(samples, others, draw, shift=1.0):
    sigma = score_sigma(samples.shape[:1], shift, draw)
    x = interpolate(samples, torch.randn(samples.shape, generator=draw), sigma)
    return dmd_gradient(samples, posterior(x, sigma), empirical(x, sigma, others))


class Student(nn.Module):
    """A sample for each share u of the probability: a curve through 65 knots. It can jump from mode to mode, as a
    smooth network of one noise cannot."""

    def __init__(self):
        super().__init__()
        self.knots = nn.Parameter(torch.randn(65).sort().values)

    def forward(self, u):
        at = u * (len(self.knots) - 1)
        low = at.long()
        return torch.lerp(self.knots[low], self.knots[low + 1], at - low)


class Denoiser(nn.Module):
    """z from (x_t, sigma), value by value."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x, sigma):
        level = (sigma / (1 - sigma)).log()[:, None].expand_as(x)
        return self.net(torch.stack([x, level, x * (1 - sigma)[:, None]], -1))[..., 0]


def figures(samples):
    """Weight of the right mode; median and width (from quartiles) of both."""

    def bump(part):
        low, middle, high = part.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        return middle, (high - low) / 1.349

    right = samples > 0
    return {"weight": float(right.float().mean()), "left": bump(samples[~right]), "right": bump(samples[right])}


@pytest.mark.parametrize("fake", ["exact", "trained"])
def test_a_generator_keeps_both_modes_and_their_widths(fake):
    """From one bump in the middle to two unequal modes. The fake score is exact, or a network that follows the
    student at 5 updates to its one, with beta1 = 0, as in training."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    student, follower = Student(), Denoiser()
    options = {"betas": (0.0, 0.99), "weight_decay": 0.0}
    moves = torch.optim.AdamW(student.parameters(), RATE, **options)
    follows = torch.optim.AdamW(follower.parameters(), RATE, **options)
    count = 32 if fake == "exact" else 64

    def made(count):
        return student(torch.rand(count, PARTS, generator=draw))

    def noised(samples):
        sigma = score_sigma(samples.shape[:1], SHIFT, draw)
        return interpolate(samples, torch.randn(samples.shape, generator=draw), sigma), sigma

    def follow():
        with torch.no_grad():
            samples = made(count)
        x, sigma = noised(samples)
        follows.zero_grad()
        ((follower(x, sigma) - samples) / sigma[:, None].clamp(min=0.05)).square().mean().backward()
        follows.step()

    for _ in range(300 if fake == "trained" else 0):
        follow()
    for step in range(STEPS):
        for optimizer, factor in ((moves, 1.0), (follows, 0.4)):
            optimizer.param_groups[0]["lr"] = factor * RATE * max(0.03, 1 - step / STEPS)
        for _ in range(5 if fake == "trained" else 0):
            follow()
        samples = made(count)
        with torch.no_grad():
            x, sigma = noised(samples)
            says = empirical(x, sigma, made(count)) if fake == "exact" else follower(x, sigma)
            gradient = dmd_gradient(samples, posterior(x, sigma), says)
        moves.zero_grad()
        dmd_loss(samples, gradient).backward()
        moves.step()
    with torch.no_grad():
        got = figures(made(1000).flatten())
    weight, middle, width = (0.03, 0.1, 0.1) if fake == "exact" else (0.05, 0.3, 0.15)
    assert got["weight"] == pytest.approx(float(WEIGHTS[1]), abs=weight), got
    for i, side in enumerate(("left", "right")):
        assert got[side][0] == pytest.approx(float(MEANS[i]), abs=middle), got
        assert got[side][1] == pytest.approx(float(WIDTHS[i]), abs=width), got


def test_nothing_moves_a_student_that_is_the_data():
    """Exactly zero with both scores exact; within the sampling error when the fake one knows samples alone."""
    draw = torch.Generator().manual_seed(0)
    samples, others = mixture(100, draw), mixture(100, draw)
    sigma = score_sigma((100,), 1.0, draw)
    x = interpolate(samples, torch.randn(samples.shape, generator=draw), sigma)
    assert not dmd_gradient(samples, posterior(x, sigma), posterior(x, sigma)).any()
    still = gradient_at(samples, others, draw)
    shifted = gradient_at(samples + 0.5, others + 0.5, draw)
    assert abs(float(still.mean())) < 0.1 and float(shifted.mean()) > 0.3, "down the gradient: back to the left"
    assert float(still.square().mean()) < 0.2 * float(shifted.square().mean())


def test_mass_moves_to_the_mode_that_lacks_it():
    """Between the modes the pull is towards the one that the student has too little of."""
    draw = torch.Generator().manual_seed(0)
    between, sigma = torch.zeros(100, PARTS), score_sigma((100,), SHIFT, draw)
    x = interpolate(between, torch.randn(between.shape, generator=draw), sigma)
    real = posterior(x, sigma)
    for right, way in ((0.3, 1), (0.65, 0), (0.9, -1)):
        fake = posterior(x, sigma, torch.tensor([1 - right, right]))
        pull = float(-dmd_gradient(between, real, fake).mean())
        assert abs(pull) < 1e-6 if way == 0 else way * pull > 0.1, (right, pull)


def test_the_loss_has_the_gradient_it_is_made_of():
    torch.manual_seed(0)
    sample = torch.randn(3, 4, 5, requires_grad=True)
    gradient, weight = torch.randn(3, 4, 5, requires_grad=True), torch.rand(5)
    loss = dmd_loss(sample, gradient, weight)
    loss.backward()
    torch.testing.assert_close(sample.grad, (weight * gradient / sample.numel()).detach())
    assert gradient.grad is None, "both scores are constants to the student"
    torch.testing.assert_close(loss, 0.5 * (weight * gradient.square()).mean())


def test_the_gradient_does_not_depend_on_the_scale_of_the_mistake():
    torch.manual_seed(0)
    sample, real, fake = torch.randn(3, 2, 4, 5)
    one = dmd_gradient(sample, real, fake)
    distance = (sample - real).abs().mean((1, 2))
    torch.testing.assert_close(one, (fake - real) / distance[:, None, None])
    away, apart = sample - real, fake - real
    torch.testing.assert_close(dmd_gradient(sample, sample - 7 * away, sample - 7 * away + 7 * apart), one)
    assert dmd_gradient(sample, sample, sample).isfinite().all()


def test_parts_of_a_sequence_share_the_divisor():
    """Chunks scored as parts of a sequence: as though they were one tensor."""
    torch.manual_seed(0)
    sample, real, fake = torch.randn(3, 6, 4, 5)
    group = torch.tensor([0, 1, 0, 1, 0, 1])
    got = dmd_gradient(sample, real, fake, group)
    for g in (0, 1):
        whole = [t[group == g].flatten(0, 1)[None] for t in (sample, real, fake)]
        torch.testing.assert_close(got[group == g].flatten(0, 1)[None], dmd_gradient(*whole))
    torch.testing.assert_close(dmd_gradient(sample, real, fake, torch.arange(6)), dmd_gradient(sample, real, fake))


def test_guidance_is_linear():
    one, other = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided(one, other, 1.0), one)
    torch.testing.assert_close(guided(one, other, 0.0), other)
    torch.testing.assert_close(guided(one, other, 2.0), 2 * one - other)


def test_noise_levels_of_the_scores():
    draw = torch.Generator().manual_seed(0)
    for shift in (1.0, 5.0):
        sigma = score_sigma((20_000,), shift, draw)
        assert float(sigma.min()) >= LEAST - 1e-6 and float(sigma.max()) <= MOST + 1e-6
        assert float(sigma.min()) < LEAST + 0.01 and float(sigma.max()) > MOST - 0.01
        even = unshift_sigma(sigma, shift)
        assert math.isclose(float((even < even.max() / 2).float().mean()), 0.5, abs_tol=0.02), "uniform behind the warp"
    assert float(sigma.median()) > 0.75, "a shift of 5 looks where the words are decided"
