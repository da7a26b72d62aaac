import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.samplers import DDIM, SPACINGS, Ancestral
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
}


def gaussian(schedule, prediction):
    return Denoiser(GaussianModel(schedule, prediction, mean=MEAN, std=STD), schedule, prediction=prediction)


def recursion(name, schedule, times):
    """Mean and variance through the same times in float64 numpy, from the formulas of the papers with ᾱ alone."""
    abar = schedule._exact.numpy()
    mean, var = 0.0, 1.0
    for t, u in zip(times[:-1], times[1:], strict=True):
        a_t, a_u = abar[t], abar[u]
        gain = math.sqrt(a_t) * STD**2 / (a_t * STD**2 + 1 - a_t)  # x̂_0 = shift + gain·x
        shift = MEAN * (1 - gain * math.sqrt(a_t))
        step = a_t / a_u
        tilde = (1 - a_u) / (1 - a_t) * (1 - step)  # Ho et al. 2020, Eq. 7, for the step t → u
        if name.startswith("ancestral"):
            of_x0 = math.sqrt(a_u) * (1 - step) / (1 - a_t)
            of_x = math.sqrt(step) * (1 - a_u) / (1 - a_t)
            noise = tilde if name.endswith("small") or u == 0 else 1 - step
        else:  # Song et al. 2021, Eq. 12
            noise = tilde * (0.6**2 if name == "ddim_eta" else 0)
            of_x = math.sqrt(1 - a_u - noise) / math.sqrt(1 - a_t)
            of_x0 = math.sqrt(a_u) - of_x * math.sqrt(a_t)
        total = of_x + of_x0 * gain
        mean, var = total * mean + of_x0 * shift, total**2 * var + noise
    return mean, var


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
    got = Ancestral(variance=variance, clip=None).step(
        schedule, x, x0, torch.tensor(t), torch.tensor(t - 1), lambda _: z
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_ddim_with_eta_one_is_ancestral():
    schedule = schedules.linear().double()
    denoiser = gaussian(schedule, "v")
    assert law_of(DDIM(20, eta=1.0, clip=None), denoiser) == pytest.approx(
        law_of(Ancestral(20, clip=None), denoiser), rel=1e-9
    )


def test_ddim_converges_at_first_order():
    schedule = schedules.linear().double()
    denoiser = gaussian(schedule, "epsilon")

    def error(steps):
        # from the exact marginal at 0.8T to the exact marginal at 0.1T: only the discretisation is left
        times = np.linspace(800, 100, steps + 1).round().astype(int).tolist()
        (a_t, a_u) = (schedule.alpha_bar[t].item() for t in (800, 100))
        start = torch.tensor([-1.0, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        std_t, std_u = (math.sqrt(a * STD**2 + 1 - a) for a in (a_t, a_u))
        x = math.sqrt(a_t) * MEAN + std_t * start
        exact = math.sqrt(a_u) * MEAN + std_u * start  # the probability flow keeps the quantile
        return (DDIM(steps, clip=None)(denoiser, x, times=times) - exact).abs().max().item()

    orders = [math.log2(error(n) / error(2 * n)) for n in (35, 70, 175)]
    assert orders == [pytest.approx(1, abs=0.1)] * 3


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
            denoiser, x, times=[t, t - 1], randn=lambda like: torch.randn(
                like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(5)
            )
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
    ours = sampler(
        denoiser, x, randn=lambda like: torch.randn(like.shape, dtype=like.dtype, generator=seeded[0])
    )
    for t in reference.timesteps.tolist():
        out = denoiser.predict(x, torch.tensor(t + 1))
        # it keeps the unclipped ε unless told otherwise
        x = reference.step(out, t, x, eta=eta, use_clipped_model_output=True, generator=seeded[1]).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-7)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(sorted(SPACINGS)))
def test_times_fall_from_the_first_to_zero(T, N, spacing):
    sampler = DDIM(N, spacing=spacing)
    if N > T:
        with pytest.raises(ValueError, match=f"num_steps={N} is more than the schedule's T={T}: give at most {T}"):
            sampler.times(T)
        return
    times = sampler.times(T)
    assert len(times) == N + 1
    assert times[-1] == 0
    assert all(u < t for t, u in zip(times[:-1], times[1:], strict=True))
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
    with pytest.raises(ValueError, match="must fall strictly and lie within 0..T=1000"):
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

    out = Ancestral(clip=None)(Denoiser(Mixture(), schedule, prediction="x0"), torch.randn(4000, 2, 1, 1, generator=generator), randn=randn)
    nearest = torch.cdist(out.flatten(1), centres).argmin(1)
    assert (nearest == 1).float().mean().item() == pytest.approx(0.7, abs=0.03)
    for i, centre in enumerate(centres):
        mine = out.flatten(1)[nearest == i]
        torch.testing.assert_close(mine.mean(0), centre, atol=0.01, rtol=0)
        assert mine.std(0).tolist() == [pytest.approx(std, rel=0.15)] * 2
