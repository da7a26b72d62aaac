"""Loss weightings by t.

A weighting is a weight w(t) on the squared error of x̂_0. The network predicts p·x_0 + q·ε, with
‖x_0 − x̂_0‖² = error_scale(t)·‖target − output‖², so the factor on the network's own error is w(t)·error_scale(t):
w/SNR for ε, w for x_0, w/(SNR+1) for v. The loss under w is therefore the same for all prediction types. Only `Simple` is
defined on the network's own error, which is a different w for each prediction type: SNR for ε, 1 for x_0, SNR + 1 for v.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.likelihood import VARIANCES
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["P2", "SNR", "Bound", "MinSNR", "Simple", "TruncatedSNR", "Weighting"]


class Weighting(ABC):
    """The weight at each t. `on_output` is true if it is on the error of the network's output, not on that of x̂_0."""

    on_output: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """The factor on the squared error of the network's output, shaped like t."""


class Simple(Weighting):
    """1 at every t: L_simple (Ho et al. 2020, Eq. 14)."""

    on_output = True

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=denoiser.schedule.alpha_bar.dtype)


class SNR(Weighting):
    """w = SNR(t) = ᾱ_t/(1−ᾱ_t): L_simple of ε, for any prediction type (Salimans & Ho 2022, Eq. 9)."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return _snr(denoiser, t) * denoiser.error_scale(t)


class TruncatedSNR(Weighting):
    """w = max(SNR(t), 1) (Salimans & Ho 2022, section 4)."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return _snr(denoiser, t).clamp(min=1) * denoiser.error_scale(t)


class MinSNR(Weighting):
    """w = min(SNR(t), γ), or min(SNR, γ)/SNR for ε and min(SNR, γ)/(SNR + 1) for v (Hang et al. 2023, section 3.4)."""

    def __init__(self, gamma: float = 5.0):
        require("gamma", gamma, "(0, 1e9]")
        self.gamma = gamma

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return _snr(denoiser, t).clamp(max=self.gamma) * denoiser.error_scale(t)


class P2(Weighting):
    """w = SNR(t)/(k + SNR(t))^γ, or 1/(k + SNR)^γ for ε (Choi et al. 2022, Eq. 8)."""

    def __init__(self, gamma: float = 1.0, *, k: float = 1.0):
        require("gamma", gamma, "[0, 100]")
        require("k", k, "(0, inf)")
        self.gamma = gamma
        self.k = k

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        snr = _snr(denoiser, t)
        return snr / (self.k + snr) ** self.gamma * denoiser.error_scale(t)


class Bound(Weighting):
    """The weight of L_{t−1} in nats per dimension, β_t²/(2σ_t² α_t (1−ᾱ_t)) for ε (Ho et al. 2020, Eq. 12).

    w = ᾱ_{t−1} (β_t/(1−ᾱ_t))²/(2σ_t²), which is (SNR(t−1) − SNR(t))/2 where σ_t² = β̃_t; σ_1² is β̃_2. In continuous
    time w = −SNR'(t)/2 (Kingma et al. 2021, Eq. 17).

    Args:
        variance: see `Denoiser.log_variance`.
    """

    def __init__(self, variance: str = "small"):
        require_one_of("variance", variance, [*VARIANCES])
        self.variance = variance

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        if t.is_floating_point():
            return denoiser.schedule.snr_slope(t) / 2 * denoiser.error_scale(t)
        one = torch.ones_like(t, dtype=denoiser.schedule.alpha_bar.dtype)
        of_x0, _ = denoiser.schedule.posterior(one, 0 * one, t)
        log_variance = denoiser.log_variance(self.variance, t, t - 1)
        return of_x0**2 * torch.exp(-log_variance) / 2 * denoiser.error_scale(t)


def _snr(denoiser: Denoiser, t: Tensor) -> Tensor:
    return denoiser.schedule.log_snr_at(t).exp()
