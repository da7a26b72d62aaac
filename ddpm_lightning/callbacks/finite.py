"""Refuse to save or finish a run with NaN or infinite values."""

import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.errors import Diverged

__all__ = ["refuse_broken"]


def refuse_broken(trainer: Trainer, pl_module: Any, ema: EMA | None) -> None:
    """Check the weights, the EMA, the optimizer state and the latest validation on all ranks.

    Raises:
        Diverged: naming the first of them with a NaN or infinite value.
    """
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    found = {
        "one of the weights": [*pl_module.state_dict().values()],
        "one of the averaged weights": [] if ema is None else [*ema.average.values()],
        "the optimizer's state": [value for state in states for value in state.values()],
    }
    for what, values in found.items():
        # Each rank checks its own shard; an empty shard has no norm.
        parts = [v.to_local() if isinstance(v, DTensor) else v for v in values if isinstance(v, Tensor)]
        largest = torch.nn.utils.get_total_norm([p for p in parts if p.is_floating_point() and p.numel()], math.inf)
        broken = torch.as_tensor(float(not largest.isfinite()), device=trainer.strategy.root_device)
        if trainer.strategy.reduce(broken, reduce_op="max"):
            raise Diverged(what, trainer.global_step)
    for key, value in trainer.callback_metrics.items():
        if key.startswith("val/") and not value.isfinite():
            raise Diverged(key, trainer.global_step)
