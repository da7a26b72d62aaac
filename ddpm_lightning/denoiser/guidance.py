"""Guidance: denoisers that wrap another, and are called like it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm_lightning.data.source import Condition, map_condition
from ddpm_lightning.denoiser.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Autoguided", "Guidance", "Guided", "Interval", "Rescaled", "Wrapper"]

Pair = tuple[Tensor, Tensor, Tensor | None]  # the conditional estimate, the guided one, and the log-variance


class Wrapper(nn.Module, ABC):
    """A denoiser with guidance.

    Args:
        inner: a denoiser, or one with other guidance.
    """

    def __init__(self, inner: "Denoiser | Wrapper"):
        super().__init__()
        self.inner = inner

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser without guidance."""
        return self.inner.denoiser if isinstance(self.inner, Wrapper) else self.inner

    @property
    def schedule(self) -> NoiseSchedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    @abstractmethod
    def pair(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Pair:
        """The estimates of x_0 without and with guidance, and the log-variance of the step t → u, which is that without."""

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """The guided estimate of x_0; takes the arguments of `Denoiser`."""
        return self.pair(x_t, t, y)[1]

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Like `Denoiser.estimate`, with guidance."""
        return self.pair(x_t, t, y, u=u)[1:]


class Guided(Wrapper):
    """Classifier-free guidance: x̂_0 = x̂_0(x_t) + w·(x̂_0(x_t, y) − x̂_0(x_t)) (Ho & Salimans 2022, Eq. 6, where w is smaller by 1).

    The same in ε and v, since x̂_0 is linear in both. w = 1 is the conditional and w = 0 the unconditional denoiser, with
    one network evaluation each; any other scale takes two, in one batch. A learned variance is the conditional model's.

    Args:
        denoiser: trained with a condition that was dropped for some images.
        scale: w ≥ 0.

    Raises:
        ValueError: for a scale below 0, or a scale other than 1 for a denoiser without a condition.
    """

    def __init__(self, denoiser: Denoiser, scale: float):
        super().__init__(denoiser)
        require("guidance_scale", scale, "[0, inf)")
        if scale != 1 and not denoiser.conditional:
            raise UserError(f"guidance_scale must be 1 for a model trained without labels, got {scale}")
        self.scale = scale

    def pair(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Pair:
        if y is None or self.scale in (0, 1):
            y = self.denoiser.null(y) if y is not None and self.scale == 0 else y
            x0, log_variance = self.denoiser.estimate(x_t, t, y, u=u)
            return x0, x0, log_variance
        x_twice, y_both = torch.cat([x_t, x_t]), map_condition(lambda *rows: torch.cat(rows), y, self.denoiser.null(y))
        x0, log_variance = self.denoiser.estimate(x_twice, _twice(t), y_both, u=None if u is None else _twice(u))
        labelled, unlabelled = x0.chunk(2)
        guided = torch.lerp(unlabelled, labelled, self.scale)
        return labelled, guided, None if log_variance is None else log_variance.chunk(2)[0]


class Autoguided(Wrapper):
    """Autoguidance: x̂_0 = x̂_0' + w·(x̂_0 − x̂_0') with a weaker model's x̂_0', both given y (Karras et al. 2024b, Eq. 4).

    Args:
        denoiser: the model.
        weaker: a smaller or less trained one for the same data and noise levels.
        scale: w ≥ 0; 1 is the model alone.

    Raises:
        ValueError: for a scale below 0, or models of different schedules, conditions or numbers of labels.
    """

    def __init__(self, denoiser: Denoiser, weaker: Denoiser, scale: float):
        super().__init__(denoiser)
        require("guidance_scale", scale, "[0, inf)")
        ours, theirs = denoiser.schedule.alpha_bar, weaker.schedule.alpha_bar.to(denoiser.schedule.alpha_bar)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-6):
            raise UserError(
                "autoguidance must be a model with the same noise schedule: train both with the same schedule="
            )
        if (denoiser.num_classes, denoiser.conditional) != (weaker.num_classes, weaker.conditional):
            raise UserError(
                "autoguidance must be a model with the same labels or other condition as the one that it guides"
            )
        self.weaker, self.scale = weaker, scale

    def pair(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Pair:
        if self.scale in (0, 1):
            x0, log_variance = (self.denoiser if self.scale else self.weaker).estimate(x_t, t, y, u=u)
            return x0, x0, log_variance
        x0, log_variance = self.denoiser.estimate(x_t, t, y, u=u)
        return x0, torch.lerp(self.weaker(x_t, t, y), x0, self.scale), log_variance


class Interval(Wrapper):
    """Guidance at noise levels σ_low < σ ≤ σ_high only, with σ = √((1−ᾱ)/ᾱ) (Kynkäänniemi et al. 2024, Eq. 6).

    Args:
        inner: the guidance.
        low: σ_low ≥ 0.
        high: σ_high > σ_low.
    """

    def __init__(self, inner: Wrapper, low: float, high: float):
        super().__init__(inner)
        require("guidance_interval[0]", low, "[0, inf)")
        require("guidance_interval[1]", high, f"({low}, inf]")
        self.low, self.high = low, high

    def pair(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Pair:
        inside = _within(self.schedule.log_snr_at(t), self.low, self.high)
        if inside.any():
            assert isinstance(self.inner, Wrapper)
            x0, guided, log_variance = self.inner.pair(x_t, t, y, u=u)
            return x0, torch.where(inside, guided, x0), log_variance
        x0, log_variance = self.denoiser.estimate(x_t, t, y, u=u)
        return x0, x0, log_variance


class Rescaled(Wrapper):
    """x̂_0·(φ·std(x̂_0 without guidance)/std(x̂_0) + 1 − φ), each image's standard deviation, against saturation (Lin et al. 2023, Eq. 15, 16).

    Args:
        inner: the guidance.
        share: φ in [0, 1]; 0.7 in the paper, which rescales v.
    """

    def __init__(self, inner: Wrapper, share: float):
        super().__init__(inner)
        require("guidance_rescale", share, "[0, 1]")
        self.share = share

    def pair(self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None) -> Pair:
        assert isinstance(self.inner, Wrapper)
        x0, guided, log_variance = self.inner.pair(x_t, t, y, u=u)
        axes = tuple(range(1, x0.ndim))
        ratio = x0.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return x0, guided * (self.share * ratio + 1 - self.share), log_variance


@dataclass(frozen=True)
class Guidance:
    """The settings of guidance, which wrap a denoiser with `of`.

    Args:
        scale: of `Guided`, or of `Autoguided` where there is a weaker model.
        interval: σ_low and σ_high of `Interval`; None for all noise levels.
        rescale: φ of `Rescaled`; 0 is off.

    Raises:
        ValueError: for a number out of range.
    """

    scale: float = 1.0
    interval: Sequence[float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        require("guidance_scale", self.scale, "[0, inf)")
        require("guidance_rescale", self.rescale, "[0, 1]")
        if self.interval is not None and len(self.interval) != 2:
            raise UserError(
                f"guidance_interval must be two noise levels, as in [0.3,5], or null, got {list(self.interval)}"
            )

    def evaluations(self, log_snr: Tensor) -> int:
        """Network evaluations of a conditional or autoguided estimate at this log SNR, ()."""
        inside = self.interval is None or bool(_within(log_snr, *self.interval))
        return 2 if inside and self.scale not in (0, 1) else 1

    def of(self, denoiser: Denoiser, weaker: Denoiser | None = None) -> Wrapper:
        """The denoiser with guidance.

        Raises:
            ValueError: for a denoiser that cannot be guided so.
        """
        guided: Wrapper = Guided(denoiser, self.scale) if weaker is None else Autoguided(denoiser, weaker, self.scale)
        if self.rescale:
            guided = Rescaled(guided, self.rescale)
        return guided if self.interval is None else Interval(guided, *self.interval)


def _within(log_snr: Tensor, low: float, high: float) -> Tensor:
    """Whether low < σ ≤ high at this log SNR."""
    sigma = torch.exp(-log_snr / 2)
    return (low < sigma) & (sigma <= high)


def _twice(t: Tensor) -> Tensor:
    return t if t.ndim == 0 else torch.cat([t, t])
