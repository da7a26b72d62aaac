"""Search for the times with which a deterministic sampler comes closest to the exact solution."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.data.source import Condition, in_turn
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.samplers import SPACINGS, DPMSolver, Sampler
from ddpm_lightning.seeds import derive
from ddpm_lightning.terminal import Activity

__all__ = ["Target", "descend", "search"]

_VALUES = 2**20  # of all samples compared: 64 images of 128×128, more of smaller ones
_REFERENCE = 200  # steps of the solution that samples are compared with


@dataclass(frozen=True)
class Target:
    """Samples to come near to, from the noise of their seed."""

    denoiser: Denoiser
    sampler: Sampler
    noise: Tensor
    y: Condition | None
    exact: Tensor

    def error(self, times: Sequence[float]) -> float:
        """The root mean square distance to the exact samples, with these times above 0."""
        found = self.sampler(self.denoiser, self.noise, self.y, times=[*times, 0.0])
        return float((found - self.exact).square().mean().sqrt())


def search(
    denoiser: Denoiser, shape: tuple[int, ...], y: Condition | None, solver: Sampler, steps: int, seconds: float
) -> dict[str, Any]:
    """Find the times of least distance between samples and those of 200 second-order steps from the same noise.

    One time after the other is moved, from the best spacing on. Another seed's samples then judge what was found.

    Args:
        denoiser: the model.
        shape: of a sample.
        y: labels or other conditions, taken in turn.
        solver: the sampler, without noise of its own.
        steps: the number of steps.
        seconds: of all, at most, but for the samples that it begins and ends with.
    """
    began = time.monotonic()
    with Activity("Sampling the reference"):
        learn, judge = (_target(denoiser, solver, shape, y, seed) for seed in ("learn times", "judge times"))
    spaced = {name: _spaced(denoiser, steps, name) for name in SPACINGS}
    start = min(spaced.values(), key=learn.error)
    with Activity("Searching for times"):
        times = descend(learn, start, until=max(began + 0.9 * seconds, time.monotonic() + seconds / 3))
        errors = {name: judge.error(path) for name, path in spaced.items()} | {"learned": judge.error(times)}
    times = (spaced | {"learned": times})[min(errors, key=errors.__getitem__)]  # of those that are not learned, too
    return {
        "times": [round(t, 4) for t in times],
        "reference": f"{_REFERENCE} steps of DPM-Solver++(2M), {len(learn.noise)} samples",
        "errors_on_other_noise": errors,
    }


def descend(target: Target, start: Sequence[float], until: float) -> list[float]:
    """Coordinate descent: each time moves between its neighbors, in log σ, with steps that halve where none helps."""
    schedule = target.denoiser.schedule
    at = partial(torch.tensor, dtype=schedule.alpha_bar.dtype, device=schedule.alpha_bar.device)
    best, reach = list(start), 0.5
    error = target.error(best)
    while reach > 0.02 and len(best) > 1:
        before = error
        for index in range(1, len(best)):
            ends = best[index - 1], best[index + 1] if index + 1 < len(best) else 1.0
            above, now, below = (
                float(schedule.log_snr_at(at(t)).clamp(-30, 30)) for t in (ends[0], best[index], ends[1])
            )
            for level in (now + reach * (below - now), now + reach * (above - now)):
                moved = float(schedule.time_at(at(level)))
                tried = [*best[:index], moved, *best[index + 1 :]]
                if not (1 <= moved < ends[0] and (index + 1 == len(best) or moved > ends[1])):
                    continue
                if (found := target.error(tried)) < error:
                    best, error = tried, found
                if time.monotonic() > until:
                    return best
        if error > 0.995 * before:
            reach /= 2
    return best


def _target(denoiser: Denoiser, sampler: Sampler, shape: tuple[int, ...], y: Condition | None, seed: str) -> Target:
    count = max(4, min(128, _VALUES // math.prod(shape)))
    noise = SeededNoise(derive(0, seed), range(count)).draw(shape).to(denoiser.schedule.alpha_bar)
    y = in_turn(y, range(count), noise.device)
    exact = DPMSolver(clip=sampler.clip)(denoiser, noise, y, times=[*_spaced(denoiser, _REFERENCE, "trailing"), 0.0])
    return Target(denoiser, sampler, noise, y, exact)


def _spaced(denoiser: Denoiser, steps: int, spacing: str) -> list[float]:
    schedule = denoiser.schedule
    return [
        float(t) for t in SPACINGS[spacing](schedule.num_steps, min(steps, schedule.num_steps), schedule.log_snr[1:])
    ]
