"""Learn the times and coefficients of `samplers.Learned` for one model, so that its samples come near to the training images."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import Condition, in_turn, is_labels
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.metrics.classifier import train_classifier
from ddpm_lightning.metrics.energy import EnergyDistance, RandomFeatures
from ddpm_lightning.samplers import SPACINGS, DPMSolver, Learned, Sampler, SASolver
from ddpm_lightning.schedules import NoiseSchedule
from ddpm_lightning.seeds import derive
from ddpm_lightning.terminal import Activity

__all__ = ["Coefficients", "learn"]

TRAVEL, FASTEST = 6.0, 0.1  # Adam's rate, which falls to zero over the search, is TRAVEL/rounds, and at most this
BATCH = 64
ROUNDS = 100  # fewest to aim at, with smaller batches where the network is slow
MANY = 4096  # real samples that others are compared with
_CLASSIFIERS = 2  # whose features samples are compared by, of other weights than evaluate.py's
_CLASSIFIER_STEPS = 250
_CLASSIFIER_SIDE = 14  # larger images are averaged down to about this side for them
_FARTHEST = 12.0  # |log SNR| of the first step from pure noise, or the last to clean data
_LEAST = 1e-3  # of all log SNRs, between two times
_VALUES = 2**22  # of all samples compared
_REFERENCE = 40  # steps of the samples to come near to, without training images


class Coefficients(nn.Module):
    """The times, noise and weights of a `Learned` solver as free parameters, first those of SA-Solver.

    The log SNRs of the times are a running sum of positive gaps from λ_T, which end at λ_1. Times that are nearly at one log SNR are
    moved apart, and the first weights are at least −2.

    Args:
        schedule: the model's schedule.
        times: the first times, decreasing from T.
    """

    def __init__(self, schedule: NoiseSchedule, times: Sequence[float]):
        super().__init__()
        self.schedule = [schedule]  # in a list, since its parameters, if it has some, are not ours
        first = torch.tensor([*times]).to(schedule.alpha_bar)
        levels = schedule.log_snr_at(first).clamp(-_FARTHEST, _FARTHEST)
        self.ends = levels[0], schedule.log_snr[1:].max().clamp(-_FARTHEST, _FARTHEST)
        gaps = torch.diff(torch.cat([levels, self.ends[1][None]])).clamp(min=1e-2)
        weights = torch.zeros(len(times), 2).to(first)
        apart = [float(levels[0]) / 2 + gap for gap in (0.0, *(gaps.double().cumsum(0) / 2).tolist())]
        for i in range(1, len(times) - 1):
            weights[i, 0] = max(SASolver().weights(apart[i + 1], apart[i], apart[i - 1])[0], -2.0)
        self.start, self.gaps = float(times[0]), nn.Parameter(gaps.log())
        self.noise, self.weights = nn.Parameter(torch.full_like(first, 5.0)), nn.Parameter(weights)

    def solver(self, **options: Any) -> Learned:
        """The solver, whose samples have gradients with respect to the parameters."""
        low, high = self.ends
        shares = _LEAST + (1 - _LEAST * len(self.gaps)) * self.gaps.softmax(0)
        times: list[Any] = [self.start, *self._times(low + (high - low) * shares.cumsum(0)[:-1])]
        rows = torch.cat([self.noise.sigmoid()[:, None], self.weights], dim=1)
        return Learned(times=times, coefficients=[*rows], **options)

    def values(self) -> tuple[list[float], list[list[float]]]:
        """The times, and the rows of coefficients, rounded to four digits."""
        with torch.no_grad():
            solver = self.solver()
        rows = [[round(float(value), 4) for value in row] for row in solver.rows or ()]
        return [round(float(t), 4) for t in solver.given or ()], rows

    def _times(self, levels: Tensor) -> Tensor:
        """The times of log SNRs; their derivative is that of the inverse function."""
        schedule = self.schedule[0]
        with torch.enable_grad():
            t = schedule.time_at(levels.detach()).requires_grad_()
            (slopes,) = torch.autograd.grad(schedule.log_snr_at(t).sum(), t)
        return t.detach() + (levels - levels.detach()) / slopes.clamp(max=-1e-12)


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
        """As many samples as this time allows, up to 1,024, in batches."""
        count = max(BATCH, min(1024, _VALUES // math.prod(self.shape)))
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
    real: ImageSet | None = None,
) -> dict[str, Any]:
    """Learn a solver's times and coefficients by gradients of the energy distance between its samples and real ones (as Watson et al. 2022).

    It starts as `SASolver` with the best of the spacings, is compared with it on other noise, and where it is not better, ends with it.

    Args:
        denoiser: the model.
        shape: of a sample.
        y: labels or other conditions, taken in turn.
        like: gives the number of steps and the clipping.
        seconds: of all, at most, but for the first samples of each spacing and the last of each part.
        rounds: steps of the descent; None for as many as the time allows.
        real: two or more training samples as floats in [−1, 1] in random order, and their labels; None for samples of many steps in
            their place.
    """
    began = time.monotonic()
    model = _Model(copy.deepcopy(denoiser).requires_grad_(False), shape, y)
    options: dict[str, Any] = {"clip": like.clip, "dynamic_threshold": like.dynamic_threshold}
    distance, reference = _target(model, real, options, seconds / 5)
    spaced = {name: SASolver(like.num_steps, spacing=name, continuous=True, **options) for name in SPACINGS}
    with Activity("Comparing spacings"):
        best, slowness = _nearest(model, spaced, distance, seconds / 10)
    coefficients = Coefficients(denoiser.schedule, spaced[best].times_on(denoiser.schedule)[:-1])
    first = coefficients.values()
    with Activity("Learning times and coefficients") as activity:
        if rounds is None:
            start, limit = time.monotonic(), max(began + 0.9 * seconds - time.monotonic(), seconds / 3)
            most = limit / (3 * slowness)  # samples with a gradient, which takes as long as two more
            batch = min(BATCH, max(16, int(most / ROUNDS)))
            rate = TRAVEL * batch / most
            spent: Iterator[float] = iter(lambda: min((time.monotonic() - start) / limit, 1.0), 1.0)
        else:
            batch, rate, spent = BATCH, TRAVEL / rounds, (i / rounds for i in range(rounds))
        optimizer = torch.optim.Adam(coefficients.parameters(), lr=min(rate, FASTEST), betas=(0.9, 0.99))
        _descend(coefficients, optimizer, model, distance, options, spent, batch=batch, advance=activity.advance)
    times, rows = coefficients.values()
    learned = Learned(times=times, coefficients=rows, **options)
    solvers = {(fixed := f"sa_solver, {best}"): spaced[best], "learned": learned}
    with Activity("Comparing on other noise"):
        errors = {
            name: float(distance(model.many(solver, "judge", seconds=seconds / 30))) for name, solver in solvers.items()
        }
    if errors["learned"] >= errors[fixed]:
        times, rows = first[0], [[1.0, *weights] for _, *weights in first[1]]
    return {"times": times, "coefficients": rows, "reference": reference, "errors_on_other_noise": errors}


def _nearest(
    model: _Model, solvers: Mapping[str, Sampler], distance: EnergyDistance, seconds: float
) -> tuple[str, float]:
    """The solver whose samples are nearest, and the seconds per sample: in this time the better half is sampled more, again and again."""
    began, names = time.monotonic(), [*solvers]
    drawn: dict[str, list[Tensor]] = {name: [] for name in names}
    for rounds in (1, 1, 2, 4):  # times 2 BATCH samples
        for name in names:
            first = len(drawn[name])
            drawn[name] += [
                model.draw(solvers[name], "spacings", range(i * 2 * BATCH, (i + 1) * 2 * BATCH))
                for i in range(first, first + rounds)
            ]
        names = sorted(names, key=lambda name: float(distance(torch.cat(drawn[name]))))[: (len(names) + 1) // 2]
        if len(names) == 1 or time.monotonic() - began > seconds:
            break
    spent = time.monotonic() - began
    return names[0], spent / (2 * BATCH * sum(map(len, drawn.values())))


def _target(
    model: _Model, real: ImageSet | None, options: dict[str, Any], seconds: float
) -> tuple[EnergyDistance, str]:
    """The distance to lower, and what it compares with: training data, or samples of many steps."""
    if real is None:
        with Activity("Sampling the reference"):
            many = DPMSolver(min(_REFERENCE, model.denoiser.schedule.num_steps), eta=1.0, **options)
            x = model.many(many, "learn from", seconds=seconds)
        what = f"{len(x)} samples of {many.num_steps} steps of DPM-Solver++(2M SDE)"
    else:
        x = real.images[: max(BATCH, min(MANY, _VALUES // math.prod(model.shape)))].to(
            model.denoiser.schedule.alpha_bar
        )
        what = f"{len(x)} training samples"
    features: list[Callable[[Tensor], Tensor]] = [lambda x: x.flatten(1)]
    if x.ndim == 4 and min(x.shape[2:]) >= 4:
        if real is not None and is_labels(real.labels) and int(real.labels.max()) > 0:
            features += _classifiers(real, x, seconds)
            what += f", features of {_CLASSIFIERS} classifiers"
        else:
            features.append(RandomFeatures(x))
            what += ", random features"
    return EnergyDistance(x, features), what


def _classifiers(real: ImageSet, like: Tensor, seconds: float) -> list[Callable[[Tensor], Tensor]]:
    """The features of classifiers of the training images, of fewer training steps within less than 20 seconds."""
    factor = max(1, min(like.shape[2:]) // _CLASSIFIER_SIDE)

    def smaller(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, factor) if factor > 1 else x

    def features(body: nn.Module, x: Tensor) -> Tensor:
        return body(smaller(x))

    seen = ImageSet((smaller(real.images) + 1) * 127.5, real.labels)  # in 0..255, as it takes images
    count, steps = int(real.labels.max()) + 1, math.ceil(_CLASSIFIER_STEPS * min(1.0, seconds / 20))
    found: list[Callable[[Tensor], Tensor]] = []
    for seed in range(1, 1 + _CLASSIFIERS):
        net = train_classifier(seen, count, seed=seed, num_steps=steps, device=like.device)
        found.append(partial(features, net.to(like).requires_grad_(False).body))
    return found


def _descend(
    coefficients: Coefficients,
    optimizer: torch.optim.Optimizer,
    model: _Model,
    distance: EnergyDistance,
    options: dict[str, Any],
    spent: Iterable[float],
    *,
    batch: int,
    advance: Callable[[], object],
) -> None:
    """Follow the gradient while a share below 1 is spent, and end with the best of the first, the half-way and the last parameters."""
    looks, first, rate = [_look(coefficients, model, distance, options)], 0, optimizer.param_groups[0]["lr"]
    for share in spent:
        if share >= 0.5 and len(looks) == 1:
            looks.append(_look(coefficients, model, distance, options))
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * share)) / 2
        drawn = model.draw(coefficients.solver(**options), "learn", range(first, first + batch), grad=True)
        optimizer.zero_grad()
        distance(drawn).backward()
        if not nn.utils.clip_grad_norm_(coefficients.parameters(), math.inf).isfinite():
            break
        optimizer.step()
        first += batch
        advance()
    looks.append(_look(coefficients, model, distance, options))
    coefficients.load_state_dict(min(looks, key=lambda look: look[0])[1])


def _look(
    coefficients: Coefficients, model: _Model, distance: EnergyDistance, options: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """The distance of more samples, from noise of their own, and a copy of the parameters."""
    times, rows = coefficients.values()
    samples = model.draw(Learned(times=times, coefficients=rows, **options), "look", range(4 * BATCH))
    return float(distance(samples)), {name: value.clone() for name, value in coefficients.state_dict().items()}
