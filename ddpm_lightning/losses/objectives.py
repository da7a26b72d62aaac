"""Training objectives: the loss per image."""

from abc import ABC, abstractmethod
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.data.source import Condition
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser
from ddpm_lightning.likelihood import VARIANCES, continuous_term, vlb_term
from ddpm_lightning.losses.noise import NoiseDraw
from ddpm_lightning.losses.times import TimeDraw, Uniform
from ddpm_lightning.losses.weightings import Simple, Weighting
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["MSE", "VLB", "Distance", "Draw", "Huber", "Hybrid", "Loss", "Objective"]


class Distance(ABC):
    """The loss of an error, elementwise."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Tensor: ...


class MSE(Distance):
    """e²."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square()


class Huber(Distance):
    """e²/2 up to |e| = δ, and δ·(|e| − δ/2) beyond (Huber 1964)."""

    def __init__(self, delta: float = 0.1):
        require("delta", delta, "(0, inf)")
        self.delta = delta

    def __call__(self, error: Tensor) -> Tensor:
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)


class Draw(TypedDict, total=False):
    """The arguments of every objective for sampling t (`times`, uniform by default) and ε (see `NoiseDraw`)."""

    times: TimeDraw | None
    offset_noise: float
    input_perturbation: float


class Objective(nn.Module, ABC):
    """A training objective: the loss per image at its t and ε, and the sampling of t and ε.

    Args:
        times: samples t; uniform by default.
        offset_noise: see `NoiseDraw`.
        input_perturbation: see `NoiseDraw`.
    """

    def __init__(self, *, times: TimeDraw | None = None, offset_noise: float = 0.0, input_perturbation: float = 0.0):
        super().__init__()
        self.times = times if times is not None else Uniform()
        self.noise = NoiseDraw(offset_noise, input_perturbation)

    learns_schedule: ClassVar[bool] = False
    trains_variance: ClassVar[bool] = False

    def check(self, denoiser: Denoiser) -> None:
        """Refuse a denoiser that this loss cannot train."""
        self.times.check(denoiser.schedule)
        if self.trains_variance and self.times.continuous and denoiser.learned_variance:
            raise ValueError(
                "a learned variance requires times.continuous=false: in continuous time the bound has no reverse variance"
            )
        if next(denoiser.schedule.parameters(), None) is not None and not self.learns_schedule:
            raise ValueError("loss=vdm is required by schedule=learned: add it, or choose another schedule")

    @abstractmethod
    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Condition | None = None
    ) -> Tensor:
        """The loss per image, (B,), in float32."""


class Loss(Objective):
    """The weighted distance between the network's output and its target, averaged or summed over pixels.

    The default is L_simple, ‖ε − ε_θ(x_t, t)‖² for ε-prediction (Ho et al. 2020, Eq. 14).

    Args:
        weighting: the factor at t.
        distance: between output and target; only with MSE is a weighting the same for all prediction types.
        space: the prediction type in which the distance is taken, such as "v" for x0-prediction with the loss of v (Salimans & Ho
            2022, section 4); None for the network's own.
        reduction: over pixels, "mean" or "sum"; with Adam it only changes which gradients are clipped.
        draw: see `Draw`.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        *,
        distance: Distance | None = None,
        space: str | None = None,
        reduction: str = "mean",
        **draw: Unpack[Draw],
    ):
        super().__init__(**draw)
        require_one_of("space", space, [*PREDICTIONS, None])
        require_one_of("reduction", reduction, ("mean", "sum"))
        self.reduce = torch.mean if reduction == "mean" else torch.sum
        self.space = space
        self.weighting = weighting if weighting is not None else Simple()
        self.distance = distance if distance is not None else MSE()

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Condition | None = None
    ) -> Tensor:
        raw = denoiser.predict(x_t, t, y).to(denoiser.schedule.alpha_bar.dtype)  # from mixed precision to full
        out, _ = denoiser.split(raw)
        return self.of_output(denoiser, out, x0, noise, t)

    def of_output(self, denoiser: Denoiser, out: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The loss per image, (B,), from the network's output."""
        error = out - denoiser.target(x0, noise, t)
        weight = self.weighting(denoiser, t)
        if self.space not in (None, denoiser.prediction):
            ratio = denoiser.ratio(t, self.space)
            error, weight = ratio * error, weight if self.weighting.on_output else weight / ratio**2
        return weight.flatten() * self.reduce(self.distance(error).flatten(1), 1)


class VLB(Objective):
    """T·L_{t−1} in bits per dimension, whose mean over uniform t is the bound without its constant prior term (Ho et al. 2020, Eq. 5).

    In continuous time it is −(T−1) SNR'(t)/2 ‖x_0 − x̂_0‖², whose mean also lacks the decoder's (Kingma et al. 2021, Eq. 17).

    Args:
        variance: the reverse variance, "small" or "large"; None is the learned variance if there is one, else "small".
        draw: see `Draw`; Nichol & Dhariwal 2021 use `Importance`.
    """

    trains_variance = True

    def __init__(self, variance: str | None = None, **draw: Unpack[Draw]):
        super().__init__(**draw)
        require_one_of("variance", variance, [*VARIANCES, None])
        self.variance = variance

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Condition | None = None
    ) -> Tensor:
        raw = denoiser.predict(x_t, t, y)
        if t.is_floating_point():
            return (denoiser.schedule.num_steps - 1) * continuous_term(denoiser, raw, x0, x_t, t)
        return denoiser.schedule.num_steps * vlb_term(denoiser, raw, x0, x_t, t, variance=self.variance)


class Hybrid(Loss):
    """L_simple + λ·L_vlb, L_vlb = T·L_{t−1} in bits per dimension, for a learned variance (Nichol & Dhariwal 2021, Eq. 16).

    L_vlb trains only the variance, with the mean detached. With λ = 0.001 its factor is T/1000, as in the authors' code.

    Args:
        vlb_weight: λ.
        weighting: the weighting of L_simple, see `Loss`.
        distance: the distance of L_simple, see `Loss`.
        space: the space of L_simple, see `Loss`.
        draw: see `Draw`.
    """

    trains_variance = True

    def __init__(
        self,
        vlb_weight: float = 0.001,
        *,
        weighting: Weighting | None = None,
        distance: Distance | None = None,
        space: str | None = None,
        **draw: Unpack[Draw],
    ):
        super().__init__(weighting, distance=distance, space=space, **draw)
        require("vlb_weight", vlb_weight, "[0, inf)")
        self.vlb_weight = vlb_weight

    def check(self, denoiser: Denoiser) -> None:
        super().check(denoiser)
        if not denoiser.learned_variance:
            raise ValueError("loss=hybrid requires learned_variance=true: add it, or choose another loss")

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Condition | None = None
    ) -> Tensor:
        out, v = denoiser.split(denoiser.predict(x_t, t, y).to(denoiser.schedule.alpha_bar.dtype))
        assert v is not None
        vlb = vlb_term(denoiser, torch.cat([out.detach(), v], dim=1), x0, x_t, t)
        return self.of_output(denoiser, out, x0, noise, t) + self.vlb_weight * denoiser.schedule.num_steps * vlb
