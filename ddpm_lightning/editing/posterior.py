"""The estimate of x_0 given x_t and a measurement."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition, beside
from ddpm_lightning.editing.operators import Measurement
from ddpm_lightning.samplers import DenoiserLike
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Moments", "PosteriorDenoiser", "conjugate_gradients"]


@dataclass(frozen=True)
class Moments:
    """What a method needs to estimate Cov[y | x_t] = A Cov[x_0 | x_t] Aᵀ + σ_y² I.

    Args:
        a: √ᾱ_t.
        s: √(1−ᾱ_t).
        measurement: y, A and σ_y.
        spread: multiplies by (s²/a)·(∂x̂_0/∂x_t)ᵀ, which is Cov[x_0 | x_t] for a perfect denoiser.
    """

    a: Tensor
    s: Tensor
    measurement: Measurement
    spread: Callable[[Tensor], Tensor]


class PosteriorDenoiser:
    """The estimate of x_0 given x_t and y: x̂_0 + (s²/a) ∇ log p(y | x_t), with p(y | x_t) a Gaussian around A x̂_0.

    It has a denoiser's interface, so that every sampler can use it. An evaluation runs the network forward and backward.

    Args:
        denoiser: estimates x_0 without the measurement.
        measurement: y, A and σ_y.
        solve: Cov[y | x_t]⁻¹ (y − A x̂_0), from the moments and y − A x̂_0; see `PiGDM` and `MMPS`.
    """

    def __init__(self, denoiser: DenoiserLike, measurement: Measurement, *, solve: Callable[[Moments, Tensor], Tensor]):
        self.denoiser = denoiser
        self.measurement = measurement
        self._solve = solve

    @property
    def schedule(self) -> NoiseSchedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None, /) -> Tensor:
        return self.estimate(x_t, t, y)[0]

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Like `Denoiser.estimate`; a learned variance is the denoiser's."""
        a, s = self.schedule.scales(t)
        scale = torch.where(a > 0, s**2 / a, 0)  # x_t does not depend on x_0 where a = 0
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0, log_variance = self.denoiser.estimate(x, t, y, u=u)

        def spread(v: Tensor) -> Tensor:
            return scale * torch.autograd.grad(x0, x, v, retain_graph=True)[0]

        operator, prior = self.measurement.operator, x0.detach()
        residual = self.measurement.known - operator.forward(prior)
        weighted = self._solve(Moments(a, s, self.measurement, spread), residual)
        posterior = prior + spread(operator.transpose(weighted))
        return posterior, None if log_variance is None else log_variance.detach()


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve matrix(v) = b for each image of a batch, with a symmetric positive matrix."""

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return beside((u * v).flatten(1).sum(1), b)

    v, rest, direction = torch.zeros_like(b), b, b
    size = first = dot(rest, rest)
    for _ in range(iterations):
        product = matrix(direction)
        curvature = dot(direction, product)
        advances = (curvature > 0) & (size > 1e-20 * first)  # the rest is rounding error, or the matrix not positive
        step = torch.where(advances, size / curvature, 0)
        v, rest = v + step * direction, rest - step * product
        before, size = size, dot(rest, rest)
        direction = rest + torch.where(advances, size / before, 0) * direction
    return v
