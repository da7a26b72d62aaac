"""A log SNR that is learned: its tables, and what its gradients are."""

import copy
import math

import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.losses import VDM, VLB, Loss, Stratified, Uniform
from ddpm_lightning.module import DDPM
from ddpm_lightning.samplers import DDIM
from ddpm_lightning.schedules import LearnedSchedule


def bent(T=50):
    """A schedule away from its beginning, in float64."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(T, first=6.0, last=-4.0, hidden=8).double()
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return schedule


class Scaled(nn.Module):
    """A network with a parameter, which looks at x and t."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, t, y=None):
        return self.weight * torch.tanh(x) + t.reshape(-1, 1, 1, 1) / 100


def test_it_begins_nearly_linear_between_its_ends():
    schedule = LearnedSchedule(1001, first=13.3, last=-5.0)
    exact = torch.linspace(13.3, -5.0, 1001)
    assert (schedule.log_snr[1:] - exact).abs().max() < 0.5
    assert schedule.log_snr[[0, 1, -1]].tolist() == pytest.approx([math.inf, 13.3, -5.0], abs=1e-4)


def test_it_falls_and_its_slope_is_the_derivative():
    schedule = bent()
    t = torch.linspace(1, 50, 400, dtype=torch.float64)
    assert (schedule.log_snr_at(t).diff() < 0).all()
    step = 1e-5
    by_difference = (schedule.log_snr_at(t - step).exp() - schedule.log_snr_at(t + step).exp()) / (2 * step)
    torch.testing.assert_close(schedule.snr_slope(t)[1:-1], by_difference[1:-1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(schedule.time_at(schedule.log_snr_at(t)), t, rtol=0, atol=1e-8)


def test_tables_follow_the_parameters_and_copies_have_their_own():
    schedule = bent()
    before, other = schedule.log_snr.clone(), copy.deepcopy(schedule)
    with torch.no_grad():
        schedule.ends.add_(1.0)
    torch.testing.assert_close(schedule.log_snr[1:], before[1:] + 1)
    torch.testing.assert_close(other.log_snr, before)
    torch.testing.assert_close(schedule.alpha_bar[1:], (before[1:] + 1).sigmoid())
    assert schedule.betas.min() > 0
    integers = torch.tensor([0, 1, 20, 50])
    torch.testing.assert_close(schedule.scales(integers)[0], schedule.sqrt_alpha_bar[integers])
    assert schedule.to(torch.bfloat16).ends.dtype == torch.float32


def test_all_but_its_loss_take_it_as_a_constant():
    schedule = bent()
    t = torch.tensor([3.0, 20.5], dtype=torch.float64)
    assert not schedule.scales(t)[0].requires_grad
    assert not schedule.snr_slope(t).requires_grad


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradients_are_of_the_mean_for_network_and_ends_and_of_the_square_for_the_rest(prediction):
    """By finite differences of the loss's value; of the squared first term for what the bound does not depend on."""
    torch.manual_seed(1)
    denoiser = Denoiser(Scaled(), bent(), prediction=prediction)
    x0, noise = torch.randn(2, 3, 1, 2, 2).double().clamp(-0.9, 0.9)
    t = torch.tensor([2.5, 17.0, 44.4], dtype=torch.float64).reshape(3, 1, 1, 1)

    def value(squared):
        with torch.no_grad():
            x_t = denoiser.schedule.q_sample(x0, t, noise)
            if squared:
                return float((VLB()(denoiser, x0, x_t, t, noise) ** 2).mean())
            return float(VDM()(denoiser, x0, x_t, t, noise).mean())

    VDM()(denoiser, x0, None, t, noise).mean().backward()
    for name, parameter in denoiser.named_parameters():
        inner = name.startswith("schedule.") and name != "schedule.ends"
        for index in range(min(parameter.numel(), 2)):
            found = float(parameter.grad.flatten()[index])
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[index] += step
                values.append(value(squared=inner))
                with torch.no_grad():
                    parameter.view(-1)[index] -= step
            assert found == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6), name


def test_the_value_is_that_of_the_bound():
    """L_T by the normal distributions, and the decoder by its bins, added to the continuous term."""
    torch.manual_seed(2)
    schedule = bent()
    denoiser = Denoiser(Scaled(), schedule, prediction="v")
    x0 = torch.tensor([[-1.0, 0.2], [1.0, -101 / 255]], dtype=torch.float64).reshape(1, 1, 2, 2)
    noise, t = torch.randn_like(x0), torch.full((1, 1, 1, 1), 9.5, dtype=torch.float64)
    found = float(VDM()(denoiser, x0, None, t, noise).detach())
    normal = torch.distributions.Normal
    a, s = (level[[1, 50]] for level in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar))
    prior = torch.distributions.kl_divergence(normal(a[1] * x0, s[1]), normal(0.0, 1.0)).mean()
    given = normal(x0 + s[0] / a[0] * noise, s[0] / a[0])
    upper = torch.where(x0 > 0.999, 1.0, given.cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, given.cdf(x0 - 1 / 255))
    diffusion = float(VLB()(denoiser, x0, schedule.q_sample(x0, t, noise), t, noise).detach())
    assert found == pytest.approx(diffusion + float(prior - (upper - lower).log().mean()) / math.log(2), rel=1e-6)


def test_training_evens_out_the_terms_of_the_bound():
    """The perfect denoiser of a Gaussian, where ½ mmse dSNR is known: the variance over t falls, the bound stays."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(100, first=8.0, last=-8.0, hidden=32)

    class Oracle(nn.Module):
        def forward(self, x, t, y=None):
            a, s = schedule.scales(t + 1)
            a, s = (level.reshape(-1, 1, 1, 1) for level in (a, s))
            return a * 0.25 / (0.25 * a**2 + s**2) * x

    denoiser = Denoiser(Oracle(), schedule, prediction="x0")
    times, loss = Stratified(continuous=True), VLB()
    optimizer = torch.optim.Adam([p for n, p in schedule.named_parameters() if n != "ends"], lr=0.02)

    def terms():
        t, _ = times(4096, schedule)
        x0 = 0.5 * torch.randn(4096, 1, 4, 4)
        noise = torch.randn_like(x0)
        return loss(denoiser, x0, schedule.q_sample(x0, t, noise), t, noise)

    before = terms()
    for _ in range(60):
        t, _ = times(256, schedule)
        x0 = 0.5 * torch.randn(256, 1, 4, 4)
        optimizer.zero_grad()
        VDM()(denoiser, x0, None, t, torch.randn_like(x0)).mean().backward()
        optimizer.step()
    after = terms()
    assert float(after.var()) < 0.8 * float(before.var())
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=0.05)


def test_samplers_and_denoisers_take_it_like_any_schedule():
    denoiser = Denoiser(Scaled(), bent(), prediction="v")
    assert DDIM(10)(denoiser, torch.randn(2, 1, 2, 2, dtype=torch.float64)).isfinite().all()
    module = DDPM(denoiser, VDM(), torch.optim.AdamW)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [len(group["params"]) for group in groups] == [1, 5]
    assert groups[1]["weight_decay"] == 0


def test_it_needs_its_loss_and_the_loss_needs_it():
    learned = Denoiser(Scaled(), bent())
    with pytest.raises(ValueError, match="loss=vdm"):
        Loss().check(learned)
    with pytest.raises(ValueError, match="schedule=learned"):
        VDM().check(Denoiser(Scaled(), schedules.cosine(50)))
    with pytest.raises(ValueError, match=r"times.continuous"):
        VDM(times=Uniform()).check(learned)
