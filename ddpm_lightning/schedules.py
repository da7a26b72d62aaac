"""The forward process: tables of ᾱ_t, and the Gaussians that follow from them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["NoiseSchedule", "cosine", "from_alpha_bar", "from_betas", "linear"]


class NoiseSchedule(nn.Module):
    """The variance-preserving forward process q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I) for t in 0..T (Murphy 2023, Eq. 25.3).

    The tables have T+1 entries, and index 0 is clean data: ᾱ_0 = 1. An integer tensor `t` that broadcasts
    against x, (B, 1, 1, 1) or (), indexes a table and gives the shape to multiply with. The tables are computed in
    float64 and kept as float32 buffers, also under `.to(torch.bfloat16)`; `.double()` gives them in full.

    Args:
        alpha_bar: (T+1,) values of ᾱ_t = Π_{s ≤ t} (1 − β_s), ᾱ_0 = 1 first.

    Raises:
        ValueError: where a β_t = 1 − ᾱ_t/ᾱ_{t−1} lies outside (0, 1].
    """

    alpha_bar: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    log_snr: Tensor

    def __init__(self, alpha_bar: Tensor):
        super().__init__()
        exact = torch.as_tensor(alpha_bar, dtype=torch.float64, device="cpu").clone()
        if exact.ndim != 1 or len(exact) < 2 or exact[0] != 1:
            raise ValueError(f"alpha_bar must be a list of at least two numbers that begins with 1, got {alpha_bar}")
        betas = 1 - exact[1:] / exact[:-1]
        bad = torch.nonzero(~((betas > 0) & (betas <= 1)))
        if len(bad):
            t = int(bad[0]) + 1
            raise ValueError(f"beta_{t} = {betas[t - 1]:.4g} lies outside (0, 1]: alpha_bar must fall at every step")
        self._exact = exact
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
    def num_steps(self) -> int:
        """T."""
        return len(self._exact) - 1

    @property
    def betas(self) -> Tensor:
        """(T,) float64: `betas[t-1]` is β_t."""
        return 1 - self._exact[1:] / self._exact[:-1]

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Murphy 2023, Eq. 25.3)."""
        return self.sqrt_alpha_bar[t] * x0 + self.sqrt_one_minus_alpha_bar[t] * noise

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance β̃_t of q(x_{t−1} | x_t, x_0) for t in 1..T (Murphy 2023, Eq. 25.4; Ho et al. 2020, Eq. 7).

        mean = √ᾱ_{t−1} β_t/(1−ᾱ_t) x_0 + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t) x_t, and β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t) β_t, with
        β_t/(1−ᾱ_t) = −expm1(λ_t−λ_{t−1}) and α_t (1−ᾱ_{t−1})/(1−ᾱ_t) = e^{λ_t−λ_{t−1}}, λ = log(ᾱ/(1−ᾱ)).
        """
        ratio = self.log_snr[t] - self.log_snr[t - 1]
        of_x_t = torch.exp(ratio / 2) * self.sqrt_one_minus_alpha_bar[t - 1] / self.sqrt_one_minus_alpha_bar[t]
        mean = self.sqrt_alpha_bar[t - 1] * -torch.expm1(ratio) * x0 + of_x_t * x_t
        return mean, self.step_variances(t, t - 1)[0]

    def step_variances(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """β̃_{t|u} and β_{t|u}, the two fixed variances of a reverse step t → u, u < t (Ho et al. 2020, section 3.2).

        β_{t|u} = 1 − ᾱ_t/ᾱ_u = (1−ᾱ_t)·(−expm1(λ_t−λ_u)), and β̃_{t|u} = (1−ᾱ_u)/(1−ᾱ_t) β_{t|u}, which is 0 at u = 0.
        """
        share = -torch.expm1(self.log_snr[t] - self.log_snr[u])
        return self.sqrt_one_minus_alpha_bar[u] ** 2 * share, self.sqrt_one_minus_alpha_bar[t] ** 2 * share


def from_betas(betas: Sequence[float] | Tensor) -> NoiseSchedule:
    """The schedule of any list of variances: ᾱ_t = Π_{s ≤ t} (1 − β_s), `betas[t-1]` = β_t in (0, 1]."""
    table = torch.as_tensor(betas, dtype=torch.float64)
    bad = torch.nonzero(~((table > 0) & (table <= 1)))
    if len(bad):
        t = int(bad[0]) + 1
        raise ValueError(f"beta_{t} = {table[t - 1]:.4g} lies outside (0, 1]")
    return from_alpha_bar(torch.cumprod(1 - table, 0))


def from_alpha_bar(alpha_bar: Sequence[float] | Tensor) -> NoiseSchedule:
    """The schedule of any falling list ᾱ_1, …, ᾱ_T (ᾱ_0 = 1 is put before it)."""
    table = torch.as_tensor(alpha_bar, dtype=torch.float64)
    return NoiseSchedule(torch.cat([torch.ones(1, dtype=torch.float64), table]))


def linear(num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """β rises in equal steps, β_t = β_1 + (t−1)/(T−1) (β_T − β_1) (Ho et al. 2020, section 4).

    diffusers calls this curve "linear"; "linear" in latent-diffusion code is another one, with √β in equal steps.
    """
    _check_num_steps(num_steps)
    return from_betas(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))


def cosine(num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) · π/2), with β_t ≤ max_beta (Nichol & Dhariwal 2021, Eq. 17).

    diffusers calls this curve "squaredcos_cap_v2".
    """
    _check_num_steps(num_steps)
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    f = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def _check_num_steps(num_steps: int) -> None:
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is no number of diffusion steps: give a whole number, 1 or more")
