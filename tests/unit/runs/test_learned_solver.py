"""What `ddpm times` learns: the distance it lowers, its start, and that it ends better."""

import itertools

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.runs.learned_solver import Coefficients, Features, Reference, learn
from ddpm_lightning.samplers import Learned
from tests.helpers.samplers import MEAN, STD, gaussian


def test_the_energy_distance_of_two_normal_distributions():
    """E|x − y| of N(m, 2) is 2/√π (e^{−m²/4} + m √π/2 erf(m/2)), so the distance of N(0, 1) and N(m, 1) follows."""
    torch.manual_seed(0)
    x, y = torch.randn(4000, 1, dtype=torch.float64), 1 + torch.randn(4000, 1, dtype=torch.float64)
    m = torch.tensor(1.0, dtype=torch.float64)
    between = 2 / torch.pi**0.5 * (torch.exp(-(m**2) / 4) + m * torch.pi**0.5 / 2 * torch.erf(m / 2))
    expected = 2 * between - 2 * 2 / torch.pi**0.5
    reference = Reference(y)
    assert float(reference.distance(x)) == pytest.approx(float(expected), abs=0.05)
    same = 1 + torch.randn(4000, 1, dtype=torch.float64)
    assert abs(float(reference.distance(same))) < 0.02


def test_features_are_fixed_and_see_what_values_share():
    """Checkerboards of both phases, and noise, have the same mean and variance in each pixel, and other neighbors."""
    torch.manual_seed(0)
    sign = torch.randint(2, (512, 1, 1, 1)) * 2.0 - 1
    board = sign * (1 - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)).float()
    noise = torch.randint(2, (1024, 1, 8, 8)) * 2.0 - 1
    reference = Reference(noise[:512])
    assert reference.distance(board) > 20 * abs(reference.distance(noise[512:]))
    again = Features(noise[:512])
    assert all(torch.equal(a, b) for a, b in zip(again(noise), reference.features(noise), strict=True))
    assert not any(p.requires_grad for p in again.parameters())
    assert [kind.shape for kind in Features(torch.randn(4, 2))(torch.ones(3, 2))] == [(3, 2)]


def test_it_starts_at_the_given_times_in_order_with_room_between():
    schedule = schedules.cosine(1000)
    start = [1000.0, 640.0, 255.5, 31.0]
    times, rows = Coefficients(schedule, start).values()
    assert times == pytest.approx(start, rel=0.02)
    assert [row[0] for row in rows] == [pytest.approx(0.9526, abs=1e-4)] * 4
    assert [row[1] < 0 for row in rows] == [False, True, True, False]  # 2M's, but for the ends
    moved = Coefficients(schedule, start)
    moved.gaps.data.copy_(torch.tensor([9.0, -9.0, -9.0, 9.0]))  # crowded
    times, rows = moved.values()
    assert all(t > u >= 1 for t, u in itertools.pairwise(times))
    Learned(times=times, coefficients=rows).times(1000)


def test_learning_comes_nearer_to_the_samples_of_many_steps():
    schedule = schedules.linear(1000)
    torch.manual_seed(0)
    denoiser = gaussian(schedule, "epsilon")
    denoiser.model.weight = torch.nn.Parameter(torch.ones(()))
    found = learn(denoiser, (1, 2, 2), None, like=Learned(3, clip=None), seconds=1e6, rounds=150)
    assert denoiser.model.weight.requires_grad  # as before
    errors = found["errors_on_other_noise"]
    (first,) = (value for name, value in errors.items() if name != "learned")
    assert errors["learned"] < first
    sampler = Learned(times=found["times"], coefficients=found["coefficients"], clip=None)
    samples = sampler(denoiser, torch.randn(4096, 1, 2, 2))
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(samples.std()) == pytest.approx(STD, rel=0.15)
