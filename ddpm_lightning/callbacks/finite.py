"""A run whose numbers are NaN or infinite is neither saved nor called finished."""

import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.errors import Diverged
from ddpm_lightning.run_folder import newest_intact

__all__ = ["diverged", "refuse_broken"]


def refuse_broken(trainer: Trainer, pl_module: Any) -> None:
    """Look at the weights, their average, the optimiser's state and the newest validation, on all ranks.

    Raises:
        Diverged: that names the first of them with a value that is no finite number.
    """
    averages = [callback.average for callback in trainer.callbacks if isinstance(callback, EMA)]
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    found = {
        "one of the weights": [*pl_module.state_dict().values()],
        "one of the averaged weights": [value for average in averages for value in average.values()],
        "the optimizer's state": [value for state in states for value in state.values()],
    }
    for what, values in found.items():
        # Each rank looks at its own part: one whose part of a weight is empty has no norm of it.
        parts = [v.to_local() if isinstance(v, DTensor) else v for v in values if isinstance(v, Tensor)]
        largest = torch.nn.utils.get_total_norm([p for p in parts if p.is_floating_point() and p.numel()], math.inf)
        broken = torch.as_tensor(float(not largest.isfinite()), device=trainer.strategy.root_device)
        if trainer.strategy.reduce(broken, reduce_op="max"):
            raise diverged(trainer, what, trainer.global_step)
    for key, value in trainer.callback_metrics.items():
        if key.startswith("val/") and not value.isfinite():
            raise diverged(trainer, key, trainer.global_step)


def diverged(trainer: Trainer, what: str, step: int) -> Diverged:
    """The error that says so, with the checkpoint before it and what to change."""
    folders = [folder for callback in trainer.callbacks if (folder := getattr(callback, "folder", None)) is not None]
    saved = next((path for folder in folders if (path := newest_intact(folder)) is not None), None)
    return Diverged(
        what,
        step,
        (f"the newest whole checkpoint is {saved}; " if saved else "nothing had been saved by then; ")
        + "try a lower optimizer.lr, a lower trainer.gradient_clip_val, a longer lr_scheduler.total_iters, or "
        "trainer.precision=32-true",
    )
