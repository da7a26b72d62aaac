"""Gaussian data with a full covariance, x_0 ~ N(mean, Σ): the perfect denoiser, and the exact law of what a sampler makes of it."""

import torch
from torch import Tensor, nn

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.schedules import NoiseSchedule

SHAPE = (1, 2, 4)
SIZE = 8


class CorrelatedModel(nn.Module):
    """E[ε | x_t] = s (a²Σ + s² I)⁻¹ (x_t − a·mean), from Σ = V diag(d) Vᵀ."""

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, covariance: Tensor):
        super().__init__()
        self.schedule = schedule
        self.mean = mean
        self.variances, self.basis = torch.linalg.eigh(covariance)

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        a, s = (scale[:, None] for scale in self.schedule.scales(time + 1))
        seen = (x.flatten(1) - a * self.mean) @ self.basis
        return (seen * s / (a**2 * self.variances + s**2) @ self.basis.T).reshape(x.shape)


def correlated(schedule: NoiseSchedule, *, mean: Tensor, covariance: Tensor) -> Denoiser:
    """The perfect denoiser of N(mean, Σ)."""
    return Denoiser(CorrelatedModel(schedule, mean, covariance), schedule)


def example() -> tuple[Tensor, Tensor]:
    """A mean, and a covariance between neighbors and beyond, of a 2×4 image."""
    torch.manual_seed(3)
    rows = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0)).double()
    deviations = torch.linspace(0.35, 0.6, SIZE, dtype=torch.float64)
    covariance = torch.exp(-torch.cdist(rows, rows) / 2) * deviations * deviations[:, None]
    return torch.linspace(-0.4, 0.5, SIZE, dtype=torch.float64), covariance


def matrix_of(forward) -> Tensor:
    """A as a matrix, column by column."""
    return forward(torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)).flatten(1).T


def posterior(mean: Tensor, covariance: Tensor, A: Tensor, known: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_0 given known = A x_0 + noise·ε (Bishop 2006, Eq. 2.81 and 2.82)."""
    gain = covariance @ A.T @ torch.linalg.pinv(A @ covariance @ A.T + noise**2 * torch.eye(len(A)).double(), rtol=1e-9)
    return mean + gain @ (known - A @ mean), covariance - gain @ A @ covariance


def law_of(run, *, draws: int) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of run(x, randn) for x ~ N(0, I), where it is affine in x and in each draw of randn.

    One batch holds the origin, and one image for each pixel of x and of each draw.
    """
    x = torch.zeros(1 + SIZE * (1 + draws), SIZE, dtype=torch.float64)
    x[1 : 1 + SIZE] = torch.eye(SIZE)
    count = 0

    def one_hot(like: Tensor) -> Tensor:
        nonlocal count
        count += 1
        z = torch.zeros_like(x)
        z[1 + SIZE * count : 1 + SIZE * (count + 1)] = torch.eye(SIZE)
        return z.reshape(like.shape)

    out = run(x.reshape(-1, *SHAPE), one_hot).flatten(1)
    assert count <= draws
    columns = out[1:] - out[0]
    return out[0], columns.T @ columns
