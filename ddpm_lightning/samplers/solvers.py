"""The samplers: each is the one reverse step with an estimate of x_0 of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddpm_lightning.ranges import within
from ddpm_lightning.samplers.base import DenoiserLike, Noise, Point, Sampler, reverse_step
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DDIM", "Ancestral", "DPMSolver2M", "Heun", "UniPC"]

Ask = Callable[[Tensor, Tensor, Tensor], Point]


class Ancestral(Sampler):
    """A draw from q(x_u | x_t, x̂_0); at u = t−1 this is Algorithm 25.2 (Murphy 2023; Ho et al. 2020, Algorithm 2).

    Args:
        variance: "small" is β̃_{t|u}, the posterior's own; "large" is β_{t|u} = 1 − ᾱ_t/ᾱ_u (β_t at u = t−1); "learned"
            is the network's (Nichol & Dhariwal 2021, Eq. 15). The last two add no noise at u = 0.
    """

    VARIANCES = ("small", "large", "learned")
    random = True

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        variance: str = "small",
        spacing: str = "trailing",
        clip: float | None = 1.0,
        dynamic_threshold: float | None = None,
    ):
        super().__init__(num_steps, spacing=spacing, clip=clip, dynamic_threshold=dynamic_threshold)
        if variance not in self.VARIANCES:
            raise ValueError(f"variance={variance} is unknown: choose one of {', '.join(self.VARIANCES)}")
        self.variance = variance

    def check(self, *, learned_variance: bool) -> None:
        if self.variance == "learned" and not learned_variance:
            raise ValueError("variance=learned: the network learns no variance; choose small or large")

    def evaluate(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, u: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.variance != "learned":
            return denoiser(x, t, y), None
        x0, log_variance = denoiser.estimate(x, t, y, u=u)
        self.check(learned_variance=log_variance is not None)
        return x0, log_variance

    def step(
        self, schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point], ask: Ask, randn: Noise
    ) -> Tensor:
        mean, sigma = reverse_step(schedule, here, here.x0, u, eta=1.0)
        if self.variance == "large":
            sigma = torch.where(u > 0, schedule.step_variances(here.t, u)[1].sqrt(), sigma)
        elif here.log_variance is not None:
            sigma = torch.where(u > 0, torch.exp(here.log_variance / 2), sigma)
        return mean + sigma * randn(here.x)


class DDIM(Sampler):
    """The family between the deterministic sampler (η = 0) and the ancestral one (η = 1) (Song et al. 2021, Eq. 12, 16)."""

    def __init__(
        self,
        num_steps: int | None = 50,
        *,
        eta: float = 0.0,
        spacing: str = "trailing",
        clip: float | None = 1.0,
        dynamic_threshold: float | None = None,
    ):
        super().__init__(num_steps, spacing=spacing, clip=clip, dynamic_threshold=dynamic_threshold)
        if not within(eta, "[0, 1]"):
            raise ValueError(f"eta={eta} lies outside [0, 1]: 0 is deterministic, 1 is ancestral")
        self.eta = eta
        self.random = eta > 0

    def step(
        self, schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point], ask: Ask, randn: Noise
    ) -> Tensor:
        mean, sigma = reverse_step(schedule, here, here.x0, u, eta=self.eta)
        return mean + sigma * randn(here.x) if self.random else mean


class DPMSolver2M(DDIM):
    """DPM-Solver++(2M): second order from the estimate before, at one evaluation a step (Lu et al. 2022b, Algorithm 2).

    x̄_0 = x̂_0(t) + h/(2 h') (x̂_0(t) − x̂_0(t')), with t' the time before, h = λ_u − λ_t and h' = λ_t − λ_t'. η = 1 is its
    SDE form (Lu et al. 2022b, section 6).
    """

    def step(
        self, schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point], ask: Ask, randn: Noise
    ) -> Tensor:
        mean, sigma = reverse_step(schedule, here, extrapolated(schedule, here, u, past), u, eta=self.eta)
        return mean + sigma * randn(here.x) if self.random else mean


class Heun(Sampler):
    """Second order from a second evaluation, at the end of a first-order step: x̄_0 = (x̂_0(t) + x̂_0(u))/2.

    The trapezoidal rule in the variables of `reverse_step` (after Karras et al. 2022, Algorithm 1); 2N − 1 evaluations.
    """

    def step(
        self, schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point], ask: Ask, randn: Noise
    ) -> Tensor:
        euler, _ = reverse_step(schedule, here, here.x0, u)
        if not (_finite(schedule, here.t) and _finite(schedule, u)):
            return euler
        return reverse_step(schedule, here, (here.x0 + ask(euler, u, here.t).x0) / 2, u)[0]


class UniPC(Sampler):
    """UniPC of order 2 with B(h) = e^h − 1 (bh2), data prediction, at one evaluation a step (Zhao et al. 2023, Algorithms 1, 2).

    The predictor is that of DPM-Solver++(2M); the corrector goes back to the place before and takes the step again, with the
    new estimate as a third point.
    """

    def step(
        self, schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point], ask: Ask, randn: Noise
    ) -> Tensor:
        return reverse_step(schedule, here, extrapolated(schedule, here, u, past), u)[0]

    def correct(self, schedule: NoiseSchedule, here: Point, past: Sequence[Point]) -> Point:
        if not past or not _finite(schedule, past[-1].t):
            return here
        before = past[-1]
        x0 = before.x0 + (here.x0 - before.x0) / 2
        if len(past) == 2 and _finite(schedule, past[0].t):
            levels = [schedule.log_snr[point.t].cpu().double() / 2 for point in (past[0], before, here)]
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
            x0 = before.x0 + rho_old * (past[0].x0 - before.x0) + rho_new * (here.x0 - before.x0)
        return replace(here, x=reverse_step(schedule, before, x0, here.t)[0])


def extrapolated(schedule: NoiseSchedule, here: Point, u: Tensor, past: Sequence[Point]) -> Tensor:
    """x̂_0(t) + h/(2 h') (x̂_0(t) − x̂_0(t')); x̂_0(t) itself where there is no t' or a log SNR is infinite."""
    if not past or not (_finite(schedule, past[-1].t) and _finite(schedule, u)):
        return here.x0
    now = schedule.log_snr[here.t]
    ratio = (schedule.log_snr[u] - now) / (now - schedule.log_snr[past[-1].t])
    return here.x0 + ratio / 2 * (here.x0 - past[-1].x0)


def _finite(schedule: NoiseSchedule, t: Tensor) -> bool:
    return bool(schedule.log_snr[t].isfinite())
