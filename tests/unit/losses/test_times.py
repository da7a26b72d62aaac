"""Draws of t: their distributions, and what they learn."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.losses import (
    VLB,
    Antithetic,
    Importance,
    LogNormal,
    Loss,
    Stratified,
    Uniform,
)


def test_uniform_draws_all_times_alike():
    torch.manual_seed(0)
    t, weight = Uniform()(40_000, schedules.linear(4))
    assert t.shape == (40_000, 1, 1, 1)
    assert (weight == 1).all()
    counts = torch.bincount(t.flatten(), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 10_000).abs().max() < 450


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_antithetic_draws_mirror_each_other(n):
    torch.manual_seed(0)
    draws = torch.stack([Antithetic()(n, schedules.linear(5))[0].flatten() for _ in range(5000)])
    half = n // 2 + 1
    assert draws.shape == (5000, n)
    assert torch.equal(draws[:, half:], 6 - draws[:, : n - half])
    for column in draws.T:
        assert (torch.bincount(column, minlength=6)[1:] - 1000).abs().max() < 150
    t, weight = Antithetic(continuous=True)(n, schedules.linear(5))
    assert t.is_floating_point()
    assert 1 <= t.min() <= t.max() <= 5
    assert (weight == 1).all()
    assert t.shape == (n, 1, 1, 1)


@pytest.mark.parametrize(("T", "n"), [(1000, 32), (12, 12), (1000, 1000), (10, 32)])
def test_stratified_draws_cover_their_strata(T, n):
    schedule = schedules.linear(T, beta_end=0.3)
    for seed in range(20):
        torch.manual_seed(seed)
        t = Stratified()(n, schedule)[0].flatten()
        assert t.min() >= 1
        assert t.max() <= T
        if n == T:
            assert sorted(t.tolist()) == list(range(1, T + 1))
        # Each stretch of times holds its share of the draws, to within one.
        share = torch.bincount(t, minlength=T + 1)[1:].cumsum(0) - torch.arange(1, T + 1) * n / T
        assert share.abs().max() <= 1 + 1e-9


def test_stratified_draws_are_uniform_each():
    torch.manual_seed(0)
    schedule = schedules.linear(5)
    draws = torch.stack([Stratified()(3, schedule)[0].flatten() for _ in range(5000)])
    for column in draws.T:
        assert (torch.bincount(column, minlength=6)[1:] - 1000).abs().max() < 150


def test_importance_keeps_the_last_losses_and_draws_by_their_second_moment():
    torch.manual_seed(0)
    T, schedule = 4, schedules.linear(4)
    draw = Importance(T, history=3, uniform=0.01)
    kept = {t: [] for t in range(1, T + 1)}
    for _ in range(30):
        ready = all(len(losses) >= 3 for losses in kept.values())
        second = np.array([np.mean(np.square(losses[-3:])) if losses else 0 for losses in kept.values()])
        expected = 0.99 * np.sqrt(second) / np.sqrt(second).sum() + 0.01 / T if ready else np.full(T, 1 / T)
        np.testing.assert_allclose(draw.probabilities().numpy(), expected, rtol=1e-5)
        t = torch.randint(1, T + 1, (torch.randint(1, 9, ()).item(),))
        losses = torch.rand(len(t)) * t
        draw.update(t, losses)
        for time, loss in zip(t.tolist(), losses.tolist(), strict=True):
            kept[time].append(loss)
    assert draw.adaptive
    assert not Uniform.adaptive
    again = Importance(T, history=3, uniform=0.01)
    again.load_state_dict(draw.state_dict())
    assert torch.equal(again.probabilities(), draw.probabilities())
    # Frequencies, and the mean under the weights, which is that of uniform times.
    p = draw.probabilities()
    t, weight = draw(100_000, schedule)
    frequency = torch.bincount(t.flatten(), minlength=T + 1)[1:] / 100_000
    torch.testing.assert_close(frequency, p, rtol=0, atol=0.008)
    torch.testing.assert_close(weight, 1 / (T * p[t.flatten() - 1]))
    value = torch.tensor([3.0, -1.0, 0.5, 10.0])
    assert (weight * value[t.flatten() - 1]).mean().item() == pytest.approx(value.mean().item(), abs=0.08)


def test_importance_is_for_one_number_of_steps():
    with pytest.raises(ValueError, match=r"^times.num_steps must be 5, got 4: the schedule's num_steps"):
        Importance(4).check(schedules.linear(5))


def test_importance_survives_losses_of_zero():
    draw = Importance(2, history=1)
    draw.update(torch.tensor([1, 2]), torch.zeros(2))
    assert draw.probabilities().tolist() == [0.5, 0.5]


def test_an_importance_draw_lies_in_the_state_of_its_loss():
    assert set(VLB(times=Importance(4)).state_dict()) == {"times.losses", "times.counts"}
    assert not nn.ModuleList([Loss(times=Stratified())]).state_dict()


def test_log_normal_in_sigma():
    torch.manual_seed(0)
    schedule = schedules.cosine()
    t, weight = LogNormal()(200_000, schedule)
    assert (weight == 1).all()
    log_sigma = -schedule.log_snr[t.flatten()] / 2
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.015)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.015)
    within = ((log_sigma > -2.4) & (log_sigma < 0)).float().mean().item()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)


def test_log_normal_takes_the_nearest_time():
    schedule = schedules.linear(50, beta_end=0.3)
    torch.manual_seed(1)
    t = LogNormal(0.0, 2.0)(500, schedule)[0].flatten()
    torch.manual_seed(1)
    draws = 2.0 * torch.randn(500)
    table = -schedule.log_snr[1:] / 2
    assert torch.equal(t, 1 + (draws[:, None] - table).abs().argmin(1))
    zero = schedules.from_betas([0.1, 0.5, 1.0])
    assert LogNormal(0.0, 9.0)(500, zero)[0].max() == 2
