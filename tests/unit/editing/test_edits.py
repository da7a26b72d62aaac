from collections import deque

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.editing import from_image, invert, slerp
from ddpm_lightning.errors import UserError
from ddpm_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun
from tests.helpers.correlated import SHAPE, SIZE, correlated, example, law_of
from tests.helpers.samplers import MEAN, STD, gaussian

TRUE = torch.linspace(-0.8, 0.9, SIZE, dtype=torch.float64).reshape(1, *SHAPE)


def last(steps):
    return deque(steps, maxlen=1)[0]


def correlated_denoiser(schedule):
    mean, covariance = example()
    return correlated(schedule.double(), mean=mean, covariance=covariance)


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("sampler", [DPMSolver(100, clip=None), Heun(100, clip=None)])
def test_inversion_then_sampling_returns_the_image(schedule, sampler):
    denoiser = correlated_denoiser(schedule(1000))
    steps = [*invert(sampler, denoiser, TRUE)]
    assert [step.t for step in steps] == sampler.times(1000)[-2::-1]
    assert (sampler(denoiser, steps[-1].x) - TRUE).abs().max() < 1e-3


def test_inverted_gaussian_data_are_standard_normal():
    """The probability flow maps N(μ, σ²) to N(0, 1), monotonically: x_T = (x_0 − μ)/σ, but for ᾱ_T."""
    denoiser = gaussian(schedules.cosine(1000).double(), "epsilon")
    x0 = MEAN + STD * torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    noise = last(invert(DPMSolver(200, spacing="karras", continuous=True, clip=None), denoiser, x0)).x
    assert torch.allclose(noise.flatten(), torch.linspace(-3, 3, 7, dtype=torch.float64), atol=1e-3)


def test_a_sampler_that_adds_noise_cannot_invert():
    denoiser = correlated_denoiser(schedules.linear(1000))
    with pytest.raises(UserError, match="the sampler must be one without noise to invert images: choose sampler=ddim"):
        next(invert(Ancestral(10), denoiser, TRUE))


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_image_to_image_has_the_law_of_gaussian_data(strength):
    """The mean and covariance of x_0 given x_t, averaged over q(x_t | image), for the reverse SDE in small steps."""
    schedule = schedules.cosine(400).double()
    denoiser = correlated_denoiser(schedule)
    mean, covariance = example()
    a, s = schedule.scales(torch.tensor(round(400 * strength)))
    gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(SIZE))
    expected_mean = mean + gain @ (a * TRUE.flatten() - a * mean)
    expected_covariance = covariance - a * gain @ covariance + s**2 * gain @ gain.T

    def run(x, randn):
        return last(from_image(Ancestral(clip=None), denoiser, TRUE.expand_as(x), strength=strength, randn=randn)).x

    found_mean, found_covariance = law_of(run, draws=round(400 * strength) + 1)
    assert torch.allclose(found_mean, expected_mean, atol=1e-9)
    assert torch.allclose(found_covariance, expected_covariance, atol=6e-3)


def test_no_strength_and_a_wrong_one():
    denoiser = correlated_denoiser(schedules.linear(1000))
    assert [*from_image(DDIM(10), denoiser, TRUE, strength=0)] == []
    assert next(from_image(DDIM(10), denoiser, TRUE, strength=0.31)).t == 200
    with pytest.raises(UserError, match=r"strength must be a number in \[0, 1\], got 1.5"):
        next(from_image(DDIM(10), denoiser, TRUE, strength=1.5))


def test_slerp():
    start, end = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1e-9]])
    half = 0.5**0.5
    assert torch.allclose(slerp(start, end, 0.5), torch.tensor([[half, half], [1.0, 0.0]]))
    assert torch.allclose(slerp(start, end, torch.tensor([0.0, 1.0])), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    third = slerp(start[:1], end[:1], 1 / 3)
    assert torch.allclose(third, torch.tensor([[0.75**0.5, 0.5]]))


@pytest.mark.parametrize("sampler", [DDIM(5, clip=None), Heun(5, clip=None), Ancestral(5, clip=None)])
def test_gradients_through_sampling(sampler):
    """d x_0/d x_T against differences, and none unless asked for."""
    denoiser = correlated_denoiser(schedules.linear(1000))
    x = torch.randn(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, *SHAPE, dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * sampler(denoiser, x, randn=torch.ones_like, grad=True)).sum(), x)
    shift = torch.randn_like(x)
    ends = [(weights * sampler(denoiser, x + h * shift, randn=torch.ones_like)).sum() for h in (-1, 1)]
    assert torch.allclose((slope * shift).sum(), (ends[1] - ends[0]) / 2)
    assert not ends[0].requires_grad
