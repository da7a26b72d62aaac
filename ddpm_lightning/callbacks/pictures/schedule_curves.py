"""A figure of the run's noise schedule."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from ddpm_lightning.callbacks.periodic import show
from ddpm_lightning.terminal import Activity

__all__ = ["ScheduleCurves"]


class ScheduleCurves(Callback):
    """Plots ᾱ_t, log SNR and β_t when training begins, to `<folder>/schedule.png` and as `samples/schedule`.

    Args:
        folder: the folder for the file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # a resumed run has it already
            with Activity("plotting the noise schedule"):
                from ddpm_lightning.plots import draw_schedule

                show(trainer, draw_schedule(pl_module.denoiser.schedule), self.folder / "schedule.png", "schedule")
