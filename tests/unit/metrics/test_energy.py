"""The energy distance against its closed form, and what its features see."""

import pytest
import torch

from ddpm_lightning.metrics.energy import EnergyDistance, RandomFeatures


def flat(x):
    return x.flatten(1)


def test_the_energy_distance_of_two_normal_distributions():
    """E|x − y| of N(m, 2) is 2/√π (e^{−m²/4} + m √π/2 erf(m/2)), so the distance of N(0, 1) and N(m, 1) follows."""
    torch.manual_seed(0)
    x, y = torch.randn(4000, 1, dtype=torch.float64), 1 + torch.randn(4000, 1, dtype=torch.float64)
    m = torch.tensor(1.0, dtype=torch.float64)
    between = 2 / torch.pi**0.5 * (torch.exp(-(m**2) / 4) + m * torch.pi**0.5 / 2 * torch.erf(m / 2))
    expected = 2 * between - 2 * 2 / torch.pi**0.5
    distance = EnergyDistance(y, [flat])
    assert float(distance(x)) == pytest.approx(float(expected), abs=0.05)
    assert abs(float(distance(1 + torch.randn(4000, 1, dtype=torch.float64)))) < 0.02


def test_it_is_unbiased_in_small_batches_and_the_same_on_any_scale():
    torch.manual_seed(0)
    y = torch.randn(2000, 3, dtype=torch.float64)
    distance, larger = EnergyDistance(y, [flat]), EnergyDistance(1000 * y + 7, [flat])
    batches = [torch.randn(8, 3, dtype=torch.float64) for _ in range(2000)]
    found = torch.stack([distance(x) for x in batches])
    assert abs(float(found.mean())) < 4 * float(found.std()) / len(found) ** 0.5 + 0.003  # of the finite y
    x = batches[0]
    assert float(larger(1000 * x + 7)) == pytest.approx(float(distance(x)), rel=1e-9)
    twice = EnergyDistance(y, [flat, lambda x: 5 * flat(x)])
    assert float(twice(x)) == pytest.approx(2 * float(distance(x)), rel=1e-9)


def test_random_features_are_fixed_and_see_what_values_share():
    """Checkerboards of both phases, and noise, have the same mean and variance in each pixel, and other neighbors."""
    torch.manual_seed(0)
    sign = torch.randint(2, (512, 1, 1, 1)) * 2.0 - 1
    board = sign * (1 - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)).float()
    noise = torch.randint(2, (1024, 1, 8, 8)) * 2.0 - 1
    features = RandomFeatures(noise[:512])
    distance = EnergyDistance(noise[:512], [features])
    assert distance(board) > 20 * abs(distance(noise[512:]))
    assert torch.equal(RandomFeatures(noise[:512])(noise), features(noise))
    assert not any(p.requires_grad for p in features.parameters())
