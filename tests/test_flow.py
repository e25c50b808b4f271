"""The flow: path identities, schedules, and samplers on a field whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.errors import ConfigError
from streamchar.flow.path import clean_from_velocity, interpolate, sample_sigma, shift_sigma, velocity
from streamchar.flow.sampler import EulerSampler, RenoiseSampler
from streamchar.flow.schedule import Schedule

MEAN, DEVIATION = 1.5, 0.4
COUNT = 20_000
levels = st.floats(0, 1, width=32)
shifts = st.floats(0.05, 20)
seeds = st.integers(0, 2**32)
property_test = settings(deadline=None, derandomize=True, max_examples=50)


def pair(seed):
    return torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@property_test
@given(seed=seeds, sigma=levels)
def test_the_velocity_at_any_level_leads_back_to_the_data_and_on_to_the_noise(seed, sigma):
    clean, noise = pair(seed)
    level = torch.full((3,), sigma)
    x, v = interpolate(clean, noise, level), velocity(clean, noise)
    torch.testing.assert_close(clean_from_velocity(x, v, level), clean)
    torch.testing.assert_close(x + (1 - level.double()[:, None, None]) * v, noise)


@property_test
@given(seed=seeds)
def test_the_path_runs_from_data_to_noise_at_the_speed_of_its_velocity(seed):
    clean, noise = pair(seed)
    assert torch.equal(interpolate(clean, noise, torch.zeros(3)), clean)
    assert torch.equal(interpolate(clean, noise, torch.ones(3)), noise)
    half, quarter = (interpolate(clean, noise, torch.full((3,), s)) for s in (0.5, 0.25))
    torch.testing.assert_close((half - quarter) / 0.25, velocity(clean, noise))


def test_sigma_stands_for_the_leading_axes():
    clean, noise = pair(0)
    sigma = torch.rand(3, 5)
    x = interpolate(clean, noise, sigma)
    for b in range(3):
        for n in range(5):
            one = interpolate(clean[b, n][None], noise[b, n][None], sigma[b, n][None])[0]
            torch.testing.assert_close(x[b, n], one)


@property_test
@given(steps=st.integers(1, 60), shift=shifts)
def test_a_schedule_falls_from_exactly_one_to_exactly_zero(steps, shift):
    sigmas = Schedule(steps=steps, shift=shift).sigmas()
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@property_test
@given(sigma=levels, shift=shifts)
def test_shifts_undo_each_other(sigma, shift):
    level = torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(shift_sigma(shift_sigma(level, shift), 1 / shift), level)
    assert shift == 1 or (shift_sigma(level, shift) >= level) == (shift > 1) or sigma in (0, 1)


def test_training_levels_are_logit_normal_and_move_up_with_the_shift():
    draw = torch.Generator().manual_seed(0)
    plain, shifted = (sample_sigma((COUNT,), shift, draw) for shift in (1.0, 5.0))
    for sigma in (plain, shifted):
        assert sigma.min() > 0 and sigma.max() < 1
    assert plain.median().item() == pytest.approx(0.5, abs=0.02)
    assert shifted.median().item() == pytest.approx(5 / 6, abs=0.02)
    assert plain.logit().std().item() == pytest.approx(1.0, abs=0.03)
    again = sample_sigma((4,), 3.0, torch.Generator().manual_seed(1))
    assert torch.equal(again, sample_sigma((4,), 3.0, torch.Generator().manual_seed(1)))


def gaussian(x, sigma, last):
    """The exact field of N(MEAN, DEVIATION^2) data: E[eps - z | x]."""
    variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
    slope = (sigma - (1 - sigma) * DEVIATION**2) / variance
    return tuple(-MEAN + slope * (a - (1 - sigma) * MEAN) for a in x)


def run(sampler, field=gaussian, seed=0):
    draw = torch.Generator().manual_seed(seed)
    noise = (torch.randn(COUNT, 1, generator=draw), torch.randn(COUNT, 2, generator=draw))
    return noise, sampler(field, noise, draw)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_reaches_the_data_distribution(shift):
    noise, made = run(EulerSampler(schedule=Schedule(steps=800, shift=shift)))
    for x, eps in zip(made, noise, strict=True):
        assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert x.std().item() == pytest.approx(DEVIATION, rel=0.03)
        torch.testing.assert_close(x, MEAN + DEVIATION * eps, rtol=0, atol=0.06)  # the ODE's own map


def test_euler_converges_at_first_order():
    def error(steps):
        noise, made = run(EulerSampler(schedule=Schedule(steps=steps, shift=1.0)))
        return (made[0] - MEAN - DEVIATION * noise[0]).abs().mean().item()

    ratio = error(40) / error(80)
    assert math.log2(ratio) == pytest.approx(1, abs=0.2)


def test_one_exact_step_gives_the_mean():
    """At sigma = 1 nothing is known of z: the best estimate is its mean, by either sampler."""
    for kind in (EulerSampler, RenoiseSampler):
        _, made = run(kind(schedule=Schedule(steps=1)))
        torch.testing.assert_close(made[0], torch.full_like(made[0], MEAN), rtol=0, atol=1e-5)


def ideal_student(x, sigma, last):
    """A velocity whose data estimate is distributed as the data are: what distillation is after."""
    deviation = math.sqrt((1 - sigma) ** 2 * DEVIATION**2 + sigma**2)
    return tuple((a - MEAN - DEVIATION * (a - (1 - sigma) * MEAN) / deviation) / sigma for a in x)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_renoising_an_ideal_student_keeps_the_distribution(steps):
    _, made = run(RenoiseSampler(schedule=Schedule(steps=steps, shift=5.0)), ideal_student)
    for x in made:
        assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert x.std().item() == pytest.approx(DEVIATION, rel=0.03)


@pytest.mark.parametrize("steps", [2, 4, 40])
def test_renoising_means_narrows_the_data_as_computed(steps):
    """The base model predicts means: the variance follows V' = k^2 ((1 - s)^2 V + s^2), from 0."""
    schedule = Schedule(steps=steps, shift=5.0)
    _, made = run(RenoiseSampler(schedule=schedule))
    variance = 0.0
    for s in schedule.sigmas()[:-1].tolist():
        k = (1 - s) * DEVIATION**2 / ((1 - s) ** 2 * DEVIATION**2 + s**2)
        variance = k**2 * ((1 - s) ** 2 * variance + s**2)
    assert made[0].mean().item() == pytest.approx(MEAN, abs=0.02)
    assert made[0].std().item() == pytest.approx(math.sqrt(variance), rel=0.03)
    assert math.sqrt(variance) < DEVIATION


@pytest.mark.parametrize("kind", [EulerSampler, RenoiseSampler])
def test_a_sampler_follows_its_schedule_and_names_the_last_step(kind):
    schedule, seen = Schedule(steps=4, shift=5.0), []

    def field(x, sigma, last):
        seen.append((sigma, last))
        return gaussian(x, sigma, last)

    run(kind(schedule=schedule), field)
    assert [sigma for sigma, _ in seen] == pytest.approx(schedule.sigmas()[:-1].tolist(), abs=0)
    assert [last for _, last in seen] == [False, False, False, True]


@pytest.mark.parametrize("kind", [EulerSampler, RenoiseSampler])
def test_a_sampler_is_a_function_of_noise_and_seed(kind):
    sampler = kind(schedule=Schedule(steps=3))
    (_, one), (_, same), (_, other) = run(sampler, seed=1), run(sampler, seed=1), run(sampler, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_a_constant_field_is_integrated_exactly():
    """eps - z is constant along a path, so any number of steps arrives at z."""
    clean, noise = pair(3)
    for kind in (EulerSampler, RenoiseSampler):
        for steps in (1, 2, 7):
            def field(x, sigma, last):
                known = torch.full(x[0].shape[:1], sigma)
                return ((x[0] - clean) / known[:, None, None].clamp(min=1e-9),)

            (made,) = kind(schedule=Schedule(steps=steps))(field, (noise,), torch.Generator().manual_seed(0))
            torch.testing.assert_close(made, clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"at least 1, got {steps}"):
        Schedule(steps=steps)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_must_be_positive(shift):
    with pytest.raises(ConfigError, match="shift must be above 0"):
        Schedule(steps=4, shift=shift)


def test_fresh_noise_has_the_samplers_temperature() -> None:
    """A student that always predicts 0 leaves x = sigma * fresh noise."""
    schedule, seen = Schedule(steps=2, shift=1.0), []

    def nothing(x, sigma, last):  # v = x / sigma makes the predicted data 0
        seen.append(x[0])
        return tuple(part / sigma for part in x)

    noise = (torch.zeros(1, 4, 50, 50),)
    for temperature in (1.0, 0.5):
        RenoiseSampler(schedule=schedule, temperature=temperature)(nothing, noise, torch.Generator().manual_seed(0))
        assert float(seen[-1].std()) == pytest.approx(temperature * float(schedule.sigmas()[1]), rel=0.05)
    seen.clear()

    def both(x, sigma, last):
        seen.append(x)
        return tuple(part / sigma for part in x)

    sampler = RenoiseSampler(schedule=schedule, temperature=(0.25, 0.5))
    sampler(both, (noise[0], noise[0]), torch.Generator().manual_seed(0))
    deviations = [float(part.std() / schedule.sigmas()[1]) for part in seen[-1]]
    assert deviations == pytest.approx([0.25, 0.5], rel=0.05)
