"""The times that suit a model and a sampler best: found by `ddpm times`, and taken by `sampler=learned` and `sampler.times=learned`."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ddpm_lightning import CONF_DIR, environment
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.source import Condition, in_turn
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.learned_solver import learn
from ddpm_lightning.runs.loading import load_model
from ddpm_lightning.runs.names import named
from ddpm_lightning.samplers import SPACINGS, DPMSolver, Learned, Sampler
from ddpm_lightning.seeds import derive
from ddpm_lightning.terminal import Activity

__all__ = ["find_times", "learned_settings"]

_VALUES = 2**20  # of all samples compared: 64 images of 128×128, more of smaller ones
_REFERENCE = 200  # steps of the solution that samples are compared with


@dataclass(frozen=True)
class _Target:
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


def find_times(
    checkpoint: Path, *, steps: int = 8, sampler: str = "learned", weights: str = "ema", seconds: float = 100.0
) -> Path:
    """Find the best times for a sampler with few steps, add them to `<checkpoint>.times.json`, and return the file.

    For `sampler=learned`, `learned_solver.learn` also learns coefficients. For a deterministic sampler the times minimize the
    distance of samples to those of 200 second-order steps from the same noise, by a search of one time after the other from the
    best spacing. Another seed's samples then judge what was found.

    Args:
        checkpoint: a checkpoint file.
        steps: the number of steps.
        sampler: a choice of `sampler=`: learned, or one without noise of its own.
        weights: "ema" or "raw".
        seconds: of the search, at most.

    Raises:
        UserError: for an unusable checkpoint or setting.
    """
    require("seconds", seconds, "[1, 1e6]")
    denoiser, data, _ = load_model(checkpoint, weights=weights, key="checkpoint")
    require("steps", steps, f"1..{denoiser.schedule.num_steps}")
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        node = compose("sample", [f"sampler={sampler}", f"sampler.num_steps={steps}"]).sampler
    solver: Sampler = build("sampler", node)
    shape = (data["channels"], *data["image_size"])
    y = None if denoiser.num_classes is None else torch.arange(denoiser.num_classes)
    print(f"{sampler} in {steps} steps, about {seconds:g} s", flush=True)
    if isinstance(solver, Learned):
        found = learn(denoiser, shape, y, like=solver, seconds=seconds)
    elif solver.eta > 0 or solver.learned_variance:
        raise UserError(f"--sampler must be learned, or deterministic such as ddim, dpmpp_2m or unipc, got {sampler}")
    else:
        found = _find_times(denoiser, shape, y, solver, steps, seconds)
    for name, error in sorted(found["errors_on_other_noise"].items(), key=lambda pair: pair[1]):
        print(
            f"  {name:<22} distance {error:.4f} to samples of many steps, on other noise (lower is better)", flush=True
        )
    found |= _key(denoiser, node)
    path = _path(checkpoint if checkpoint.is_file() else checkpoint / "checkpoints" / "last.ckpt")
    others = [entry for entry in _entries(path) if not _same(entry, found)]
    with replace_file(path) as file:
        file.write(json.dumps([*others, found], indent=2) + "\n")
    return path


def learned_settings(checkpoint: Path, denoiser: Denoiser, node: DictConfig) -> dict[str, Any]:
    """The times, and coefficients if any, that `find_times` stored for this model and sampler.

    Raises:
        UserError: if there are none.
    """
    wanted = _key(denoiser, node)
    for entry in _entries(_path(checkpoint)):
        if _same(entry, wanted):
            return {name: entry[name] for name in ("times", "coefficients") if name in entry}
    name = named("sampler", node).choice
    raise UserError(
        f"sampler.times=learned: {_path(checkpoint)} has no times for these weights and this sampler in {node.get('num_steps')} steps: "
        f"run `{environment.command('times')} {checkpoint} --sampler {name} --steps {node.get('num_steps')}` first"
    )


def _find_times(
    denoiser: Denoiser, shape: tuple[int, ...], y: Condition | None, solver: Sampler, steps: int, seconds: float
) -> dict[str, Any]:
    with Activity("Sampling the reference"):
        learn, judge = (_target(denoiser, solver, shape, y, seed) for seed in ("learn times", "judge times"))
    spaced = {name: _spaced(denoiser, steps, name) for name in SPACINGS}
    start = min(spaced.values(), key=learn.error)
    with Activity("Searching for times"):
        times = _search(learn, start, until=time.monotonic() + seconds)
        errors = {name: judge.error(path) for name, path in spaced.items()} | {"learned": judge.error(times)}
    return {
        "times": [round(t, 4) for t in times],
        "reference": f"{_REFERENCE} steps of DPM-Solver++(2M), {len(learn.noise)} samples",
        "errors_on_other_noise": errors,
    }


def _search(target: _Target, start: Sequence[float], until: float) -> list[float]:
    """Coordinate descent: each time moves between its neighbors, in log σ, with steps that halve where none helps."""
    schedule = target.denoiser.schedule
    at = partial(torch.tensor, dtype=schedule.alpha_bar.dtype)
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


def _target(denoiser: Denoiser, sampler: Sampler, shape: tuple[int, ...], y: Condition | None, seed: str) -> _Target:
    count = max(4, min(128, _VALUES // math.prod(shape)))
    noise = SeededNoise(derive(0, seed), range(count)).draw(shape).to(denoiser.schedule.alpha_bar)
    y = in_turn(y, range(count))
    exact = DPMSolver(clip=sampler.clip)(denoiser, noise, y, times=[*_spaced(denoiser, _REFERENCE, "trailing"), 0.0])
    return _Target(denoiser, sampler, noise, y, exact)


def _spaced(denoiser: Denoiser, steps: int, spacing: str) -> list[float]:
    schedule = denoiser.schedule
    return [
        float(t) for t in SPACINGS[spacing](schedule.num_steps, min(steps, schedule.num_steps), schedule.log_snr[1:])
    ]


def _key(denoiser: Denoiser, node: DictConfig) -> dict[str, Any]:
    """What the best times depend on: the model, and all settings of the sampler but those of its times."""
    held = OmegaConf.to_container(node, resolve=True)
    assert isinstance(held, dict)
    found = ("times", "spacing", "continuous", "coefficients")
    return {
        "sampler": {str(key): value for key, value in held.items() if key not in found},
        "weights": fingerprint(*denoiser.state_dict().values()),
        "schedule": fingerprint(denoiser.schedule.alpha_bar),
    }


def _same(entry: Any, other: dict[str, Any]) -> bool:
    return all(entry.get(key) == other[key] for key in ("sampler", "weights", "schedule"))


def _path(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.times.json")


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = [{**entry, "times": [float(t) for t in entry["times"]]} for entry in json.loads(path.read_text())]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({brief(error)}): delete it, and run `python -m ddpm_lightning times` again"
        ) from error
    return found
