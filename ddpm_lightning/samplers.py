"""Noise to image by asking a denoiser: Algorithm 25.2 and its faster relatives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["DDIM", "SPACINGS", "Ancestral", "Sampler", "Step"]

Noise = Callable[[Tensor], Tensor]


class DenoiserLike(Protocol):
    """What a sampler asks of a denoiser: its schedule, and x_0 from (x_t, t, y)."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One step of a sampler: x at time t, the estimate of x_0 that led there, and the network evaluations so far."""

    t: int
    x: Tensor
    x0: Tensor
    evaluations: int


# N times in 1..T, noisiest first (0 is put behind them), as named by Lin et al. 2023, Table 2.
SPACINGS: dict[str, Callable[[int, int], list[float]]] = {
    "trailing": lambda T, N: [T - i * T / N for i in range(N)],
    "leading": lambda T, N: [1 + (N - 1 - i) * (T // N) for i in range(N)],
    "linspace": lambda T, N: [T - i * (T - 1) / max(N - 1, 1) for i in range(N)],
}


class Sampler(ABC):
    """A way from x_T to x_0 in `num_steps` steps; it holds no state, and every call starts afresh.

    Args:
        num_steps: how many of the T steps are taken, at most T; None takes them all.
        spacing: which ones: "trailing" (begins at T, the default), "leading" (ends at 1) or "linspace" (both).
        clip: each estimate of x_0 is kept within ±clip; None for data outside [−1, 1].

    Raises:
        ValueError: for a number of steps below 1, or an unknown spacing.
    """

    def __init__(self, num_steps: int | None = None, *, spacing: str = "trailing", clip: float | None = 1.0):
        if num_steps is not None and (not isinstance(num_steps, int) or num_steps < 1):
            raise ValueError(f"num_steps={num_steps} is no number of sampling steps: give a whole number, 1 or more")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing={spacing} is unknown: choose one of {', '.join(SPACINGS)}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip={clip} leaves nothing of the image: give a number above 0, or null for no clipping")
        self.num_steps = num_steps
        self.spacing = spacing
        self.clip = clip

    def times(self, T: int) -> list[int]:
        """The times that are visited, strictly decreasing and ending in 0.

        Raises:
            ValueError: where fewer than `num_steps` distinct times exist.
        """
        wanted = T if self.num_steps is None else self.num_steps
        if wanted > T:
            raise ValueError(f"num_steps={wanted} is more than the schedule's T={T}: give at most {T}")
        times = [int(t + 0.5) for t in SPACINGS[self.spacing](T, wanted)]
        distinct = sorted(set(times), reverse=True)
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
            times: strictly decreasing times within 0..T; by default all the way from `self.times(T)`.
            randn: standard normal noise like its argument.
        """
        schedule = denoiser.schedule
        path = self.times(schedule.num_steps) if times is None else list(times)
        _check_times(path, schedule.num_steps)
        for evaluations, (t, u) in enumerate(pairwise(path), start=1):
            at, to = (torch.full((), time, device=x.device) for time in (t, u))
            x0 = denoiser(x, at, y)
            if self.clip is not None:
                x0 = x0.clamp(-self.clip, self.clip)
            x = self.step(schedule, x, x0, at, to, randn)
            yield Step(u, x, x0, evaluations)

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
    def step(self, schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, u: Tensor, randn: Noise) -> Tensor:
        """x_u from x_t and the estimate of x_0, for u < t."""


class Ancestral(Sampler):
    """A draw from q(x_u | x_t, x̂_0) at every step; at u = t−1 this is Algorithm 25.2 (Murphy 2023; Ho et al. 2020, Algorithm 2).

    Args:
        variance: "small" is β̃_t, the posterior's own; "large" is β_{t|u} = 1 − ᾱ_t/ᾱ_u (β_t at u = t−1), and none at u = 0.
    """

    VARIANCES = ("small", "large")

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        variance: str = "small",
        spacing: str = "trailing",
        clip: float | None = 1.0,
    ):
        super().__init__(num_steps, spacing=spacing, clip=clip)
        if variance not in self.VARIANCES:
            raise ValueError(f"variance={variance} is unknown: choose one of {', '.join(self.VARIANCES)}")
        self.variance = variance

    def step(self, schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, u: Tensor, randn: Noise) -> Tensor:
        mean, sigma = reverse_step(schedule, x, x0, t, u, eta=1.0)
        if self.variance == "large":
            a_ratio = (schedule.sqrt_alpha_bar[t] / schedule.sqrt_alpha_bar[u]) ** 2
            # 1 − ᾱ_t/ᾱ_u = (1−ᾱ_t)·(1 − e^{λ_t−λ_u}), without the cancellation; no noise at u = 0.
            sigma = torch.where(
                u > 0,
                schedule.sqrt_one_minus_alpha_bar[t]
                * torch.sqrt(-torch.expm1(schedule.log_snr[t] - schedule.log_snr[u])),
                a_ratio * 0,
            )
        return mean + sigma * randn(x)


class DDIM(Sampler):
    """The family between the deterministic sampler (η = 0) and the ancestral one (η = 1) (Song et al. 2021, Eq. 12 and 16)."""

    def __init__(
        self, num_steps: int | None = 50, *, eta: float = 0.0, spacing: str = "trailing", clip: float | None = 1.0
    ):
        super().__init__(num_steps, spacing=spacing, clip=clip)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} lies outside [0, 1]: 0 is deterministic, 1 is ancestral")
        self.eta = eta

    def step(self, schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, u: Tensor, randn: Noise) -> Tensor:
        mean, sigma = reverse_step(schedule, x, x0, t, u, eta=self.eta)
        return mean + sigma * randn(x) if self.eta > 0 else mean


def reverse_step(
    schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, u: Tensor, *, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation n of the step x_t → x_u that every sampler takes (Song et al. 2021, Eq. 7 and 16).

    mean = a_u x̂_0 + √(s_u² − n²)·(x_t − a_t x̂_0)/s_t with a = √ᾱ, s = √(1−ᾱ), n = η s_u √(−expm1(λ_t−λ_u)) and
    √(s_u² − n²) = s_u √(1 − η² + η² e^{λ_t−λ_u}).
    """
    a_t, a_u = schedule.sqrt_alpha_bar[t], schedule.sqrt_alpha_bar[u]
    s_t, s_u = schedule.sqrt_one_minus_alpha_bar[t], schedule.sqrt_one_minus_alpha_bar[u]
    ratio = schedule.log_snr[t] - schedule.log_snr[u]
    n = eta * s_u * torch.sqrt(-torch.expm1(ratio))
    kept = s_u * torch.sqrt(1 - eta**2 + eta**2 * torch.exp(ratio))
    return a_u * x0 + kept * (x - a_t * x0) / s_t, n


def _check_times(times: Sequence[int], T: int) -> None:
    if not times or any(not 0 <= t <= T for t in times) or any(u >= t for t, u in pairwise(times)):
        raise ValueError(f"times={list(times)} must fall strictly and lie within 0..T={T}")
