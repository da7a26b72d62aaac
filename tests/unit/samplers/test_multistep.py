"""Solvers of order 3 and 4 and EDM's: against their papers' formulas in float64, by order of convergence, and on the ideal denoiser."""

import itertools
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS
from ddpm_lightning.samplers import DDIM, DEIS, EDM, IPNDM, DPMSolver, Heun, SASolver, UniPC
from tests.helpers.configs import ROOT
from tests.helpers.gaussian import law_of
from tests.helpers.samplers import MEAN, STD, gaussian
from tests.unit.samplers.test_solvers import SCHEDULES, continuous

sys.path.insert(0, str(ROOT / "docs"))
import build_solvers

SAMPLERS = {
    "dpmpp_3m": lambda n: DPMSolver(n, order=3, clip=None),
    "dpmpp_3m_sde": lambda n: DPMSolver(n, order=3, eta=1.0, clip=None),
    "unipc_3": lambda n: UniPC(n, order=3, clip=None),
    "deis_3": lambda n: DEIS(n, clip=None),
    "deis_4": lambda n: DEIS(n, order=4, clip=None),
    "ipndm": lambda n: IPNDM(n, clip=None),
    "sa_2_sde": lambda n: SASolver(n, clip=None),
    "sa_4_sde": lambda n: SASolver(n, order=4, clip=None),
    "sa_3": lambda n: SASolver(n, order=3, eta=0.0, clip=None),
    "edm": lambda n: EDM(n, clip=None),
}
ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


class Recursion:
    """Mean and variance by numpy, as the vector of coefficients of (1, x_T, z_1, ..., z_N); integrals of polynomials by quadrature."""

    def __init__(self, schedule, times, level=None):
        rows = np.concatenate([[1.0], np.cumprod(1 - schedule.betas.numpy())])
        self.abar = {t: rows[t] if level is None else level(t) for t in times}
        self.a, self.s = ({t: np.sqrt(abs(of - abar)) for t, abar in self.abar.items()} for of in (0, 1))
        with np.errstate(divide="ignore"):
            self.lam = {t: np.log(self.a[t]) - np.log(self.s[t]) for t in times}
        self.nodes, self.weights = np.polynomial.legendre.leggauss(60)

    def run(self, name, times):
        one, x, *fresh = np.eye(2 + len(times))
        path = []  # (t, x, x0), newest first
        for k, (t, u) in enumerate(itertools.pairwise(times)):
            x0 = self.denoise(one, x, t)
            known = [point for point in path if np.isfinite(self.lam[point[0]])]
            if name == "unipc_3" and known:
                x = self.corrected(t, x0, known[: 2 if u == 0 else 3])
            path = [(t, x, x0), *path[:3]]
            x = self.step(name, one, u, path, times[k + 2] if k + 2 < len(times) else None)
            if name.endswith("sde"):
                x = x + self.s[u] * np.sqrt(1 - np.exp(2 * (self.lam[t] - self.lam[u]))) * fresh[k]
        return x[0], (x[1:] ** 2).sum()

    def denoise(self, one, x, t):
        gain = self.a[t] * STD**2 / (self.abar[t] * STD**2 + 1 - self.abar[t])
        return MEAN * one + gain * (x - self.a[t] * MEAN * one)

    def step(self, name, one, u, path, then):
        (t, x, x0), lam = path[0], self.lam
        known = [point for point in path if np.isfinite(lam[point[0]])]
        ddim = self.a[u] * x0 + self.s[u] * (x - self.a[t] * x0) / self.s[t]
        if name == "ipndm" and u > 0:
            noises = [(x - self.a[t] * x0) / self.s[t] for t, x, x0 in path]
            mean = sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(path) - 1], noises, strict=True))
            return self.a[u] / self.a[t] * (x - self.s[t] * mean) + self.s[u] * mean if self.a[t] > 0 else ddim
        if not (np.isfinite(lam[t]) and np.isfinite(lam[u])):
            return self.a[u] * x0 if name.endswith("sde") else ddim
        if name == "edm":  # Karras et al. 2022, Algorithm 1, in y = x/a and σ = s/a
            sigma, after = self.s[t] / self.a[t], self.s[u] / self.a[u]
            slope = (x / self.a[t] - x0) / sigma
            y = x / self.a[t] + (after - sigma) * slope
            slope = (slope + (y - self.denoise(one, self.a[u] * y, u)) / after) / 2
            return self.a[u] * (x / self.a[t] + (after - sigma) * slope)
        if name.startswith("deis"):  # Zhang & Chen 2023
            order = int(name[-1])
            values = [(lam[t], (x - self.a[t] * x0) / self.s[t]) for t, x, x0 in known[:order]]
            return self.a[u] / self.a[t] * x - self.a[u] * self.integral(values, t, u, lambda level: np.exp(-level))
        if name.startswith(("dpmpp", "sa")):
            rate = 2 if name.endswith("sde") else 1
            polynomial = [(lam[t], x0) for t, _, x0 in known[: int(name[3])]] if name.startswith("sa") else None
            return self.adams(polynomial, x, t, u, rate) if polynomial else self.authors(known[:3], x, t, u, rate)
        values = [(lam[t], x0) for t, x, x0 in known[: 2 if then == 0 else 3]]
        return self.polynomial(values, x, t, u)

    def adams(self, values, x, t, u, rate):
        """x_u of Xue et al. 2023 with τ = 1 (rate 2) or 0 (rate 1): e^{−τ² h} x, and (1+τ²) ∫ e^{−(1+τ²)(λ_u−λ)} P(λ) dλ."""
        kept = self.s[u] / self.s[t] * np.exp((rate - 1) * (self.lam[t] - self.lam[u]))
        return kept * x + rate * self.a[u] * self.integral(values, t, u, lambda at: np.exp(-rate * (self.lam[u] - at)))

    def polynomial(self, values, x, t, u):
        """x_u for x̂_0(λ) a polynomial (Lu et al. 2022b, Eq. 8); with two points UniPC takes half of its rise."""
        if len(values) == 2:
            (one, mine), (other, theirs) = values
            h = self.lam[u] - self.lam[t]
            bar = mine + h / (2 * (other - one)) * (theirs - mine)
            return self.s[u] / self.s[t] * x - self.a[u] * np.expm1(-h) * bar
        return self.s[u] / self.s[t] * x + self.s[u] * self.integral(values, t, u, np.exp)

    def corrected(self, t, new, points):
        s, x, x0 = points[0]
        return self.polynomial(
            [(self.lam[s], x0), (self.lam[t], new), *((self.lam[r], r0) for r, _, r0 in points[1:])], x, s, t
        )

    def integral(self, values, t, u, weight):
        """∫ P(λ) weight(λ) dλ from λ_t to λ_u, P through the values by Lagrange's formula."""
        h = self.lam[u] - self.lam[t]
        at = self.lam[t] + h * (self.nodes + 1) / 2
        total = 0
        for j, (level, value) in enumerate(values):
            others = [other for i, (other, _) in enumerate(values) if i != j]
            basis = np.prod([(at - other) / (level - other) for other in others], axis=0)
            total = total + h / 2 * (self.weights * basis * weight(at)).sum() * value
        return total

    def authors(self, points, x, t, u, times):
        """3M with φ-functions and D_1, D_2 as the code of Lu et al. has it; `times` is 2 for the SDE."""
        lam, values = [self.lam[r] for r, _, _ in points], [r0 for _, _, r0 in points]
        h = self.lam[u] - self.lam[t]
        kept, big = self.s[u] / self.s[t] * np.exp(-(times - 1) * h), times * h
        phi_1 = np.expm1(-big)
        phi_2 = phi_1 / big + 1
        phi_3 = phi_2 / big - 0.5
        base = kept * x - self.a[u] * phi_1 * values[0]
        if len(points) == 1:
            return base
        d_10 = (values[0] - values[1]) / ((lam[0] - lam[1]) / h)
        if len(points) == 2:
            return base - self.a[u] * phi_1 * d_10 / 2
        r0, r1 = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h
        d_11 = (values[1] - values[2]) / r1
        d_1, d_2 = d_10 + r0 / (r0 + r1) * (d_10 - d_11), (d_10 - d_11) / (r0 + r1)
        return base + self.a[u] * phi_2 * d_1 - self.a[u] * phi_3 * d_2


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_variance_equal_an_independent_recursion(name, schedule_name, prediction):
    if schedule_name in ("zero_terminal", "flow") and prediction in ("epsilon", "edm"):
        pytest.skip("the refused pairs")
    schedule = SCHEDULES[schedule_name]().double()
    sampler = SAMPLERS[name](None)
    floats = [200.0, 171.3, 130.9, 99.999, 64.25, 31.5, 12.77, 4.2, 1.618, 0.0]
    for times in (floats, *(DDIM(steps).times(200) for steps in (20, 2, 1))):
        level = partial(continuous, schedule_name, schedule) if times is floats else None
        expected = Recursion(schedule, times, level).run(name, times)
        got = law_of(sampler, gaussian(schedule, prediction), times=times)
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def orders():
    return {name: order for name, (_, order) in build_solvers.orders((64, 128, 256)).items()}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ddim", 1),
        ("heun", 2),
        ("edm", 2),
        ("dpmpp_2m", 2),
        ("dpmpp_3m", 2),
        ("ipndm, equal steps in log σ", 2),
        ("deis, order 3", 3),
        ("unipc, order 2", 3),
        ("unipc, order 3", 4),
        ("deis, order 4", 4),
        ("ipndm, order 4", 4),
    ],
)
def test_order_of_convergence(name, order, orders):
    assert orders[name] == pytest.approx(order, abs=0.05 * order)


def algorithm_2(denoise, y, sigmas, level, noises, *, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """Karras et al. 2022, Algorithm 2, in y = x_0 + σ ε; `level` is the rounding of their code."""
    steps = len(sigmas) - 1
    for now, after in itertools.pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= now <= s_tmax else 0.0
        hat = level((1 + gamma) * now) if gamma else now
        y = y + math.sqrt(hat**2 - now**2) * s_noise * next(noises) if gamma else y
        slope = (y - denoise(y, hat)) / hat
        ahead = y + (after - hat) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
        y = y + (after - hat) * slope
    return y


class Curved:
    """A denoiser of data that are not Gaussian, on EDM's schedule."""

    schedule = schedules.edm().double()

    def __init__(self):
        self.levels = []

    def __call__(self, x, t, y=None):
        a, s = self.schedule.scales(t)
        self.levels.append((s / a).item())
        return self.at(x / a, s / a)

    def at(self, y, sigma):
        return torch.tanh(y / (1 + sigma**2)) * 0.7


@pytest.mark.parametrize(
    "churn", [{}, {"s_churn": 40, "s_tmin": 0.05, "s_tmax": 50, "s_noise": 1.003}, {"s_churn": 4, "s_tmin": 1.0}]
)
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_edm_equals_algorithm_2_of_its_paper(spacing, continuous, churn):
    denoiser = Curved()
    sampler = EDM(18, clip=None, spacing=spacing, continuous=continuous, **churn)
    times = sampler.times(1000, log_snr=denoiser.schedule.log_snr)
    table = ((1 - denoiser.schedule.alpha_bar) / denoiser.schedule.alpha_bar).sqrt().numpy()
    first, last = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigmas = [(first + (t - 1) / 999 * (last - first)) ** 7 if t > 0 else 0.0 for t in times]

    def level(sigma):
        return min(sigma, 80.0) if continuous else table[np.abs(np.log(table[1:]) - np.log(sigma)).argmin() + 1]

    y, draws = 80 * torch.randn(3, 1, 4, 4).double(), torch.randn(18, 3, 1, 4, 4).double()
    expected = algorithm_2(denoiser.at, y, sigmas, level, iter(draws), **churn)
    mine = iter(draws)
    got = sampler(denoiser, denoiser.schedule.sqrt_alpha_bar[-1] * y, times=times, randn=lambda _: next(mine))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_euler_step_of_edm_is_ddim():
    """EDM's Algorithm 1 without its correction."""
    denoiser, y = Curved(), 80 * torch.randn(3, 1, 4, 4).double()
    times = DDIM(12).times(1000)
    got = DDIM(clip=None)(denoiser, denoiser.schedule.sqrt_alpha_bar[-1] * y, times=times)
    for now, after in itertools.pairwise([*denoiser.levels, 0.0]):
        y = y + (after - now) * (y - denoiser.at(y, torch.tensor(now))) / now
    torch.testing.assert_close(got, y, rtol=1e-6, atol=1e-6)


def test_churn_raises_sigma_by_the_root_of_two_at_most():
    denoiser = Curved()
    EDM(s_churn=1000.0, clip=None)(denoiser, torch.zeros(1, 1, 1, 1).double(), times=[900.0, 500.0, 1.0])
    sigma = [(s / a).item() for a, s in map(denoiser.schedule.scales, torch.tensor([900.0, 500.0, 1.0]).double())]
    expected = [math.sqrt(2) * sigma[0], sigma[1], math.sqrt(2) * sigma[1], sigma[2]]
    assert denoiser.levels == pytest.approx(expected, rel=1e-9)
    assert Heun().eta == EDM().eta == 0 < EDM(s_churn=1.0).eta


@pytest.mark.parametrize("make", [schedules.flow, schedules.edm])
@pytest.mark.parametrize("name", SAMPLERS)
def test_all_stay_finite_and_reach_the_data(name, make):
    """Also between an ᾱ_T of 0 and clean data, where log SNR is −∞ and ∞; and in float32."""
    denoiser = gaussian(make(), "v")
    x = torch.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
    for steps in (1, 2, 3, 200):
        out = SAMPLERS[name](steps)(denoiser, x)
        assert out.isfinite().all()
    quantiles = MEAN + STD * x
    assert name.endswith("sde") or (out - quantiles).abs().max() < 0.02


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: DPMSolver(5, order=4), "order must be an integer from 1 to 3, got 4"),
        (lambda: DEIS(5, order=0), "order must be an integer from 1 to 4, got 0"),
        (lambda: SASolver(5, eta=1.5), "eta must be"),
        (lambda: UniPC(5, variant="bh3"), "variant must be bh1 or bh2, got 'bh3'"),
        (lambda: EDM(5, s_churn=-1), "s_churn must be"),
    ],
)
def test_bad_settings_are_refused(make, names):
    with pytest.raises(ValueError, match=names):
        make()


@pytest.mark.parametrize("h", [1e-6, 1e-3, 0.5, 3.0, 20.0, -0.5])
def test_moments_are_those_of_an_exponential_weight(h):
    """∫ τ^k w(τ) dτ/∫ w(τ) dτ on [0, 1] by quadrature, w = e^{hτ} for x̂_0, e^{2hτ} with the SDE's noise, e^{−hτ} for ε̂."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    tau = (nodes + 1) / 2
    samplers = [(UniPC(order=3), h), (DEIS(order=4), -h)]
    sde = [(DPMSolver(order=3, eta=1.0), 2 * h), (SASolver(), 2 * h)]
    for sampler, rate in samplers if h < 0 else [*samplers, *sde]:
        weight = weights * np.exp(rate * (tau - (rate > 0)))
        expected = [(weight * tau**k).sum() / weight.sum() for k in range(3)]
        expected[2] /= 2 if isinstance(sampler, DPMSolver) else 1
        assert sampler.moments(h, 3) == pytest.approx(expected, rel=1e-9)


def test_order_1_is_ddim():
    denoiser, x = gaussian(schedules.linear().double(), "v"), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    expected = DDIM(7)(denoiser, x)
    for sampler in (DPMSolver(7, order=1), DEIS(7, order=1), IPNDM(7, order=1), SASolver(7, order=1, eta=0.0)):
        torch.testing.assert_close(sampler(denoiser, x), expected, rtol=1e-12, atol=1e-12)
