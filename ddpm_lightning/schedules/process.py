"""The forward process: tables of ᾱ_t, and the Gaussians that follow from them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["NoiseSchedule"]


class NoiseSchedule(nn.Module):
    """The variance-preserving forward process q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I) for t in 0..T (Murphy 2023, Eq. 25.3).

    The tables have T+1 entries, and index 0 is clean data: ᾱ_0 = 1. An integer tensor `t` that broadcasts
    against x, (B, 1, 1, 1) or (), indexes a table and gives the shape to multiply with. The tables are computed in
    float64 and kept as float32 buffers, also under `.to(torch.bfloat16)`; `.double()` gives them in full.
    A float `t` in [0, T] is continuous time, at which λ follows from `curve`, or is interpolated between two rows. `num_steps` is T.

    Args:
        alpha_bar: (T+1,) values of ᾱ_t = Π_{s ≤ t} (1 − β_s), ᾱ_0 = 1 first.
        curve: λ(t) = log(ᾱ_t/(1−ᾱ_t)) of float t, which agrees with the table at integers; None to interpolate.

    Raises:
        ValueError: where a β_t = 1 − ᾱ_t/ᾱ_{t−1} lies outside (0, 1].
    """

    alpha_bar: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    log_snr: Tensor

    def __init__(self, alpha_bar: Tensor, *, curve: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.curve = curve
        exact = torch.as_tensor(alpha_bar, dtype=torch.float64, device="cpu").clone()
        if exact.ndim != 1 or len(exact) < 2 or exact[0] != 1:
            raise ValueError(f"alpha_bar must be a list of at least two numbers that begins with 1, got {alpha_bar}")
        self._exact, self.num_steps = exact, len(exact) - 1
        bad = torch.nonzero(~((self.betas > 0) & (self.betas <= 1)))
        if len(bad):
            t = int(bad[0]) + 1
            raise ValueError(
                f"beta_{t} = 1 - alpha_bar_{t}/alpha_bar_{t - 1} must be in (0, 1], got {self.betas[t - 1]:.4g}: alpha_bar must "
                f"fall at every step up to T={self.num_steps}, and reach 0 at the last step only"
            )
        for name, table in self._tables().items():
            self.register_buffer(name, table.float(), persistent=False)

    def _tables(self) -> dict[str, Tensor]:
        a = self._exact
        return {
            "alpha_bar": a,
            "sqrt_alpha_bar": a.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - a).sqrt(),
            "log_snr": a.log() - torch.log1p(-a),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NoiseSchedule":
        # Devices are followed, narrow dtypes are not: bfloat16 tables would put whole steps on one value.
        moved = fn(self.alpha_bar)
        dtype = torch.float64 if moved.dtype == torch.float64 else torch.float32
        for name, table in self._tables().items():
            self._buffers[name] = table.to(dtype).to(moved.device)
        return self

    @property
    def betas(self) -> Tensor:
        """(T,) float64: `betas[t-1]` is β_t."""
        return 1 - self._exact[1:] / self._exact[:-1]

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), shaped like t: integers in 0..T, or floats in [0, T]."""
        if not t.is_floating_point():
            return self.sqrt_alpha_bar[t], self.sqrt_one_minus_alpha_bar[t]
        log_snr = self.log_snr_at(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()

    def log_snr_at(self, t: Tensor) -> Tensor:
        """λ_t = log(ᾱ_t/(1−ᾱ_t)), shaped like t: integers in 0..T, or floats in [0, T]."""
        if not t.is_floating_point():
            return self.log_snr[t]
        log_snr = self._interpolated(t) if self.curve is None else self.curve(t)
        return torch.where(t > 0, log_snr, torch.inf)  # clean data at 0, also where the curve ends in noise

    def snr_slope(self, t: Tensor) -> Tensor:
        """−dSNR/dt ≥ 0 of SNR = e^λ, shaped like the float t; 0 where SNR is 0."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_snr_at(t).exp().sum(), t)
        return -slope.nan_to_num(nan=0.0)

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The float t in [1, T] with λ_t = log_snr, shaped like it; beyond λ_1 and λ_T the nearer end."""
        rows = self.log_snr[1:].to(log_snr.dtype)
        low = torch.searchsorted(-rows, -log_snr).clamp(1, max(self.num_steps - 1, 1)).to(log_snr.dtype)
        width = torch.full_like(low, min(1, self.num_steps - 1))
        for _ in range(24 if log_snr.dtype == torch.float32 else 52):  # halves the interval to the dtype's resolution
            width = width / 2
            low = torch.where(self.log_snr_at(low + width) >= log_snr, low + width, low)
        return torch.where(log_snr <= rows[-1], float(self.num_steps), low)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Murphy 2023, Eq. 25.3).

        Raises:
            ValueError: where the shapes of x_0 and ε differ, or t would broadcast along the wrong axis.
        """
        _require_shapes("x0", x0, t, noise)
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self.scales(t)
        return sqrt_alpha_bar * x0 + sqrt_one_minus_alpha_bar * noise

    def step(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √(1−β_t) x_{t−1} + √β_t ε, a sample of q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I) (Murphy 2023, Eq. 25.1).

        Args:
            x: x_{t−1}, (B, C, ...).
            t: 1..T, (B, 1, 1, 1) or ().
            noise: ε ~ N(0, I), shaped like x.

        Raises:
            ValueError: as `q_sample`.
        """
        _require_shapes("x", x, t, noise)
        beta = self.step_variances(t, t - 1)[1]
        return torch.sqrt(1 - beta) * x + torch.sqrt(beta) * noise

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance β̃_t of q(x_{t−1} | x_t, x_0) for t in 1..T (Ho et al. 2020, Eq. 6 and 7).

        mean = √ᾱ_{t−1} β_t/(1−ᾱ_t) x_0 + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t) x_t, and β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t) β_t, with
        β_t/(1−ᾱ_t) = −expm1(λ_t−λ_{t−1}) and α_t (1−ᾱ_{t−1})/(1−ᾱ_t) = e^{λ_t−λ_{t−1}}, λ = log(ᾱ/(1−ᾱ)).
        """
        ratio = self.log_snr_at(t) - self.log_snr_at(t - 1)
        (_, s), (a_before, s_before) = self.scales(t), self.scales(t - 1)
        of_x_t = torch.exp(ratio / 2) * s_before / s
        mean = a_before * -torch.expm1(ratio) * x0 + of_x_t * x_t
        return mean, self.step_variances(t, t - 1)[0]

    def step_variances(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """β̃_{t|u} and β_{t|u}, the two fixed variances of a reverse step t → u, u < t (Ho et al. 2020, section 3.2).

        β_{t|u} = 1 − ᾱ_t/ᾱ_u = (1−ᾱ_t)·(−expm1(λ_t−λ_u)), and β̃_{t|u} = (1−ᾱ_u)/(1−ᾱ_t) β_{t|u}, which is 0 at u = 0.
        """
        share = -torch.expm1(self.log_snr_at(t) - self.log_snr_at(u))
        return self.scales(u)[1] ** 2 * share, self.scales(t)[1] ** 2 * share

    def _interpolated(self, t: Tensor) -> Tensor:
        """λ linear between two rows; e^{−λ} where λ_0 = ∞, which is a constant β within the step, and e^λ where λ_T = −∞."""
        row = t.floor().clamp(0, self.num_steps - 1)
        share = t - row
        before, after = self.log_snr[row.long()], self.log_snr[row.long() + 1]
        first, last = before == torch.inf, after == -torch.inf
        steps = torch.where(first | last, 0, after - before)
        of_ends = torch.log1p(-torch.where(last, share, 0)) - torch.where(first, share, 1).log()
        return torch.where(first, after, before) + share * steps + of_ends


def _require_shapes(name: str, x: Tensor, t: Tensor, noise: Tensor) -> None:
    if noise.shape != x.shape or t.ndim not in (0, x.ndim):
        shapes = f"noise {tuple(noise.shape)} and t {tuple(t.shape)}"
        raise ValueError(f"noise must be shaped like {name} {tuple(x.shape)} and t (B, 1, 1, 1) or (), got {shapes}")
