"""Restoration: samples of images of which a linear measurement is known."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.editing.operators import Measurement
from ddpm_lightning.editing.posterior import Moments, PosteriorDenoiser, conjugate_gradients
from ddpm_lightning.ranges import require
from ddpm_lightning.samplers import DenoiserLike, Sampler, Step
from ddpm_lightning.samplers.base import Noise
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DPS", "MMPS", "PiGDM", "RePaint", "Restoration"]


class Restoration(ABC):
    """A method that samples x_0 given a measurement y = A x_0 + σ_y ε, with any sampler and denoiser.

    A method sets `exact` if it takes the measurement as free of noise.
    """

    exact: bool = False

    def path(self, times: Sequence[float]) -> Sequence[float]:
        """The timesteps from one Step to the next, for a sampler's times."""
        return times

    @abstractmethod
    def trajectory(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        x: Tensor,
        measurement: Measurement,
        y: Condition | None = None,
        *,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        """Yield a Step for each pair of consecutive timesteps of `path`.

        Args:
            sampler: noise to image.
            denoiser: estimates x_0.
            x: standard normal noise (B, C, ...).
            measurement: what is known of the images.
            y: labels (B,), another condition or None.
            randn: returns standard normal noise like its argument.
        """


class RePaint(Restoration):
    """Replaces what is known of x_t by its noisy measurement after each step, with jumps back (Lugmayr et al. 2022, Algorithm 1).

    x_u ← x_u + A⁺A(q(x_u | A⁺y) − x_u): for a mask, the known pixels; for averages of blocks, ILVR (Choi et al. 2021). After
    every `jump` steps, x goes back up as many steps by adding noise, and comes down again, `repeats` times in all.

    Args:
        jump: steps of a jump, the paper's j = 10.
        repeats: how often each stretch is sampled, the paper's r = 10; 1 does not jump.
    """

    exact = True

    def __init__(self, *, jump: int = 10, repeats: int = 10):
        require("jump", jump, "1..")
        require("repeats", repeats, "1..")
        self.jump = jump
        self.repeats = repeats

    def path(self, times: Sequence[float]) -> Sequence[float]:
        last = len(times) - 1
        left = {last - 1 - i: self.repeats - 1 for i in range(0, last - self.jump, self.jump)}
        at, path = 0, [times[0]]
        while at < last:
            at += 1
            path.append(times[at])
            if left.get(at, 0) > 0:
                left[at] -= 1
                at -= self.jump
                path.append(times[at])
        return path

    def trajectory(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        x: Tensor,
        measurement: Measurement,
        y: Condition | None = None,
        *,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        schedule, operator, evaluations, x0 = denoiser.schedule, measurement.operator, 0, x
        given = operator.agree(torch.zeros_like(x), measurement.known)
        for t, u in pairwise(self.path(sampler.times_on(denoiser.schedule))):
            if u > t:
                x = _noisier(schedule, x, t, u, randn)
            else:
                (step,) = sampler.trajectory(denoiser, x, y, times=[t, u], randn=randn)
                evaluations, x0 = evaluations + step.evaluations, step.x0
                ours = schedule.q_sample(given, torch.tensor(u, device=x.device), randn(x))
                x = operator.agree(step.x, operator.forward(ours))
            yield Step(u, x, x0, evaluations)


class DPS(Restoration):
    """A step of gradient descent on the distance ‖y − A x̂_0(x_t)‖ after each sampler step (Chung et al. 2023, Algorithm 1).

    Args:
        step_size: ζ' of x_u ← x_u − ζ' ∇‖y − A x̂_0(x_t)‖; the paper uses 0.3 to 1 with 1,000 steps.
    """

    def __init__(self, *, step_size: float = 1.0):
        require("step_size", step_size, "(0, inf)")
        self.step_size = step_size

    def trajectory(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        x: Tensor,
        measurement: Measurement,
        y: Condition | None = None,
        *,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        evaluations = 0
        for t, u in pairwise(sampler.times_on(denoiser.schedule)):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (step,) = sampler.trajectory(denoiser, x, y, times=[t, u], randn=randn, grad=True)
                residual = measurement.known - measurement.operator.forward(step.x0)
                distance = torch.linalg.vector_norm(residual.flatten(1), dim=1)
                (slope,) = torch.autograd.grad(distance.sum(), x)
            x = (step.x - self.step_size * slope).detach()
            evaluations += step.evaluations
            yield Step(u, x, step.x0.detach(), evaluations)


class _Posterior(Restoration):
    """Samples with the posterior's estimate of x_0."""

    def trajectory(
        self,
        sampler: Sampler,
        denoiser: DenoiserLike,
        x: Tensor,
        measurement: Measurement,
        y: Condition | None = None,
        *,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        posterior = PosteriorDenoiser(denoiser, measurement, solve=self.solve)
        yield from sampler.trajectory(posterior, x, y, randn=randn)

    @abstractmethod
    def solve(self, at: Moments, residual: Tensor) -> Tensor:
        """Cov[y | x_t]⁻¹ (y − A x̂_0)."""


class PiGDM(_Posterior):
    """Pseudoinverse guidance: Cov[x_0 | x_t] ≈ r² I with r² = s²d²/(a²d² + s²) (Song et al. 2023, ΠGDM).

    Exact for white Gaussian data with this standard deviation. The guidance is the gradient of log p(y | x_t), without the
    paper's adaptive weights, so that any sampler can use it.

    Args:
        data_std: standard deviation d of the data's pixels; 1 in the paper.
    """

    def __init__(self, *, data_std: float = 0.5):
        require("data_std", data_std, "(0, inf)")
        self.data_std = data_std

    def solve(self, at: Moments, residual: Tensor) -> Tensor:
        variance = (at.s * self.data_std) ** 2 / ((at.a * self.data_std) ** 2 + at.s**2)
        return at.measurement.operator.solve(residual, variance, at.measurement.noise)


class MMPS(_Posterior):
    """Moment matching: Cov[x_0 | x_t] = (s²/a)·∂x̂_0/∂x_t, by conjugate gradients (Rozet et al. 2024, MMPS).

    Exact for Gaussian data with any covariance.

    Args:
        iterations: conjugate gradient iterations per evaluation, each a backward pass through the network.
    """

    def __init__(self, *, iterations: int = 3):
        require("iterations", iterations, "1..")
        self.iterations = iterations

    def solve(self, at: Moments, residual: Tensor) -> Tensor:
        operator, noise = at.measurement.operator, at.measurement.noise

        def covariance(v: Tensor) -> Tensor:
            return operator.forward(at.spread(operator.transpose(v))) + noise**2 * v

        return conjugate_gradients(covariance, residual, self.iterations)


def _noisier(schedule: NoiseSchedule, x: Tensor, u: float, t: float, randn: Noise) -> Tensor:
    """A sample of q(x_t | x_u) for t > u."""
    variance = schedule.step_variances(torch.tensor(t, device=x.device), torch.tensor(u, device=x.device))[1]
    return torch.sqrt(1 - variance) * x + torch.sqrt(variance) * randn(x)
