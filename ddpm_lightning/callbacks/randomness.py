"""t, ε and dropout as a function of the seed, the optimizer step and the position in the global batch."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from ddpm_lightning.seeds import derive

__all__ = ["Randomness"]


class Randomness(Callback):
    """Seeds the global generators of the CPU and the run's device before each batch, so that no random state has to be saved.

    Every process samples t and ε for all images of an optimizer step and takes its own part, so they do not depend on how the
    images are split. Dropout does, and is seeded separately, after `DDPM.training_step` has sampled the rest.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._steps = 0  # optimizer steps begun, including those rolled back

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        part = batch_idx % trainer.accumulate_grad_batches
        if part == 0:
            self._steps += 1
        step = self._steps - 1
        _seed(pl_module.device, derive(self._seed, "step", step, 0))
        dropout = derive(self._seed, "dropout", step, part, trainer.global_rank)
        pl_module.before_dropout = partial(_seed, pl_module.device, dropout)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        held = checkpoint["callbacks"].get("Randomness", {})
        if "batches" in held:  # from an earlier version
            batches = checkpoint["config"]["trainer"]["accumulate_grad_batches"] if "config" in checkpoint else 1
            checkpoint["callbacks"]["Randomness"] = {"steps": held["batches"] // batches}


def _seed(device: torch.device, seed: int) -> None:
    """Like `torch.manual_seed`, which takes a millisecond since it also queries absent devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
