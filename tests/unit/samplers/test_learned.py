"""A solver with coefficients of its own in each step."""

import itertools
import math

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.samplers import DDIM, DPMSolver, Learned
from tests.helpers.samplers import gaussian

TIMES = [1000.0, 700.0, 420.0, 150.0, 30.0]


@pytest.fixture
def schedule():
    return schedules.cosine(1000).double()


def noise(*shape):
    """Standard normal noise that is the same in every call of one sampling."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_the_coefficients_of_2m_give_2m(schedule):
    levels = [float(schedule.log_snr_at(torch.tensor(t, dtype=torch.float64))) / 2 for t in TIMES]
    h = [u - t for t, u in itertools.pairwise(levels)]
    rows = [[1.0, -h[i] / h[i - 1] / 2 if 0 < i < 4 else 0.0, 0.0] for i in range(5)]
    torch.manual_seed(0)
    x = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    denoiser = gaussian(schedule, "v")
    ours = Learned(times=TIMES, coefficients=rows, clip=None)(denoiser, x, randn=noise())
    theirs = DPMSolver(times=TIMES, eta=1.0, clip=None)(denoiser, x, randn=noise())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_without_noise_and_past_it_is_ddim(schedule):
    x = torch.randn(16, 1, 2, 2, dtype=torch.float64)
    denoiser = gaussian(schedule, "epsilon")
    found = Learned(times=TIMES, coefficients=[[0.0, 0.0, 0.0]] * 5, clip=None)(denoiser, x)
    torch.testing.assert_close(found, DDIM(times=TIMES, clip=None)(denoiser, x), rtol=1e-10, atol=1e-12)


def test_gradients_with_respect_to_times_and_coefficients(schedule):
    """Against finite differences, through the whole sampling."""
    torch.manual_seed(0)
    x = torch.randn(8, 1, 2, 2, dtype=torch.float64)
    denoiser = gaussian(schedule, "v")
    rows = torch.tensor([[0.9, 0.1, -0.05]] * 5, dtype=torch.float64, requires_grad=True)
    times = torch.tensor(TIMES[1:], dtype=torch.float64, requires_grad=True)

    def loss(times, rows):
        sampler = Learned(times=[TIMES[0], *times], coefficients=[*rows], clip=None)
        return sampler(denoiser, x, randn=noise(), grad=True).square().mean()

    assert torch.autograd.gradcheck(loss, (times, rows), eps=1e-5, atol=1e-6, rtol=1e-4)


def test_what_does_not_fit_is_refused(schedule):
    ones = torch.ones(2)
    for wrong in (
        [[1, 0]],
        [["a", 0, 0]],
        [3.0],
        3,
        "",
        ["abc"],
        [ones],
        [[1.5, 0, 0]],
        [[-1, 0, 0]],
        [[1, math.nan, 0]],
    ):
        with pytest.raises(ValueError, match="rows of three numbers"):
            Learned(times=TIMES, coefficients=wrong)
    with pytest.raises(ValueError, match="coefficients must be learned, or rows of .*, got 'best'"):
        Learned(coefficients="best")
    denoiser, x = gaussian(schedule, "v"), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="a row for each of the 5 steps, got 3 rows"):
        Learned(times=TIMES, coefficients=[[1.0, 0.0, 0.0]] * 3)(denoiser, x)
    with pytest.raises(ValueError, match="a row for each of the 5 steps, got learned"):
        Learned(times=TIMES)(denoiser, x)
    with pytest.raises(ValueError, match="after `python -m ddpm_lightning times CHECKPOINT`"):
        Learned(times="learned")(denoiser, x)
    assert math.isfinite(float(Learned(3, coefficients=[[1.0, 0.0, 0.0]] * 3)(denoiser, x).sum()))
