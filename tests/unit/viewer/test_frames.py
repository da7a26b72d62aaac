"""The frames of the viewer against closed forms."""

from itertools import pairwise

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.samplers import DDIM, Ancestral, Heun, UniPC
from ddpm_lightning.viewer import (
    Frame,
    beside_estimates,
    choose_frames,
    estimated_noise,
    is_viewable,
    most_images,
    pixels_of,
)
from tests.helpers.gaussian import GaussianModel

SCHEDULE = schedules.linear(1000)


class Ideal:
    """A denoiser that knows the image."""

    schedule = SCHEDULE

    def __init__(self, x0):
        self.x0 = x0

    def __call__(self, x_t, t, y=None):
        return self.x0


def way(sampler, denoiser, x, **options):
    """Each x_t beside its estimate of x_0."""
    return list(beside_estimates(1000, x, sampler.trajectory(denoiser, x, **options)))


def frames_of(steps, **options):
    return choose_frames(
        [s.t for s in steps], SCHEDULE, num_images=len(steps[0].x), shape=steps[0].x.shape[1:], **options
    )


def levels(x):
    """The gray level of a value, 0 at −1 and 255 at 1."""
    return torch.tensor([round((min(max(v, -1), 1) + 1) * 127.5) for v in x.flatten().tolist()]).reshape(x.shape).byte()


def test_few_steps_are_all_shown():
    frames = choose_frames([1000, 600, 200, 0], SCHEDULE, num_images=4, shape=(1, 8, 8))
    assert [(frame.step, frame.t) for frame in frames] == [(0, 1000), (1, 600), (2, 200), (3, 0)]
    for frame in frames:
        assert frame.signal**2 + frame.noise**2 == pytest.approx(1, abs=1e-6)
        assert frame.signal == pytest.approx(float(SCHEDULE.alpha_bar[frame.t].double().sqrt()))


@pytest.mark.parametrize("num_steps", [60, 61, 100, 999, 1000])
def test_of_many_steps_sixty_are_shown_evenly_with_the_first_and_the_last(num_steps):
    frames = choose_frames([*range(num_steps, -1, -1)], SCHEDULE, num_images=4, shape=(1, 8, 8))
    steps = [frame.step for frame in frames]
    assert (len(steps), steps[0], steps[-1]) == (60, 0, num_steps)
    gaps = {after - before for before, after in pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1 <= min(gaps)
    assert [frame.t for frame in frames] == [num_steps - step for step in steps]


def test_large_images_have_fewer_frames_and_a_page_fewer_large_images():
    times = [*range(1000, -1, -1)]
    assert len(choose_frames(times, SCHEDULE, num_images=4, shape=(3, 256, 256))) == 2**24 // (3 * 4 * 3 * 256**2) == 7
    assert [f.step for f in choose_frames(times, SCHEDULE, num_images=1, shape=(3, 2048, 2048))] == [0, 1000]
    assert len(choose_frames(times, SCHEDULE, num_images=4, shape=(1, 8, 8), most=10)) == 10
    assert [most_images(shape) for shape in ((1, 8, 8), (3, 64, 64), (3, 256, 256), (3, 2048, 2048))] == [100, 56, 3, 1]


def test_only_images_are_viewable():
    assert all(map(is_viewable, [(1, 8, 8), (3, 32, 48)]))
    assert not any(map(is_viewable, [(2, 1, 1), (4, 8, 8), (3, 12), (3, 4, 8, 8)]))


@pytest.mark.parametrize("sampler", [DDIM(20), Heun(20), UniPC(20)])
def test_where_the_image_is_known_the_noise_is_the_one_that_was_put_in(sampler):
    x0, noise = torch.rand(3, 1, 4, 4) * 2 - 1, torch.randn(3, 1, 4, 4)
    steps = way(sampler, Ideal(x0), SCHEDULE.q_sample(x0, torch.tensor(1000), noise))
    frames = frames_of(steps)
    for frame, step in zip(frames[:-1], steps, strict=False):
        assert torch.allclose(estimated_noise(step.x, x0, frame), noise, atol=2e-4)
    pixels = pixels_of(steps, frames)
    assert pixels.shape == (3, 21, 3, 1, 4, 4)
    for i in range(20):
        assert (pixels[:, i, 2].int() - levels(noise / 3).int()).abs().max() <= 1
        assert torch.equal(pixels[:, i, 1], levels(x0))
    assert (pixels[:, -1, 0].int() - levels(x0).int()).abs().max() <= 1
    assert (pixels[:, -1, 2] == levels(torch.zeros(1))).all()


def test_of_gaussian_data_both_estimates_are_the_posterior_means():
    """A frame's estimates are those of its own x_t: one step off, and they would belong to another t."""
    mean, std = 0.2, 0.5
    denoiser = Denoiser(GaussianModel(SCHEDULE, "v", mean=mean, std=std), SCHEDULE, prediction="v")
    steps = way(Ancestral(8, clip=None), denoiser, torch.randn(2, 3, 4, 4))
    frames = frames_of(steps)
    pixels = pixels_of(steps, frames)
    for i, (frame, step) in enumerate(zip(frames[:-1], steps, strict=False)):
        a, s2 = SCHEDULE.alpha_bar[frame.t].double().sqrt(), 1 - SCHEDULE.alpha_bar[frame.t].double()
        off = step.x.double() - a * mean
        variance = (a * std) ** 2 + s2
        expected = step.x.double(), mean + a * std**2 / variance * off, s2.sqrt() / variance * off / 3
        for shown, value in zip(pixels[:, i].unbind(1), expected, strict=True):
            assert (shown.int() - levels(value).int()).abs().max() <= 1
    assert torch.equal(pixels[:, -1, 0], pixels[:, -1, 1])
    assert torch.equal(pixels[:, -1, 0], levels(steps[-1].x))


def test_frames_of_a_long_way_are_those_of_the_whole():
    steps = way(DDIM(100), Ideal(torch.zeros(1, 1, 2, 2)), torch.randn(1, 1, 2, 2))
    whole, few = frames_of(steps, most=101), frames_of(steps, most=7)
    chosen = [frame.step for frame in few]
    assert torch.equal(pixels_of(iter(steps), few), pixels_of(steps, whole)[:, chosen])


def test_there_is_no_noise_at_0():
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(estimated_noise(x, x, Frame(3, 0, 1.0, 0.0)), torch.zeros_like(x))
