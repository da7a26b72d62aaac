"""Bits per dimension: the variational bound of Ho et al. 2020, term by term."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition, beside
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.schedules import LearnedSchedule, NoiseSchedule

__all__ = [
    "VARIANCES",
    "BitsPerDim",
    "bits_per_dim",
    "continuous_term",
    "decoder_term",
    "decodes_from_latent",
    "estimate_bits_per_dim",
    "estimate_law",
    "latent_decoder_term",
    "prior_term",
    "vlb_term",
]

VARIANCES = ("small", "large")  # the reverse variances that are not learned


@dataclass(frozen=True)
class BitsPerDim:
    """The bound −log₂ p(x_0)/D ≤ prior + diffusion + decoder of each image (Ho et al. 2020, Eq. 5).

    Args:
        prior: (B,) L_T = KL(q(x_T | x_0) ‖ N(0, I)), independent of the network.
        by_t: (B, T) terms of the reverse steps: L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)) in column
            t−1 for t ≥ 2, and the decoder's L_0 = −log p(x_0 | x_1) in column 0; (B, 2) for an estimate.
    """

    prior: Tensor
    by_t: Tensor

    @property
    def diffusion(self) -> Tensor:
        """(B,) Σ_{t ≥ 2} L_{t−1}."""
        return self.by_t[:, 1:].sum(1)

    @property
    def decoder(self) -> Tensor:
        """(B,) L_0."""
        return self.by_t[:, 0]

    @property
    def total(self) -> Tensor:
        """(B,) prior + diffusion + decoder."""
        return self.prior + self.diffusion + self.decoder

    @property
    def terms(self) -> dict[str, Tensor]:
        """The three terms and the total by name, each (B,)."""
        return {"prior": self.prior, "diffusion": self.diffusion, "decoder": self.decoder, "total": self.total}


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    y: Condition | None = None,
    *,
    variance: str | None = None,
    clip: float | None = 1.0,
    randn: Callable[[Tensor], Tensor] = torch.randn_like,
    advance: Callable[[], Any] = lambda: None,
) -> BitsPerDim:
    """The variational bound, with one sample of x_t per t (Ho et al. 2020, Eq. 5) and T network evaluations, or T − 1 if L_0 takes none.

    Args:
        denoiser: the denoiser, in eval mode, since dropout would count as part of the model.
        x0: (B, C, H, W) images in [−1, 1] on the grid of 256 values.
        y: (B,) labels.
        variance: of the reverse steps, "small" (β̃_t) or "large" (β_t), see `Denoiser.log_variance`; None is the learned one where there is one,
            and "small" elsewhere. With None, L_0 of a learned schedule is `latent_decoder_term`, for which λ_1 is learned.
        clip: each estimate of x_0 is kept within ±clip; None for data outside [−1, 1].
        randn: gives noise like x; asked for t = T, …, 1.
        advance: called after each t, such as by a progress bar.

    Raises:
        ValueError: for an unknown variance.
    """
    terms = []
    for t in torch.arange(denoiser.schedule.num_steps, 1, -1, device=x0.device):
        terms.append(_term(denoiser, x0, y, t, randn(x0), variance=variance, clip=clip))
        advance()
    decoder = _decoder(denoiser, x0, y, randn(x0), variance=variance, clip=clip)
    advance()
    return BitsPerDim(prior_term(denoiser.schedule, x0), torch.stack([decoder, *terms[::-1]], dim=1))


def estimate_law(schedule: NoiseSchedule) -> Tensor:
    """(T−1,) probabilities p(t), t = 2, …, T, of `estimate_bits_per_dim`: roughly proportional to the bound's terms.

    L_{t−1} is ½(SNR_{t−1} − SNR_t)·E‖x_0 − x̂_0‖² (Kingma et al. 2021, Eq. 13), and the error about 1/(1 + SNR_t), so
    p(t) ∝ (ᾱ_{t−1} − ᾱ_t)/(1 − ᾱ_{t−1}) = β_t ᾱ_{t−1}/(1 − ᾱ_{t−1}); mixed with 1 % of the uniform distribution, so that every t can be sampled.
    """
    before = torch.cumprod(1 - schedule.betas, 0)[:-1]
    share = schedule.betas[1:] * before / (1 - before)
    return 0.99 * share / share.sum() + 0.01 / len(share)


@torch.no_grad()
def estimate_bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    y: Condition | None = None,
    *,
    uniform: Tensor,
    continuous: bool = False,
    variance: str | None = None,
    clip: float | None = 1.0,
    randn: Callable[[Tensor], Tensor] = torch.randn_like,
) -> BitsPerDim:
    """An unbiased estimate of the bound, with L_{t−1}/p(t) at one t ~ p in place of the diffusion terms: two network evaluations, or one.

    In continuous time it is L_T + L_0 + ½ ∫ ‖x_0 − x̂_0‖² dSNR over [1, T] (Kingma et al. 2021, Eq. 17), where λ is drawn with the density
    p ∝ σ(λ), as in `estimate_law`: ½ e^λ/p(λ) = (S(λ_1) − S(λ_T))/(2 (1−ᾱ_t)) with S = log(1 + e^λ).

    Args:
        denoiser: see `bits_per_dim`, also for x0, y, variance (in continuous time of L_0) and clip.
        uniform: (B,) samples from U[0, 1), mapped to t; repeat the images for several t per image.
        continuous: whether time is.
        randn: returns noise like its argument; called for t = 1, then for the other t.
    """
    schedule, prior = denoiser.schedule, prior_term(denoiser.schedule, x0)
    decoder = _decoder(denoiser, x0, y, randn(x0), variance=variance, clip=clip)
    if schedule.num_steps == 1:
        return BitsPerDim(prior, decoder[:, None])
    if continuous:
        most, least = torch.nn.functional.softplus(schedule.log_snr[[1, -1]])
        level = torch.lerp(least, most, beside(uniform.to(x0.device, most.dtype), x0))
        t = schedule.time_at(level + torch.log(-torch.expm1(-level)))
        x_t = schedule.q_sample(x0, t, randn(x0))
        error = x0 - _clipped(denoiser.x0_from(denoiser.split(denoiser.predict(x_t, t, y))[0], x_t, t), clip)
        nats = (error / schedule.scales(t)[1]).square().flatten(1).mean(1) * (most - least) / 2
        return BitsPerDim(prior, torch.stack([decoder, nats / math.log(2)], dim=1))
    p = estimate_law(schedule).to(x0.device, prior.dtype)
    index = torch.searchsorted(p.cumsum(0), uniform.to(x0.device, prior.dtype)).clamp(max=len(p) - 1)
    term = _term(denoiser, x0, y, beside(2 + index, x0), randn(x0), variance=variance, clip=clip)
    return BitsPerDim(prior, torch.stack([decoder, term / p[index]], dim=1))


def _term(denoiser: Denoiser, x0: Tensor, y: Condition | None, t: Tensor, noise: Tensor, **reverse: Any) -> Tensor:
    """(B,) the term of the reverse step at t, for one x_t; `reverse` are variance and clip of `vlb_term`."""
    x_t = denoiser.schedule.q_sample(x0, t, noise)
    return vlb_term(denoiser, denoiser.predict(x_t, t, y), x0, x_t, t, **reverse)


def _decoder(denoiser: Denoiser, x0: Tensor, y: Condition | None, noise: Tensor, **reverse: Any) -> Tensor:
    """(B,) the term at t = 1, without a network if x_0 is decoded from x_1."""
    schedule, one = denoiser.schedule, torch.ones((), dtype=torch.long, device=x0.device)
    if decodes_from_latent(schedule, reverse["variance"]):
        return latent_decoder_term(schedule, x0, schedule.q_sample(x0, one, noise))
    return _term(denoiser, x0, y, one, noise, **reverse)


def vlb_term(
    denoiser: Denoiser,
    raw: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    variance: str | None = None,
    clip: float | None = None,
) -> Tensor:
    """(B,) bits per dimension of the reverse step at t: L_{t−1} for t ≥ 2 and L_0 at t = 1 (Ho et al. 2020, Eq. 5).

    KL(N(μ̃, β̃) ‖ N(μ, σ²)) = (μ̃ − μ)²/(2σ²) + (e^r − 1 − r)/2 with r = log β̃ − log σ². Gradients pass through.

    Args:
        raw: the output of `denoiser.predict(x_t, t, y)`.
        t: (B, 1, 1, 1) or (), in 1..T.
        variance: see `bits_per_dim`, also for clip; L_0 is decoded from x̂_0 with any schedule, see `latent_decoder_term`.
    """
    schedule = denoiser.schedule
    out, v = denoiser.split(raw.to(schedule.alpha_bar.dtype))
    x0_hat = _clipped(denoiser.x0_from(out, x_t, t), clip)
    log_variance = denoiser.log_variance(variance or ("small" if v is None else v), t, t - 1)
    # The posterior mean is linear in x_0, so the difference of the means is the mean of the difference.
    gap, _ = schedule.posterior(x0 - x0_hat, torch.zeros_like(x_t), t)
    r = denoiser.log_variance("small", t, t - 1) - log_variance
    kl = (gap**2 * torch.exp(-log_variance) + torch.expm1(r) - r) / 2
    nats = torch.where(t == 1, decoder_term(x0, x0_hat, log_variance), kl)  # the mean at t = 1 is x̂_0 itself
    return nats.flatten(1).mean(1) / math.log(2)


def continuous_term(denoiser: Denoiser, raw: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """(B,) bits per dimension and unit of the float t, −SNR'(t)/2 ‖x_0 − x̂_0‖² (Kingma et al. 2021, Eq. 17). Gradients pass through."""
    schedule = denoiser.schedule
    error = x0 - denoiser.x0_from(denoiser.split(raw.to(schedule.alpha_bar.dtype))[0], x_t, t)
    return (schedule.snr_slope(t) / 2 * error**2).flatten(1).mean(1) / math.log(2)


def prior_term(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """(B,) bits per dimension of KL(q(x_T | x_0) ‖ N(0, I)) = (ᾱ_T x_0² − ᾱ_T − log(1 − ᾱ_T))/2, mean over pixels."""
    log_snr = schedule.log_snr_at(torch.full((), schedule.num_steps, device=x0.device))
    abar = log_snr.sigmoid()
    nats = (abar * x0**2 - abar - torch.nn.functional.logsigmoid(-log_snr)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def decoder_term(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """−log ∫ N(x; mean, σ²) dx over the bin x_0 ± 1/255 of each pixel, in nats, shaped like x0 (Ho et al. 2020, Eq. 13).

    The 256 bins cover the real line: the first and last are unbounded.
    """
    scale = torch.exp(-log_variance / 2)
    center, half = (x0 - mean) * scale, scale / 255
    # Mirrored to the left of the mean, where log Φ is accurate: log(Φ(b) − Φ(a)) = log Φ(b) + log(1 − Φ(a)/Φ(b)).
    upper = torch.special.log_ndtr(half - center.abs())
    lower = torch.special.log_ndtr(-half - center.abs())
    inside = upper + torch.log(-torch.expm1(lower - upper))
    at_the_end = torch.special.log_ndtr(half - x0.sign() * center)
    return -torch.where(x0.abs() > 1 - 1 / 255, at_the_end, inside)


def decodes_from_latent(schedule: NoiseSchedule, variance: str | None) -> bool:
    """Whether L_0 is `latent_decoder_term`: for a learned schedule, unless a reverse variance is chosen."""
    return variance is None and isinstance(schedule, LearnedSchedule)


def latent_decoder_term(schedule: NoiseSchedule, x0: Tensor, x_1: Tensor) -> Tensor:
    """(B,) −log₂ p(x_0 | x_1)/D with the mean x_1/√ᾱ_1 and variance (1−ᾱ_1)/ᾱ_1, without a network (Kingma et al. 2021, Eq. 8)."""
    a, s = schedule.scales(torch.ones((), device=x0.device))
    return decoder_term(x0, x_1 / a, 2 * (s / a).log()).flatten(1).mean(1) / math.log(2)


def _clipped(x0: Tensor, clip: float | None) -> Tensor:
    return x0 if clip is None else x0.clamp(-clip, clip)
