"""Float t: the schedules' formulas, draws of t, losses, the bound and the ODE, by closed forms on Gaussian data."""

import math

import numpy as np
import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.likelihood import (
    bits_per_dim,
    estimate_bits_per_dim,
    ode_bits_per_dim,
)
from ddpm_lightning.losses import (
    P2,
    VLB,
    Bound,
    Hybrid,
    LogNormal,
    Loss,
    Simple,
    Stratified,
    Uniform,
)
from tests.helpers.recorder import Recorder
from tests.helpers.samplers import MEAN, STD, gaussian

SCHEDULES = {
    "linear": schedules.linear,
    "constant": schedules.constant,
    "cosine": schedules.cosine,
    "shifted_cosine": lambda T=1000: schedules.shifted_cosine(T, image_size=32),
    "sigmoid": schedules.sigmoid,
    "laplace": schedules.laplace,
    "flow": lambda T=1000: schedules.flow(T, shift=3.0),
    "edm": schedules.edm,
    "zero_terminal": lambda T=1000: schedules.rescale_zero_terminal_snr(schedules.linear(T)),
}


def log_snr(name, u):
    """log SNR at u = t/T, as the papers have it, in float64 numpy."""
    if name == "constant":
        abar = 0.99 ** (1000 * u)
    elif name == "cosine":
        abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    elif name == "sigmoid":
        v = [1 / (1 + math.exp(-x)) for x in (-3, -3 + 6 * u, 3)]
        abar = (v[2] - v[1]) / (v[2] - v[0])
    elif name == "flow":
        tau = 3 * u / (1 + 2 * u)
        abar = (1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2)
    elif name == "edm":
        sigma = (0.002 ** (1 / 7) + (1000 * u - 1) / 999 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
        abar = 1 / (1 + sigma**2)
    elif name == "shifted_cosine":
        low, high = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
        return -2 * math.log(math.tan(low + u * (high - low))) + 2 * math.log(64 / 32)
    else:
        return -0.5 * np.sign(0.5 - u) * math.log(1 - 2 * abs(u - 0.5))
    return math.log(abar / (1 - abar))


@pytest.mark.parametrize("name", ["constant", "cosine", "shifted_cosine", "sigmoid", "laplace", "flow", "edm"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_lambda_is_the_papers_at_any_time(name, dtype, within):
    schedule = SCHEDULES[name]()
    schedule = schedule.double() if dtype == torch.float64 else schedule
    times = [1.25, 17.9, 333.333, 500.5, 871.1, 998.75]
    exact = [log_snr(name, float(t) / 1000) for t in torch.tensor(times, dtype=dtype)]
    assert schedule.log_snr_at(torch.tensor(times, dtype=dtype)).tolist() == pytest.approx(
        exact, rel=within, abs=within
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_floats_agree_with_the_table_at_integers_and_fall_between_them(name):
    schedule = SCHEDULES[name]().double()
    t = torch.arange(1001)
    torch.testing.assert_close(schedule.log_snr_at(t.double()), schedule.log_snr, rtol=1e-9, atol=1e-9)
    for ours, table in zip(schedule.scales(t.double()), schedule.scales(t), strict=True):
        torch.testing.assert_close(ours, table, rtol=1e-9, atol=1e-12)
    fine = schedule.log_snr_at(torch.linspace(0.01, 999, 5000, dtype=torch.float64))
    assert (fine.diff() <= 0).all()


def test_between_two_betas_lambda_is_linear_and_at_the_ends_one_variance_is():
    schedule = schedules.from_betas([0.19, 0.36, 1.0]).double()
    t = torch.tensor([0.25, 1.5, 2.75], dtype=torch.float64)
    snr = [0.81 / 0.19, 0.81 * 0.64 / (1 - 0.81 * 0.64)]
    expected = [snr[0] / 0.25, math.sqrt(snr[0] * snr[1]), 0.25 * snr[1]]
    assert schedule.log_snr_at(t).exp().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_at_is_the_inverse(name):
    for schedule, within in [(SCHEDULES[name](), 3e-3), (SCHEDULES[name]().double(), 1e-8)]:
        t = torch.linspace(1, 998.5, 777, dtype=schedule.alpha_bar.dtype)[:, None]
        assert (schedule.time_at(schedule.log_snr_at(t)) - t).abs().max() < within
        beyond = torch.tensor([1e3, -1e3], dtype=schedule.alpha_bar.dtype)
        assert schedule.time_at(beyond).tolist() == pytest.approx([1, 1000], abs=1e-3)


def test_slope_of_snr_on_the_flow():
    t = torch.tensor([100.0, 500.0, 999.0], dtype=torch.float64)
    exact = 2 * (1000 - t) * 1000 / t**3  # SNR = ((1000 − t)/t)²
    torch.testing.assert_close(schedules.flow().double().snr_slope(t), exact)


# ---- draws of t


@pytest.mark.parametrize("times", [Uniform(continuous=True), Stratified(continuous=True)])
def test_continuous_times_are_uniform_from_1_to_T(times):
    torch.manual_seed(0)
    schedule = schedules.cosine(11)
    t = torch.cat([times(100, schedule)[0].flatten() for _ in range(200)])
    assert t.is_floating_point()
    assert t.min() >= 1
    assert t.max() <= 11
    shares = torch.histc(t, bins=10, min=1, max=11) / len(t)
    assert (shares - 0.1).abs().max() < 0.01


def test_stratified_times_are_evenly_spaced():
    t = Stratified(continuous=True)(8, schedules.cosine(9))[0].flatten().sort().values
    torch.testing.assert_close(t.diff(), torch.ones(7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "edm", "linear"])
def test_continuous_draws_have_exactly_their_sigma(name):
    torch.manual_seed(0)
    schedule = SCHEDULES[name](1000).double()
    t, weight = LogNormal(-1.0, 0.8, continuous=True)(4000, schedule)
    torch.manual_seed(0)
    drawn = -1.0 + 0.8 * torch.randn(4000, dtype=torch.float64)
    torch.testing.assert_close(-schedule.log_snr_at(t).flatten() / 2, drawn, rtol=0, atol=1e-7)
    assert (weight == 1).all()


def test_log_normal_in_sigma_is_logit_normal_on_the_flow():
    torch.manual_seed(0)
    tau = LogNormal(0.0, 1.0, continuous=True)(50_000, schedules.flow())[0].flatten() / 1000
    z = torch.logit(tau.double())
    assert (float(z.mean()), float(z.std())) == pytest.approx((0, 1), abs=0.02)


# ---- losses


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bound_and_vlb_are_half_the_slope_times_the_error_of_x0(prediction):
    torch.manual_seed(0)
    schedule = schedules.sigmoid(50).double()  # all predictions: SNR(T) > 0
    denoiser = Denoiser(Recorder(torch.randn(3, 1, 2, 2).double()), schedule, prediction=prediction)
    x0, noise, t = torch.randn(3, 1, 2, 2).double(), torch.randn(3, 1, 2, 2).double(), torch.tensor([1.5, 20.1, 49.0])
    t = t.double().reshape(3, 1, 1, 1)
    x_t = schedule.q_sample(x0, t, noise)
    step = 1e-4
    slope = (schedule.log_snr_at(t - step).exp() - schedule.log_snr_at(t + step).exp()) / (2 * step)
    exact = (slope / 2 * (x0 - denoiser(x_t, t)) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(Loss(Bound())(denoiser, x0, x_t, t, noise), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(VLB()(denoiser, x0, x_t, t, noise), 49 * exact / math.log(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("space", PREDICTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_loss_in_another_space_is_the_loss_of_that_prediction(prediction, space):
    """The same x̂_0 as a network of the other type has the same loss there."""
    torch.manual_seed(0)
    schedule = schedules.linear(50).double()
    x0, noise = torch.randn(2, 3, 1, 2, 2).double()
    t = torch.tensor([1, 20, 50]).reshape(3, 1, 1, 1)
    a, s = (level[t] for level in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar))
    x_t, guess = a * x0 + s * noise, torch.randn_like(x0)  # x̂_0, and from it ε̂
    outputs = {}
    for name in (prediction, space):
        p, q = PREDICTIONS[name](a, s, 0.5)
        outputs[name] = p * guess + q * (x_t - a * guess) / s
    ours, other = (Denoiser(Recorder(outputs[name]), schedule, prediction=name) for name in (prediction, space))
    expected = Loss()(other, x0, x_t, t, noise)
    torch.testing.assert_close(Loss(Simple(), space=space)(ours, x0, x_t, t, noise), expected)
    weighted = Loss(P2(), space=space)(ours, x0, x_t, t, noise)
    torch.testing.assert_close(
        weighted, Loss(P2())(ours, x0, x_t, t, noise)
    )  # a weight on the error of x̂_0 is the same in all


@pytest.mark.parametrize("loss", [VLB, Hybrid])
def test_learned_variances_have_no_bound_in_continuous_time(loss):
    denoiser = Denoiser(torch.nn.Identity(), schedules.cosine(10), learned_variance=True)
    with pytest.raises(ValueError, match=r"times.continuous=false"):
        loss(times=Uniform(continuous=True)).check(denoiser)


# ---- likelihood


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "edm"])
def test_the_continuous_bound_is_the_integral_of_the_smallest_error(name):
    """For Gaussian data ½ ∫ mmse dSNR = ½ log (1 + σ² SNR) between the ends."""
    torch.manual_seed(0)
    schedule = SCHEDULES[name](1000).double()
    x0 = MEAN + STD * torch.randn(20_000, 1, 1, 1, dtype=torch.float64)
    uniform = (torch.randperm(20_000) + 0.5) / 20_000
    found = estimate_bits_per_dim(gaussian(schedule, "v"), x0, continuous=True, uniform=uniform, clip=None)
    ends = 1 + STD**2 * schedule.log_snr[[1, -1]].exp()
    exact = float((ends[0] / ends[1]).log()) / 2 / math.log(2)
    error = float(found.diffusion.std()) / 20_000**0.5
    assert float(found.diffusion.mean()) == pytest.approx(exact, abs=4 * error)
    assert error < 0.02 * exact


def test_many_steps_come_to_the_continuous_bound():
    torch.manual_seed(0)
    schedule = schedules.cosine(1000).double()
    x0 = torch.full((400, 1, 2, 2), 1 / 255, dtype=torch.float64)
    uniform = (torch.arange(400) + 0.5) / 400
    continuous = estimate_bits_per_dim(gaussian(schedule, "v"), x0, continuous=True, uniform=uniform, clip=None)
    gaps = []
    for T in (500, 1000):
        levels = torch.lerp(*schedule.log_snr[[1, -1]], torch.linspace(0, 1, T, dtype=torch.float64))
        fine = schedules.from_alpha_bar(levels.sigmoid()).double()
        discrete = bits_per_dim(gaussian(fine, "v"), x0[:32], clip=None)
        assert float(discrete.prior[0]) == pytest.approx(float(continuous.prior[0]))
        gaps.append(float(discrete.diffusion.mean() - continuous.diffusion.mean()))
    assert 0.4 < gaps[1] / gaps[0] < 0.6  # Kingma et al. 2021, section 4.2: more steps, a tighter bound


@pytest.mark.parametrize("probes", [None, 3])
@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "edm", "zero_terminal"])
def test_ode_likelihood_of_a_gaussian(name, probes):
    """The flow of Gaussian data is affine: x_T = m_T + (s_T/s_1)(x_1 − m_1), and x_T ~ N(0, 1) by the model."""
    torch.manual_seed(0)
    schedule = SCHEDULES[name](1000).double()
    x0 = MEAN + STD * torch.randn(4, 1, 2, 2, dtype=torch.float64)
    found = ode_bits_per_dim(gaussian(schedule, "v"), x0, probes=probes)
    (a1, aT), (s1, sT) = (level[[1, -1]].tolist() for level in schedule.scales(torch.arange(1001)))
    d1, dT = math.hypot(a1 * STD, s1), math.hypot(aT * STD, sT)
    x_T = aT * MEAN + dT / d1 * (a1 * x0 - a1 * MEAN)
    nats = x_T**2 / 2 + math.log(2 * math.pi) / 2 - math.log(a1 * dT / d1)
    torch.testing.assert_close(found, nats.flatten(1).mean(1) / math.log(2), rtol=0, atol=1e-4)


def test_ode_likelihood_is_a_density():
    """Over all x its probability is 1, also for a prior that the schedule does not reach."""
    schedule = schedules.linear(20, beta_start=1e-3, beta_end=0.1).double()
    denoiser = gaussian(schedule, "epsilon")
    x = torch.linspace(-4, 5, 2001, dtype=torch.float64)
    density = torch.exp2(-ode_bits_per_dim(denoiser, x.reshape(-1, 1, 1, 1), probes=None))
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-4)


def test_bins_of_images_count_as_bits():
    schedule = schedules.cosine(100).double()
    x0 = torch.full((1, 1, 1, 1), 1 / 255, dtype=torch.float64)
    denoiser = gaussian(schedule, "v")
    middle = ode_bits_per_dim(denoiser, x0, uniform=torch.full_like(x0, 0.5))
    assert float(middle - ode_bits_per_dim(denoiser, x0)) == pytest.approx(math.log2(255 / 2))
