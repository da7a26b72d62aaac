"""What all samplers share: the loop, the clipping of estimates, and the one reverse step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ddpm_lightning.ranges import is_integer, within
from ddpm_lightning.samplers.spacings import SPACINGS
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DenoiserLike", "Noise", "Point", "Sampler", "Step", "reverse_step"]

Noise = Callable[[Tensor], Tensor]


class DenoiserLike(Protocol):
    """What a sampler asks of a denoiser: its schedule, and x_0 from (x_t, t, y)."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, /) -> Tensor: ...

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Tensor | None = None, *, u: Tensor | None = None
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
    """A place on the way: x at time t, and the estimate of x_0 there; the log-variance of the next step where learned."""

    t: Tensor
    x: Tensor
    x0: Tensor
    log_variance: Tensor | None = None


class Sampler(ABC):
    """A way from x_T to x_0 in `num_steps` steps; it holds no state, and every call starts afresh.

    Args:
        num_steps: how many of the T steps are taken, at most T; None takes them all.
        spacing: which ones: "trailing" (begins at T, the default), "leading" (ends at 1), "linspace" (both),
            "quadratic" or "karras".
        clip: each estimate of x_0 is kept within ±clip; None for data outside [−1, 1].
        dynamic_threshold: a share p of the pixels, such as 0.995: before it is clipped, each estimate is kept within ±s, s the
            p-quantile of its |x_0| and at least 1, and divided by s (Saharia et al. 2022, section 2.3).

    Raises:
        ValueError: for a number of steps below 1, an unknown spacing, or clipping that leaves no image.
    """

    random = False

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: str = "trailing",
        clip: float | None = 1.0,
        dynamic_threshold: float | None = None,
    ):
        if num_steps is not None and not is_integer(num_steps):
            raise ValueError(f"num_steps={num_steps} is no number of sampling steps: give a whole number, 1 or more")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing={spacing} is unknown: choose one of {', '.join(SPACINGS)}")
        if clip is not None and not within(clip, "(0, inf)"):
            raise ValueError(f"clip={clip} leaves nothing of the image: give a number above 0, or null for no clipping")
        if dynamic_threshold is not None and not within(dynamic_threshold, "(0, 1]"):
            raise ValueError(f"dynamic_threshold={dynamic_threshold} is no share of the pixels: give one in (0, 1]")
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
        wanted = T if self.num_steps is None else self.num_steps
        if wanted > T:
            raise ValueError(f"num_steps={wanted} is more than the schedule's T={T}: give at most {T}")
        spaced = SPACINGS[self.spacing](T, wanted, None if log_snr is None else log_snr[1:])
        distinct = sorted({max(1, int(t + 0.5)) for t in spaced}, reverse=True)
        if len(distinct) < wanted:
            raise ValueError(
                f"num_steps={wanted} with spacing={self.spacing} has only {len(distinct)} distinct times of T={T}: "
                f"give at most {len(distinct)}"
            )
        return [*distinct, 0]

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Tensor | None = None,
        *,
        times: Sequence[int] | None = None,
        randn: Noise = torch.randn_like,
    ) -> Iterator[Step]:
        """Yield a Step for each pair of neighbouring times.

        Args:
            denoiser: the estimate of x_0.
            x: x at the first time; standard normal noise at T.
            y: (B,) labels, or None.
            times: strictly decreasing times within 0..T, by default `self.times(T)`; rising ones from 1 on where nothing
                is random, which turns an image into its noise.
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
            x0, log_variance = self.evaluate(denoiser, x, t, u, y)
            return Point(t, x, self._clipped(x0), log_variance)

        past: list[Point] = []  # at most the two places before
        for t, u in pairwise(path):
            at, to = (torch.full((), time, device=x.device) for time in (t, u))
            here = self.correct(schedule, ask(x, at, to), past)
            x = self.step(schedule, here, to, past, ask, randn)
            past = [*past[-1:], here]
            yield Step(u, x, here.x0, evaluations)

    def __call__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Tensor | None = None,
        *,
        times: Sequence[int] | None = None,
        randn: Noise = torch.randn_like,
    ) -> Tensor:
        """x at the last time; the arguments are those of `trajectory`."""
        for step in self.trajectory(denoiser, x, y, times=times, randn=randn):
            x = step.x
        return x

    @abstractmethod
    def step(
        self,
        schedule: NoiseSchedule,
        here: Point,
        u: Tensor,
        past: Sequence[Point],
        ask: Callable[[Tensor, Tensor, Tensor], Point],
        randn: Noise,
    ) -> Tensor:
        """x_u from the place `here` and the places before it; `ask` evaluates the network once more."""

    def evaluate(
        self, denoiser: DenoiserLike, x: Tensor, t: Tensor, u: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The estimate of x_0 before a step t → u, and the step's log-variance where the sampler wants the learned one."""
        return denoiser(x, t, y), None

    def check(self, *, learned_variance: bool) -> None:  # noqa: B027
        """Refuse a network that learns no variance, where the sampler asks for one."""

    def correct(self, schedule: NoiseSchedule, here: Point, past: Sequence[Point]) -> Point:
        """The place to go on from, once the estimate at `here` is known: `here` itself, but for correctors."""
        return here

    def _clipped(self, x0: Tensor) -> Tensor:
        if self.dynamic_threshold is not None:
            s = torch.quantile(x0.abs().flatten(1).float(), self.dynamic_threshold, dim=1).clamp(min=1).to(x0.dtype)
            s = s.reshape(-1, *[1] * (x0.ndim - 1))
            x0 = x0.clamp(-s, s) / s
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _check_times(self, times: Sequence[int], T: int) -> None:
        falling = all(u < t for t, u in pairwise(times))
        rising = all(u > t for t, u in pairwise(times)) and not self.random and min(times, default=0) > 0
        if not times or any(not 0 <= t <= T for t in times) or not (falling or rising):
            upward = "" if self.random else " (or rise strictly from 1 or more)"
            raise ValueError(f"times={list(times)} must fall strictly{upward} and lie within 0..T={T}")


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
