"""The times that a sampler visits."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lightning import schedules
from ddpm_lightning.samplers import DDIM, Ancestral


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_karras_spacing_is_even_in_sigma_to_the_seventh_root(make):
    schedule = make().double()
    times = DDIM(10, spacing="karras").times(1000, log_snr=schedule.log_snr)
    abar = schedule.alpha_bar[torch.tensor(times[:-1])]
    roots = torch.minimum((1 - abar) / abar, torch.tensor(80.0**2)) ** (1 / 14)
    assert times[0] == 1000
    assert times[-2:] == [1, 0]
    even = torch.linspace(roots[0].item(), roots[-1].item(), 10, dtype=torch.float64)
    torch.testing.assert_close(roots, even, atol=0.02 * (roots[0] - roots[-1]).item(), rtol=0)


def test_quadratic_spacing():
    assert DDIM(4, spacing="quadratic").times(1000) == [1000, 563, 250, 63, 0]
    with pytest.raises(
        ValueError, match="must be an integer from 1 to [0-9], got 10: spacing=quadratic has only . distinct times"
    ):
        DDIM(10, spacing="quadratic").times(10)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["leading", "linspace", "trailing"]))
def test_times_fall_from_the_first_to_zero(T, N, spacing):
    sampler = DDIM(N, spacing=spacing)
    if N > T:
        with pytest.raises(
            ValueError, match=f"num_steps must be an integer from 1 to {T}, got {N}: the schedule has T={T}"
        ):
            sampler.times(T)
        return
    times = sampler.times(T)
    assert len(times) == N + 1
    assert times[-1] == 0
    assert all(u < t for t, u in itertools.pairwise(times))
    assert times[0] == T if spacing != "leading" else times[-2] == 1


def test_known_times():
    assert DDIM(4, spacing="trailing").times(1000) == [1000, 750, 500, 250, 0]
    assert DDIM(4, spacing="leading").times(1000) == [751, 501, 251, 1, 0]
    assert DDIM(4, spacing="linspace").times(1000) == [1000, 667, 334, 1, 0]
    assert Ancestral().times(5) == [5, 4, 3, 2, 1, 0]
