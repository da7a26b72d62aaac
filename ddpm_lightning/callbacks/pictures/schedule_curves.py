"""A figure of the run's noise schedule."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from ddpm_lightning.callbacks.periodic import show
from ddpm_lightning.sheets import Picture
from ddpm_lightning.terminal import Activity

__all__ = ["ScheduleCurves"]


class ScheduleCurves(Callback):
    """Plots ᾱ_t, log SNR and β_t when training begins, to `<folder>/schedule.png` and as `samples/schedule`.

    Args:
        folder: the folder for the file.
        names: the schedule's name in the config, for the metadata.
    """

    def __init__(self, folder: str | Path, *, names: Mapping[str, str] | None = None):
        self.folder = Path(folder)
        self._facts = {key: name for key, name in (names or {}).items() if key == "schedule"}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # a resumed run has it already
            with Activity("plotting the noise schedule"):
                from ddpm_lightning.plots import draw_schedule

                picture = Picture(draw_schedule(pl_module.denoiser.schedule), self._facts)
                show(trainer, picture, self.folder / "schedule.png", "schedule")
