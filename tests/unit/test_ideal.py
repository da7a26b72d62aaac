"""The ideal denoiser against a sum written out, and as a reference for what samplers and losses do."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from ddpm_lightning import Guided, IdealDenoiser, bits_per_dim, schedules
from ddpm_lightning.samplers import DDIM, EDM, Ancestral, DPMSolver, UniPC

DIGITS = torch.from_numpy(load_digits().images / 8 - 1)[:, None].float()
LABELS = torch.from_numpy(load_digits().target)


def mean_of(images, x, a, s):
    """E[x_0 | x_t] of one image by math.exp, with the largest exponent taken off."""
    exponents = [-((x - a * image) ** 2).sum().item() / (2 * s**2) for image in images.double()]
    weights = [math.exp(exponent - max(exponents)) for exponent in exponents]
    return sum(w * image for w, image in zip(weights, images.double(), strict=True)) / sum(weights)


@pytest.mark.parametrize("chunk", [7, 4096])
@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_it_is_the_mean_of_the_images_given_x_t(t, chunk):
    schedule = schedules.linear()
    images, labels = DIGITS[:40], LABELS[:40]
    denoiser = IdealDenoiser(images, schedule, labels=labels, chunk=chunk)
    x = schedule.q_sample(images[:4], torch.tensor(t), torch.randn(4, 1, 8, 8))
    a, s = schedule.sqrt_alpha_bar[t].double(), schedule.sqrt_one_minus_alpha_bar[t].double()
    y = torch.tensor([0, 1, 9, 10])  # 10 is the null label
    times = torch.full((4, 1, 1, 1), t)
    for given, of in (
        (None, [images] * 4),
        (y, [images[labels == 0], images[labels == 1], images[labels == 9], images]),
    ):
        expected = torch.stack([mean_of(some, one, a, s) for some, one in zip(of, x.double(), strict=True)])
        torch.testing.assert_close(denoiser(x, times, given), expected.float(), rtol=1e-4, atol=1e-5)
    guided = Guided(denoiser, 2.0)(x, torch.tensor(t), y)
    torch.testing.assert_close(guided, 2 * denoiser(x, torch.tensor(t), y) - denoiser(x, torch.tensor(t)))


def test_each_sample_is_a_digit_of_its_label():
    denoiser = IdealDenoiser(DIGITS, schedules.cosine(), labels=LABELS)
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    for sampler in (Ancestral(100), DDIM(30), DPMSolver(30, eta=1.0), UniPC(20, order=3), EDM(18, s_churn=10.0)):
        away, which = torch.cdist(sampler(denoiser, x, y).flatten(1), DIGITS.flatten(1)).min(1)
        assert away.max() < 1e-2
        assert torch.equal(LABELS[which], y)


def test_no_denoiser_knows_more_of_its_images():
    """The bound of the ideal denoiser is near log N nats per image, all that there is to say of N images that are apart."""
    images, schedule = DIGITS[:64], schedules.linear(200, beta_start=5e-4, beta_end=0.1)
    terms = bits_per_dim(IdealDenoiser(images, schedule), images)
    bits = (terms.diffusion * 64).mean().item()
    assert bits == pytest.approx(6, abs=0.8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: IdealDenoiser(DIGITS, schedules.linear(), labels=LABELS[:3]),
            r"labels must be 1797 integers, .*\(3,\)",
        ),
        (
            lambda: IdealDenoiser(DIGITS, schedules.linear(), labels=LABELS)(
                DIGITS[:1], torch.tensor(3), torch.tensor([11])
            ),
            r"y must be labels of images, or 10 for all, got \[11\]",
        ),
    ],
)
def test_labels_that_are_none_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
