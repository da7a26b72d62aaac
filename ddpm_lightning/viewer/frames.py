"""The frames of the viewer: which timesteps it shows, and the pixels of x_t and of the estimates of x_0 and ε there."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.images import to_uint8
from ddpm_lightning.samplers import Step
from ddpm_lightning.schedules import NoiseSchedule

__all__ = [
    "EPSILON_RANGE",
    "Frame",
    "beside_estimates",
    "choose_frames",
    "estimated_noise",
    "evenly",
    "is_viewable",
    "most_images",
    "pixels_of",
]

EPSILON_RANGE = 3.0  # black is −3 and white is 3, in standard deviations of the noise
_FRAMES = 60
_IMAGES = 100
_VALUES = 2**24  # of all pixels on a page, which bounds its size at about 20 MB


class Frame(NamedTuple):
    """A timestep that is shown: x_t = signal · x_0 + noise · ε after so many steps of the sampler.

    step: 0 for x_T; t: the timestep; signal: √ᾱ_t; noise: √(1−ᾱ_t).
    """

    step: int
    t: float
    signal: float
    noise: float


def is_viewable(shape: Sequence[int]) -> bool:
    """Whether data of this shape are grayscale or color images (C, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def most_images(shape: Sequence[int]) -> int:
    """How many images of this shape a page can show, each in eight frames or more."""
    return max(1, min(_IMAGES, _VALUES // (8 * 3 * math.prod(shape))))


def choose_frames(
    times: Sequence[float],
    schedule: NoiseSchedule,
    *,
    num_images: int,
    shape: Sequence[int],
    most: int = _FRAMES,
) -> list[Frame]:
    """Evenly spaced frames, the first and the last included: all of them, or `most`, or as many as keep the page small.

    Args:
        times: the sampler's, T ... 0.
        schedule: the denoiser's.
        num_images: on the page.
        shape: (C, H, W) of an image.
        most: at least 2.
    """
    count = max(2, min(most, len(times), _VALUES // (3 * num_images * math.prod(shape))))
    a, s = (level.tolist() for level in schedule.scales(torch.tensor(times, device=schedule.alpha_bar.device)))
    return [Frame(step, times[step], a[step], s[step]) for step in evenly(len(times), count)]


def evenly(total: int, wanted: int) -> list[int]:
    """Positions 0..total−1, evenly spaced, the first and the last included: as many as are wanted, or all."""
    positions: list[int] = torch.linspace(0, total - 1, min(wanted, total)).round().int().tolist()
    return positions


def estimated_noise(x_t: Tensor, x0: Tensor, frame: Frame) -> Tensor:
    """ε̂ = (x_t − √ᾱ_t x̂_0)/√(1−ᾱ_t), from x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε (Ho et al. 2020, Eq. 4); 0 at t = 0, where there is none."""
    return (x_t - frame.signal * x0) / frame.noise if frame.noise > 0 else torch.zeros_like(x_t)


def beside_estimates(first: float, noise: Tensor, steps: Iterable[Step]) -> Iterator[Step]:
    """Each x_t from noise to image beside the estimate of x_0 that was made from it; x_0 stands beside itself.

    Args:
        first: the first timestep of the sampler.
        noise: x there.
        steps: the sampler's, each of which holds the estimate that led to it.
    """
    t, x, evaluations = first, noise, 0
    for step in steps:
        yield Step(t, x, step.x0, evaluations)
        t, x, evaluations = step.t, step.x, step.evaluations
    yield Step(t, x, x, evaluations)


def pixels_of(steps: Iterable[Step], frames: Sequence[Frame]) -> Tensor:
    """(B, F, 3, C, H, W) uint8 on the CPU: x_t, x̂_0(x_t) and ε̂ in each of F frames.

    x_t and x̂_0 are black at −1 and white at 1, ε̂ at ∓`EPSILON_RANGE`; what lies beyond is clipped. At t = 0 x̂_0 is x_0.

    Args:
        steps: each x_t beside its estimate of x_0, from `beside_estimates`.
        frames: their choice, in this order.
    """
    chosen, pixels = {frame.step: frame for frame in frames}, []
    for i, step in enumerate(steps):
        if frame := chosen.get(i):
            shown = step.x, step.x0, estimated_noise(step.x, step.x0, frame) / EPSILON_RANGE
            pixels.append(torch.stack([to_uint8(part) for part in shown], dim=1).cpu())
    return torch.stack(pixels, dim=1)
