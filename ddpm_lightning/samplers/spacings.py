"""Timestep spacings of samplers."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SPACINGS"]

# (T, N, log SNR at 1..T) -> N times in [1, T], noisiest first, which are rounded unless time is continuous; 0 is appended.
Spacing = Callable[[int, int, Tensor | None], list[float]]


def _karras(T: int, N: int, log_snr: Tensor | None, rho: float = 7.0) -> list[float]:
    if log_snr is None:
        raise ValueError("spacing=karras requires the schedule's log_snr")
    levels = log_snr.cpu().double()
    # T is always included, even if its σ is infinite; the others lie below the paper's σ_max = 80.
    largest = torch.exp(-levels[-1] / 2).clamp(max=80) ** (1 / rho)
    smallest = torch.exp(-levels[0] / 2) ** (1 / rho)
    sigmas = torch.lerp(largest, smallest, torch.linspace(0, 1, N, dtype=torch.float64)) ** rho
    wanted = -2 * sigmas.log()
    row = torch.searchsorted(-levels, -wanted).clamp(1, T - 1) if T > 1 else torch.zeros(N, dtype=torch.long)
    times = row + (levels[row - 1] - wanted) / (levels[row - 1] - levels[row])  # λ is linear between two rows
    return [float(T), *times[1:].tolist()]


SPACINGS: dict[str, Spacing] = {
    # Lin et al. 2023, Table 2
    "trailing": lambda T, N, _: [T - i * T / N for i in range(N)],
    "leading": lambda T, N, _: [1 + (N - 1 - i) * (T // N) for i in range(N)],
    "linspace": lambda T, N, _: [T - i * (T - 1) / max(N - 1, 1) for i in range(N)],
    # Song et al. 2021, section D.2: denser near t = 0
    "quadratic": lambda T, N, _: [T * (1 - i / N) ** 2 for i in range(N)],
    # Karras et al. 2022, Eq. 5: σ = √((1−ᾱ)/ᾱ) in equal steps of σ^{1/7}
    "karras": _karras,
}
