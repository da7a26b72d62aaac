"""The times that suit a model and a sampler best: found by `ddpm times`, and taken by `sampler=learned` and `sampler.times=learned`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning import CONF_DIR, environment
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.fingerprint import fingerprint
from ddpm_lightning.data.loaders import ImageSet, InMemory
from ddpm_lightning.data.source import map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require, shown
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.learned_solver import learn
from ddpm_lightning.runs.loading import load_model
from ddpm_lightning.runs.names import named
from ddpm_lightning.runs.times_search import search
from ddpm_lightning.runs.trust import check_targets, without_download
from ddpm_lightning.samplers import Learned, Sampler

__all__ = ["find_times", "learned_settings"]

_FOUND = ("times", "spacing", "continuous", "coefficients")  # settings of a sampler that are, or are not used then
_MOST, _VALUES = 16_384, 2**28  # training samples to learn from, and values of all of them


def find_times(
    checkpoint: Path, *, steps: int = 8, sampler: str = "learned", weights: str = "ema", seconds: float = 100.0
) -> Path:
    """Find the best times for a sampler with few steps, add them to `<checkpoint>.times.json`, and return the file.

    For `sampler=learned`, `learned_solver.learn` also learns coefficients, with the run's training data where they can be read; a
    deterministic sampler has only times, see `times_search`.

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
    path = _path(checkpoint)
    _entries(path)  # before the search, which a damaged file would make useless
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        node = compose("sample", [f"sampler={sampler}", f"sampler.num_steps={steps}"]).sampler
    solver: Sampler = build("sampler", node)
    if _is_noisy(solver):
        raise UserError(f"--sampler must be learned, or deterministic such as ddim, dpmpp_2m or unipc, got {sampler}")
    denoiser = denoiser.to("cuda" if torch.cuda.is_available() else "cpu")
    shape = (data["channels"], *data["image_size"])
    y = None if denoiser.num_classes is None else torch.arange(denoiser.num_classes)
    print(f"Learning sampler={sampler} with sampler.num_steps={steps}: about {seconds:g} s", flush=True)
    if isinstance(solver, Learned):
        real = _training_data(data)
        if real is not None and denoiser.conditional:
            y = real.labels  # in the proportions of the data
        found = learn(denoiser, shape, y, like=solver, seconds=seconds, real=real)
    else:
        found = search(denoiser, shape, y, solver, steps, seconds)
    for name, error in sorted(found["errors_on_other_noise"].items(), key=lambda pair: pair[1]):
        print(
            f"  {name:<22} distance {error:.4f} to {found['reference']} (from other noise; lower is better)", flush=True
        )
    if found["errors_on_other_noise"]["learned"] > min(found["errors_on_other_noise"].values()):
        print("The search did not improve on a fixed solver: a longer one may, such as with --seconds 300", flush=True)
    found |= _key(denoiser, node)
    others = [entry for entry in _entries(path) if not _same(entry, found)]
    with replace_file(path) as file:
        file.write(json.dumps([*others, found], indent=2) + "\n")
    return path


def _training_data(data: Mapping[str, Any]) -> ImageSet | None:
    """A run's training data in random order, as floats in [−1, 1]; None, with a line that says why, where they cannot be read."""
    if "_target_" not in data:
        print("The checkpoint does not name its training data: samples of many steps take their place", flush=True)
        return None
    check_targets(data, "data")
    try:
        module: ImageDataModule = build("data", OmegaConf.create(without_download(data)))
        module.setup()
    except UserError as error:
        print(f"{error}\nThe training data cannot be read: samples of many steps take their place", flush=True)
        return None
    most = max(1, min(_MOST, _VALUES // math.prod((data["channels"], *data["image_size"]))))
    in_memory = isinstance(module.source, InMemory)
    found = module.split("train", about=None if in_memory else most)  # of a stream, its first shards
    if len(found.images) < 2:
        print("One training sample is too few: samples of many steps take their place", flush=True)
        return None
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))[:most]
    labels = map_condition(lambda rows: rows[order], found.labels)
    return ImageSet(module.values.normalize(found.images[order]), labels)


def learned_settings(checkpoint: Path, denoiser: Denoiser, node: DictConfig, *, weights: str = "ema") -> dict[str, Any]:
    """The times, and coefficients if any, that `find_times` stored for this model and sampler.

    Args:
        checkpoint: a checkpoint file or run folder.
        denoiser: the model.
        node: the config of the sampler.
        weights: the name of the model's weights, for the error.

    Raises:
        UserError: if there are none.
    """
    wanted = _key(denoiser, node)
    for entry in _entries(_path(checkpoint)):
        if _same(entry, wanted):
            return {name: entry[name] for name in ("times", "coefficients") if name in entry}
    (name, changed), steps = named("sampler", node), node.get("num_steps")
    typed, needed = ("sampler", "times and coefficients") if name == "learned" else ("sampler.times", "times")
    if _is_noisy(build("sampler", node)):
        raise UserError(
            f"sampler.times=learned requires a sampler without noise, got sampler={name}: choose sampler=learned, or one such as ddim, "
            "dpmpp_2m or unipc"
        )
    if others := [f"sampler.{key}={shown(value)}" for key, value in changed.items() if key not in _FOUND]:
        raise UserError(
            f"{typed}=learned requires the other settings of sampler={name} unchanged: omit {' '.join(others)}"
        )
    raw = "" if weights == "ema" else f" --weights {weights}"
    raise UserError(
        f"{typed}=learned with sampler.num_steps={steps} requires {needed} that have not been learned for these weights: "
        f"run `{environment.command('times')} {checkpoint} --sampler {name} --steps {steps}{raw}` first"
    )


def _is_noisy(solver: Sampler) -> bool:
    """Whether a sampler has times that cannot be learned, since it adds noise."""
    return solver.learned_variance or (solver.eta > 0 and not isinstance(solver, Learned))


def _key(denoiser: Denoiser, node: DictConfig) -> dict[str, Any]:
    """What the best times depend on: the model, and all settings of the sampler but those of its times."""
    held = OmegaConf.to_container(node, resolve=True)
    assert isinstance(held, dict)
    return {
        "sampler": {str(key): value for key, value in held.items() if key not in _FOUND},
        "weights": fingerprint(*denoiser.state_dict().values()),
        "schedule": fingerprint(denoiser.schedule.alpha_bar),
    }


def _same(entry: Any, other: dict[str, Any]) -> bool:
    return all(entry.get(key) == other[key] for key in ("sampler", "weights", "schedule"))


def _path(checkpoint: Path) -> Path:
    """The file beside a checkpoint, or beside a run's newest one."""
    checkpoint = checkpoint / "checkpoints" / "last.ckpt" if checkpoint.is_dir() else checkpoint
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
