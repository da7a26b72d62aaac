"""t, ε and dropout as a function of (seed, micro-batch, rank)."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ddpm_lightning.seeds import derive

__all__ = ["Randomness"]


class Randomness(Callback):
    """Seeds the global generators of the CPU and of the run's device before each micro-batch, so that nothing random has to be saved.

    The ranks draw different noise; what they must draw alike comes from the module's `shared_generator`.
    The counter is that of micro-batches, not of optimiser steps: those stand still under gradient accumulation.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        _seed(pl_module.device, derive(self._seed, "step", self._batches, trainer.global_rank))
        pl_module.shared_generator.manual_seed(derive(self._seed, "shared", self._batches))
        self._batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]


def _seed(device: torch.device, seed: int) -> None:
    """As `torch.manual_seed`, which takes a millisecond, since it asks for devices that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
