import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning import schedules

FAMILIES = {"linear": schedules.linear, "cosine": schedules.cosine}

some_betas = st.lists(st.floats(1e-5, 0.5), min_size=1, max_size=30)


def index(t, ndim=4):
    return torch.as_tensor(t).reshape(-1, *[1] * (ndim - 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_marginals_equal_step_by_step_noising(name):
    # x_t = √(1−β_t) x_{t−1} + √β_t z: the moments of T small steps are those of the one big step, Eq. 25.3
    schedule = FAMILIES[name]().double()
    gain, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist(), start=1):
        gain, variance = gain * math.sqrt(1 - beta), variance * (1 - beta) + beta
        assert schedule.sqrt_alpha_bar[t].item() == pytest.approx(gain, rel=1e-10)
        assert schedule.sqrt_one_minus_alpha_bar[t].item() == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_linear_is_that_of_ho_et_al():
    betas = schedules.linear().betas
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-9)
    assert betas[499].item() == pytest.approx(1e-4 + 499 / 999 * (0.02 - 1e-4), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "golden"),  # ᾱ at T/4, T/2 and T, from 30-digit arithmetic on the defining formulas
    [
        (schedules.linear(), (0.5241410, 0.0779327, 4.03583e-5)),
        (schedules.cosine(), (0.8469926, 0.4938436, 2.42862e-9)),
        (schedules.linear(100), (0.9360, 0.7760, 0.36356)),
    ],
)
def test_golden_values(schedule, golden):
    T = schedule.num_steps
    for t, expected in zip((T // 4, T // 2, T), golden, strict=True):
        assert schedule.alpha_bar[t].item() == pytest.approx(expected, rel=1e-4 if expected > 1e-6 else 2e-2)


def test_against_diffusers():
    from diffusers import DDPMScheduler

    for name, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
        torch.testing.assert_close(FAMILIES[name]().betas.float(), reference.betas, rtol=2e-4, atol=1e-7)


@given(some_betas)
def test_tables_of_any_betas(betas):
    schedule = schedules.from_betas(betas).double()
    assert schedule.num_steps == len(betas)
    assert schedule.alpha_bar[0] == 1
    assert schedule.log_snr[0] == math.inf
    assert (schedule.alpha_bar[1:] < schedule.alpha_bar[:-1]).all()
    torch.testing.assert_close(schedule.betas, torch.tensor(betas, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    total = schedule.sqrt_alpha_bar**2 + schedule.sqrt_one_minus_alpha_bar**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)


@given(some_betas, st.floats(-2, 2), st.floats(-2, 2))
def test_posterior_is_bayes_rule(betas, x0, x_t):
    # q(x_{t−1}|x_t, x_0) ∝ q(x_t|x_{t−1}) q(x_{t−1}|x_0), a product of two Gaussians in x_{t−1}
    schedule = schedules.from_betas(betas).double()
    for t in range(1, len(betas) + 1):
        beta, before = schedule.betas[t - 1].item(), schedule.alpha_bar[t - 1].item()
        mean, variance = schedule.posterior(torch.tensor(x0).double(), torch.tensor(x_t).double(), torch.tensor(t))
        if t == 1:
            assert (mean.item(), variance.item()) == (pytest.approx(x0), 0)
            continue
        precision = (1 - beta) / beta + 1 / (1 - before)
        expected = (math.sqrt(1 - beta) * x_t / beta + math.sqrt(before) * x0 / (1 - before)) / precision
        assert variance.item() == pytest.approx(1 / precision, rel=1e-7)
        assert mean.item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(some_betas)
def test_posterior_marginalises_back(betas):
    # ∫ q(x_{t−1}|x_t, x_0) q(x_t|x_0) dx_t = q(x_{t−1}|x_0)
    schedule = schedules.from_betas(betas).double()
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    for t in range(1, len(betas) + 1):
        of_x0, variance = schedule.posterior(one, zero, torch.tensor(t))
        of_x_t, _ = schedule.posterior(zero, one, torch.tensor(t))
        torch.testing.assert_close(of_x0 + of_x_t * schedule.sqrt_alpha_bar[t], schedule.sqrt_alpha_bar[t - 1])
        total = of_x_t**2 * schedule.sqrt_one_minus_alpha_bar[t] ** 2 + variance
        torch.testing.assert_close(total, schedule.sqrt_one_minus_alpha_bar[t - 1] ** 2)


def test_beta_tilde_of_ho_et_al():
    schedule = schedules.linear().double()
    a = schedule.alpha_bar
    x = torch.zeros(1, 1, 1, 1).double()
    for t in (1, 2, 500, 1000):
        _, variance = schedule.posterior(x, x, index(t))
        expected = (1 - a[t - 1]) / (1 - a[t]) * schedule.betas[t - 1]  # Ho et al. 2020, Eq. 7
        assert variance.item() == pytest.approx(expected.item(), rel=1e-9)


def test_q_sample_mixes_signal_and_noise():
    schedule = schedules.linear()
    x0, noise = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    x_t = schedule.q_sample(x0, index([1, 500, 1000]), noise)
    for i, t in enumerate((1, 500, 1000)):
        a = math.prod((1 - schedule.betas[:t]).tolist())
        torch.testing.assert_close(x_t[i], math.sqrt(a) * x0[i] + math.sqrt(1 - a) * noise[i])
    torch.testing.assert_close(schedule.q_sample(x0, torch.tensor(0), noise), x0)


def test_tables_stay_float32_in_low_precision_and_can_be_float64():
    schedule = schedules.linear()
    narrow = torch.nn.Sequential(torch.nn.Linear(2, 2), schedules.linear()).to(torch.bfloat16)
    assert narrow[0].weight.dtype == torch.bfloat16
    assert narrow[1].alpha_bar.dtype == torch.float32
    torch.testing.assert_close(narrow[1].log_snr, schedule.log_snr, rtol=0, atol=0)
    exact = schedules.linear().double()
    assert exact.alpha_bar.dtype == torch.float64
    assert (exact.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(1 - exact.alpha_bar[1:] / exact.alpha_bar[:-1], exact.betas, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.from_betas([0.1, -0.1]),
        lambda: schedules.from_betas([0.1, 1.1]),
        lambda: schedules.from_betas([0.1, math.nan]),
        lambda: schedules.from_alpha_bar([0.9, 0.9]),
        lambda: schedules.linear(beta_end=2.0),
    ],
)
def test_betas_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match=r"beta_2|beta_\d+ = .* lies outside \(0, 1\]"):
        make()


@pytest.mark.parametrize("T", [0, -3, 1.5])
def test_bad_numbers_of_steps_are_refused(T):
    with pytest.raises(ValueError, match=f"num_steps={T}"):
        schedules.linear(T)
