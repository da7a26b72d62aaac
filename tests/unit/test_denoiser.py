import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from tests.helpers.recorder import Recorder


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_the_target_leads_back_to_x0(prediction, make):
    schedule = make().double()
    x0, noise = torch.randn(2, 64, 1, 2, 2, dtype=torch.float64)
    t = torch.randint(1, 1001, (64, 1, 1, 1))
    model = Recorder(None)
    denoiser = Denoiser(model, schedule, prediction=prediction)
    model.output = denoiser.target(x0, noise, t)
    x_t = schedule.q_sample(x0, t, noise)
    torch.testing.assert_close(denoiser(x_t, t), x0, rtol=1e-6, atol=1e-6)


def test_targets_are_the_papers():
    schedule = schedules.linear().double()
    x0, noise, t = torch.tensor(0.3).double(), torch.tensor(-1.1).double(), torch.tensor(300)
    a, s = schedule.alpha_bar[300].sqrt(), (1 - schedule.alpha_bar[300]).sqrt()
    targets = {p: Denoiser(Recorder(None), schedule, prediction=p).target(x0, noise, t) for p in PREDICTIONS}
    torch.testing.assert_close(targets["epsilon"], noise)
    torch.testing.assert_close(targets["x0"], x0)
    torch.testing.assert_close(targets["v"], a * noise - s * x0)  # Salimans & Ho 2022, appendix D


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_error_scale_is_that_of_the_estimate(prediction):
    schedule = schedules.linear().double()
    model = Recorder(None)
    denoiser = Denoiser(model, schedule, prediction=prediction)
    x_t, t = torch.randn(5, 1, 1, 1).double(), torch.tensor([1, 10, 400, 900, 1000]).reshape(-1, 1, 1, 1)
    out = torch.randn(5, 1, 1, 1).double()
    model.output = out
    base = denoiser(x_t, t)
    model.output = out + 0.5
    moved = (denoiser(x_t, t) - base) ** 2 / 0.25
    torch.testing.assert_close(moved, denoiser.error_scale(t), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("t", [torch.tensor(7), torch.tensor([7, 7, 7]).reshape(3, 1, 1, 1)])
def test_the_network_is_given_t_minus_one_flat(t):
    model = Recorder(torch.zeros(3, 1, 2, 2))
    y = torch.tensor([0, 1, 2])
    Denoiser(model, schedules.linear())(torch.zeros(3, 1, 2, 2), t, y)
    assert model.asked[1].tolist() == [6, 6, 6]
    assert model.asked[2] is y


def test_epsilon_with_zero_terminal_snr_is_refused():
    schedule = schedules.from_betas([0.1, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"must be x0 or v, got 'epsilon': the schedule has zero terminal SNR"):
        Denoiser(nn.Identity(), schedule, prediction="epsilon")
    Denoiser(nn.Identity(), schedule, prediction="v")


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match=r"prediction must be epsilon, x0 or v, got 'score'"):
        Denoiser(nn.Identity(), schedules.linear(), prediction="score")


def test_a_flat_t_is_refused():
    denoiser = Denoiser(Recorder(None), schedules.linear())
    with pytest.raises(ValueError, match=r"t must be shaped \(B, 1, 1, 1\) or \(\), got \(4,\)"):
        denoiser(torch.zeros(4, 1, 4, 4), torch.ones(4, dtype=torch.long))
