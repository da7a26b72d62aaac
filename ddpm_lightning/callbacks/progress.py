"""One progress bar for the whole training run."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning import environment
from ddpm_lightning.terminal import Activity

__all__ = ["Progress"]

_FORMATS = {
    "train/loss": "loss {:.4f}",
    "val/loss": "val {:.4f}",
    "val/fid": "FID {:.1f}",
    "train/images_per_second": "{:,.0f} images/s",
    "val/bits_per_dim": "{:.2f} bits/dim",
}


class Progress(Callback):
    """Shows optimizer steps, time left, the latest losses and the speed; a line now and then if the output is not a terminal.

    Lightning's own bars restart with every epoch, and an epoch of a small dataset takes a second.
    """

    def __init__(self) -> None:
        self._training: Activity | None = None
        self._validation: Activity | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        job, total = environment.current().job, int(trainer.estimated_stepping_batches)
        what = job.replace(" of ", "/") if job else "training"
        self._training = Activity(what, total=total, unit="steps", done=trainer.global_step).open()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._training is not None and (new := trainer.global_step - self._training.done) > 0:
            self._training.advance(new)
            if trainer.global_step % trainer.log_every_n_steps == 0:
                self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = sum(trainer.num_val_batches)
        known = int(total) if math.isfinite(total) else None
        self._validation = Activity("validating", total=known, unit="batches").open()

    def on_validation_batch_end(self, *args: Any) -> None:
        if self._validation is not None:
            self._validation.advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validation is not None:
            self._validation.close()
        self._show(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for activity in filter(None, (self._validation, self._training)):
            activity.close()
        self._validation = self._training = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _show(self, trainer: Trainer) -> None:
        """Show the latest metrics; those of other modules and callbacks come last."""
        if self._training is not None:
            found = trainer.progress_bar_metrics
            others = [key for key in found if key not in _FORMATS and not key.startswith(("val/bits_", "val/kid"))]
            names = [*(key for key in _FORMATS if key in found), *others]
            self._training.figures = [_FORMATS.get(key, f"{key} {{:.4g}}").format(float(found[key])) for key in names]
