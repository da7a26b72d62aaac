"""One progress bar for the whole training run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from ddpm_lightning import environment

__all__ = ["Progress"]


class Progress(Callback):
    """Shows optimizer steps, time left and the latest losses; hidden if the output is not a terminal.

    Lightning's own bars restart with every epoch, and an epoch of a small dataset takes a second.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=int(trainer.estimated_stepping_batches),
                initial=trainer.global_step,
                desc=f"{job}, training" if (job := environment.current().job) else "training",
                unit="step",
                disable=None,
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.update(trainer.global_step - self._bar.n)
            if trainer.global_step % trainer.log_every_n_steps == 0:
                self._bar.set_postfix(
                    {key: f"{float(value):.4f}" for key, value in trainer.progress_bar_metrics.items()}, refresh=False
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
