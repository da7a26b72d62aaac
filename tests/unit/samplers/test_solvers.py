import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, Point, Transition, UniPC
from tests.helpers.gaussian import law_of
from tests.helpers.samplers import MEAN, STD, gaussian, learned

SCHEDULES = {
    "linear": lambda: schedules.linear(200, beta_start=5e-4, beta_end=0.1),
    "cosine": lambda: schedules.cosine(200),
    "zero_terminal": lambda: schedules.from_betas([*np.linspace(1e-3, 0.3, 199), 1.0]),
    "flow": lambda: schedules.flow(200),
    "edm": lambda: schedules.edm(200),
}

SAMPLERS = {
    "ancestral_small": lambda n: Ancestral(n, variance="small", clip=None),
    "ancestral_large": lambda n: Ancestral(n, variance="large", clip=None),
    "ddim": lambda n: DDIM(n, clip=None),
    "ddim_eta": lambda n: DDIM(n, eta=0.6, clip=None),
    "dpmpp_2m": lambda n: DPMSolver(n, clip=None),
    "dpmpp_2m_sde": lambda n: DPMSolver(n, eta=1.0, clip=None),
    "heun": lambda n: Heun(n, clip=None),
    "unipc": lambda n: UniPC(n, clip=None),
}


def continuous(name, schedule, t):
    """ᾱ of the float t in float64 numpy, from the formulas of the papers; λ between two rows for a list of betas."""
    T, u = schedule.num_steps, t / schedule.num_steps
    if t == 0:
        return 1.0
    if name == "cosine":
        f = [np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 for u in (0, u)]
        return max(f[1] / f[0], float(np.prod(1 - schedule.betas.numpy())))  # β_T is clamped
    if name == "flow":
        return (1 - u) ** 2 / ((1 - u) ** 2 + u**2)
    if name == "edm":
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return 1 / (1 + (low + (t - 1) / (T - 1) * (high - low)) ** 14)
    abar = np.cumprod(1 - schedule.betas.numpy())
    snr, row = abar / (1 - abar), int(t)
    if t == row:
        return abar[row - 1]
    now = snr[row - 1] ** (row + 1 - t) * snr[row] ** (t - row) if snr[row] else snr[row - 1] * (row + 1 - t)
    return now / (1 + now)


def recursion(name, schedule, times, level=None):
    """Mean and variance through the same times in float64 numpy, from the formulas of the papers.

    Everything is affine in (1, x_T, z_1, ..., z_N), and is kept as the vector of its coefficients.
    """
    rows = np.concatenate([[1.0], np.cumprod(1 - schedule.betas.numpy())])
    abar = {t: rows[t] if level is None else level(t) for t in times}
    with np.errstate(divide="ignore"):
        alpha, sigma = (
            {t: np.sqrt(share) for t, share in each} for each in (abar.items(), ((t, 1 - a) for t, a in abar.items()))
        )
        lam = {t: np.log(alpha[t]) - np.log(sigma[t]) for t in times}  # half the log SNR, as in the DPM-Solver papers
    one, x, *fresh = np.eye(2 + len(times))

    def denoise(x, t):
        return MEAN * one + alpha[t] * STD**2 / (abar[t] * STD**2 + 1 - abar[t]) * (x - alpha[t] * MEAN * one)

    def exponential(x, x0, t, u):  # Lu et al. 2022b, Eq. 9 with a constant estimate
        decay = 0.0 if not (np.isfinite(lam[t]) and np.isfinite(lam[u])) else np.exp(lam[t] - lam[u])
        return sigma[u] / sigma[t] * x + alpha[u] * (1 - decay) * x0

    path = []  # (t, x, x0)
    for k, (t, u) in enumerate(itertools.pairwise(times)):
        x0 = denoise(x, t)
        step = abar[t] / abar[u]
        tilde = (1 - abar[u]) / (1 - abar[t]) * (1 - step)  # Ho et al. 2020, Eq. 7, for the step t → u
        known = bool(path) and np.isfinite(lam[path[-1][0]])
        if name == "unipc" and known:
            x = correct(path, t, x0, lam, exponential)
        path = [*path[-1:], (t, x, x0)]
        r = (lam[t] - lam[path[0][0]]) / (lam[u] - lam[t]) if known and u > 0 else np.inf
        bar = x0 + (x0 - path[0][2]) / (2 * r)
        if name.startswith("ancestral"):
            noise = tilde if name.endswith("small") or u == 0 else 1 - step
            mean = np.sqrt(abar[u]) * (1 - step) / (1 - abar[t]) * x0
            x = mean + np.sqrt(step) * (1 - abar[u]) / (1 - abar[t]) * x + np.sqrt(noise) * fresh[k]
        elif name.startswith("ddim"):  # Song et al. 2021, Eq. 12
            noise = tilde * (0.6**2 if name == "ddim_eta" else 0)
            eps = (x - alpha[t] * x0) / sigma[t]
            x = alpha[u] * x0 + np.sqrt(1 - abar[u] - noise) * eps + np.sqrt(noise) * fresh[k]
        elif name == "dpmpp_2m_sde":  # Lu et al. 2022b, Eq. 18
            decay = np.exp(lam[t] - lam[u])
            x = sigma[u] / sigma[t] * decay * x + alpha[u] * (1 - decay**2) * bar
            x = x + sigma[u] * np.sqrt(1 - decay**2) * fresh[k]
        elif name == "heun":
            euler = exponential(x, x0, t, u)
            inner = u > 0 and np.isfinite(lam[t])
            x = exponential(x, (x0 + denoise(euler, u)) / 2, t, u) if inner else euler
        else:
            x = exponential(x, bar, t, u)
    return x[0], (x[1:] ** 2).sum()


def correct(path, t, new, lam, exponential):
    """UniC-2 with B(h) = e^h − 1 by solving its linear system (Zhao et al. 2023, Eq. 9); UniC-1 where one point is known."""
    s, x, x0 = path[-1]
    h = lam[t] - lam[s]
    if len(path) == 1 or not np.isfinite(lam[path[0][0]]):
        return exponential(x, x0 + (new - x0) / 2, s, t)
    r = np.array([(lam[path[0][0]] - lam[s]) / h, 1.0])
    phi = [math.expm1(-h)]
    phi.append(phi[0] / -h - 1)
    phi.append(phi[1] / -h - 1 / 2)
    rho = np.linalg.solve(np.stack([r**0, r]), np.array([phi[1], 2 * phi[2]]) / phi[0])
    return exponential(x, x0 + rho[0] * (path[0][2] - x0) / r[0] + rho[1] * (new - x0), s, t)


@pytest.mark.parametrize("steps", [None, 20, 1])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_variance_equal_an_independent_recursion(name, schedule_name, prediction, steps):
    if schedule_name in ("zero_terminal", "flow") and prediction in ("epsilon", "edm"):
        pytest.skip("the refused pairs")
    schedule = SCHEDULES[schedule_name]().double()
    sampler = SAMPLERS[name](steps)
    mean, var = law_of(sampler, gaussian(schedule, prediction))
    expected = recursion(name, schedule, sampler.times(schedule.num_steps))
    assert (mean, var) == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-6))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_continuous_times_equal_the_recursion_with_the_formulas_of_the_papers(name, schedule_name, prediction):
    if schedule_name in ("zero_terminal", "flow") and prediction in ("epsilon", "edm"):
        return
    schedule = SCHEDULES[schedule_name]().double()
    times = [200.0, 171.3, 130.9, 99.999, 64.25, 31.5, 12.77, 4.2, 1.618, 0.0]
    mean, var = law_of(SAMPLERS[name](None), gaussian(schedule, prediction), times=times)
    expected = recursion(name, schedule, times, partial(continuous, schedule_name, schedule))
    assert (mean, var) == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-6))


def test_all_thousand_steps_of_algorithm_25_2_reach_the_data():
    schedule = schedules.linear().double()
    mean, var = law_of(Ancestral(clip=None), gaussian(schedule, "epsilon"))
    expected = recursion("ancestral_small", schedule, list(range(1000, -1, -1)))
    assert (mean, var) == (pytest.approx(expected[0], abs=1e-6), pytest.approx(expected[1], abs=1e-6))
    assert (mean, math.sqrt(var)) == (pytest.approx(MEAN, abs=0.01), pytest.approx(STD, rel=0.05))


@pytest.mark.parametrize(("variance", "sigma"), [("small", "tilde"), ("large", "beta")])
@pytest.mark.parametrize("t", [1000, 400, 2, 1])
def test_a_step_is_the_line_of_algorithm_25_2(variance, sigma, t):
    # x_{t−1} = 1/√α_t (x_t − (1−α_t)/√(1−ᾱ_t) ε_θ) + σ_t z: the square root over 1−ᾱ_t, where the slides lost a bar
    schedule = schedules.linear().double()
    x, eps, z = torch.randn(3, 5, 1, 1, 1, dtype=torch.float64)
    beta, abar = schedule.betas[t - 1], schedule.alpha_bar
    x0 = (x - torch.sqrt(1 - abar[t]) * eps) / torch.sqrt(abar[t])
    variances = {"tilde": (1 - abar[t - 1]) / (1 - abar[t]) * beta, "beta": beta if t > 1 else 0 * beta}
    expected = (x - beta / torch.sqrt(1 - abar[t]) * eps) / torch.sqrt(1 - beta) + torch.sqrt(variances[sigma]) * z
    at = Transition(schedule, Point(torch.tensor(t), x, x0), torch.tensor(t - 1), [], None, lambda _: z)
    got = Ancestral(variance=variance, clip=None).step(at)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_on_a_flow_is_ddim(steps):
    """z + (τ_u − τ_t) dz/dτ on z = x/(a + s) of `schedule=flow`, whatever the network."""
    schedule = schedules.flow(100).double()
    model = nn.Module()
    model.forward = lambda z, time, y: torch.sin(2 * z) + (time / 1000)[:, None, None, None]
    x = torch.randn(3, 1, 4, 4).double()
    sampler = DDIM(steps, clip=None)
    z = x.clone()
    times = sampler.times(100)
    for t, u in itertools.pairwise(times):
        z = z + (u - t) / 100 * model.forward(z, torch.full((3,), 10.0 * t), None)
    torch.testing.assert_close(sampler(Denoiser(model, schedule, prediction="flow"), x), z, rtol=1e-6, atol=1e-6)


def test_ddim_with_eta_one_is_ancestral():
    schedule = schedules.linear().double()
    denoiser = gaussian(schedule, "v")
    assert law_of(DDIM(20, eta=1.0, clip=None), denoiser) == pytest.approx(
        law_of(Ancestral(20, clip=None), denoiser), rel=1e-9
    )


def test_learned_variance_lies_between_the_fixed_ones_at_any_number_of_steps():
    schedule = schedules.cosine(200).double()
    for n in (200, 20, 3):
        small, large = (
            law_of(Ancestral(n, variance=v, clip=None), gaussian(schedule, "v")) for v in ("small", "large")
        )
        for v, expected in ((-1.0, small), (1.0, large)):
            got = law_of(Ancestral(n, variance="learned", clip=None), learned(schedule, "v", v))
            assert got == pytest.approx(expected, rel=1e-9)
        middle = law_of(Ancestral(n, variance="learned", clip=None), learned(schedule, "v", 0.0))
        assert small[1] < middle[1] < large[1]


def test_a_learned_variance_must_have_been_learned():
    with pytest.raises(ValueError, match="variance must be small or large for a network without a learned variance"):
        Ancestral(2, variance="learned")(gaussian(schedules.linear(), "v"), torch.zeros(1, 1, 1, 1))


def test_dynamic_thresholding_is_that_of_its_paper():
    x0 = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(1, 1, 101, 1)
    s = torch.quantile(x0.abs(), 0.9).item()
    got = DDIM(1, dynamic_threshold=0.9)._clipped(x0)
    torch.testing.assert_close(got, x0.clamp(-s, s) / s, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(DDIM(1, dynamic_threshold=0.9)._clipped(x0 / 10), x0 / 10)  # s is at least 1


def test_inversion_leads_to_the_noise_and_back():
    denoiser = gaussian(schedules.linear().double(), "v")
    x0 = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1)
    up, down = list(range(1, 1001)), list(range(1000, 0, -1))
    noise = DDIM(clip=None)(denoiser, x0, times=up)
    torch.testing.assert_close(noise.flatten(), ((x0 - MEAN) / STD).flatten(), atol=0.05, rtol=0)
    torch.testing.assert_close(DDIM(clip=None)(denoiser, noise, times=down), x0, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="must decrease strictly within"):
        Ancestral()(denoiser, x0, times=up)


def test_a_trajectory_yields_every_step_and_part_of_the_way():
    denoiser = gaussian(schedules.linear().double(), "epsilon")
    x = torch.randn(2, 1, 1, 1, dtype=torch.float64)
    steps = list(DDIM(4).trajectory(denoiser, x))
    assert [(s.t, s.evaluations) for s in steps] == [(750, 1), (500, 2), (250, 3), (0, 4)]
    torch.testing.assert_close(steps[-1].x, DDIM(4)(denoiser, x))
    halfway = DDIM(4)(denoiser, x, times=[1000, 750, 500])
    torch.testing.assert_close(DDIM(4)(denoiser, halfway, times=[500, 250, 0]), steps[-1].x)
    assert steps[-1].x.abs().max() <= 1


@pytest.mark.parametrize("times", [[], [0, 5], [5, 5], [1001, 0], [5, -1]])
def test_impossible_times_are_refused(times):
    denoiser = gaussian(schedules.linear(), "epsilon")
    with pytest.raises(ValueError, match="times must decrease strictly .* within 0..T=1000, got"):
        DDIM(4)(denoiser, torch.zeros(1, 1, 1, 1), times=times)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: DDIM(0), "num_steps must be a positive integer or null, got 0"),
        (lambda: DDIM(-5), "num_steps must be a positive integer or null, got -5"),
        (lambda: DDIM(5, spacing="even"), "spacing must be trailing, .* or karras, got 'even'"),
        (lambda: DDIM(5, eta=1.5), r"eta must be a number in \[0, 1\], got 1.5"),
        (lambda: DDIM(5, clip=-1.0), "clip must be a positive number or null, got -1.0"),
        (lambda: Ancestral(variance="huge"), "variance must be small, large or learned, got 'huge'"),
    ],
)
def test_bad_settings_are_refused(make, names):
    with pytest.raises(ValueError, match=names):
        make()


def test_a_mixture_in_two_dimensions():
    """The Monte-Carlo smoke test: two components are found in their shares and places."""
    schedule = schedules.cosine(1000)
    centres, shares, std = torch.tensor([[-0.6, 0.0], [0.5, 0.4]]), torch.tensor([0.3, 0.7]), 0.05

    class Mixture(torch.nn.Module):
        def forward(self, x, t, y=None):
            t = (t + 1)[:, None]
            a, s = schedule.sqrt_alpha_bar[t], schedule.sqrt_one_minus_alpha_bar[t]
            variance = (a * std) ** 2 + s**2
            away = x.flatten(1)[:, None] - a[..., None] * centres  # (B, 2 components, 2)
            logits = shares.log() - (away**2).sum(-1) / (2 * variance)
            means = centres + (a * std**2 / variance)[..., None] * away
            x0 = (logits.softmax(1)[..., None] * means).sum(1)
            return x0.reshape(x.shape)

    generator = torch.Generator().manual_seed(0)

    def randn(like):
        return torch.randn(like.shape, generator=generator)

    out = Ancestral(clip=None)(
        Denoiser(Mixture(), schedule, prediction="x0"), torch.randn(4000, 2, 1, 1, generator=generator), randn=randn
    )
    nearest = torch.cdist(out.flatten(1), centres).argmin(1)
    assert (nearest == 1).float().mean().item() == pytest.approx(0.7, abs=0.03)
    for i, centre in enumerate(centres):
        mine = out.flatten(1)[nearest == i]
        torch.testing.assert_close(mine.mean(0), centre, atol=0.01, rtol=0)
        assert mine.std(0).tolist() == [pytest.approx(std, rel=0.15)] * 2
