"""Guidance: a denoiser that moves its estimate away from a weaker one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm_lightning.data.source import Condition, map_condition
from ddpm_lightning.denoiser.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["Guidance", "Guided"]


@dataclass(frozen=True)
class Guidance:
    """The settings of `Guided`, which `of` applies to a denoiser.

    Args:
        scale: w ≥ 0; 1 is off.
        interval: σ_low and σ_high of the noise levels σ_low < σ ≤ σ_high with guidance, σ = √((1−ᾱ)/ᾱ); None for all (Kynkäänniemi et
            al. 2024, Eq. 6).
        rescale: φ in [0, 1]; 0.7 in the paper, which rescales v; 0 is off (Lin et al. 2023, Eq. 15, 16).

    Raises:
        ValueError: for a number out of range.
    """

    scale: float = 1.0
    interval: Sequence[float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        require("guidance_scale", self.scale, "[0, inf)")
        require("guidance_rescale", self.rescale, "[0, 1]")
        if self.interval is None:
            return
        if not isinstance(self.interval, Sequence) or len(self.interval) != 2:
            raise UserError(f"guidance_interval must be two noise levels, as in [0.3,5], or null, got {self.interval}")
        require("guidance_interval[0]", self.interval[0], "[0, inf)")
        above = f"({self.interval[0]}, inf]"
        require("guidance_interval[1]", self.interval[1], above, hint="the second level is the larger, as in [0.3,5]")

    def within(self, schedule: NoiseSchedule, t: Tensor) -> Tensor | None:
        """Whether σ_t is within the interval, shaped like t; None without an interval."""
        if self.interval is None:
            return None
        sigma = torch.exp(-schedule.log_snr_at(t) / 2)
        return (self.interval[0] < sigma) & (sigma <= self.interval[1])

    def evaluations(self, schedule: NoiseSchedule, t: Tensor) -> int:
        """Network evaluations of an estimate with a condition or a weaker model at t, ()."""
        inside = self.within(schedule, t)
        return 2 if self.scale not in (0, 1) and (inside is None or bool(inside)) else 1

    def of(self, denoiser: Denoiser, weaker: Denoiser | None = None) -> "Guided":
        """The denoiser with guidance; raises what `Guided` does."""
        return Guided(denoiser, self.scale, weaker=weaker, interval=self.interval, rescale=self.rescale)


class Guided(nn.Module):
    """Guidance: x̂_0 = x̂_0' + w·(x̂_0(x_t, y) − x̂_0'), called like a denoiser.

    x̂_0' is the estimate without the condition (classifier-free guidance; Ho & Salimans 2022, Eq. 6, where w is smaller by 1), or that
    of a weaker model with it (autoguidance; Karras et al. 2024b, Eq. 4). The formula is the same in ε and v, since x̂_0 is linear in both.
    w = 1 is the denoiser alone and w = 0 the other estimate, with one network evaluation each; any other scale takes two, without a
    weaker model in one batch. A learned variance is the denoiser's, or with w = 0 that of the other estimate. Rescaled, x̂_0 is multiplied
    by φ·std(x̂_0(x_t, y))/std(x̂_0) + 1 − φ with each image's standard deviations, against saturation.

    Args:
        denoiser: without a weaker model, trained with a condition that was dropped for some images.
        scale: see `Guidance`, also for interval and rescale.
        weaker: a smaller or less trained model of the same data and noise levels.

    Raises:
        ValueError: for a scale other than 1 for a denoiser without a condition, or models of different schedules or labels.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        *,
        weaker: Denoiser | None = None,
        interval: Sequence[float] | None = None,
        rescale: float = 0.0,
    ):
        super().__init__()
        self.denoiser, self.weaker, self.guidance = denoiser, weaker, Guidance(scale, interval, rescale)
        if weaker is None:
            if scale != 1 and not denoiser.conditional:
                raise UserError(
                    f"guidance_scale must be 1 for a model trained without labels, got {scale}: train with data.num_classes=N, or give "
                    "a weaker model, autoguidance=CHECKPOINT"
                )
            return
        ours, theirs = denoiser.schedule.alpha_bar, weaker.schedule.alpha_bar.to(denoiser.schedule.alpha_bar)
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-6):
            raise UserError(
                "autoguidance must be a model with the same noise schedule: train both with the same schedule="
            )
        if (denoiser.num_classes, denoiser.conditional) != (weaker.num_classes, weaker.conditional):
            labels = [f"{part.num_classes or 'no'} labels" for part in (denoiser, weaker)]
            raise UserError(
                f"autoguidance must be a model with the same labels or other condition as the one that it guides, {labels[0]}, "
                f"got one with {labels[1]}"
            )

    @property
    def schedule(self) -> NoiseSchedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def forward(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Tensor:
        """The guided estimate of x_0; takes the arguments of `Denoiser`."""
        return self.estimate(x_t, t, y)[0]

    def estimate(
        self, x_t: Tensor, t: Tensor, y: Condition | None = None, *, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Like `Denoiser.estimate`, with guidance."""
        scale, inside = self.guidance.scale, self.guidance.within(self.schedule, t)
        if scale == 1 or (y is None and self.weaker is None) or (inside is not None and not inside.any()):
            return self.denoiser.estimate(x_t, t, y, u=u)
        y_other = y if y is None or self.weaker is not None else self.denoiser.null(y)
        if scale == 0 and (inside is None or inside.all()):
            return (self.weaker or self.denoiser).estimate(x_t, t, y_other, u=u)
        if self.weaker is not None:
            x0, log_variance = self.denoiser.estimate(x_t, t, y, u=u)
            other = self.weaker(x_t, t, y)
        else:
            assert y is not None
            assert y_other is not None
            x_twice, y_both = torch.cat([x_t, x_t]), map_condition(lambda *rows: torch.cat(rows), y, y_other)
            found, v = self.denoiser.estimate(x_twice, _twice(t), y_both, u=None if u is None else _twice(u))
            (x0, other), log_variance = found.chunk(2), None if v is None else v.chunk(2)[0]
        guided = torch.lerp(other, x0, scale)
        if (phi := self.guidance.rescale) and scale != 0:
            axes = tuple(range(1, x0.ndim))
            ratio = x0.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
            guided = guided * (phi * ratio + 1 - phi)
        return guided if inside is None else torch.where(inside, guided, x0), log_variance


def _twice(t: Tensor) -> Tensor:
    return t if t.ndim == 0 else torch.cat([t, t])
