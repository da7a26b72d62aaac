"""The error of the noise at each log SNR, in closed form."""

import math

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.callbacks.pictures.log_snr import noise_errors, times_at
from ddpm_lightning.denoiser import Denoiser
from tests.helpers.gaussian import GaussianModel

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")

MEAN, STD = 0.2, 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("schedule", [schedules.linear(1000), schedules.cosine(1000)], ids=["linear", "cosine"])
def test_the_error_of_the_noise_is_the_closed_forms(schedule, prediction):
    """Var[ε | x_t] = ᾱ_t σ²/(ᾱ_t σ² + 1 − ᾱ_t) for the perfect denoiser of N(mean, σ²), whatever it predicts."""
    denoiser = Denoiser(GaussianModel(schedule, prediction, mean=MEAN, std=STD), schedule, prediction=prediction)
    times = times_at(schedule, range(-10, 11, 2))
    x0 = MEAN + STD * torch.randn(1000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    errors = noise_errors(denoiser, x0, None, range(1000), times=times, seed=0).mean(0)
    for (level, t), error in zip(times.items(), errors.tolist(), strict=True):
        a = float(schedule.alpha_bar[t])
        exact = a * STD**2 / (a * STD**2 + 1 - a)
        assert error == pytest.approx(exact, rel=5 * math.sqrt(2 / x0.numel())), level
    assert errors[0] < 1e-4
    assert errors[-1] > 0.99  # from noise to signal: a wrong end or scale would show


def test_the_error_is_the_squared_error_of_x0_by_the_snr():
    schedule = schedules.cosine(1000)
    denoiser = Denoiser(lambda x, t, y: torch.zeros_like(x), schedule, prediction="x0").double()
    x0 = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    times = times_at(schedule, range(-5, 6))
    errors = noise_errors(denoiser, x0, None, [0, 1, 2], times=times, seed=0)
    snr = denoiser.schedule.log_snr[list(times.values())].exp()
    torch.testing.assert_close(errors, snr * x0.square().mean((1, 2, 3))[:, None], rtol=1e-6, atol=0)


def test_the_noise_is_a_function_of_seed_image_and_level():
    schedule = schedules.linear(1000)
    denoiser = Denoiser(lambda x, t, y: torch.zeros_like(x), schedule)
    x0 = torch.zeros(4, 1, 4, 4)
    times = times_at(schedule, range(-10, 11))
    together = noise_errors(denoiser, x0, None, [5, 6, 7, 8], times=times, seed=0)
    alone = noise_errors(denoiser, x0[:1], None, [7], times={-3: times[-3]}, seed=0)
    assert together[2, list(times).index(-3)] == alone[0, 0]
    assert len(set(together.flatten().tolist())) == together.numel()
    assert (together != noise_errors(denoiser, x0, None, [5, 6, 7, 8], times=times, seed=1)).all()


def test_levels_that_a_schedule_does_not_reach_are_left_out():
    assert list(times_at(schedules.linear(1000), range(-10, 11))) == list(range(-10, 10))  # log SNR from 9.2 to −10.1
    zero = schedules.rescale_zero_terminal_snr(schedules.linear(1000))
    assert math.isinf(zero.log_snr[-1])
    found = times_at(zero, range(-10, 11))
    assert 1000 not in found.values()
    for schedule in (zero, schedules.cosine(1000)):
        for level, t in times_at(schedule, range(-10, 11)).items():
            distance = (schedule.log_snr[1:] - level).abs()
            assert abs(float(schedule.log_snr[t]) - level) == pytest.approx(float(distance.min()))
    coarse = times_at(schedules.linear(4, beta_end=0.9), range(-10, 11))
    assert len(set(coarse.values())) == len(coarse) <= 4
