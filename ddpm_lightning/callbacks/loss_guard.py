"""A loss that is no number any more ends the run, and spikes are counted."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.steps import at_log_step
from ddpm_lightning.errors import UserError

__all__ = ["LossGuard"]


class LossGuard(Callback):
    """Stops at the first step whose loss is NaN or infinite, and counts steps whose loss is a multiple of its running mean.

    What it knows stays on the device, and is looked at when metrics are logged and before a checkpoint is written: no
    step waits for it, and no broken weights are saved.

    Args:
        spike: a loss above this multiple of the mean of the last hundred or so counts as a spike.

    Raises:
        ValueError: for a multiple of 1 or less.
    """

    def __init__(self, spike: float = 5.0):
        if not spike > 1:
            raise ValueError(f"spike={spike} will not do: give a multiple of the mean loss, above 1")
        self._spike = spike
        self._mean = torch.tensor(0.0)
        self._spikes = torch.tensor(0)
        self._broken = torch.tensor(0)  # the first step with no finite loss, or 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mean, self._spikes, self._broken = (
            value.to(pl_module.device) for value in (self._mean, self._spikes, self._broken)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["losses"].mean()
        finite, begun = loss.isfinite(), self._mean > 0
        self._broken = torch.where(finite | (self._broken > 0), self._broken, max(1, trainer.global_step))
        self._spikes = self._spikes + (begun & finite & (loss > self._spike * self._mean))
        self._mean = torch.where(begun, torch.where(finite, self._mean.lerp(loss, 0.01), self._mean), loss)
        if at_log_step(trainer):
            self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Look at what the device knows, on all ranks.

        Raises:
            UserError: where a loss was no finite number.
        """
        if not (step := int(trainer.strategy.reduce(self._broken.clone(), reduce_op="max"))):
            return
        saved = next((last for c in trainer.callbacks if (last := getattr(c, "last", None)) and last.exists()), None)
        raise UserError(
            f"the loss is no finite number any more at step {step}; "
            + (f"the last good checkpoint is {saved}; " if saved else "nothing had been saved by then; ")
            + "try a lower optimizer.lr, a lower trainer.gradient_clip_val, a longer lr_scheduler.total_iters, or "
            "trainer.precision=32-true"
        )

    def spikes(self, trainer: Trainer) -> int:
        """Spikes so far, of all ranks; a collective call."""
        return int(trainer.strategy.reduce(self._spikes.clone(), reduce_op="sum"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine: Tensor = torch.stack([self._mean, self._spikes.to(self._mean.dtype)])
        checkpoint["loss_guard"] = pl_module.all_gather(mine).reshape(-1, 2).cpu().double()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint["loss_guard"]
        if len(ranks) == trainer.world_size:  # else the means of other batches, and the count starts anew
            mean, spikes = ranks[trainer.global_rank]
            self._mean, self._spikes = mean.float(), spikes.long()
