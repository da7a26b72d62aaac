"""Restoration of correlated Gaussian data, whose posterior is known in closed form."""

import re
from collections import deque

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.editing import DPS, MMPS, Blur, Downsample, Mask, Measurement, PiGDM, RePaint
from ddpm_lightning.errors import UserError
from ddpm_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun
from tests.helpers.configs import ROOT
from tests.helpers.correlated import SHAPE, SIZE, correlated, example, law_of, matrix_of, posterior

KNOWN = torch.tensor([1, 1, 0, 0, 1, 0, 0, 1]).reshape(SHAPE)
TRUE = torch.linspace(-0.8, 0.9, SIZE, dtype=torch.float64).reshape(1, *SHAPE)
OPERATORS = {"mask": Mask(KNOWN), "downsample": Downsample(2, SHAPE[1:]), "blur": Blur(0.8, SHAPE[1:])}
MEAN, COVARIANCE = example()


def last(steps):
    return deque(steps, maxlen=1)[0]


def errors(method, sampler, operator, *, noise=0.0, covariance=COVARIANCE, draws=0):
    """The largest error of the mean and of the covariance."""
    schedule = schedules.cosine(1000).double()
    denoiser = correlated(schedule, mean=MEAN, covariance=covariance)
    known = operator.forward(TRUE)
    measurement = Measurement(known, operator, noise)

    def run(x, randn):
        return last(method.trajectory(sampler, denoiser, x, measurement, randn=randn)).x

    mean, law = law_of(run, draws=draws)
    expected = posterior(MEAN, covariance, matrix_of(operator.forward), known.flatten(), noise)
    return float((mean - expected[0]).abs().max()), float((law - expected[1]).abs().max())


@pytest.mark.parametrize(
    ("name", "noise"), [("mask", 0.0), ("downsample", 0.0), ("mask", 0.2), ("downsample", 0.2), ("blur", 0.2)]
)
def test_mmps_samples_the_posterior_of_any_gaussian(name, noise):
    of_mean, of_covariance = errors(MMPS(iterations=8), DPMSolver(200, clip=None), OPERATORS[name], noise=noise)
    assert of_mean < 1e-4
    assert of_covariance < 1e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_pigdm_samples_the_posterior_of_white_data_with_its_deviation(name):
    white = 0.5**2 * torch.eye(SIZE, dtype=torch.float64)
    sampler = Heun(200, spacing="karras", continuous=True, clip=None)
    of_mean, of_covariance = errors(PiGDM(data_std=0.5), sampler, OPERATORS[name], noise=0.2, covariance=white)
    assert of_mean < 1e-4
    assert of_covariance < 1e-3


def test_repaint_keeps_what_is_known_and_nears_the_mean_with_each_repeat():
    sampler = DDIM(20, clip=None)
    found = [errors(RePaint(jump=1, repeats=n), sampler, OPERATORS["mask"], draws=450)[0] for n in (1, 3, 10)]
    assert found[0] > 1.5 * found[1] > 2 * found[2]
    assert found[2] < 0.02


def test_the_path_of_repaint_is_the_papers():
    """The authors' schedule for t_T = 6, jump_length = 2 and jump_n_sample = 2, by hand, with jumps in one piece."""
    assert RePaint(jump=2, repeats=2).path([6, 5, 4, 3, 2, 1, 0]) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert RePaint(jump=10, repeats=1).path([3, 2, 1, 0]) == [3, 2, 1, 0]


def test_dps_takes_the_papers_step():
    """By hand for one step of DDIM: x_0 = x̂_0 − ζ ∂‖y − A x̂_0‖/∂x, and x̂_0 is affine in x with a symmetric matrix J."""
    schedule = schedules.cosine(1000).double()
    denoiser = correlated(schedule, mean=MEAN, covariance=COVARIANCE)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    known = OPERATORS["mask"].forward(TRUE)
    step = last(DPS(step_size=0.7).trajectory(DDIM(1, clip=None), denoiser, x, Measurement(known, OPERATORS["mask"])))
    a, s = schedule.scales(torch.tensor(1000))
    jacobian = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(SIZE))
    x0 = MEAN + (x.flatten(1) - a * MEAN) @ jacobian.T
    residual = (known.flatten() - x0) * KNOWN.flatten()
    expected = x0 + 0.7 * residual / residual.norm(dim=1, keepdim=True) @ jacobian
    assert torch.allclose(step.x.flatten(1), expected)
    assert step.evaluations == 1


def test_a_measurement_without_use_changes_nothing():
    """Where nothing is known, each method samples as its sampler does."""
    denoiser = correlated(schedules.cosine(1000).double(), mean=MEAN, covariance=COVARIANCE)
    nothing = Mask(torch.zeros(SHAPE))
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    sampler = DDIM(20)
    for method in (MMPS(), PiGDM(), DPS(), RePaint(repeats=1)):
        steps = [*method.trajectory(sampler, denoiser, x, Measurement(torch.zeros_like(x), nothing))]
        assert torch.allclose(steps[-1].x, sampler(denoiser, x))
        assert [step.t for step in steps] == sampler.times(1000)[1:]
        assert steps[-1].evaluations == 20
        assert not steps[-1].x.requires_grad


def test_zero_terminal_snr_and_a_learned_variance():
    """The first step has no guidance, and a learned variance is handed on."""

    class Model(torch.nn.Module):
        def forward(self, x, t, y=None):
            return torch.cat([0.1 * x, torch.zeros_like(x)], 1)

    schedule = schedules.rescale_zero_terminal_snr(schedules.linear(100)).double()
    denoiser = Denoiser(Model(), schedule, prediction="v", learned_variance=True)
    sampler = Ancestral(10, variance="learned")
    measurement = Measurement(OPERATORS["mask"].forward(TRUE), OPERATORS["mask"])
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    for method in (MMPS(), PiGDM(), DPS()):
        assert last(method.trajectory(sampler, denoiser, x, measurement)).x.isfinite().all()


def test_bad_methods():
    with pytest.raises(UserError, match="repeats must be a positive integer, got 0"):
        RePaint(repeats=0)
    with pytest.raises(UserError, match="step_size must be a positive number, got 0"):
        DPS(step_size=0)
    with pytest.raises(UserError, match="data_std must be a positive number, got -1"):
        PiGDM(data_std=-1)


TABLE = [  # the method, its sampler, and the number of samples where it is not affine
    (MMPS(iterations=4), DPMSolver(100, clip=None), None),
    (MMPS(iterations=1), DPMSolver(100, clip=None), None),
    (PiGDM(data_std=0.5), DPMSolver(100, clip=None), None),
    (PiGDM(data_std=1.0), DPMSolver(100, clip=None), None),
    (RePaint(), DDIM(50, clip=None), None),
    (RePaint(repeats=1), DDIM(50, clip=None), None),
    (DPS(step_size=1.0), DDIM(100, eta=1, clip=None), 4000),
    (DPS(step_size=0.1), DDIM(100, eta=1, clip=None), 4000),
]


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_the_table_of_the_guide_is_what_is_measured(row):
    method, sampler, samples = TABLE[row]
    rows = re.findall(r"^\| `\w+`, .*\| (\S+) \| (\S+) \| (\S+) \|$", (ROOT / "docs/editing.md").read_text(), re.M)
    assert len(rows) == len(TABLE)
    printed = [float(number) for number in rows[row]]
    denoiser = correlated(schedules.cosine(1000).double(), mean=MEAN, covariance=COVARIANCE)
    known = OPERATORS["mask"].forward(TRUE)

    def run(x, randn):
        return last(method.trajectory(sampler, denoiser, x, Measurement(known, OPERATORS["mask"]), randn=randn)).x

    if samples:
        x = run(torch.randn(samples, *SHAPE, dtype=torch.float64), torch.randn_like).flatten(1)
        mean, covariance = x.mean(0), x.T.cov()
    else:
        steps = len(method.path(sampler.times(1000)))
        mean, covariance = law_of(run, draws=steps if method.exact else 0)
    expected, law = posterior(MEAN, COVARIANCE, matrix_of(OPERATORS["mask"].forward), known.flatten(), 0.0)
    unknown = KNOWN.flatten() == 0
    deviations = law.diagonal()[unknown].sqrt()
    found = [
        ((mean - expected)[unknown].abs() / deviations).max(),
        (covariance.diagonal()[unknown].sqrt() / deviations).mean(),
        (covariance - law)[unknown][:, unknown].norm() / law[unknown][:, unknown].norm(),
    ]
    assert torch.stack(found).tolist() == pytest.approx(printed, abs=0.03 if samples else 6e-4)
