"""Callbacks that run every `every_n_steps` steps and at the end."""

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.images import save_png
from ddpm_lightning.ranges import require
from ddpm_lightning.sheets import Picture
from ddpm_lightning.terminal import Activity

__all__ = ["Periodic", "show"]

log = logging.getLogger(__name__)


class Periodic(Callback):
    """Calls `on_period` on all ranks every `every_n_steps` optimizer steps and at the end; a failure at the end only warns.

    Args:
        folder: the folder for figures.
        every_n_steps: optimizer steps between calls; None for the end only.
        stopwatch: the training stopwatch, paused during calls.

    Raises:
        UserError: for fewer than 1 step.
    """

    def __init__(self, folder: str | Path, *, every_n_steps: int | None = None, stopwatch: Stopwatch | None = None):
        require("every_n_steps", every_n_steps, "1..", optional=True)
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self._stopwatch = stopwatch or Stopwatch()
        self._last_step = -1

    doing = "making a figure"  # what a terminal shows meanwhile

    @abstractmethod
    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure or plot, on all ranks."""

    def finish(self, trainer: Trainer) -> None:
        """Write what is written once, at the end, after the last `on_period`; on all ranks."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.is_due(trainer):
            self._once_per_step(trainer, pl_module)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether a step has a figure; that of the last step comes at the end, behind its validation and a checkpoint."""
        step = trainer.global_step
        return bool(self.every_n_steps and step and step % self.every_n_steps == 0 and step != trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            self._once_per_step(trainer, pl_module)
            with Activity(self.doing):
                self.finish(trainer)
        except Exception as error:  # the last checkpoint is still to be saved
            log.warning("%s failed at the end of training (%s: %s)", type(self).__name__, type(error).__name__, error)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]

    def _once_per_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._last_step:
            return  # called already: at an earlier micro-batch of this step, or just before the end
        self._last_step = trainer.global_step
        with Activity(self.doing), self._stopwatch.paused():
            self.on_period(trainer, pl_module)


def show(trainer: Trainer, picture: Picture, path: Path, name: str) -> None:
    """Save a figure, and log it as `samples/<name>` to every logger that takes images; on rank zero."""
    if trainer.is_global_zero:
        save_png(picture.pixels, path, picture.facts)
        for logger in trainer.loggers:
            if log_image := getattr(logger, "log_image", None):
                log_image(f"samples/{name}", [picture.pixels.permute(1, 2, 0).numpy()], step=trainer.global_step)
