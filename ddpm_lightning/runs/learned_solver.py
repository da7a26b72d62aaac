"""Learn the times and coefficients of `samplers.Learned` for one model, against samples of many steps."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_lightning.data.source import Condition, in_turn
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.samplers import SPACINGS, DPMSolver, Learned, Sampler
from ddpm_lightning.schedules import NoiseSchedule
from ddpm_lightning.seeds import derive
from ddpm_lightning.terminal import Activity

__all__ = ["Coefficients", "Features", "Reference", "learn"]

RATE = 0.05  # of Adam, falling to zero over the search
BATCH = 64
MANY = 1024  # samples that distributions are compared by
_FARTHEST = 12.0  # |log SNR| of the first step from pure noise, or the last to clean data
_LEAST = 1e-3  # of all log SNRs, between two times
_VALUES = 2**22  # of all samples compared
_REFERENCE = 100  # steps of the samples to come near to


class Features(nn.Module):
    """What images are compared by: random convolutions at several scales, with fixed weights; other data as they are.

    Random filters see strokes and textures, where the values alone mostly show coarse shapes.

    Args:
        shape: (C, H, W), or another shape.
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList()
        if len(shape) == 3 and min(shape[1:]) >= 4:
            draw = torch.Generator().manual_seed(derive(0, "random features"))
            widths = [shape[0], 64, 128, 256, 256, 256][: 1 + int(math.log2(min(shape[1:])))]
            for narrow, wide in pairwise(widths):
                layer = nn.Conv2d(narrow, wide, 3, padding=1)
                layer.weight.data = torch.randn(layer.weight.shape, generator=draw) * math.sqrt(2 / 9 / narrow)
                layer.bias.data = torch.rand(wide, generator=draw) - 0.5  # type: ignore[union-attr]
                self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found = [] if len(self.layers) else [x.flatten(1)]
        for layer in self.layers:
            x = layer(x).relu()
            found.append(functional.adaptive_avg_pool2d(x, 2).flatten(1))
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, dim=1)


class Reference:
    """Samples of many steps, to which others have an energy distance in standardized features.

    Args:
        x: (N, ...) samples.
        features: what they are compared by.
    """

    def __init__(self, x: Tensor, features: Features):
        self.features, held = features, features(x)
        scale = held.std(0)
        self.mean, self.scale = held.mean(0), scale.clamp(min=0.1 * scale.mean()) * math.sqrt(held.shape[1])
        self.held = self._standard(held)
        self.spread = torch.pdist(self.held).mean()

    def distance(self, x: Tensor) -> Tensor:
        """2 E|x − y| − E|x − x'| − E|y − y'| between two distributions, 0 if they are equal; unbiased (Székely & Rizzo 2013)."""
        held = self._standard(self.features(x))
        return 2 * torch.cdist(held, self.held).mean() - torch.pdist(held).mean() - self.spread

    def _standard(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


class Coefficients(nn.Module):
    """The times, noise and weights of a `Learned` solver as free parameters, first those of DPM-Solver++(2M SDE).

    The log SNRs of the times are a running sum of positive gaps from λ_T, which end at λ_1.

    Args:
        schedule: the model's schedule.
        times: the first times, decreasing from T.
    """

    def __init__(self, schedule: NoiseSchedule, times: Sequence[float]):
        super().__init__()
        self.schedule = [schedule]  # in a list, since its parameters, if it has some, are not ours
        first = torch.tensor([*times], dtype=schedule.alpha_bar.dtype)
        levels = schedule.log_snr_at(first).clamp(-_FARTHEST, _FARTHEST)
        self.ends = levels[0], schedule.log_snr[1:].max().clamp(-_FARTHEST, _FARTHEST)
        gaps = torch.diff(torch.cat([levels, self.ends[1][None]])).clamp(min=1e-2)
        weights = torch.tensor([1.0, 0.0, 0.0]).to(first).repeat(len(times), 1)
        weights[1:-1, 1] = (-gaps[1:-1] / gaps[:-2] / 2).clamp(min=-1.5)
        self.start, self.gaps = float(times[0]), nn.Parameter(gaps.log())
        self.eta, self.noise = nn.Parameter(torch.full_like(first, 3.0)), nn.Parameter(torch.zeros_like(first))
        self.weights = nn.Parameter(weights)

    def solver(self, **options: Any) -> Learned:
        """The solver, whose samples have gradients with respect to the parameters."""
        low, high = self.ends
        shares = _LEAST + (1 - _LEAST * len(self.gaps)) * self.gaps.softmax(0)
        levels = low + (high - low) * shares.cumsum(0)[:-1]
        times: list[Any] = [self.start, *(self._time(level) for level in levels)]
        rows = torch.cat([self.eta.sigmoid()[:, None], self.noise.exp()[:, None], self.weights], dim=1)
        return Learned(times=times, coefficients=[*rows], **options)

    def values(self) -> tuple[list[float], list[list[float]]]:
        """The times, and the rows of coefficients, rounded to four digits."""
        with torch.no_grad():
            solver = self.solver()
        rows = [[round(float(value), 4) for value in row] for row in solver.rows or ()]
        return [round(float(t), 4) for t in solver.given or ()], rows

    def _time(self, level: Tensor) -> Tensor:
        """The time of a log SNR; its derivative is that of the inverse function."""
        schedule = self.schedule[0]
        with torch.enable_grad():
            t = schedule.time_at(level.detach()).requires_grad_()
            (slope,) = torch.autograd.grad(schedule.log_snr_at(t), t)
        return t.detach() + (level - level.detach()) / slope.clamp(max=-1e-12)


@dataclass(frozen=True)
class _Model:
    """A model with its shape and conditions, from which any sampler draws sample i from the same noise."""

    denoiser: Denoiser
    shape: tuple[int, ...]
    y: Condition | None

    def draw(self, sampler: Sampler, seed: str, indices: range, *, grad: bool = False) -> Tensor:
        noise = SeededNoise(derive(0, seed), indices)
        x = noise.draw(self.shape).to(self.denoiser.schedule.alpha_bar)
        return sampler(self.denoiser, x, in_turn(self.y, indices, x.device), randn=noise, grad=grad)

    def many(self, sampler: Sampler, seed: str, *, seconds: float) -> Tensor:
        """As many samples as this time allows, in batches."""
        count = max(BATCH, min(MANY, _VALUES // math.prod(self.shape)))
        until, found = time.monotonic() + seconds, [self.draw(sampler, seed, range(BATCH))]
        while len(found) * BATCH < count and time.monotonic() < until:
            found.append(self.draw(sampler, seed, range(len(found) * BATCH, (len(found) + 1) * BATCH)))
        return torch.cat(found)


def learn(
    denoiser: Denoiser, shape: tuple[int, ...], y: Condition | None, *, like: Learned, seconds: float
) -> dict[str, Any]:
    """Learn a solver's times and coefficients, by gradients of the energy distance between its samples and those of 100 steps.

    It starts as DPM-Solver++(2M SDE) with the best of the spacings, and is compared with it on other noise.

    Args:
        denoiser: the model.
        shape: of a sample.
        y: labels or other conditions, taken in turn.
        like: gives the number of steps and the clipping.
        seconds: of all, at most, but for the last samples of each part.
    """
    model = _Model(denoiser.requires_grad_(False), shape, y)
    options: dict[str, Any] = {"clip": like.clip, "dynamic_threshold": like.dynamic_threshold}
    with Activity("Sampling the reference"):
        many = DPMSolver(min(_REFERENCE, denoiser.schedule.num_steps), eta=1.0, **options)
        features = Features(shape).to(denoiser.schedule.alpha_bar)
        reference, others = (
            Reference(model.many(many, seed, seconds=seconds / 6), features) for seed in ("learn from", "judge by")
        )
    with Activity("Comparing spacings"):
        spaced = {
            name: DPMSolver(like.num_steps, eta=1.0, spacing=name, continuous=True, **options) for name in SPACINGS
        }
        tried = {name: float(reference.distance(model.draw(s, "spacings", range(BATCH)))) for name, s in spaced.items()}
        best = min(tried, key=tried.__getitem__)
    coefficients = Coefficients(denoiser.schedule, spaced[best].times_on(denoiser.schedule)[:-1])
    with Activity("Learning times and coefficients") as activity:
        _descend(coefficients, model, reference, options, seconds=seconds / 2, advance=activity.advance)
    times, rows = coefficients.values()
    learned = Learned(times=times, coefficients=rows, **options)
    solvers = {f"dpmpp_2m_sde, {best}": spaced[best], "learned": learned}
    with Activity("Comparing on other noise"):
        errors = {
            name: float(others.distance(model.many(solver, "judge", seconds=seconds / 12)))
            for name, solver in solvers.items()
        }
    return {
        "times": times,
        "coefficients": rows,
        "reference": f"{_REFERENCE} steps of DPM-Solver++(2M SDE), {len(reference.held)} samples",
        "errors_on_other_noise": errors,
    }


def _descend(
    coefficients: Coefficients,
    model: _Model,
    reference: Reference,
    options: dict[str, Any],
    *,
    seconds: float,
    advance: Callable[[], object],
) -> None:
    optimizer = torch.optim.Adam(coefficients.parameters(), lr=RATE, betas=(0.9, 0.99))
    began, first = time.monotonic(), 0
    while (spent := (time.monotonic() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * spent)) / 2
        drawn = model.draw(coefficients.solver(**options), "learn", range(first, first + BATCH), grad=True)
        optimizer.zero_grad()
        reference.distance(drawn).backward()
        optimizer.step()
        first += BATCH
        advance()
