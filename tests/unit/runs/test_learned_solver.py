"""What `ddpm times` learns: its start, what it comes near to, and that it ends better."""

import itertools

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.runs import learned_solver
from ddpm_lightning.runs.learned_solver import Coefficients, learn
from ddpm_lightning.samplers import Learned, SASolver
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
