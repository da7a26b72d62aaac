import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.models import UNet
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
    torch.testing.assert_close(targets["flow"], noise - x0)  # the velocity from x_0 to ε, Liu et al. 2023
    sigma, d = s / a, 0.5
    total = sigma**2 + d**2
    c_skip, c_out = d**2 / total, sigma * d / total.sqrt()  # Karras et al. 2022, Table 1
    torch.testing.assert_close(targets["edm"], (x0 - c_skip * (x0 + sigma * noise)) / c_out)


@pytest.mark.parametrize("schedule", [schedules.edm(), schedules.linear(), schedules.cosine()])
def test_edm_is_the_preconditioning_of_karras_et_al(schedule):
    """D(x; σ) = c_skip x + c_out F(c_in x; c_noise), x = x_0 + σ ε, in float64, for any schedule."""
    schedule = schedule.double()
    x_t, t = torch.randn(40, 1, 2, 2).double(), torch.randint(1, 1001, (40, 1, 1, 1))
    d = 0.37

    def network(x, time, y):
        return torch.sin(3 * x) + torch.cos(time)[:, None, None, None]

    sigma = ((1 - schedule.alpha_bar[t]) / schedule.alpha_bar[t]).sqrt()
    x, total = x_t / schedule.alpha_bar[t].sqrt(), sigma**2 + d**2
    out = network(x / total.sqrt(), sigma.log().flatten() / 4, None)
    expected = d**2 / total * x + sigma * d / total.sqrt() * out
    module = nn.Module()
    module.forward = network
    got = Denoiser(module, schedule, prediction="edm", sigma_data=d)(x_t, t)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_flow_sees_the_straight_path():
    schedule = schedules.flow(50).double()
    x0, noise = torch.randn(2, 50, 1, 2, 2).double()
    t = torch.arange(1, 51).reshape(-1, 1, 1, 1)
    model = Recorder(noise - x0)
    x_t = schedule.q_sample(x0, t, noise)
    torch.testing.assert_close(Denoiser(model, schedule, prediction="flow")(x_t, t), x0)
    tau = t / 50
    torch.testing.assert_close(model.asked[0], (1 - tau) * x0 + tau * noise)
    torch.testing.assert_close(model.asked[1], 1000 * tau.flatten().double())


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
    for prediction in ("epsilon", "edm"):
        with pytest.raises(
            ValueError, match=f"must be x0, v or flow, got '{prediction}': the schedule has zero terminal SNR"
        ):
            Denoiser(nn.Identity(), schedule, prediction=prediction)
    for prediction in ("v", "flow"):
        Denoiser(nn.Identity(), schedule, prediction=prediction)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match=r"prediction must be epsilon, x0, v, flow or edm, got 'score'"):
        Denoiser(nn.Identity(), schedules.linear(), prediction="score")


def test_a_flat_t_is_refused():
    denoiser = Denoiser(Recorder(None), schedules.linear())
    with pytest.raises(ValueError, match=r"t must be shaped \(B, 1, 1, 1\) or \(\), got \(4,\)"):
        denoiser(torch.zeros(4, 1, 4, 4), torch.ones(4, dtype=torch.long))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_model_with_labels_is_asked_without_one(prediction):
    """Also where its time is not an integer."""
    model = UNet(1, base_channels=8, channel_multipliers=[1, 1], norm_groups=4, num_classes=2)
    denoiser = Denoiser(model, schedules.linear(), prediction=prediction)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor(7)
    none = denoiser(x_t, t, torch.full((3,), 2))
    torch.testing.assert_close(denoiser(x_t, t), none)


def test_a_reverse_variance_is_small_or_large_or_of_the_network():
    denoiser, t = Denoiser(Recorder(None), schedules.linear(10)), torch.tensor(4)
    with pytest.raises(ValueError, match="variance must be small or large, got 'middle'"):
        denoiser.log_variance("middle", t, t - 1)
