"""Each solver against that of diffusers."""

import itertools

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.interop.layout import PREDICTION_TYPES
from ddpm_lightning.samplers import DDIM, DEIS, IPNDM, Ancestral, DPMSolver, SASolver, UniPC
from tests.helpers.samplers import gaussian, learned


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
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
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
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
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


@pytest.mark.parametrize("v", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
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


MULTISTEP = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", DPMSolver(20), {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        DPMSolver(20, eta=1.0),
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    ),
    "dpmpp_3m": (
        "DPMSolverMultistepScheduler",
        DPMSolver(20, order=3),
        {"algorithm_type": "dpmsolver++", "solver_order": 3},
    ),
    "unipc_2": ("UniPCMultistepScheduler", UniPC(20), {"solver_type": "bh2", "solver_order": 2}),
    "unipc_2_bh1": ("UniPCMultistepScheduler", UniPC(20, variant="bh1"), {"solver_type": "bh1", "solver_order": 2}),
    "unipc_3": ("UniPCMultistepScheduler", UniPC(20, order=3), {"solver_type": "bh2", "solver_order": 3}),
    "unipc_3_bh1": (
        "UniPCMultistepScheduler",
        UniPC(20, order=3, variant="bh1"),
        {"solver_type": "bh1", "solver_order": 3},
    ),
    "deis_2": ("DEISMultistepScheduler", DEIS(20, order=2), {"solver_order": 2}),
    "deis_3": ("DEISMultistepScheduler", DEIS(20), {"solver_order": 3}),
}


@pytest.mark.filterwarnings("ignore:__array")  # diffusers' own
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_equal_diffusers(name, end, prediction):
    kind, sampler, options = MULTISTEP[name]
    if end == 0 and kind.startswith("DEIS"):
        pytest.skip("theirs ends at t = 1")
    if end == 0 and name.endswith("bh1"):
        pytest.skip("theirs becomes NaN, since B(∞) = −∞")
    schedule = schedules.linear().double()
    ends = {} if kind.startswith("DEIS") else {"final_sigmas_type": "zero" if end == 0 else "sigma_min"}
    options = {**options, **ends, "timestep_spacing": "trailing", "lower_order_final": end == 0}
    reference = Reference(kind, schedule, prediction_type=THEIRS[prediction], **options).scheduler
    reference.set_timesteps(20)
    times = [*sampler.times(1000)[:-1], end]
    assert [t - 1 for t in times[:-1]] == reference.timesteps.tolist()
    # its tables of σ are float32, and are written in our float64
    abar = schedule.alpha_bar[torch.tensor(times)]
    reference.sigmas = torch.sqrt((1 - abar) / abar)
    denoiser = gaussian(schedule, prediction)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    noises = [torch.randn(x.shape, dtype=torch.float64) for _ in range(20)]
    draws = iter(noises)
    sampler.clip = None  # theirs clips by dynamic thresholding only
    steps = sampler.trajectory(denoiser, x, times=times, randn=lambda _: next(draws))
    for t, noise, ours in zip(reference.timesteps.tolist(), noises, steps, strict=True):
        out = denoiser.predict(x, torch.tensor(t + 1))
        extra = {"variance_noise": noise} if "sde" in options.get("algorithm_type", "") else {}
        x = reference.step(out, t, x, **extra).prev_sample
        torch.testing.assert_close(ours.x, x, rtol=1e-5, atol=1e-6)  # theirs steps in float32


@pytest.mark.filterwarnings("ignore:__array")  # diffusers' own
@pytest.mark.parametrize(("order", "eta"), [(1, 1.0), (3, 1.0), (3, 0.0)])
def test_sa_solver_equals_diffusers_step_by_step(order, eta):
    """Its predictor: theirs has another coefficient at order 2, also in the second step of order 3."""
    schedule = schedules.linear().double()
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "lower_order_final": False}
    reference = Reference("SASolverScheduler", schedule, predictor_order=order, **options).scheduler
    reference.tau_func = lambda t: eta
    reference.set_timesteps(20)
    sampler, denoiser = SASolver(20, order=order, eta=eta, clip=None), gaussian(schedule, "v")
    times = [*sampler.times(1000)[:-1], 1]
    abar = schedule.alpha_bar[torch.tensor(times)]
    reference.sigmas = torch.sqrt((1 - abar) / abar)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    noises = [torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    draws = iter(noises)
    steps = sampler.trajectory(denoiser, x, times=times, randn=lambda _: next(draws))
    for i, (t, ours) in enumerate(zip(reference.timesteps.tolist(), steps, strict=True)):
        out = denoiser.predict(x, torch.tensor(t + 1))
        reference.last_sample = None  # no corrector
        theirs = reference.step(out, t, x, generator=torch.Generator().manual_seed(i)).prev_sample
        if not (order == 3 and i == 1):
            torch.testing.assert_close(ours.x, theirs, rtol=1e-5, atol=1e-6)  # theirs steps in float32
        x = ours.x


def test_ipndm_equals_diffusers_step_by_step():
    schedule = schedules.linear().double()
    reference = Reference("IPNDMScheduler", schedule).scheduler
    reference.set_timesteps(20)
    sampler, denoiser = IPNDM(20, clip=None), gaussian(schedule, "v")
    times = [*sampler.times(1000)[:-1], 1]  # to 0 ours is a step of order 1
    # its a and s are a cosine's, and are written from our tables; its network predicts v
    reference.alphas, reference.betas = (
        table[torch.tensor(times)] for table in (schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar)
    )
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    steps = sampler.trajectory(denoiser, x, times=times)
    for t, their_t, ours in zip(times, reference.timesteps, steps, strict=False):
        x = reference.step(denoiser.predict(x, torch.tensor(t)), their_t, x).prev_sample
        torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)


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
