"""Reconstruct averaged weights of any width after training, for `python -m ddpm_lightning ema`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.callbacks.power_profiles import Profile, coefficients
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.records.torch import load_plain
from ddpm_lightning.run_folder import by_step
from ddpm_lightning.runs.loading import load_checkpoint, run_dir_of

__all__ = ["reconstruct_ema", "save_ema"]


def save_ema(run: Path, *, std: float, step: int | None = None) -> tuple[Path, float]:
    """Save a checkpoint `checkpoints/ema_<std>.ckpt` whose weights, "ema" and "raw", are `reconstruct_ema`'s.

    Returns:
        The file, and the relative distance of the profile that was reached, see `coefficients`.
    """
    run = run_dir_of(run)
    checkpoint = load_checkpoint(run)
    weights, distance = reconstruct_ema(run, std=std, step=step)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    wrong = [n for n, value in weights.items() if n not in state or state[n].shape != value.shape]
    if wrong:
        raise UserError(f"the snapshots in {run / 'ema'} are of another network: {wrong[0]} differs: remove them")
    weights = {name: value.to(state[name].dtype) for name, value in weights.items()}
    path = run / "checkpoints" / f"ema_{std:g}{'' if step is None else f'_step_{step}'}.ckpt"
    held = {"config": checkpoint["config"], "state_dict": {**state, **weights}, "ema_state_dict": weights}
    with replace_file(path, "wb") as file:
        torch.save(held, file)
    return path, distance


def reconstruct_ema(run: Path, *, std: float, step: int | None = None) -> tuple[dict[str, Tensor], float]:
    """The power-function average of width `std` at a step, from the snapshots of `PostHocEMA` (Karras et al. 2024, section 3.2).

    Args:
        run: the run folder.
        std: the width σ_rel, in (0, 0.28].
        step: the step of one of the snapshots; None for the last. Later snapshots are not used.

    Returns:
        The weights by name in float32, and the relative distance of the profile that was reached, see `coefficients`.

    Raises:
        UserError: for a run without snapshots, damaged ones, or a setting out of range.
    """
    require("std", std, "(0, 0.28]")
    paths = {int(path.stem[5:]): path for path in by_step(run / "ema", "step", ".ckpt") if path.stem != "step_0"}
    if not paths:
        raise UserError(f"{run / 'ema'} holds no snapshots: train with callbacks=post_hoc")
    step = max(paths) if step is None else step
    require_one_of("step", step, [*paths])
    used = [saved for saved in paths if saved <= step]
    widths = [*_averages(paths[step], step)]
    stored = [Profile(saved, width) for saved in used for width in widths]
    weighting, distance = coefficients(stored, Profile(step, std))
    total: dict[str, Tensor] = {}
    for saved, factors in zip(used, weighting.split(len(widths)), strict=True):
        averages = _averages(paths[saved], saved)
        require_one_of(f"the widths of {paths[saved]}", sorted(averages), [sorted(widths)])
        _add(total, [averages[width] for width in widths], factors)
    return {name: value.float() for name, value in total.items()}, distance


def _add(total: dict[str, Tensor], averages: Sequence[Mapping[str, Tensor]], factors: Tensor) -> None:
    """Add the averages times their factors, in float64."""
    for average, factor in zip(averages, factors.tolist(), strict=True):
        for name, value in average.items():
            total[name] = total.get(name, 0) + factor * value.double()


def _averages(path: Path, step: int) -> dict[float, dict[str, Tensor]]:
    """The averages of a snapshot by width.

    Raises:
        UserError: for a damaged file, or one that is not a snapshot of this step.
    """
    try:
        held: Any = load_plain(path)
        averages = held["averages"]
        tensors = [value for average in averages.values() for value in average.values()]
        if held["step"] != step or not tensors or not all(isinstance(value, Tensor) for value in tensors):
            raise ValueError("it is not a snapshot of its step")
        if not all(value.isfinite().all() for value in tensors):
            raise ValueError("some of its weights are NaN or infinite")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be used ({' '.join(str(error).split())}): remove it; the other snapshots are still used"
        ) from error
    return averages
