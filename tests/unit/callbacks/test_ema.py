"""The averaged weights' settings."""

import numpy as np
import pytest
import torch

from ddpm_lightning import UserError
from ddpm_lightning.callbacks import EMA, PostHocEMA
from ddpm_lightning.callbacks.power_profiles import Profile, coefficients, exponent_of


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be a number in \[0, 1\), got {decay}"):
        EMA(decay)


def test_an_impossible_width_is_refused():
    with pytest.raises(UserError, match=r"std must be a number in \(0, 0.28\], got 0.3"):
        EMA(std=0.3)
    with pytest.raises(UserError, match=r"stds must differ from each other, got \[0.1, 0.1\]"):
        PostHocEMA("unused", stds=[0.1, 0.1])


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_the_published_ones(std, exponent):
    assert exponent_of(std) == pytest.approx(exponent, abs=5e-3)  # Karras et al. 2024, section 3.1


def midpoints(t, count=200_000):
    return (np.arange(count) + 0.5) / count * t, t / count


def density(profile, tau):
    g = profile.exponent
    return np.where(tau <= profile.step, (g + 1) * (tau / profile.step) ** g / profile.step, 0)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_profile_is_as_wide_as_it_says(std):
    tau, d = midpoints(1.0)
    p = density(Profile(1, std), tau) * d
    mean = (p * tau).sum()
    assert p.sum() == pytest.approx(1, abs=1e-4)
    assert np.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_updates_weigh_each_step_by_the_integral_of_the_profile(std):
    ema, weights, T = EMA(std=std), np.zeros(40), 40
    for n in range(T):  # what the recursion makes of each step's weights
        ema._steps = n
        d = ema.current_decay
        weights = d * weights + (1 - d) * np.eye(T)[n]
    tau, width = midpoints(T, 400_000)
    integrals = (density(Profile(T, std), tau) * width).reshape(T, -1).sum(1)
    assert weights == pytest.approx(integrals, abs=1e-6)


STORED = [Profile(step, std) for step in range(125, 1001, 125) for std in (0.05, 0.1)]


def test_a_stored_profile_is_given_back():
    for i, profile in enumerate(STORED):
        x, distance = coefficients(STORED, profile)
        assert x.numpy() == pytest.approx(np.eye(len(STORED))[i], abs=1e-9)
        assert distance < 1e-6


@pytest.mark.parametrize(("std", "furthest"), [(0.03, 0.12), (0.07, 0.02), (0.15, 0.05)])
def test_another_profile_is_approximated_as_well_as_any_combination_can(std, furthest):
    """Least squares on a grid of τ, without any of the closed forms."""
    target = Profile(1000, std)
    x, distance = coefficients(STORED, target)
    tau, _ = midpoints(1000, 16_000)
    basis = np.stack([density(p, tau) for p in STORED], axis=1)
    wanted = density(target, tau)
    best = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    missed = np.linalg.norm(wanted - basis @ x.numpy()) / np.linalg.norm(wanted)
    assert distance == pytest.approx(missed, rel=1e-2)
    assert missed == pytest.approx(np.linalg.norm(wanted - basis @ best) / np.linalg.norm(wanted), rel=1e-3)
    assert distance < furthest


@pytest.mark.parametrize("std", [0.05, 0.07, 0.15])
def test_a_reconstruction_is_the_average_that_was_not_kept(std):
    """Of 200 weights that walk at random, from 32 snapshots of each profile."""
    path = torch.randn(1600, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)
    n = torch.arange(1, 1601, dtype=torch.float64)

    def average(step, std):
        weights = (n / step).clamp(max=1) ** (exponent_of(std) + 1)
        return weights.diff(prepend=torch.zeros(1)) @ path

    stored = [Profile(step, std) for step in range(50, 1601, 50) for std in (0.05, 0.1)]
    x, _ = coefficients(stored, Profile(1600, std))
    wanted = average(1600, std)
    assert (x @ torch.stack([average(*p) for p in stored]) - wanted).norm() < 1e-3 * wanted.norm()
