import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import ndtr

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.likelihood import (
    bits_per_dim,
    decoder_term,
    estimate_bits_per_dim,
    estimate_law,
    prior_term,
    vlb_term,
)
from ddpm_lightning.schedules import LearnedSchedule
from tests.helpers.gaussian import GaussianModel
from tests.helpers.recorder import Recorder

LN2 = math.log(2)

CASES = [(False, "small"), (False, "large"), (False, None), (True, None), (True, "small")]


def on_the_grid(*shape):
    return torch.randint(0, 256, shape, dtype=torch.float64) / 127.5 - 1


def bound_of_the_papers(betas, t, x0, x_t, x0_hat, v, kind):
    """L_{t−1} in bits per dimension, from Ho et al. 2020, Eq. 5-7 and 13, and Nichol & Dhariwal 2021, Eq. 15."""
    alpha, abar = 1 - betas, np.cumprod(1 - betas)
    now, before = abar[t - 1], (abar[t - 2] if t > 1 else 1.0)
    beta_tilde = (1 - before) / (1 - now) * betas[t - 1]
    clipped = beta_tilde if t > 1 else (1 - abar[0]) / (1 - abar[1]) * betas[1]
    sigma2 = {
        "small": clipped,
        "large": betas[t - 1] if t > 1 else clipped,  # Ho et al.'s fixedlarge, too, begins with β̃_2
        "learned": np.exp((v + 1) / 2 * np.log(betas[t - 1]) + (1 - v) / 2 * np.log(clipped)),
    }[kind]

    def mean_from(x):
        x_part = np.sqrt(alpha[t - 1]) * (1 - before) / (1 - now) * x_t
        return np.sqrt(before) * betas[t - 1] / (1 - now) * x + x_part

    mean = mean_from(x0_hat)
    if t > 1:
        gap = mean_from(x0) - mean
        nats = 0.5 * (np.log(sigma2 / beta_tilde) + (beta_tilde + gap**2) / sigma2 - 1)
    else:
        sigma = np.sqrt(sigma2)
        upper = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - mean) / sigma)
        lower = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - mean) / sigma)
        right = lower > 0  # there 1 − Φ(z) = Φ(−z) has more digits
        nats = -np.log(np.where(right, ndtr(-lower) - ndtr(-upper), ndtr(upper) - ndtr(lower)))
    return (nats * np.ones_like(x0)).reshape(len(x0), -1).mean(1) / np.log(2)


def edm_of_karras(x, sigma, out, sigma_data=0.5):
    """D = c_skip x + c_out F (Karras et al. 2022, Table 1)."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total * x + sigma * sigma_data / np.sqrt(total) * out


@pytest.mark.parametrize(("learned", "variance"), CASES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_terms_agree_with_the_papers_formulas(prediction, learned, variance):
    torch.manual_seed(0)
    betas = np.linspace(1e-3, 0.3, 20)
    schedule = schedules.from_betas(betas.tolist()).double()
    abar = np.cumprod(1 - betas)
    x0 = on_the_grid(3, 2, 4, 4)
    x0[:, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    v = torch.rand(x0.shape).double() * 2.4 - 1.2
    v = v.float().double()
    for t in (1, 2, 3, 11, 20):
        time = torch.full((3, 1, 1, 1), t)
        noise = torch.randn_like(x0)
        x_t = schedule.q_sample(x0, time, noise)
        model = Recorder(None)
        denoiser = Denoiser(model, schedule, prediction=prediction, learned_variance=learned)
        out = denoiser.target(x0, noise, time) + 0.05 * torch.randn_like(x0)
        a, s = np.sqrt(abar[t - 1]), np.sqrt(1 - abar[t - 1])
        x0_hat = {
            "epsilon": (x_t.numpy() - s * out.numpy()) / a,
            "x0": out.numpy(),
            "v": a * x_t.numpy() - s * out.numpy(),
            "flow": (x_t.numpy() - s * out.numpy()) / (a + s),
            "edm": edm_of_karras(x_t.numpy() / a, s / a, out.numpy()),
        }[prediction]
        kind = variance or ("learned" if learned else "small")
        raw = torch.cat([out, v], dim=1) if learned else out
        for clip in (None, 0.6):
            kept = x0_hat if clip is None else np.clip(x0_hat, -clip, clip)
            expected = bound_of_the_papers(betas, t, x0.numpy(), x_t.numpy(), kept, v.numpy(), kind)
            got = vlb_term(denoiser, raw, x0, x_t, time, variance=variance, clip=clip)
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
            at_once = vlb_term(denoiser, raw, x0, x_t, torch.tensor(t), variance=variance, clip=clip)
            torch.testing.assert_close(at_once, got)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_float32_agrees_with_float64(make):
    torch.manual_seed(1)
    narrow, wide = make(), make().double()
    x0 = on_the_grid(64, 1, 8, 8)
    t = torch.cat([torch.tensor([1, 2, 3, 999, 1000]), torch.randint(1, 1001, (59,))]).reshape(-1, 1, 1, 1)
    noise, wrong = torch.randn(2, *x0.shape, dtype=torch.float64)
    out = noise + 0.1 * wrong
    terms = []
    for schedule, dtype in ((narrow, torch.float32), (wide, torch.float64)):
        denoiser = Denoiser(Recorder(None), schedule)
        x_t = wide.q_sample(x0, t, noise).to(dtype)
        terms.append(vlb_term(denoiser, out.to(dtype), x0.to(dtype), x_t, t, clip=1.0).double())
    torch.testing.assert_close(*terms, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_prior_and_diffusion_terms_are_closed_form_on_gaussian_data(variance):
    torch.manual_seed(2)
    m, std, T, n = 0.3, 0.5, 8, 200_000
    betas = torch.linspace(0.05, 0.5, T).double()
    schedule = schedules.from_betas(betas).double()
    denoiser = Denoiser(GaussianModel(schedule, "epsilon", mean=m, std=std), schedule)
    x0 = m + std * torch.randn(n, 1, 1, 1, dtype=torch.float64)
    result = bits_per_dim(denoiser, x0, variance=variance, clip=None)
    abar = torch.cumprod(1 - betas, 0)
    # KL(N(√ᾱ x_0, 1−ᾱ) ‖ N(0, 1)) for each x_0
    normal = torch.distributions.Normal
    q_T = normal(abar[-1].sqrt() * x0.flatten(), (1 - abar[-1]).sqrt())
    expected = torch.distributions.kl_divergence(q_T, normal(0.0, 1.0)) / LN2
    torch.testing.assert_close(result.prior, expected)
    for t in range(2, T + 1):
        now, before, beta = abar[t - 1], abar[t - 2], betas[t - 1]
        beta_tilde = (1 - before) / (1 - now) * beta
        sigma2 = beta_tilde if variance == "small" else beta
        # E(x_0 − E[x_0 | x_t])² is the variance of x_0 given x_t, σ²(1−ᾱ)/(ᾱσ² + 1−ᾱ)
        left = std**2 * (1 - now) / (now * std**2 + 1 - now)
        gap2 = before * (beta / (1 - now)) ** 2 * left
        kl = 0.5 * (torch.log(sigma2 / beta_tilde) + (beta_tilde + gap2) / sigma2 - 1) / LN2
        column = result.by_t[:, t - 1]
        assert abs(column.mean() - kl) < 5 * column.std() / math.sqrt(n) + 1e-12


def test_a_prior_that_is_noise_costs_nothing():
    schedule = schedules.from_betas([0.1, 0.5, 1.0]).double()
    assert prior_term(schedule, on_the_grid(3, 1, 2, 2)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mean", [-1.3, -0.4, 0.001, 0.98])
@pytest.mark.parametrize("sigma", [0.004, 0.05, 0.7])
def test_decoder_is_the_integral_over_the_bin(mean, sigma):
    def density(x):
        return math.exp(-(((x - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    for value in (0, 1, 77, 127, 128, 254, 255):
        x = value / 127.5 - 1
        low = -np.inf if value == 0 else x - 1 / 255
        high = np.inf if value == 255 else x + 1 / 255
        # The density's bulk lies within ±12σ: quad must not miss a narrow peak in a wide interval.
        low, high = max(low, mean - 12 * sigma), min(high, mean + 12 * sigma)
        expected = 0.0
        if low < high:
            cuts = sorted({low, high, *(min(max(mean + k * sigma, low), high) for k in (-4, -1, 0, 1, 4))})
            parts = (quad(density, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in pairwise(cuts))
            expected = sum(parts)
        if expected < 1e-25:
            continue  # what lies beyond 12σ was left out of the integral
        got = decoder_term(*torch.tensor([x, mean, 2 * math.log(sigma)], dtype=torch.float64))
        assert got.item() == pytest.approx(-math.log(expected), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("mean", [-3.0, -0.999, 0.2, 1.0])
@pytest.mark.parametrize("log_variance", [-10.0, -3.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_the_bins_sum_to_one(mean, log_variance, dtype):
    x = torch.arange(256, dtype=dtype) / 127.5 - 1
    terms = decoder_term(x, torch.tensor(mean, dtype=dtype), torch.tensor(log_variance, dtype=dtype))
    total = torch.exp(-terms).sum().item()
    assert total == pytest.approx(1, abs=1e-12 if dtype == torch.float64 else 1e-4)


def test_decoder_is_finite_and_differentiable_in_the_tails():
    x = torch.tensor([-1.0, -1.0, 0.2, 0.2, 0.2, 1.0, 1.0])
    mean = torch.tensor([5.0, -5.0, 5.0, -5.0, 0.2, 5.0, -5.0], requires_grad=True)
    log_variance = torch.full((7,), -10.0, requires_grad=True)
    terms = decoder_term(x, mean, log_variance)
    terms.sum().backward()
    assert terms.isfinite().all()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()
    # Φ has the tail φ(z)/z·(1 + O(z⁻²)) = e^{−z²/2}/(z√2π), here with z = (4.8 − 1/255)/σ
    z = (4.8 - 1 / 255) * math.exp(5)
    assert terms[2].item() == pytest.approx(z**2 / 2 + math.log(z * math.sqrt(2 * math.pi)), rel=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_terms_add_up_and_the_estimate_is_unbiased(learned):
    torch.manual_seed(3)
    T = 6
    schedule = schedules.from_betas([0.02, 0.1, 0.2, 0.3, 0.4, 0.5]).double()
    model = GaussianModel(schedule, "v", mean=0.1, std=0.4)
    if learned:
        inner = model

        def with_v(x, t, y=None):
            return torch.cat([inner(x, t, y), 0.3 * torch.ones_like(x)], dim=1)

        model = torch.nn.Module()
        model.forward = with_v
    denoiser = Denoiser(model, schedule, prediction="v", learned_variance=learned)
    x0 = on_the_grid(4, 1, 3, 3)
    draws = iter(noise := torch.randn(T, *x0.shape, dtype=torch.float64))
    result = bits_per_dim(denoiser, x0, randn=lambda _: next(draws))
    assert result.by_t.shape == (4, T)
    torch.testing.assert_close(result.total, result.prior + result.diffusion + result.decoder)
    torch.testing.assert_close(result.diffusion + result.decoder, result.by_t.sum(1))
    # The mean of the estimate over t ~ p, with the same noise at each, is the total itself.
    p = estimate_law(schedule)
    assert p.shape == (T - 1,)
    assert p.sum().item() == pytest.approx(1)
    edges = [0.0, *p.cumsum(0).tolist()]
    mean = 0
    for t in range(2, T + 1):
        draws = iter([noise[T - 1], noise[T - t]])
        middle = (edges[t - 2] + edges[t - 1]) / 2
        estimate = estimate_bits_per_dim(
            denoiser, x0, uniform=torch.full((4,), middle).double(), randn=lambda _, draws=draws: next(draws)
        )
        mean = mean + p[t - 2] * estimate.total
        torch.testing.assert_close(estimate.prior, result.prior)
        torch.testing.assert_close(estimate.decoder, result.decoder)
        torch.testing.assert_close(estimate.diffusion, result.by_t[:, t - 1] / p[t - 2])
    torch.testing.assert_close(mean, result.total)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_the_estimate_varies_little(make):
    """Where one uniform t for each image would be far from the bound: most of it lies at few t."""
    torch.manual_seed(4)
    schedule = make().double()
    denoiser = Denoiser(GaussianModel(schedule, "v", mean=0.1, std=0.4), schedule, prediction="v")
    x0 = (0.1 + 0.4 * torch.randn(100, 1, 16, 16, dtype=torch.float64)).clamp(-1, 1)
    exact = bits_per_dim(denoiser, x0)
    estimate = estimate_bits_per_dim(denoiser, x0, uniform=torch.rand(100).double()).total
    error = estimate.std() / 10
    assert abs(estimate.mean() - exact.total.mean()) < 5 * error
    plainly = 1000 * exact.by_t[torch.arange(100), torch.randint(0, 1000, (100,))]
    assert error < 0.1 * plainly.std() / 10
    assert error < 0.03 * estimate.mean()


def test_a_learned_schedule_decodes_from_x_1():
    """Its bound has the loss's L_0: −log₂ of the mass that N(x_1/√ᾱ_1, (1−ᾱ_1)/ᾱ_1) puts on each pixel's bin."""
    torch.manual_seed(6)
    schedule = LearnedSchedule(10, first=9.0, last=-6.0, hidden=8).double()
    denoiser = Denoiser(GaussianModel(schedule, "v", mean=0.1, std=0.4), schedule, prediction="v")
    x0, noise = on_the_grid(3, 1, 4, 4), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    sigma = math.exp(-4.5)
    law = stats.norm(x0 + sigma * noise, sigma)
    low, high = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255), np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
    expected = torch.as_tensor(-np.log2(law.cdf(high) - law.cdf(low))).flatten(1).mean(1)
    for found in (
        bits_per_dim(denoiser, x0, randn=lambda _: noise),
        estimate_bits_per_dim(denoiser, x0, uniform=torch.rand(3), randn=lambda _: noise),
        estimate_bits_per_dim(denoiser, x0, continuous=True, uniform=torch.rand(3), randn=lambda _: noise),
    ):
        torch.testing.assert_close(found.decoder, expected, rtol=1e-8, atol=1e-8)
    calls = []
    denoiser.model.register_forward_hook(lambda *_: calls.append(1))
    estimate_bits_per_dim(denoiser, x0, continuous=True, uniform=torch.rand(3))
    assert len(calls) == 1  # L_0 takes none
    by_variance = bits_per_dim(denoiser, x0, variance="small", randn=lambda _: noise)
    assert not torch.allclose(by_variance.decoder, expected)


def test_one_step_needs_no_draw():
    schedule = schedules.from_betas([0.5])
    denoiser = Denoiser(GaussianModel(schedule, "v", mean=0.1, std=0.4), schedule, prediction="v")
    x0, noise = on_the_grid(2, 1, 2, 2).float(), torch.randn(2, 1, 2, 2)
    estimate = estimate_bits_per_dim(denoiser, x0, uniform=torch.rand(2), randn=lambda _: noise)
    torch.testing.assert_close(estimate.total, bits_per_dim(denoiser, x0, randn=lambda _: noise).total)


def test_zero_terminal_snr_is_finite():
    schedule = schedules.from_betas([0.1, 0.5, 1.0])
    denoiser = Denoiser(GaussianModel(schedule, "v", mean=0.0, std=0.5), schedule, prediction="v")
    for variance in (None, "small", "large"):
        x0 = on_the_grid(2, 1, 2, 2).float()
        assert bits_per_dim(denoiser, x0, variance=variance).total.isfinite().all()
        for u in (0.0, 0.3, 1 - 1e-7):
            estimate = estimate_bits_per_dim(denoiser, x0, uniform=torch.full((2,), u), variance=variance)
            assert estimate.total.isfinite().all()


def test_unknown_variance_is_refused():
    denoiser = Denoiser(GaussianModel(schedules.linear(4), "epsilon", mean=0.0, std=1.0), schedules.linear(4))
    with pytest.raises(ValueError, match=r"variance must be small or large, got 'medium'"):
        bits_per_dim(denoiser, torch.zeros(1, 1, 2, 2), variance="medium")
