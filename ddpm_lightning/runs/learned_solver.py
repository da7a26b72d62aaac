"""Learn the times and coefficients of `samplers.Learned` for one model, against samples of many steps."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_LOOKS = 10  # times that the parameters are compared by more samples, to end with the best
_REFERENCE = 40  # steps of the samples to come near to


class Features(nn.Module):
    """What samples are compared by: their values, and for images random convolutions at several scales, with fixed weights.

    Random filters see strokes and textures, where distances of values alone mostly show coarse shapes.

    Args:
        x: (N, ...) samples, on which the filters' features are standardized.
    """

    def __init__(self, x: Tensor):
        super().__init__()
        self.layers = nn.ModuleList()
        if x.ndim == 4 and min(x.shape[2:]) >= 4:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(0, "random features"))
                widths = [x.shape[1], 32, *(min(2**i, 256) for i in range(6, 5 + int(math.log2(min(x.shape[2:])))))]
                for narrow, wide in pairwise(widths):
                    layer = nn.Conv2d(narrow, wide, 3, padding=1)
                    nn.init.orthogonal_(layer.weight, 2**0.5)
                    nn.init.uniform_(layer.bias, -0.5, 0.5)  # type: ignore[arg-type]
                    self.layers.append(layer)
        self.to(x).requires_grad_(False)
        found = self._filtered(x)
        self.mean, self.scale = found.mean(0), found.std(0) + 1e-4  # rare features count as much as others

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, D) of each kind, scaled so that their distances are of the order of 1."""
        values = x.flatten(1) / math.sqrt(x[0].numel())
        if not len(self.layers):
            return [values]
        return [values, 3 * (self._filtered(x) - self.mean) / self.scale / math.sqrt(len(self.mean))]

    def _filtered(self, x: Tensor) -> Tensor:
        found = [x.new_zeros(len(x), 1)]
        for layer in self.layers:
            x = layer(x).relu()
            found.append(functional.adaptive_avg_pool2d(x, 2).flatten(1))
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, dim=1)


class Reference:
    """Samples of many steps, from which others have an energy distance in each kind of feature.

    Args:
        x: (N, ...) samples.
    """

    def __init__(self, x: Tensor):
        self.features = Features(x)
        self.held = self.features(x)
        self.spreads = [torch.pdist(held).mean() for held in self.held]

    def distance(self, x: Tensor) -> Tensor:
        """Σ 2 E|x − y| − E|x − x'| − E|y − y'|, which is 0 for the same distribution; unbiased (Székely & Rizzo 2013)."""
        kinds = zip(self.features(x), self.held, self.spreads, strict=True)
        distances = [2 * torch.cdist(ours, held).mean() - torch.pdist(ours).mean() - own for ours, held, own in kinds]
        return torch.stack(distances).sum()


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
        weights = torch.zeros(len(times), 2).to(first)
        weights[1:-1, 0] = (-gaps[1:-1] / gaps[:-2] / 2).clamp(min=-1.5)
        self.start, self.gaps = float(times[0]), nn.Parameter(gaps.log())
        self.noise, self.weights = nn.Parameter(torch.full_like(first, 3.0)), nn.Parameter(weights)

    def solver(self, **options: Any) -> Learned:
        """The solver, whose samples have gradients with respect to the parameters."""
        low, high = self.ends
        shares = _LEAST + (1 - _LEAST * len(self.gaps)) * self.gaps.softmax(0)
        levels = low + (high - low) * shares.cumsum(0)[:-1]
        times: list[Any] = [self.start, *(self._time(level) for level in levels)]
        rows = torch.cat([self.noise.sigmoid()[:, None], self.weights], dim=1)
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
    denoiser: Denoiser,
    shape: tuple[int, ...],
    y: Condition | None,
    *,
    like: Learned,
    seconds: float,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Learn a solver's times and coefficients, by gradients of the energy distance between its samples and those of 40 steps.

    It starts as DPM-Solver++(2M SDE) with the best of the spacings, and is compared with it on other noise.

    Args:
        denoiser: the model.
        shape: of a sample.
        y: labels or other conditions, taken in turn.
        like: gives the number of steps and the clipping.
        seconds: of all, at most, but for the last samples of each part.
        rounds: steps of the descent; None for as many as the time allows.
    """
    model = _Model(copy.deepcopy(denoiser).requires_grad_(False), shape, y)
    options: dict[str, Any] = {"clip": like.clip, "dynamic_threshold": like.dynamic_threshold}
    with Activity("Sampling the reference"):
        many = DPMSolver(min(_REFERENCE, denoiser.schedule.num_steps), eta=1.0, **options)
        reference = Reference(model.many(many, "learn from", seconds=seconds / 5))
        others = Reference(model.many(many, "judge by", seconds=seconds / 15))
    with Activity("Comparing spacings"):
        spaced = {
            name: DPMSolver(like.num_steps, eta=1.0, spacing=name, continuous=True, **options) for name in SPACINGS
        }
        tried = {name: float(reference.distance(model.draw(s, "spacings", range(BATCH)))) for name, s in spaced.items()}
        best = min(tried, key=tried.__getitem__)
    coefficients = Coefficients(denoiser.schedule, spaced[best].times_on(denoiser.schedule)[:-1])
    with Activity("Learning times and coefficients") as activity:
        if rounds is None:
            began, limit = time.monotonic(), seconds * 2 / 3
            spent: Iterator[float] = iter(lambda: min((time.monotonic() - began) / limit, 1.0), 1.0)
        else:
            spent = (i / rounds for i in range(rounds))
        _descend(coefficients, model, reference, options, spent, advance=activity.advance)
    times, rows = coefficients.values()
    learned = Learned(times=times, coefficients=rows, **options)
    solvers = {f"dpmpp_2m_sde, {best}": spaced[best], "learned": learned}
    with Activity("Comparing on other noise"):
        errors = {
            name: float(others.distance(model.many(solver, "judge", seconds=seconds / 50)))
            for name, solver in solvers.items()
        }
    return {
        "times": times,
        "coefficients": rows,
        "reference": f"{_REFERENCE} steps of DPM-Solver++(2M SDE), {len(reference.held[0])} samples",
        "errors_on_other_noise": errors,
    }


def _descend(
    coefficients: Coefficients,
    model: _Model,
    reference: Reference,
    options: dict[str, Any],
    spent: Iterable[float],
    *,
    advance: Callable[[], object],
) -> None:
    """Follow the gradient while a share below 1 is spent, and end with the parameters that came nearest."""
    groups: list[dict[str, Any]] = [
        {"params": [coefficients.gaps], "slower": 0.3},
        {"params": [coefficients.noise, coefficients.weights]},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    first, looks = 0, 0
    best: tuple[float, dict[str, Tensor]] = (math.inf, {})
    for share in spent:
        if share * _LOOKS >= looks:
            best, looks = min(best, _look(coefficients, model, reference, options), key=lambda pair: pair[0]), looks + 1
        for group in optimizer.param_groups:
            group["lr"] = RATE * group.get("slower", 1.0) * (1 + math.cos(math.pi * share)) / 2
        drawn = model.draw(coefficients.solver(**options), "learn", range(first, first + BATCH), grad=True)
        optimizer.zero_grad()
        reference.distance(drawn).backward()
        optimizer.step()
        first += BATCH
        advance()
    best = min(best, _look(coefficients, model, reference, options), key=lambda pair: pair[0])
    coefficients.load_state_dict(best[1])


def _look(
    coefficients: Coefficients, model: _Model, reference: Reference, options: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """The distance of more samples, from noise of their own, and a copy of the parameters."""
    times, rows = coefficients.values()
    samples = model.draw(Learned(times=times, coefficients=rows, **options), "look", range(8 * BATCH))
    return float(reference.distance(samples)), {
        name: value.clone() for name, value in coefficients.state_dict().items()
    }
