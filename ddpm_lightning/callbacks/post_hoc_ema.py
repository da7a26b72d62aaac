"""Snapshots of power-function averages, from which an average of any width is reconstructed after training."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require
from ddpm_lightning.run_folder import by_step
from ddpm_lightning.sharding import unsharded

__all__ = ["PostHocEMA"]


class PostHocEMA(Periodic):
    """Keeps power-function averages of a few widths, and saves snapshots of them (Karras et al. 2024, section 3.2).

    `ddpm ema` reconstructs any other width from the snapshots, see `reconstruct_ema`. A snapshot `step_<step>.ckpt` holds all
    averages in float16. Once there are more than `max_snapshots`, every other one is removed and the interval doubles, so
    the snapshots of any training are few and evenly spaced. Checkpoints hold the averages as "ema_<std>_state_dict".

    Args:
        folder: the folder of the snapshots.
        stds: the widths σ_rel of the averages.
        every_n_steps: optimizer steps between snapshots, until there are too many; one more is saved at the end.
        max_snapshots: how many to keep, besides the last.
        stopwatch: the training stopwatch, paused while a snapshot is saved.

    Raises:
        UserError: for equal widths or numbers out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        stds: Sequence[float] = (0.05, 0.10),
        every_n_steps: int = 100,
        max_snapshots: int = 32,
        stopwatch: Stopwatch | None = None,
    ):
        super().__init__(folder, every_n_steps=every_n_steps, stopwatch=stopwatch)
        require("every_n_steps", every_n_steps, "1..")
        require("max_snapshots", max_snapshots, "2..")
        require("the number of stds", len(stds), "1..")
        for std in stds:
            require("stds", std, "(0, 0.28]")
        if len(set(stds)) < len(stds):
            raise UserError(f"stds must differ from each other, got {list(stds)}")
        self._averages = {std: EMA(std=std, name=f"ema_{std:g}") for std in stds}
        self._every, self._most = every_n_steps, max_snapshots
        self._updated_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average in self._averages.values():
            average.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_fit_start(trainer, pl_module)
        self._updated_at = trainer.global_step
        if trainer.is_global_zero:  # those from before the run was resumed
            for path, step in self._saved():
                if step > trainer.global_step:
                    path.unlink()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._updated_at:
            return  # gradients are still being accumulated
        self._updated_at = trainer.global_step
        for average in self._averages.values():
            average.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        return step % self._interval(step) == 0 and step != trainer.max_steps

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if not step:
            return
        averages = {
            std: {name: unsharded(value).to("cpu", torch.float16) for name, value in average.average.items()}
            for std, average in self._averages.items()
        }
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replace_file(self.folder / f"step_{step}.ckpt", "wb") as file:
                torch.save({"step": step, "averages": averages}, file)
            for path, earlier in self._saved():
                if earlier < step and earlier % self._interval(step):
                    path.unlink()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for average in self._averages.values():
            average.on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for average in self._averages.values():
            average.on_load_checkpoint(trainer, pl_module, checkpoint)

    def _interval(self, step: int) -> int:
        """Steps between snapshots up to this one: `every_n_steps`, doubled until there are at most `max_snapshots`."""
        interval = self._every
        while step // interval > self._most:
            interval *= 2
        return interval

    def _saved(self) -> Iterator[tuple[Path, int]]:
        return ((path, int(path.stem[5:])) for path in by_step(self.folder, "step", ".ckpt"))
