"""The base class of samplers: timesteps, loop, clipping and the reverse step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition, beside
from ddpm_lightning.ranges import require, require_one_of, shown
from ddpm_lightning.samplers.spacings import SPACINGS
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DenoiserLike", "Noise", "Options", "Point", "Sampler", "Step", "Transition", "reverse_step"]

Noise = Callable[[Tensor], Tensor]


class DenoiserLike(Protocol):
    """The interface of a denoiser for samplers: its schedule, and x_0 from (x_t, t, y)."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None, /) -> Tensor: ...

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Step:
    """A step of a sampler: x at t, the estimate of x_0 that led to it, and the network evaluations so far."""

    t: float
    x: Tensor
    x0: Tensor
    evaluations: int


@dataclass(frozen=True)
class Point:
    """x at t, the estimate of x_0, and the log-variance of the next step, if learned."""

    t: Tensor
    x: Tensor
    x0: Tensor
    log_variance: Tensor | None = None


@dataclass
class Transition:
    """The inputs of a solver's step from t to u.

    Args:
        schedule: the denoiser's schedule.
        here: the point at t; a corrector may replace it.
        u: the next timestep.
        past: up to three points before `here`, newest last.
        ask: evaluates the network at (x, t) before a step to u, and returns the point.
        randn: returns standard normal noise like its argument.
        then: the timestep after u; u at the last.
        index: the number of the step, 0 first.
    """

    schedule: NoiseSchedule
    here: Point
    u: Tensor
    past: Sequence[Point]
    ask: Callable[[Tensor, Tensor, Tensor], Point]
    randn: Noise
    then: Tensor | None = None
    index: int = 0

    def step(self, x0: Tensor, *, eta: float | Tensor = 0.0) -> Tensor:
        """x_u by `reverse_step` with this x̄_0, and noise where η > 0."""
        mean, n = reverse_step(self.schedule, self.here, x0, self.u, eta=eta)
        return mean + n * self.randn(self.here.x) if eta > 0 else mean


class Options(TypedDict, total=False):
    """The arguments of every solver, see `Sampler`."""

    spacing: str
    continuous: bool
    times: Sequence[float] | str | None
    clip: float | None
    dynamic_threshold: float | None


class Sampler(ABC):
    """Samples x_0 from x_T in `num_steps` steps; stateless.

    A solver is a subclass with the method `step`. It sets `eta` above 0 if it adds noise, and `learned_variance` if it
    uses the network's learned variance.

    Args:
        num_steps: number of sampling steps, at most T; None is T.
        spacing: the timestep spacing: "trailing" (starts at T, the default), "leading" (ends at 1), "linspace" (both),
            "quadratic" or "karras".
        continuous: do not round the times to the schedule's integer timesteps.
        times: the timesteps themselves, decreasing, without 0, in place of num_steps and spacing; "learned" for those that `ddpm times`
            found for a checkpoint, which sample.py and evaluate.py put here.
        clip: clips each estimate of x_0 to ±clip; None for data outside [−1, 1].
        dynamic_threshold: dynamic thresholding with quantile p, such as 0.995: before clipping, each estimate is clipped to ±s and
            divided by s, where s ≥ 1 is the p-quantile of its |x_0| (Saharia et al. 2022, section 2.3).

    Raises:
        ValueError: for fewer than 1 step, an unknown spacing, or an invalid clip or dynamic_threshold.
    """

    eta: float = 0.0
    learned_variance: bool = False

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        spacing: str = "trailing",
        continuous: bool = False,
        times: Sequence[float] | str | None = None,
        clip: float | None = 1.0,
        dynamic_threshold: float | None = None,
    ):
        require("num_steps", num_steps, "1..", optional=True)
        require_one_of("spacing", spacing, [*SPACINGS])
        require("clip", clip, "(0, inf)", optional=True)
        require("dynamic_threshold", dynamic_threshold, "(0, 1]", optional=True)
        self.num_steps = num_steps
        self.spacing = spacing
        self.continuous = continuous
        self.given = None if times is None else _checked(times)
        self.clip = clip
        self.dynamic_threshold = dynamic_threshold

    def times(self, T: int, *, log_snr: Tensor | None = None) -> Sequence[float]:
        """The timesteps, strictly decreasing and ending in 0: integers, or floats if `continuous`.

        Args:
            T: the schedule's number of steps.
            log_snr: the schedule's T+1 log SNRs, required by the Karras spacing.

        Raises:
            ValueError: if fewer than `num_steps` distinct timesteps exist.
        """
        if self.given == "learned":
            raise ValueError(
                "times=learned is for sample.py and evaluate.py, after `python -m ddpm_lightning times CHECKPOINT`"
            )
        if self.given is not None:
            require("times[0]", self.given[0], f"[1, {T}]", hint=f"the schedule has T={T}")
            if all(isinstance(t, int) for t in self.given):
                return [*self.given, 0]
            return [*(t if isinstance(t, Tensor) else float(t) for t in self.given), 0.0]  # tensors have gradients
        num_steps = T if self.num_steps is None else self.num_steps
        require("num_steps", num_steps, f"1..{T}", hint=f"the schedule has T={T}")
        spaced = SPACINGS[self.spacing](T, num_steps, None if log_snr is None else log_snr[1:])
        if self.continuous:
            return [*map(float, spaced), 0.0]
        distinct = sorted({max(1, int(t + 0.5)) for t in spaced}, reverse=True)
        shortage = f"spacing={self.spacing} has only {len(distinct)} distinct times of T={T}"
        require("num_steps", num_steps, f"1..{len(distinct)}", hint=shortage)
        return [*distinct, 0]

    def times_on(self, schedule: NoiseSchedule) -> Sequence[float]:
        """`times` of a schedule."""
        return self.times(schedule.num_steps, log_snr=schedule.log_snr)

    def trajectory(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Condition | None = None,
        *,
        times: Sequence[float] | None = None,
        randn: Noise = torch.randn_like,
        grad: bool = False,
    ) -> Iterator[Step]:
        """Yield a Step for each pair of consecutive timesteps.

        Args:
            denoiser: estimates x_0.
            x: x at the first timestep; standard normal noise at T.
            y: labels (B,), another condition or None.
            times: strictly decreasing timesteps within [0, T], by default `self.times(T)`; if one is a float,
                all are times of continuous time; with `eta` = 0 also increasing ones
                from 1, which invert an image to its noise.
            randn: returns standard normal noise like its argument.
            grad: keep the graph, for gradients with respect to x, y or the weights.

        Raises:
            ValueError: for invalid times.
        """
        schedule = denoiser.schedule
        path = self.times_on(schedule) if times is None else list(times)
        self._check_times(path, schedule.num_steps)
        evaluations = 0
        dtype = torch.long if all(isinstance(t, int) for t in path) else schedule.alpha_bar.dtype

        def ask(x: Tensor, t: Tensor, u: Tensor) -> Point:
            nonlocal evaluations
            evaluations += 1
            x0, log_variance = denoiser.estimate(x, t, y, u=u) if self.learned_variance else (denoiser(x, t, y), None)
            self.check(learned_variance=log_variance is not None)
            return Point(t, x, self._clipped(x0), log_variance)

        past: list[Point] = []
        places = [t if isinstance(t, Tensor) else torch.full((), t, device=x.device, dtype=dtype) for t in path]
        for index, (_, u) in enumerate(pairwise(path)):
            to, then = places[index + 1], places[min(index + 2, len(path) - 1)]
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                x, at = self.perturb(schedule, x, places[index], len(path) - 1, randn)
                transition = Transition(schedule, ask(x, at, to), to, past, ask, randn, then, index)
                x = self.step(transition)
            past = [*past[-2:], transition.here]
            yield Step(u, x, transition.here.x0, evaluations)

    def __call__(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        y: Condition | None = None,
        *,
        times: Sequence[float] | None = None,
        randn: Noise = torch.randn_like,
        grad: bool = False,
    ) -> Tensor:
        """x at the last timestep; takes the arguments of `trajectory`."""
        for step in self.trajectory(denoiser, x, y, times=times, randn=randn, grad=grad):
            x = step.x
        return x

    @abstractmethod
    def step(self, at: Transition) -> Tensor:
        """x_u."""

    def perturb(self, schedule: NoiseSchedule, x: Tensor, t: Tensor, steps: int, randn: Noise) -> tuple[Tensor, Tensor]:
        """x and t where one of the steps begins: as they are, or with noise added, at a larger t."""
        return x, t

    def check(self, *, learned_variance: bool) -> None:
        """Refuse a network without a learned variance if the sampler uses it.

        Raises:
            ValueError: if the variance is missing.
        """
        if self.learned_variance and not learned_variance:
            raise ValueError("variance must be small or large for a network without a learned variance, got 'learned'")

    def _clipped(self, x0: Tensor) -> Tensor:
        if self.dynamic_threshold is not None:
            s = torch.quantile(x0.abs().flatten(1).float(), self.dynamic_threshold, dim=1).clamp(min=1).to(x0.dtype)
            s = beside(s, x0)
            x0 = x0.clamp(-s, s) / s
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _check_times(self, times: Sequence[float], T: int) -> None:
        falling = all(u < t for t, u in pairwise(times))
        rising = all(u > t for t, u in pairwise(times)) and self.eta == 0 and min(times, default=0) > 0
        if not times or any(not 0 <= t <= T for t in times) or not (falling or rising):
            upward = " (or increase from 1 or more)" if self.eta == 0 else ""
            raise ValueError(f"times must decrease strictly{upward} within 0..T={T}, got {list(times)}")


def _checked(times: Sequence[float] | str) -> Sequence[float] | str:
    if isinstance(times, str):
        if times != "learned":
            raise ValueError(f"times must be learned or a list such as [1000,600,200], got {shown(times)}")
        return times
    if not times or any(u >= t for t, u in pairwise(times)) or not all(t >= 1 for t in times):
        raise ValueError(
            f"times must decrease from one to the next, and end at 1 or above, as in [1000,600,200], got {list(times)}"
        )
    return list(times)


def reverse_step(
    schedule: NoiseSchedule, here: Point, x0: Tensor, u: Tensor, *, eta: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation n of the step x_t → x_u, shared by all samplers (Song et al. 2021, Eq. 7 and 16).

    mean = a_u x̄_0 + √(s_u² − n²)·(x_t − a_t x̄_0)/s_t with a = √ᾱ, s = √(1−ᾱ), n = η s_u √(−expm1(λ_t−λ_u)) and
    √(s_u² − n²) = s_u √(1 − η² + η² e^{λ_t−λ_u}). Solvers differ only in x̄_0.
    """
    (a_t, s_t), (a_u, s_u) = schedule.scales(here.t), schedule.scales(u)
    n, kept = torch.zeros_like(s_u), s_u
    if eta > 0:
        ratio = schedule.log_snr_at(here.t) - schedule.log_snr_at(u)
        n = eta * s_u * torch.sqrt(-torch.expm1(ratio))
        kept = s_u * torch.sqrt(1 - eta**2 + eta**2 * torch.exp(ratio))
    return a_u * x0 + kept * (here.x - a_t * x0) / s_t, n
