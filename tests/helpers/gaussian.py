"""Gaussian data, for which everything is known in closed form: x_0 ~ N(mean, std²), each pixel by itself."""

import torch
from torch import Tensor, nn

from ddpm_lightning.denoiser import INPUTS, PREDICTIONS
from ddpm_lightning.schedules import NoiseSchedule


class GaussianModel(nn.Module):
    """The perfect network for Gaussian data: E[p·x_0 + q·ε | x_t], called like any network with t−1 of shape (B,)."""

    def __init__(self, schedule: NoiseSchedule, prediction: str, *, mean: float, std: float):
        super().__init__()
        self.schedule = schedule
        self.prediction = prediction
        self.mean, self.std = mean, std

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        x, t = self._as_diffused(x, t)
        a, s = self.schedule.sqrt_alpha_bar[t], self.schedule.sqrt_one_minus_alpha_bar[t]
        variance = (a * self.std) ** 2 + s**2
        x0 = self.mean + a * self.std**2 / variance * (x - a * self.mean)
        eps = s / variance * (x - a * self.mean)
        p, q = PREDICTIONS[self.prediction](a, s, 0.5)
        return p * x0 + q * eps

    def _as_diffused(self, given: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and t of what the network was given."""
        shape = (-1, *[1] * (given.ndim - 1))
        if self.prediction not in INPUTS:
            return given, (time + 1).reshape(shape)
        tables = self.schedule.sqrt_alpha_bar[1:], self.schedule.sqrt_one_minus_alpha_bar[1:]
        scales, times = INPUTS[self.prediction](*tables, 0.5)
        index = (times - time[:, None]).abs().argmin(1)
        return given / scales[index].reshape(shape), (index + 1).reshape(shape)


def law_of(sampler, denoiser, *, times=None):
    """Exact mean and variance of a sampler's output for x ~ N(0, 1) at the first time, without Monte Carlo.

    A Gaussian denoiser makes each step affine, so the output is out(0) + gain·x + Σ_k gain_k·z_k: one batch holds the
    origin, x = 1, and one image for each z_k = 1.
    """
    T = denoiser.schedule.num_steps
    path = sampler.times(T) if times is None else list(times)
    draws = 2 * len(path)
    x = torch.zeros(2 + draws, 1, 1, 1, dtype=torch.float64)
    x[1] = 1
    count = 0

    def one_hot(x: Tensor) -> Tensor:
        nonlocal count
        z = torch.zeros_like(x)
        z[2 + count] = 1
        count += 1
        return z

    out = sampler(denoiser, x, times=path, randn=one_hot).flatten()
    return out[0].item(), ((out[1:] - out[0]) ** 2).sum().item()
