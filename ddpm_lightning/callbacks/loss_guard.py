"""A loss or a gradient that is NaN or infinite ends the run or takes it back, and spikes are counted."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.finite import refuse_broken
from ddpm_lightning.callbacks.steps import at_log_step, has_stepped
from ddpm_lightning.errors import Diverged
from ddpm_lightning.ranges import require

__all__ = ["LossGuard"]

_LEAST_SCALE = 2.0**-10  # of a float16 loss, which begins with 2^16 and is halved at each overflow


class LossGuard(Callback):
    """Stops at the first step whose loss or gradient is NaN or infinite, and counts steps whose loss is a multiple of its running mean.

    What it knows stays on the device, and is looked at when metrics are logged and before a checkpoint is written: no
    step waits for it, and no broken weights are saved. With float16 the gradient may overflow, since the loss's scale is found so.

    Args:
        spike: a loss above this multiple of the mean of the last hundred or so counts as a spike.
        rollback: how often a run may go back to its newest whole checkpoint, past the batches up to the one that it diverged
            on, before it ends. Only checkpoints by step count (`every_n_train_steps`): those by time or on a signal depend on the
            machine, and the result would too.
        ema: the run's average of the weights, which is looked at, too.

    Raises:
        UserError: for a multiple of 1 or less, or a negative number of rollbacks.
    """

    def __init__(self, spike: float = 5.0, rollback: int = 0, *, ema: EMA | None = None):
        require("spike", spike, "(1, inf]")
        require("rollback", rollback, "0..1000000")
        self._ema = ema
        self._spike = spike
        self._rollback = rollback
        self._went_back = 0
        self._skipped: tuple[int, int] | None = None  # the checkpoint's step, and batches to leave out behind it
        self._mean = torch.tensor(0.0)
        self._spikes = torch.tensor(0)
        self._broken = torch.tensor(0)  # the first step with no finite loss or gradient, or 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mean, self._spikes, self._broken = (
            value.to(pl_module.device) for value in (self._mean, self._spikes, torch.zeros_like(self._broken))
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["losses"].mean()
        finite, begun = loss.isfinite(), self._mean > 0
        stepped = has_stepped(trainer)
        if stepped and pl_module.grad_norm is not None and _scaler(trainer) is None:
            finite = finite & pl_module.grad_norm.isfinite()
        step = trainer.global_step + (not stepped)  # the one that the batch is part of
        self._broken = torch.where(finite | (self._broken > 0), self._broken, step)
        self._spikes = self._spikes + (begun & finite & (loss > self._spike * self._mean))
        self._mean = torch.where(begun, torch.where(finite, self._mean.lerp(loss, 0.01), self._mean), loss)
        if at_log_step(trainer):
            self.check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.check(trainer)
            refuse_broken(trainer, pl_module, self._ema)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Look at what the device knows, on all ranks.

        Raises:
            Diverged: where a loss or a gradient was no finite number, or float16 has found no scale at which it is one.
        """
        if (scaler := _scaler(trainer)) is not None and scaler.get_scale() < _LEAST_SCALE:
            raise Diverged("the gradient", trainer.global_step)
        if step := int(trainer.strategy.reduce(self._broken.clone(), reduce_op="max")):
            raise Diverged("the loss or its gradient", step)

    @property
    def may_go_back(self) -> bool:
        """Whether the run may go back once more."""
        return self._went_back < self._rollback

    def go_back(self, error: Diverged, *, step: int, accumulate: int) -> None:
        """Leave out the batches up to an error when the run goes on from its checkpoint of a step.

        Args:
            error: why it goes back.
            step: the checkpoint's.
            accumulate: batches per step.
        """
        self._went_back += 1
        before = self._skipped[1] if self._skipped is not None and self._skipped[0] == step else 0
        self._skipped = (step, before + (error.step - step) * accumulate)

    def spikes(self, trainer: Trainer) -> int:
        """Spikes so far, of all ranks; a collective call."""
        return int(trainer.strategy.reduce(self._spikes.clone(), reduce_op="sum"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine: Tensor = torch.stack([self._mean, self._spikes.to(self._mean.dtype)])
        checkpoint["loss_guard"] = pl_module.all_gather(mine).reshape(-1, 2).cpu().double()
        checkpoint["rollbacks"] = self._went_back

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint["loss_guard"]
        if len(ranks) == trainer.world_size:  # else the means of other batches, and the count starts anew
            mean, spikes = ranks[trainer.global_rank]
            self._mean, self._spikes = mean.float(), spikes.long()
        self._went_back = max(self._went_back, checkpoint.get("rollbacks", 0))
        if self._skipped is not None:
            # Before the loader and the draws of t and ε get their states, which are all that counts what was left out.
            checkpoint["callbacks"]["Randomness"]["steps"] += self._skipped[1] // trainer.accumulate_grad_batches
            for state in checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]:
                state["skip"] = self._skipped[1]


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
