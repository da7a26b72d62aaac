"""Stop or roll back a run whose loss or gradient is NaN or infinite, and count loss spikes."""

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

_LEAST_SCALE = 2.0**-10  # loss scale in float16, which starts at 2^16 and is halved at each overflow


class LossGuard(Callback):
    """Stops at the first step whose loss or gradient is NaN or infinite, and counts steps whose loss is a multiple of its running mean.

    The flags stay on the device and are read when metrics are logged and before a checkpoint is saved: no step waits
    for them, and no NaN weights are saved. In float16 gradients may overflow while the loss scale is being found.

    Args:
        spike: a loss above this multiple of its running mean over about 100 steps is a spike.
        rollback: how often a run may return to its newest intact checkpoint and skip the batches up to the one it diverged on
            before it stops. Only checkpoints saved by step (`every_n_train_steps`) are used, since those by time or signal
            depend on the machine.
        ema: the run's EMA, which is checked, too.

    Raises:
        UserError: for a spike factor of at most 1, or a negative number of rollbacks.
    """

    def __init__(self, spike: float = 5.0, rollback: int = 0, *, ema: EMA | None = None):
        require("spike", spike, "(1, inf]")
        require("rollback", rollback, "0..1000000")
        self._ema = ema
        self._spike = spike
        self._rollback = rollback
        self._went_back = 0
        self._skipped: tuple[int, int] | None = None  # the checkpoint's step, and the batches to skip after it
        self._mean = torch.tensor(0.0)
        self._spikes = torch.tensor(0)
        self._broken = torch.tensor(0)  # the first step with a non-finite loss or gradient, or 0

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
        step = trainer.global_step + (not stepped)  # the step that this batch is part of
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
        """Read the flags on all ranks.

        Raises:
            Diverged: if a loss or gradient was NaN or infinite, or float16 found no loss scale without overflow.
        """
        if (scaler := _scaler(trainer)) is not None and scaler.get_scale() < _LEAST_SCALE:
            raise Diverged("the gradient", trainer.global_step)
        if step := int(trainer.strategy.reduce(self._broken.clone(), reduce_op="max")):
            raise Diverged("the loss or its gradient", step)

    @property
    def may_go_back(self) -> bool:
        """Whether the run may roll back again."""
        return self._went_back < self._rollback

    def go_back(self, error: Diverged, *, step: int, accumulate: int) -> None:
        """Skip the batches up to an error when the run resumes from a checkpoint.

        Args:
            error: the reason for the rollback.
            step: the checkpoint's step.
            accumulate: batches per optimizer step.
        """
        self._went_back += 1
        before = self._skipped[1] if self._skipped is not None and self._skipped[0] == step else 0
        self._skipped = (step, before + (error.step - step) * accumulate)

    def spikes(self, trainer: Trainer) -> int:
        """The number of spikes so far on all ranks; a collective call."""
        return int(trainer.strategy.reduce(self._spikes.clone(), reduce_op="sum"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine: Tensor = torch.stack([self._mean, self._spikes.to(self._mean.dtype)])
        checkpoint["loss_guard"] = pl_module.all_gather(mine).reshape(-1, 2).cpu().double()
        checkpoint["rollbacks"] = self._went_back

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ranks = checkpoint["loss_guard"]
        if len(ranks) == trainer.world_size:  # otherwise the means belong to other batches, and the count starts again
            mean, spikes = ranks[trainer.global_rank]
            self._mean, self._spikes = mean.float(), spikes.long()
        self._went_back = max(self._went_back, checkpoint.get("rollbacks", 0))
        if self._skipped is not None:
            # Before the states of the loader and of the sampling of t and ε are restored, which alone count the skipped batches.
            checkpoint["callbacks"]["Randomness"]["steps"] += self._skipped[1] // trainer.accumulate_grad_batches
            for state in checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]:
                state["skip"] = self._skipped[1]


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
