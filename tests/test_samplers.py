import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.samplers import DDIM, Ancestral, DPMSolver2M, Heun, Point, UniPC
from tests.gaussian import GaussianModel, law_of

MEAN, STD = 0.4, 0.3
SCHEDULES = {
    "linear": lambda: schedules.linear(200, beta_start=5e-4, beta_end=0.1),
    "cosine": lambda: schedules.cosine(200),
    "zero_terminal": lambda: schedules.from_betas([*np.linspace(1e-3, 0.3, 199), 1.0]),
}
SAMPLERS = {
    "ancestral_small": lambda n: Ancestral(n, variance="small", clip=None),
    "ancestral_large": lambda n: Ancestral(n, variance="large", clip=None),
    "ddim": lambda n: DDIM(n, clip=None),
    "ddim_eta": lambda n: DDIM(n, eta=0.6, clip=None),
    "dpmpp_2m": lambda n: DPMSolver2M(n, clip=None),
    "dpmpp_2m_sde": lambda n: DPMSolver2M(n, eta=1.0, clip=None),
    "heun": lambda n: Heun(n, clip=None),
    "unipc": lambda n: UniPC(n, clip=None),
}


def gaussian(schedule, prediction):
    return Denoiser(GaussianModel(schedule, prediction, mean=MEAN, std=STD), schedule, prediction=prediction)


def recursion(name, schedule, times):
    """Mean and variance through the same times in float64 numpy, from the formulas of the papers.

    Everything is affine in (1, x_T, z_1, ..., z_N), and is kept as the vector of its coefficients.
    """
    abar = np.concatenate([[1.0], np.cumprod(1 - schedule.betas.numpy())])
    with np.errstate(divide="ignore"):
        alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
        lam = np.log(alpha) - np.log(sigma)  # half the log SNR, as in the DPM-Solver papers
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
    if schedule_name == "zero_terminal" and prediction == "epsilon":
        pytest.skip("the refused pair")
    schedule = SCHEDULES[schedule_name]().double()
    sampler = SAMPLERS[name](steps)
    mean, var = law_of(sampler, gaussian(schedule, prediction))
    expected = recursion(name, schedule, sampler.times(schedule.num_steps))
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
    point = Point(torch.tensor(t), x, x0)
    got = Ancestral(variance=variance, clip=None).step(schedule, point, torch.tensor(t - 1), [], None, lambda _: z)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_one_is_ancestral():
    schedule = schedules.linear().double()
    denoiser = gaussian(schedule, "v")
    assert law_of(DDIM(20, eta=1.0, clip=None), denoiser) == pytest.approx(
        law_of(Ancestral(20, clip=None), denoiser), rel=1e-9
    )


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2), ("unipc", 2)])
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_order_of_convergence(name, order, make):
    # A fine linear schedule, so that times on a grid in t are smooth ones in λ
    schedule = make(20000, beta_start=5e-6, beta_end=1e-3) if make is schedules.linear else make(20000)
    schedule = schedule.double()
    denoiser = gaussian(schedule, "v")

    def error(steps):
        # from the exact marginal at 0.8T to the exact marginal at 0.1T: only the discretisation is left
        times = np.linspace(16000, 2000, steps + 1).round().astype(int).tolist()
        (a_t, a_u) = (schedule.alpha_bar[t].item() for t in (16000, 2000))
        start = torch.tensor([-1.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        std_t, std_u = (math.sqrt(a * STD**2 + 1 - a) for a in (a_t, a_u))
        x = math.sqrt(a_t) * MEAN + std_t * start
        exact = math.sqrt(a_u) * MEAN + std_u * start  # the probability flow keeps the quantile
        return (SAMPLERS[name](None)(denoiser, x, times=times) - exact).abs().max().item()

    measured = math.log2(error(140) / error(280))
    assert measured == pytest.approx(1, abs=0.1) if order == 1 else measured >= 1.9


class Reference:
    """diffusers in float64, with our ᾱ written into its tables: its own are float32."""

    def __init__(self, kind, schedule, **options):
        import diffusers

        self.scheduler = getattr(diffusers, kind)(num_train_timesteps=schedule.num_steps, **options)
        self.scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
        self.scheduler.betas = schedule.betas
        self.scheduler.alphas = 1 - schedule.betas
        self.scheduler.one = torch.tensor(1.0, dtype=torch.float64)
        self.scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ancestral_equals_diffusers_step_by_step(prediction, variance, clip):
    schedule = schedules.linear().double()
    names = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
    reference = Reference(
        "DDPMScheduler",
        schedule,
        variance_type=f"fixed_{variance}",
        prediction_type=names[prediction],
        clip_sample=clip is not None,
    ).scheduler
    out, x = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)

    class Constant(torch.nn.Module):
        def forward(self, x, t, y=None):
            return out

    denoiser = Denoiser(Constant(), schedule, prediction=prediction)
    for t in (1000, 700, 300, 2, 1):
        ours = Ancestral(variance=variance, clip=clip)(
            denoiser,
            x,
            times=[t, t - 1],
            randn=lambda like: torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(5)),
        )
        theirs = reference.step(out, t - 1, x, generator=torch.Generator().manual_seed(5)).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_equals_diffusers_step_by_step(prediction, spacing, eta):
    schedule = schedules.linear().double()
    names = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
    reference = Reference(
        "DDIMScheduler",
        schedule,
        prediction_type=names[prediction],
        clip_sample=True,
        timestep_spacing=spacing,
        set_alpha_to_one=True,
    ).scheduler
    reference.set_timesteps(20)
    sampler = DDIM(20, eta=eta, spacing=spacing)
    times = sampler.times(1000)
    assert [t - 1 for t in times[:-1]] == reference.timesteps.tolist()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    denoiser = gaussian(schedule, prediction)
    seeded = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    ours = sampler(denoiser, x, randn=lambda like: torch.randn(like.shape, dtype=like.dtype, generator=seeded[0]))
    for t in reference.timesteps.tolist():
        out = denoiser.predict(x, torch.tensor(t + 1))
        # it keeps the unclipped ε unless told otherwise
        x = reference.step(out, t, x, eta=eta, use_clipped_model_output=True, generator=seeded[1]).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-7)


THEIRS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def learned(schedule, prediction, v):
    """A Gaussian denoiser whose network also gives a variance: the constant v."""

    class Model(GaussianModel):
        def forward(self, x, t, y=None):
            return torch.cat([super().forward(x, t, y), torch.full_like(x, v)], 1)

    model = Model(schedule, prediction, mean=MEAN, std=STD)
    return Denoiser(model, schedule, prediction=prediction, learned_variance=True)


@pytest.mark.parametrize("v", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_learned_variance_equals_diffusers(prediction, v):
    schedule = schedules.linear().double()
    reference = Reference(
        "DDPMScheduler",
        schedule,
        variance_type="learned_range",
        prediction_type=THEIRS[prediction],
        clip_sample=True,
    ).scheduler
    denoiser = learned(schedule, prediction, v)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)

    def randn(like):
        return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(5))

    for t in (1000, 500, 3, 2, 1):
        ours = Ancestral(variance="learned")(denoiser, x, times=[t, t - 1], randn=randn)
        out = denoiser.predict(x, torch.tensor(t))
        theirs = reference.step(out, t - 1, x, generator=torch.Generator().manual_seed(5)).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


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
    with pytest.raises(ValueError, match="variance=learned: the network learns no variance"):
        Ancestral(2, variance="learned")(gaussian(schedules.linear(), "v"), torch.zeros(1, 1, 1, 1))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        ("DPMSolverMultistepScheduler", DPMSolver2M, {"algorithm_type": "dpmsolver++"}),
        ("DPMSolverMultistepScheduler", lambda n: DPMSolver2M(n, eta=1.0), {"algorithm_type": "sde-dpmsolver++"}),
        ("UniPCMultistepScheduler", UniPC, {"solver_type": "bh2"}),
    ],
)
def test_multistep_solvers_equal_diffusers(kind, make, options, prediction):
    schedule = schedules.linear().double()
    reference = Reference(
        kind,
        schedule,
        prediction_type=THEIRS[prediction],
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        **options,
    ).scheduler
    reference.set_timesteps(20)
    sampler = make(20)
    sampler.clip = None  # theirs clips by dynamic thresholding only
    times = sampler.times(1000)
    assert [t - 1 for t in times[:-1]] == reference.timesteps.tolist()
    # its tables of σ are float32, and are written in our float64
    abar = schedule.alpha_bar[torch.tensor(times)]
    reference.sigmas = torch.sqrt((1 - abar) / abar)
    denoiser = gaussian(schedule, prediction)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    noises = [torch.randn(x.shape, dtype=torch.float64) for _ in range(20)]
    draws = iter(noises)
    ours = sampler(denoiser, x, randn=lambda _: next(draws))
    for t, noise in zip(reference.timesteps.tolist(), noises, strict=True):
        out = denoiser.predict(x, torch.tensor(t + 1))
        extra = {"variance_noise": noise} if "sde" in options.get("algorithm_type", "") else {}
        x = reference.step(out, t, x, **extra).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-6)  # theirs steps in float32


def test_ddim_of_diffusers_is_at_fault_with_linspace_spacing():
    # It takes the time before as t − T/N, which linspace's times are not apart: its steps do not end where the next begins.
    schedule = schedules.linear().double()
    reference = Reference("DDIMScheduler", schedule, timestep_spacing="linspace").scheduler
    reference.set_timesteps(20)
    times = DDIM(20, spacing="linspace").times(1000)
    assert [t - 1 for t in times[:-1]] == reference.timesteps.tolist()
    gaps = {t - u for t, u in itertools.pairwise(times[:-1])}
    assert gaps != {1000 // 20}
    # One step of its own: it ends at t − T/N, where ours would if told to, and not at the next of its times.
    denoiser, ddim = gaussian(schedule, "epsilon"), DDIM()
    x, t, u = torch.randn(2, 1, 2, 2, dtype=torch.float64), times[3], times[4]
    assert t - u == 52
    eps = denoiser.predict(x, torch.tensor(t))
    theirs = reference.step(eps, t - 1, x, use_clipped_model_output=False).prev_sample
    torch.testing.assert_close(theirs, ddim(denoiser, x, times=[t, t - 50]), rtol=1e-6, atol=1e-6)
    assert (theirs - ddim(denoiser, x, times=[t, u])).abs().max() > 1e-4


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
    with pytest.raises(ValueError, match="must fall strictly and lie"):
        Ancestral()(denoiser, x0, times=up)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_karras_spacing_is_even_in_sigma_to_the_seventh_root(make):
    schedule = make().double()
    times = DDIM(10, spacing="karras").times(1000, log_snr=schedule.log_snr)
    abar = schedule.alpha_bar[torch.tensor(times[:-1])]
    roots = torch.minimum((1 - abar) / abar, torch.tensor(80.0**2)) ** (1 / 14)
    assert times[0] == 1000
    assert times[-2:] == [1, 0]
    even = torch.linspace(roots[0].item(), roots[-1].item(), 10, dtype=torch.float64)
    torch.testing.assert_close(roots, even, atol=0.02 * (roots[0] - roots[-1]).item(), rtol=0)


def test_quadratic_spacing():
    assert DDIM(4, spacing="quadratic").times(1000) == [1000, 563, 250, 63, 0]
    with pytest.raises(ValueError, match="distinct times of T=10: give at most"):
        DDIM(10, spacing="quadratic").times(10)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["leading", "linspace", "trailing"]))
def test_times_fall_from_the_first_to_zero(T, N, spacing):
    sampler = DDIM(N, spacing=spacing)
    if N > T:
        with pytest.raises(ValueError, match=f"num_steps={N} is more than the schedule's T={T}: give at most {T}"):
            sampler.times(T)
        return
    times = sampler.times(T)
    assert len(times) == N + 1
    assert times[-1] == 0
    assert all(u < t for t, u in itertools.pairwise(times))
    assert times[0] == T if spacing != "leading" else times[-2] == 1


def test_known_times():
    assert DDIM(4, spacing="trailing").times(1000) == [1000, 750, 500, 250, 0]
    assert DDIM(4, spacing="leading").times(1000) == [751, 501, 251, 1, 0]
    assert DDIM(4, spacing="linspace").times(1000) == [1000, 667, 334, 1, 0]
    assert Ancestral().times(5) == [5, 4, 3, 2, 1, 0]


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
    with pytest.raises(ValueError, match="must fall strictly .*lie within 0..T=1000"):
        DDIM(4)(denoiser, torch.zeros(1, 1, 1, 1), times=times)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: DDIM(0), "num_steps=0"),
        (lambda: DDIM(-5), "num_steps=-5"),
        (lambda: DDIM(5, spacing="even"), "spacing=even"),
        (lambda: DDIM(5, eta=1.5), "eta=1.5"),
        (lambda: DDIM(5, clip=-1.0), "clip=-1.0"),
        (lambda: Ancestral(variance="huge"), "variance=huge"),
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
