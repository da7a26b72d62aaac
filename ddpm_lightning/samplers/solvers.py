"""The solvers: the shared reverse step with different estimates x̄_0."""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.samplers.base import Options, Sampler, Transition, reverse_step
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DDIM", "Ancestral", "DPMSolver2M", "Heun", "UniPC"]


class Ancestral(Sampler):
    """Samples from q(x_u | x_t, x̂_0); at u = t−1 this is Algorithm 25.2 (Murphy 2023; Ho et al. 2020, Algorithm 2).

    Args:
        variance: "small" is the posterior's β̃_{t|u}; "large" is β_{t|u} = 1 − ᾱ_t/ᾱ_u (β_t at u = t−1); "learned" is the
            network's (Nichol & Dhariwal 2021, Eq. 15). The last two add no noise at u = 0.
    """

    eta = 1.0

    def __init__(self, num_steps: int | None = None, *, variance: str = "small", **options: Unpack[Options]):
        super().__init__(num_steps, **options)
        require_one_of("variance", variance, ["small", "large", "learned"])
        self.variance = variance
        self.learned_variance = variance == "learned"

    def step(self, at: Transition) -> Tensor:
        mean, sigma = reverse_step(at.schedule, at.here, at.here.x0, at.u, eta=self.eta)
        if self.variance == "large":
            sigma = torch.where(at.u > 0, at.schedule.step_variances(at.here.t, at.u)[1].sqrt(), sigma)
        elif at.here.log_variance is not None:
            sigma = torch.where(at.u > 0, torch.exp(at.here.log_variance / 2), sigma)
        return mean + sigma * at.randn(at.here.x)


class Stochastic(Sampler):
    """A solver with noise level η: 0 is deterministic, 1 is the reverse SDE."""

    def __init__(self, num_steps: int | None = 50, *, eta: float = 0.0, **options: Unpack[Options]):
        super().__init__(num_steps, **options)
        require("eta", eta, "[0, 1]")
        self.eta = eta


class DDIM(Stochastic):
    """DDIM, from the deterministic (η = 0) to the ancestral sampler (η = 1) (Song et al. 2021, Eq. 12, 16)."""

    def step(self, at: Transition) -> Tensor:
        return at.step(at.here.x0, eta=self.eta)


class DPMSolver2M(Stochastic):
    """DPM-Solver++(2M): second order from the previous estimate, with one evaluation per step (Lu et al. 2022b, Algorithm 2).

    x̄_0 = x̂_0(t) + h/(2 h') (x̂_0(t) − x̂_0(t')), with t' the previous timestep, h = λ_u − λ_t and h' = λ_t − λ_t'. η = 1 is its
    SDE variant (Lu et al. 2022b, section 6).
    """

    def step(self, at: Transition) -> Tensor:
        return at.step(_extrapolated(at), eta=self.eta)


class Heun(Sampler):
    """Second order from a second evaluation after a first-order step: x̄_0 = (x̂_0(t) + x̂_0(u))/2.

    The trapezoidal rule in the variables of `reverse_step` (after Karras et al. 2022, Algorithm 1); 2N − 1 evaluations.
    """

    def step(self, at: Transition) -> Tensor:
        euler = at.step(at.here.x0)
        if not (_finite(at.schedule, at.here.t) and _finite(at.schedule, at.u)):
            return euler
        return at.step((at.here.x0 + at.ask(euler, at.u, at.here.t).x0) / 2)


class UniPC(Sampler):
    """UniPC of order 2 with B(h) = e^h − 1 (bh2), data prediction, one evaluation per step (Zhao et al. 2023, Algorithms 1, 2).

    The predictor is DPM-Solver++(2M); the corrector repeats the previous step with the new estimate as a third point.
    """

    def step(self, at: Transition) -> Tensor:
        if at.past and _finite(at.schedule, at.past[-1].t):
            x, _ = reverse_step(at.schedule, at.past[-1], self._interpolated(at), at.here.t)
            at.here = replace(at.here, x=x)
        return at.step(_extrapolated(at))

    def _interpolated(self, at: Transition) -> Tensor:
        """x̄_0 of the step that led here: order 1 with one previous point, order 2 with two."""
        here, before = at.here, at.past[-1]
        if len(at.past) < 2 or not _finite(at.schedule, at.past[0].t):
            return before.x0 + (here.x0 - before.x0) / 2
        levels = [at.schedule.log_snr_at(point.t).cpu().double() / 2 for point in (at.past[0], before, here)]
        h = levels[2] - levels[1]
        r = (levels[0] - levels[1]) / h
        # φ-functions of −h and the 2×2 system of Zhao et al. 2023, Eq. 9
        phi_1 = torch.expm1(-h)
        phi_2 = phi_1 / -h - 1
        phi_3 = phi_2 / -h - 0.5
        b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
        rho_old = (b_1 - b_2) / (1 - r)
        rho_new = b_1 - rho_old
        rho_old, rho_new = (rho_old / r).to(here.x.dtype), rho_new.to(here.x.dtype)
        return before.x0 + rho_old * (at.past[0].x0 - before.x0) + rho_new * (here.x0 - before.x0)


def _extrapolated(at: Transition) -> Tensor:
    """x̂_0(t) + h/(2 h') (x̂_0(t) − x̂_0(t')); x̂_0(t) if there is no t' or a log SNR is infinite."""
    here = at.here
    if not at.past or not (_finite(at.schedule, at.past[-1].t) and _finite(at.schedule, at.u)):
        return here.x0
    now = at.schedule.log_snr_at(here.t)
    ratio = (at.schedule.log_snr_at(at.u) - now) / (now - at.schedule.log_snr_at(at.past[-1].t))
    return here.x0 + ratio / 2 * (here.x0 - at.past[-1].x0)


def _finite(schedule: NoiseSchedule, t: Tensor) -> bool:
    return bool(schedule.log_snr_at(t).isfinite())
