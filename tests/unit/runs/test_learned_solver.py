"""What `ddpm times` learns: its start, what it comes near to, and that it ends better."""

import contextlib
import itertools
import math
from functools import partial

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.metrics.energy import EnergyDistance
from ddpm_lightning.runs import learned_solver
from ddpm_lightning.runs.learned_solver import Coefficients, _Model, _nearest, learn
from ddpm_lightning.samplers import SPACINGS, Learned, SASolver
from tests.helpers.samplers import MEAN, STD, gaussian


def noise():
    generator = torch.Generator().manual_seed(1)
    return lambda x: torch.randn(x.shape, generator=generator)


def test_it_starts_at_the_given_times_in_order_with_room_between():
    schedule = schedules.cosine(1000)
    start = [1000.0, 640.0, 255.5, 31.0]
    times, rows = Coefficients(schedule, start).values()
    assert times == pytest.approx(start, rel=0.02)
    assert [row[0] for row in rows] == [pytest.approx(0.9933, abs=1e-4)] * 4
    torch.manual_seed(0)
    denoiser, x = gaussian(schedule, "v"), torch.randn(256, 1, 2, 2)
    rows = [[1.0, *row[1:]] for row in rows]
    found = [
        sampler(denoiser, x, randn=noise())
        for sampler in (Learned(times=times, coefficients=rows, clip=None), SASolver(times=times, clip=None))
    ]
    torch.testing.assert_close(*found, rtol=0.05, atol=0.02)
    moved = Coefficients(schedule, start)
    moved.gaps.data.copy_(torch.tensor([9.0, -9.0, -9.0, 9.0]))  # crowded
    times, rows = moved.values()
    assert all(t > u >= 1 for t, u in itertools.pairwise(times))
    Learned(times=times, coefficients=rows).times(1000)


def every_schedule():
    made = {name: getattr(schedules, name) for name in schedules.__all__ if name[0].islower()}
    for name in ("from_betas", "from_alpha_bar", "rescale_zero_terminal_snr"):
        del made[name]
    made["shifted_cosine"] = partial(schedules.shifted_cosine, image_size=32)
    yield from made.items()
    yield "learned", schedules.LearnedSchedule
    yield "zero terminal SNR", lambda T: schedules.rescale_zero_terminal_snr(schedules.linear(T))


@pytest.mark.parametrize("T", [100, 1000, 4000])
@pytest.mark.parametrize(("name", "make"), [*every_schedule()])
def test_it_starts_from_any_spacing_of_any_schedule(name, make, T):
    """Also where two times have nearly the same log SNR, or one beyond what is told apart."""
    schedule = make(T)
    for steps, spacing in itertools.product((1, 2, 3, 8, 20), SPACINGS):
        with contextlib.suppress(ValueError):  # fewer distinct times than steps
            start = SASolver(steps, spacing=spacing, continuous=True).times_on(schedule)[:-1]
            times, rows = Coefficients(schedule, start).values()
            assert len(Learned(times=times, coefficients=rows).times(T)) == steps + 1
            assert all(-2 <= row[1] <= 0 for row in rows)


def test_a_gradient_that_is_not_finite_ends_the_search_with_what_was_best(monkeypatch):
    distance = EnergyDistance.__call__
    asked = []

    def broken(self, x):
        asked.append(x.requires_grad)
        return distance(self, x) * (math.nan if x.requires_grad and sum(asked) > 2 else 1)

    monkeypatch.setattr(EnergyDistance, "__call__", broken)
    found = learn(gaussian(schedules.linear(100), "v"), (1, 2, 2), None, like=Learned(2), seconds=1e6, rounds=5)
    assert sum(asked) == 3
    Learned(times=found["times"], coefficients=found["coefficients"]).times(100)


def test_the_nearest_solver_is_found_in_spite_of_chance():
    model = _Model(gaussian(schedules.cosine(1000), "v"), (1, 2, 2), None)
    torch.manual_seed(0)
    distance = EnergyDistance(MEAN + STD * torch.randn(4096, 1, 2, 2), [lambda x: x.flatten(1)])
    solvers = {f"{steps}": SASolver(steps, clip=None) for steps in (1, 2, 3, 40)}
    name, slowness = _nearest(model, solvers, distance, 1e6)
    assert name == "40"
    assert 0 < slowness < 1


def test_with_training_data_it_comes_near_to_them_and_not_to_the_model():
    """The model believes in another standard deviation than the data have; η and the weights make up for it."""
    schedule = schedules.linear(1000)
    torch.manual_seed(0)
    real = ImageSet(MEAN + 0.8 * STD * torch.randn(4096, 1, 2, 2), torch.zeros(4096, dtype=torch.long))
    found = learn(
        gaussian(schedule, "v"), (1, 2, 2), None, like=Learned(3, clip=None), seconds=1e6, rounds=150, real=real
    )
    assert found["reference"] == "4096 training samples"
    sampler = Learned(times=found["times"], coefficients=found["coefficients"], clip=None)
    samples = sampler(gaussian(schedule, "v"), torch.randn(4096, 1, 2, 2))
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(samples.std()) == pytest.approx(0.8 * STD, rel=0.08)


@pytest.mark.parametrize("labels", [2, 1])
def test_images_with_labels_are_compared_by_classifiers_and_others_by_random_features(labels, monkeypatch):
    monkeypatch.setattr(learned_solver, "_CLASSIFIER_STEPS", 3)
    torch.manual_seed(0)
    real = ImageSet(torch.rand(128, 1, 32, 32) * 2 - 1, torch.arange(128) % labels)
    like = Learned(2, clip=None)
    found = learn(gaussian(schedules.linear(100), "v"), (1, 32, 32), None, like=like, seconds=1e6, rounds=1, real=real)
    words = "features of 2 classifiers" if labels > 1 else "random features"
    assert found["reference"] == f"128 training samples, {words}"


def test_a_search_without_success_ends_with_its_start(monkeypatch):
    monkeypatch.setattr(learned_solver, "_descend", lambda coefficients, *_, **__: coefficients.noise.data.fill_(-9.0))
    denoiser = gaussian(schedules.linear(1000), "v")
    torch.manual_seed(0)
    real = ImageSet(MEAN + STD * torch.randn(4096, 1, 2, 2), torch.zeros(4096, dtype=torch.long))
    found = learn(denoiser, (1, 2, 2), None, like=Learned(4, clip=None), seconds=1e6, rounds=1, real=real)
    (name,) = set(found["errors_on_other_noise"]) - {"learned"}
    assert found["errors_on_other_noise"]["learned"] > found["errors_on_other_noise"][name]
    start = SASolver(4, spacing=name.removeprefix("sa_solver, "), continuous=True, clip=None)
    assert found["times"] == pytest.approx(start.times_on(denoiser.schedule)[:-1], rel=0.05)
    assert {row[0] for row in found["coefficients"]} == {1.0}


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
