"""The losses of each image."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.likelihood import VARIANCES, vlb_term
from ddpm_lightning.losses.times import TimeDraw, Uniform
from ddpm_lightning.losses.weightings import Simple, Weighting
from ddpm_lightning.ranges import within

__all__ = ["MSE", "VLB", "Distance", "Huber", "Hybrid", "Loss", "Objective"]


class Distance(ABC):
    """What an error costs, pixel by pixel."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Tensor: ...


class MSE(Distance):
    """e²."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square()


class Huber(Distance):
    """e²/2 up to |e| = δ, and δ·(|e| − δ/2) beyond (Huber 1964)."""

    def __init__(self, delta: float = 0.1):
        if not within(delta, "(0, inf)"):
            raise ValueError(f"delta={delta} costs nothing: give a number above 0")
        self.delta = delta

    def __call__(self, error: Tensor) -> Tensor:
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)


class Objective(nn.Module, ABC):
    """What training asks for: how t and ε are drawn, and the loss of each image.

    Args:
        times: how t is drawn; uniform by default.
        offset_noise: the strength o of ε = ε' + o·ξ, with one ξ ~ N(0, 1) for each image and channel (Guttenberg
            2023, Diffusion with Offset Noise).
        input_perturbation: the strength γ of x_t = √ᾱ_t x_0 + √(1−ᾱ_t) (ε + γ ξ), ξ ~ N(0, I), with ε still the
            target (Ning et al. 2023, Algorithm 1).

    Raises:
        ValueError: for a strength outside [0, 1].
    """

    def __init__(self, *, times: TimeDraw | None = None, offset_noise: float = 0.0, input_perturbation: float = 0.0):
        super().__init__()
        for name, strength in (("offset_noise", offset_noise), ("input_perturbation", input_perturbation)):
            if not within(strength, "[0, 1]"):
                raise ValueError(f"{name}={strength} is no strength of a noise: give a number from 0 to 1, such as 0.1")
        self.times = times if times is not None else Uniform()
        self.offset_noise = offset_noise
        self.input_perturbation = input_perturbation

    def noise_like(self, x0: Tensor) -> Tensor:
        """ε ~ N(0, I), or with an offset for each channel."""
        noise = torch.randn_like(x0)
        if self.offset_noise == 0:
            return noise
        return noise + self.offset_noise * torch.randn_like(x0[:, :, :1, :1])

    def perturb(self, noise: Tensor) -> Tensor:
        """The noise that x_t is made with: ε itself, or ε + γ ξ."""
        if self.input_perturbation == 0:
            return noise
        return noise + self.input_perturbation * torch.randn_like(noise)

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser that this loss cannot train, before anything is trained."""
        self.times.check(denoiser.schedule)

    @abstractmethod
    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """The loss of each image, (B,), in the precision of the schedule's tables: float32."""


class Loss(Objective):
    """The weighted distance between the network's output and its target, mean over pixels.

    By default L_simple, ‖ε − ε_θ(x_t, t)‖² for ε-prediction (Ho et al. 2020, Eq. 14).

    Args:
        weighting: the factor at t.
        distance: of output and target; a weighting is the same for all predictions with MSE alone.
        times: see `Objective`, as for the rest.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        *,
        distance: Distance | None = None,
        times: TimeDraw | None = None,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
    ):
        super().__init__(times=times, offset_noise=offset_noise, input_perturbation=input_perturbation)
        self.weighting = weighting if weighting is not None else Simple()
        self.distance = distance if distance is not None else MSE()

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None
    ) -> Tensor:
        out, _ = denoiser.split(_in_full(denoiser.predict(x_t, t, y), denoiser))
        return _weighted(self.weighting, self.distance, denoiser, out - denoiser.target(x0, noise, t), t)


class VLB(Objective):
    """T·L_{t−1} in bits per dimension, whose mean over uniform t is the bound without its constant prior term (Ho et al. 2020, Eq. 5).

    Args:
        variance: of the reverse step, "small" or "large"; None is the learned one where there is one, else "small".
        times: see `Objective`, as for the rest; Nichol & Dhariwal 2021 train with `Importance`.
    """

    def __init__(
        self,
        variance: str | None = None,
        *,
        times: TimeDraw | None = None,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
    ):
        super().__init__(times=times, offset_noise=offset_noise, input_perturbation=input_perturbation)
        if variance is not None and variance not in VARIANCES:
            raise ValueError(f"variance={variance} is unknown: choose one of {', '.join(VARIANCES)}, or null")
        self.variance = variance

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None
    ) -> Tensor:
        raw = denoiser.predict(x_t, t, y)
        return denoiser.schedule.num_steps * vlb_term(denoiser, raw, x0, x_t, t, variance=self.variance)


class Hybrid(Objective):
    """L_simple + λ·L_vlb, L_vlb = T·L_{t−1} in bits per dimension, for a learned variance (Nichol & Dhariwal 2021, Eq. 16).

    L_vlb trains the variance alone: the mean is detached in it. With λ = 0.001 its factor is T/1000, as in the
    authors' code.

    Args:
        vlb_weight: λ.
        weighting: of the first term, as in `Loss`.
        distance: of the first term, as in `Loss`.
        times: see `Objective`, as for the rest.

    Raises:
        ValueError: when called with a denoiser that learns no variance.
    """

    def __init__(
        self,
        vlb_weight: float = 0.001,
        *,
        weighting: Weighting | None = None,
        distance: Distance | None = None,
        times: TimeDraw | None = None,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
    ):
        super().__init__(times=times, offset_noise=offset_noise, input_perturbation=input_perturbation)
        if not within(vlb_weight, "[0, inf)"):
            raise ValueError(f"vlb_weight={vlb_weight} is no weight of a loss: give a number, 0 or more, such as 0.001")
        self.vlb_weight = vlb_weight
        self.weighting = weighting if weighting is not None else Simple()
        self.distance = distance if distance is not None else MSE()

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if not denoiser.learned_variance:
            raise ValueError(
                "the hybrid loss trains a learned variance, and the denoiser has none: learned_variance=true"
            )

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None
    ) -> Tensor:
        self.check(denoiser)
        out, v = denoiser.split(_in_full(denoiser.predict(x_t, t, y), denoiser))
        assert v is not None
        simple = _weighted(self.weighting, self.distance, denoiser, out - denoiser.target(x0, noise, t), t)
        vlb = vlb_term(denoiser, torch.cat([out.detach(), v], dim=1), x0, x_t, t)
        return simple + self.vlb_weight * denoiser.schedule.num_steps * vlb


def _in_full(raw: Tensor, denoiser: Denoiser) -> Tensor:
    """Out of the narrow types of mixed precision."""
    return raw.to(denoiser.schedule.alpha_bar.dtype)


def _weighted(weighting: Weighting, distance: Distance, denoiser: Denoiser, error: Tensor, t: Tensor) -> Tensor:
    return weighting(denoiser, t).flatten() * distance(error).flatten(1).mean(1)
