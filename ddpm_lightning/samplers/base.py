"""What all samplers share: the times, the loop, the clipping of estimates, and the one reverse step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.samplers.spacings import SPACINGS
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DenoiserLike", "Noise", "Options", "Point", "Sampler", "Step", "Transition", "reverse_step"]

Noise = Callable[[Tensor], Tensor]


class DenoiserLike(Protocol):
    """What a sampler asks of a denoiser: its schedule, and x_0 from (x_t, t, y)."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None, /) -> Tensor: ...

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Step:
    """One step of a sampler: x at time t, the estimate of x_0 that led there, and the network evaluations so far."""

    t: int
    x: Tensor
    x0: Tensor
    evaluations: int


@dataclass(frozen=True)
class Point:
    """x at time t with the estimate of x_0 there, and the log-variance of the next step where it is learned."""

    t: Tensor
    x: Tensor
    x0: Tensor
    log_variance: Tensor | None = None


@dataclass
class Transition:
    """What a sampler knows when it goes from t to u.

    Args:
        schedule: the denoiser's.
        here: the point at t; a corrector may replace it.
        u: the next time.
        past: at most two points before `here`, the newest last.
        ask: evaluates the network once more: the point at (x, t) before a step to u.
        randn: standard normal noise like its argument.
    """

    schedule: NoiseSchedule
    here: Point
    u: Tensor
    past: Sequence[Point]
    ask: Callable[[Tensor, Tensor, Tensor], Point]
    randn: Noise

    def step(self, x0: Tensor, *, eta: float = 0.0) -> Tensor:
        """x_u by `reverse_step` with this x̄_0, and noise where η > 0."""
        mean, n = reverse_step(self.schedule, self.here, x0, self.u, eta=eta)
        return mean + n * self.randn(self.here.x) if eta > 0 else mean


class Options(TypedDict, total=False):
    """What every solver takes: see `Sampler`."""

    spacing: str
    clip: float | None
    dynamic_threshold: float | None


class Sampler(ABC):
    """From x_T to x_0 in `num_steps` steps, without a state: every call starts anew.

    A solver is a subclass with the method `step`. It sets `eta` above 0 where it adds noise, and `learned_variance` where it
    uses the one that the network learned.

    Args:
        num_steps: how many of the T steps are taken, at most T; None takes all of them.
        spacing: which ones: "trailing" (begins at T, the default), "leading" (ends at 1), "linspace" (both),
            "quadratic" or "karras".
        clip: each estimate of x_0 is kept within ±clip; None for data outside [−1, 1].
        dynamic_threshold: a share p of the pixels, such as 0.995: before it is clipped, each estimate is kept within ±s, s the
            p-quantile of its |x_0| and at least 1, and divided by s (Saharia et al. 2022, section 2.3).

    Raises:
        ValueError: for a number of steps below 1, an unknown spacing, or clipping that leaves no image.
    """

    eta: float = 0.0
    learned_variance: bool = False

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: str = "trailing",
        clip: float | None = 1.0,
        dynamic_threshold: float | None = None,
    ):
        require("num_steps", num_steps, "1..", optional=True)
        require_one_of("spacing", spacing, [*SPACINGS])
        require("clip", clip, "(0, inf)", optional=True)
        require("dynamic_threshold", dynamic_threshold, "(0, 1]", optional=True)
        self.num_steps = num_steps
        self.spacing = spacing
        self.clip = clip
        self.dynamic_threshold = dynamic_threshold

    def times(self, T: int, *, log_snr: Tensor | None = None) -> list[int]:
        """The times that are visited, strictly decreasing and ending in 0.

        Args:
            T: the schedule's number of steps.
            log_snr: the schedule's table of T+1 log SNRs, which the Karras spacing is made of.

        Raises:
            ValueError: where fewer than `num_steps` distinct times exist.
        """
        num_steps = T if self.num_steps is None else self.num_steps
        require("num_steps", num_steps, f"1..{T}", hint=f"the schedule has T={T}")
        spaced = SPACINGS[self.spacing](T, num_steps, None if log_snr is None else log_snr[1:])
        distinct = sorted({max(1, int(t + 0.5)) for t in spaced}, reverse=True)
        shortage = f"spacing={self.spacing} has only {len(distinct)} distinct times of T={T}"
        require("num_steps", num_steps, f"1..{len(distinct)}", hint=shortage)
        return [*distinct, 0]

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Condition | None = None,
        *,
        times: Sequence[int] | None = None,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        """Yield a Step for each pair of neighbouring times.

        Args:
            denoiser: the estimate of x_0.
            x: x at the first time; standard normal noise at T.
            y: (B,) labels, or None.
            times: strictly decreasing times within 0..T, by default `self.times(T)`; increasing ones from 1 on where `eta`
                is 0, which turns an image into its noise.
            randn: standard normal noise like its argument.

        Raises:
            ValueError: for other times.
        """
        schedule = denoiser.schedule
        path = self.times(schedule.num_steps, log_snr=schedule.log_snr) if times is None else list(times)
        self._check_times(path, schedule.num_steps)
        evaluations = 0

        def ask(x: Tensor, t: Tensor, u: Tensor) -> Point:
            nonlocal evaluations
            evaluations += 1
            x0, log_variance = denoiser.estimate(x, t, y, u=u) if self.learned_variance else (denoiser(x, t, y), None)
            self.check(learned_variance=log_variance is not None)
            return Point(t, x, self._clipped(x0), log_variance)

        past: list[Point] = []
        for t, u in pairwise(path):
            at, to = (torch.full((), time, device=x.device) for time in (t, u))
            transition = Transition(schedule, ask(x, at, to), to, past, ask, randn)
            x = self.step(transition)
            past = [*past[-1:], transition.here]
            yield Step(u, x, transition.here.x0, evaluations)

    def __call__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Condition | None = None,
        *,
        times: Sequence[int] | None = None,
        randn: Noise = torch.randn_like,
    ) -> Tensor:
        """x at the last time; the arguments are those of `trajectory`."""
        for step in self.trajectory(denoiser, x, y, times=times, randn=randn):
            x = step.x
        return x

    @abstractmethod
    def step(self, at: Transition) -> Tensor:
        """x_u."""

    def check(self, *, learned_variance: bool) -> None:
        """Refuse a network that learned no variance where the sampler uses it.

        Raises:
            ValueError: in this case.
        """
        if self.learned_variance and not learned_variance:
            raise ValueError("variance must be small or large for a network without a learned variance, got 'learned'")

    def _clipped(self, x0: Tensor) -> Tensor:
        if self.dynamic_threshold is not None:
            s = torch.quantile(x0.abs().flatten(1).float(), self.dynamic_threshold, dim=1).clamp(min=1).to(x0.dtype)
            s = s.reshape(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-s, s) / s
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _check_times(self, times: Sequence[int], T: int) -> None:
        falling = all(u < t for t, u in pairwise(times))
        rising = all(u > t for t, u in pairwise(times)) and self.eta == 0 and min(times, default=0) > 0
        if not times or any(not 0 <= t <= T for t in times) or not (falling or rising):
            upward = " (or increase from 1 or more)" if self.eta == 0 else ""
            raise ValueError(f"times must decrease strictly{upward} within 0..T={T}, got {list(times)}")


def reverse_step(
    schedule: NoiseSchedule, here: Point, x0: Tensor, u: Tensor, *, eta: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation n of the step x_t → x_u that every sampler takes (Song et al. 2021, Eq. 7 and 16).

    mean = a_u x̄_0 + √(s_u² − n²)·(x_t − a_t x̄_0)/s_t with a = √ᾱ, s = √(1−ᾱ), n = η s_u √(−expm1(λ_t−λ_u)) and
    √(s_u² − n²) = s_u √(1 − η² + η² e^{λ_t−λ_u}). The solvers differ in x̄_0.
    """
    a_t, a_u = schedule.sqrt_alpha_bar[here.t], schedule.sqrt_alpha_bar[u]
    s_t, s_u = schedule.sqrt_one_minus_alpha_bar[here.t], schedule.sqrt_one_minus_alpha_bar[u]
    n, kept = torch.zeros_like(s_u), s_u
    if eta > 0:
        ratio = schedule.log_snr[here.t] - schedule.log_snr[u]
        n = eta * s_u * torch.sqrt(-torch.expm1(ratio))
        kept = s_u * torch.sqrt(1 - eta**2 + eta**2 * torch.exp(ratio))
    return a_u * x0 + kept * (here.x - a_t * x0) / s_t, n
