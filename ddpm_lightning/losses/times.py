"""How t is drawn for a batch. No draw waits for the device."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddpm_lightning.ranges import is_integer, within
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Importance", "LogNormal", "Stratified", "TimeDraw", "Uniform"]


class TimeDraw(ABC):
    """How t is drawn for a batch; `adaptive` says whether it learns from the losses that it is told of."""

    adaptive: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        *,
        device: torch.device,
        shared: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """t of shape (B, 1, 1, 1) in 1..T, and the weight (B,) of each image's loss.

        Args:
            batch_size: B, the same on all ranks.
            shared: a generator on the CPU in the same state on all ranks; None is the global one.
            rank: which of `world_size` processes this is.
        """

    def check(self, schedule: NoiseSchedule) -> None:  # noqa: B027
        """Refuse a schedule that this draw is not made for."""

    def update(self, t: Tensor, losses: Tensor) -> None:  # noqa: B027
        """Take note of the unweighted losses (N,) at t (N,) of one step, gathered over ranks in one order for all."""


class Uniform(TimeDraw):
    """t ~ U{1, …, T}, each with weight 1 (Murphy 2023, Algorithm 25.1)."""

    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        *,
        device: torch.device,
        shared: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        t = torch.randint(1, schedule.num_steps + 1, (batch_size, 1, 1, 1), device=device)
        return t, torch.ones(batch_size, device=device)


class Stratified(TimeDraw):
    """t_j = 1 + ⌊T·frac(u + j/N)⌋ for the N = W·B images of all ranks, one u ~ U[0, 1) for all (Kingma et al. 2021, appendix I.1).

    Each t_j by itself is uniform, and together they lie evenly in 1..T, so that the mean loss varies less. All weights are 1.
    """

    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        *,
        device: torch.device,
        shared: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        # In whole numbers, U = ⌊N·T·u⌋: nothing is rounded, and U comes from the CPU, so the device is not waited for.
        T, N = schedule.num_steps, world_size * batch_size
        offset = int(torch.randint(N * T, (), generator=shared))
        j = rank * batch_size + torch.arange(batch_size, device=device)
        t = 1 + (offset + j * T) % (N * T) // N
        return t[:, None, None, None], torch.ones(batch_size, device=device)


class Importance(nn.Module, TimeDraw):
    """p_t ∝ √E[L_t²] over the last losses at t, mixed with a little of the uniform law; weight 1/(T·p_t) (Nichol & Dhariwal 2021, Eq. 18).

    Uniform until every t has been seen `history` times. The one draw with a state: it lies in buffers, and changes
    in `update` alone, as a function of the state and of what `update` is given.

    Args:
        num_steps: T.
        history: how many losses are kept for each t.
        uniform: the share of draws that stay uniform, 0.001 in the paper's code, so that no t is forgotten.
    """

    adaptive = True
    losses: Tensor
    counts: Tensor

    def __init__(self, num_steps: int, *, history: int = 10, uniform: float = 0.001):
        super().__init__()
        if not (is_integer(num_steps, "[1, 1e6]") and is_integer(history, "[1, 1000]")):
            values = f"num_steps={num_steps}, history={history}"
            raise ValueError(f"{values} will not do: give the schedule's T, and a whole number from 1 to 1000")
        if not within(uniform, "[0, 1]"):
            raise ValueError(f"uniform={uniform} is no share of the draws: give a number from 0 to 1, such as 0.001")
        self.history = history
        self.uniform = uniform
        self.register_buffer("losses", torch.zeros(num_steps, history))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.long))

    def check(self, schedule: NoiseSchedule) -> None:
        if schedule.num_steps != len(self.counts):
            raise ValueError(
                f"times.num_steps={len(self.counts)} of the time draw and T={schedule.num_steps} of the schedule must be one number"
            )

    def probabilities(self) -> Tensor:
        """(T,) p_t."""
        T = len(self.counts)
        root = self.losses.float().square().mean(1).sqrt()
        p = (1 - self.uniform) * root / root.sum() + self.uniform / T
        ready = (self.counts >= self.history).all() & (root.sum() > 0)
        return torch.where(ready, p, torch.full_like(p, 1 / T))

    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        *,
        device: torch.device,
        shared: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        self.check(schedule)
        T = len(self.counts)
        p = self.probabilities().to(device)
        # The first of T exponential clocks of rates p_t to ring: unlike torch.multinomial, it never waits for the device.
        index = (torch.empty(batch_size, T, device=device).exponential_() / p).argmin(1)
        return 1 + index[:, None, None, None], 1 / (T * p[index])

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        t, order = (t.flatten() - 1).sort(stable=True)
        first, after = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True)
        place = torch.arange(len(t), device=t.device)
        # Of more than `history` losses at one t the last are kept; the others go to a slot behind the table.
        slot = t * self.history + (self.counts[t] + place - first) % self.history
        slot = torch.where(after - place <= self.history, slot, self.losses.numel())
        table = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        table[slot] = losses.flatten()[order].to(table.dtype)
        self.losses.copy_(table[:-1].view_as(self.losses))
        self.counts.scatter_add_(0, t, torch.ones_like(t))


class LogNormal(TimeDraw):
    """ln σ ~ N(P_mean, P_std²) with σ = √((1−ᾱ)/ᾱ), and the t whose ln σ_t lies nearest (Karras et al. 2022, Table 1).

    All weights are 1: unlike an importance draw, this is the distribution that is trained for, with more of the middle
    and less of both ends than U{1, …, T}. What lies beyond the table falls to its ends; a σ_T far above
    e^{P_mean + 4 P_std} = 37, or infinite with zero terminal SNR, is next to never drawn.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        if not (within(mean, "[-20, 20]") and within(std, "(0, 20]")):
            values = f"mean={mean}, std={std}"
            raise ValueError(f"{values} make no distribution of ln σ: give two numbers up to 20, std above 0")
        self.mean = mean
        self.std = std

    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        *,
        device: torch.device,
        shared: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[Tensor, Tensor]:
        log_sigma = -schedule.log_snr[1:].to(device) / 2
        halfway = (log_sigma[1:] + log_sigma[:-1]) / 2
        draws = self.mean + self.std * torch.randn(batch_size, device=device, dtype=halfway.dtype)
        t = 1 + torch.searchsorted(halfway, draws)
        return t[:, None, None, None], torch.ones(batch_size, device=device)
