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
        x, a, s = self._as_diffused(x, t)
        variance = (a * self.std) ** 2 + s**2
        x0 = self.mean + a * self.std**2 / variance * (x - a * self.mean)
        eps = s / variance * (x - a * self.mean)
        p, q = PREDICTIONS[self.prediction](a, s, 0.5)
        return p * x0 + q * eps

    def _as_diffused(self, given: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, √ᾱ_t and √(1−ᾱ_t) from what the network was given."""
        time = time.reshape(-1, *[1] * (given.ndim - 1))
        if self.prediction not in INPUTS:
            return given, *self.schedule.scales(time + 1)
        if self.prediction == "flow":  # sees (1−τ) x_0 + τ ε and 1000 τ
            tau = time / 1000
            a, s = 1 - tau, tau
        else:  # sees (x_0 + σ ε)/√(σ² + σ_data²) and ln σ/4
            a, s = torch.ones_like(time), torch.exp(4 * time)
            given = given * torch.sqrt(s**2 + 0.5**2)
        norm = torch.sqrt(a**2 + s**2)
        return given / norm, a / norm, s / norm


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
