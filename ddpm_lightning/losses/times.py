"""Sampling of t for the images of an optimizer step, over all processes, without waiting for the device."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Antithetic", "Importance", "LogNormal", "Stratified", "TimeDraw", "Uniform"]


class TimeDraw(ABC):
    """Samples t for the images of an optimizer step: each process samples for all and takes its own part.

    `adaptive` is true if `update` learns from the losses, `continuous` if t is a float in [1, T].
    """

    adaptive: ClassVar[bool] = False
    continuous: bool = False

    @abstractmethod
    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        """Sample t in 1..T or [1, T], (B, 1, 1, 1), and the weight of each image's loss, (B,), on the schedule's device.

        Args:
            batch_size: B, the number of images in the step.
            schedule: provides T, and λ_t if the distribution depends on it.
        """

    def check(self, schedule: NoiseSchedule) -> None:  # noqa: B027
        """Refuse an incompatible schedule."""

    def update(self, t: Tensor, losses: Tensor) -> None:  # noqa: B027
        """Record a step's unweighted losses (N,) at t (N,), in the order of its images."""


class Uniform(TimeDraw):
    """t ~ U{1, …, T}, with weight 1 (Murphy 2023, Algorithm 25.1); t ~ U[1, T] in continuous time."""

    def __init__(self, continuous: bool = False):
        self.continuous = continuous

    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        T, shape, device = schedule.num_steps, (batch_size, 1, 1, 1), schedule.alpha_bar.device
        if self.continuous:
            t = 1 + (T - 1) * torch.rand(shape, device=device, dtype=schedule.alpha_bar.dtype)
        else:
            t = torch.randint(1, T + 1, shape, device=device)
        return t, torch.ones(batch_size, device=device)


class Antithetic(Uniform):
    """t ~ U{1, …, T} for the first ⌊N/2⌋+1 images of a step, and T+1−t of these for the others (Song et al. 2021, code).

    Each t is uniform, with weight 1; pairs that mirror each other reduce the variance of the mean loss. U[1, T] in continuous time.
    """

    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        t, _ = super().__call__(batch_size // 2 + 1, schedule)
        t = torch.cat([t, schedule.num_steps + 1 - t])[:batch_size]
        return t, torch.ones(batch_size, device=t.device)


class Stratified(Uniform):
    """t_j = 1 + ⌊T·frac(u + j/N)⌋ for the N images of a step, with one u ~ U[0, 1) for all (Kingma et al. 2021, appendix I.1).

    Each t_j is uniform, and together they are evenly spaced in 1..T, which reduces the variance of the mean loss. Weights are 1.
    In continuous time t_j = 1 + (T−1)·frac(u + j/N).
    """

    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        # In integers, U = ⌊N·T·u⌋, without rounding errors; U is sampled on the CPU, without waiting for the device.
        T, N, device = schedule.num_steps, batch_size, schedule.alpha_bar.device
        if self.continuous:
            u = (torch.rand((), device=device) + torch.arange(N, device=device) / N).to(schedule.alpha_bar.dtype)
            t = 1 + (T - 1) * u.frac()
        else:
            t = 1 + (int(torch.randint(N * T, ())) + torch.arange(N, device=device) * T) % (N * T) // N
        return t[:, None, None, None], torch.ones(N, device=device)


class Importance(nn.Module, TimeDraw):
    """p_t ∝ √E[L_t²] over the last losses at t, mixed with a uniform distribution; weight 1/(T·p_t) (Nichol & Dhariwal 2021, Eq. 18).

    Uniform until every t has been sampled `history` times. The only sampler of t with a state, which is held in buffers and
    changed only by `update`, deterministically.

    Args:
        num_steps: T.
        history: the number of losses kept per t.
        uniform: the weight of the uniform distribution, 0.001 in the paper's code, so that every t is sampled.
    """

    adaptive = True
    losses: Tensor
    counts: Tensor

    def __init__(self, num_steps: int, *, history: int = 10, uniform: float = 0.001):
        super().__init__()
        require("num_steps", num_steps, "1..1000000")
        require("history", history, "1..1000")
        require("uniform", uniform, "[0, 1]")
        self.history = history
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(num_steps, history))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.long))

    def check(self, schedule: NoiseSchedule) -> None:
        require_one_of("times.num_steps", len(self.counts), [schedule.num_steps], hint="the schedule's num_steps")

    def probabilities(self) -> Tensor:
        """(T,) p_t."""
        T = len(self.counts)
        root = self.losses.float().square().mean(1).sqrt()
        p = (1 - self.uniform) * root / root.sum() + self.uniform / T
        ready = (self.counts >= self.history).all() & (root.sum() > 0)
        return torch.where(ready, p, torch.full_like(p, 1 / T))

    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        p = self.probabilities().to(schedule.alpha_bar.device)
        T = len(p)
        # The first of T exponential clocks of rates p_t to ring: unlike torch.multinomial, it never waits for the device.
        index = (torch.empty(batch_size, T, device=p.device).exponential_() / p).argmin(1)
        return 1 + index[:, None, None, None], 1 / (T * p[index])

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        t, order = (t.flatten() - 1).sort(stable=True)
        first, after = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        place = torch.arange(len(t), device=t.device)
        # Only the last `history` losses at a t are kept; the others go to a slot after the table.
        slot = t * self.history + (self.counts[t] + place - first) % self.history
        slot = torch.where(after - place <= self.history, slot, self.losses.numel())
        table = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        table[slot] = losses.flatten()[order].to(table.dtype)
        self.losses.copy_(table[:-1].view_as(self.losses))
        self.counts.scatter_add_(0, t, torch.ones_like(t))


class LogNormal(TimeDraw):
    """ln σ ~ N(P_mean, P_std²) with σ = √((1−ᾱ)/ᾱ), mapped to the t with the nearest ln σ_t (Karras et al. 2022, Table 1).

    In continuous time σ_t is exactly the one drawn. On the path (1−τ) x_0 + τ ε, where σ = τ/(1−τ), this is the logit-normal draw of τ
    (Esser et al. 2024, Eq. 19).

    All weights are 1: unlike importance sampling, this changes the training distribution, with more of the middle and less
    of both ends than U{1, …, T}. Values beyond the table are mapped to its ends; a σ_T far above e^{P_mean + 4 P_std} = 37,
    or infinite with zero terminal SNR, is almost never sampled.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, continuous: bool = False):
        require("mean", mean, "[-20, 20]")
        require("std", std, "(0, 20]")
        self.mean = mean
        self.std = std
        self.continuous = continuous

    def __call__(self, batch_size: int, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        log_sigma = -schedule.log_snr[1:] / 2
        halfway = (log_sigma[1:] + log_sigma[:-1]) / 2
        draws = self.mean + self.std * torch.randn(batch_size, device=halfway.device, dtype=halfway.dtype)
        t = schedule.time_at(-2 * draws) if self.continuous else 1 + torch.searchsorted(halfway, draws)
        return t[:, None, None, None], torch.ones(batch_size, device=t.device)
