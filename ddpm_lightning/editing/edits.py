"""Edits of whole images: image to image, inversion to noise, and interpolation in noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.samplers import DenoiserLike, Sampler, Step
from ddpm_lightning.samplers.base import Noise

__all__ = ["from_image", "inverse_times", "invert", "late_times", "slerp"]


def from_image(
    sampler: Sampler,
    denoiser: DenoiserLike,
    x0: Tensor,
    y: Condition | None = None,
    *,
    strength: float,
    randn: Noise = torch.randn_like,
) -> Iterator[Step]:
    """Image to image: add noise up to t = strength·T, and sample from there (Meng et al. 2022, SDEdit).

    Args:
        sampler: from noise to image.
        denoiser: estimates x_0.
        x0: images (B, C, ...) in [−1, 1].
        y: labels or another condition of the result.
        strength: in [0, 1]: 0 changes nothing, 1 starts from noise.
        randn: returns standard normal noise like its argument.
    """
    times, schedule = late_times(sampler, denoiser, strength), denoiser.schedule
    if len(times) < 2:
        return
    start = torch.tensor(times[0], device=x0.device)
    x = schedule.q_sample(x0, start, randn(x0))
    yield from sampler.trajectory(denoiser, x, y, times=times, randn=randn)


def late_times(sampler: Sampler, denoiser: DenoiserLike, strength: float) -> Sequence[float]:
    """The sampler's times from the one nearest to strength·T on.

    Raises:
        UserError: for a strength outside [0, 1].
    """
    require("strength", strength, "[0, 1]")
    times, top = sampler.times_on(denoiser.schedule), strength * denoiser.schedule.num_steps
    return times[min(range(len(times)), key=lambda i: abs(times[i] - top)) :]


def invert(
    sampler: Sampler, denoiser: DenoiserLike, x0: Tensor, y: Condition | None = None, *, refinements: int = 3
) -> Iterator[Step]:
    """Inversion: the noise from which a deterministic sampler makes these images (Song et al. 2021, section 5.4).

    Solves the probability flow ODE upward. The first x_t is the one whose estimate of x_0 is the image: a fixed point of
    x_t = a x_0 + s ε̂(x_t, t), found in `refinements` evaluations.

    Args:
        sampler: a sampler with η = 0; with the same one, the noise returns to the image.
        denoiser: estimates x_0.
        x0: images (B, C, ...) in [−1, 1].
        y: labels or another condition of the images.
        refinements: evaluations for the first x_t.

    Raises:
        UserError: for a sampler that adds noise.
    """
    require("refinements", refinements, "0..")
    times = inverse_times(sampler, denoiser)
    t = torch.tensor(times[0], device=x0.device)
    a, _ = denoiser.schedule.scales(t)
    x = a * x0
    for _ in range(refinements):
        with torch.no_grad():
            x = a * x0 + x - a * denoiser(x, t, y)
    yield Step(times[0], x, x0, refinements)
    for step in sampler.trajectory(denoiser, x, y, times=times):
        yield Step(step.t, step.x, step.x0, step.evaluations + refinements)


def inverse_times(sampler: Sampler, denoiser: DenoiserLike) -> Sequence[float]:
    """The sampler's times above 0, increasing.

    Raises:
        UserError: for a sampler that adds noise.
    """
    if sampler.eta > 0:
        raise UserError(
            "the sampler must be one without noise to invert images: choose sampler=ddim with sampler.eta=0, or sampler=heun"
        )
    return sampler.times_on(denoiser.schedule)[-2::-1]


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """Spherical interpolation of noise: sin((1−w)θ)/sin θ·start + sin(wθ)/sin θ·end (Song et al. 2021, section D.5).

    Args:
        start: the noise at w = 0, (B, C, ...).
        end: the noise at w = 1.
        share: w in [0, 1], one or (B,).
    """
    first, second = start.flatten(1), end.flatten(1)
    cosine = torch.cosine_similarity(first, second, dim=1)
    angle = torch.arccos(cosine.clamp(-1, 1))
    w = torch.as_tensor(share).to(start).expand(len(start))
    nearly_parallel = torch.sin(angle) < 1e-4
    of_start = torch.where(nearly_parallel, 1 - w, torch.sin((1 - w) * angle) / torch.sin(angle))
    of_end = torch.where(nearly_parallel, w, torch.sin(w * angle) / torch.sin(angle))
    return (of_start[:, None] * first + of_end[:, None] * second).reshape(start.shape)
