"""Checkpoints: the best one, and those to resume from, by step, by time, on a signal and at the end."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.finite import refuse_broken
from ddpm_lightning.callbacks.loss_guard import LossGuard
from ddpm_lightning.callbacks.periodic import Periodic
from ddpm_lightning.callbacks.steps import has_stepped
from ddpm_lightning.callbacks.stop_signals import StopSignals
from ddpm_lightning.errors import Stopped, UserError, brief
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.records.torch import load_plain
from ddpm_lightning.run_folder import by_step, newest_intact
from ddpm_lightning.terminal import Activity

__all__ = ["AtomicCheckpointIO", "BestCheckpoint", "NewestCheckpoint", "SaveBeforeFigures"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file that replaces the old one once it is on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Activity("saving a checkpoint"), replace_file(path, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises RuntimeError when the disk is full
            saved = newest_intact(path.parent)
            then = f"resume with resume={path.parent.parent}" if saved else "start again"
            raise UserError(
                f"the checkpoint {path} cannot be written ({brief(error)}): free disk space, then {then}"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        try:
            return load_plain(Path(path))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged ({error}): resume={Path(path).parent.parent} uses the newest intact checkpoint"
            ) from error


class BestCheckpoint(Checkpoint):
    """Saves `best.ckpt` when validation reaches a new best value.

    Args:
        dirpath: the checkpoint folder.
        monitor: the metric.
        mode: "min" if lower is better, else "max".
        ema: the run's EMA, checked for NaN and infinity before saving.

    Raises:
        UserError: for an unknown mode.
    """

    alias = "best"

    def __init__(self, dirpath: str | Path, *, monitor: str = "val/loss", mode: str = "min", ema: EMA | None = None):
        require_one_of("mode", mode, ("min", "max"))
        self.folder = Path(dirpath)
        self.file = self.folder / "best.ckpt"
        self._ema = ema
        self._monitor = monitor
        self._sign = 1 if mode == "min" else -1
        self._best = float("inf")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and self.file.exists():  # from before the run was resumed
            _tell(trainer, self)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        require_one_of("callbacks.best_checkpoint.monitor", self._monitor, sorted(trainer.callback_metrics))
        value = self._sign * float(trainer.callback_metrics[self._monitor])
        if value < self._best:
            refuse_broken(trainer, pl_module, self._ema)
            self._best = value
            trainer.save_checkpoint(self.file)
            _tell(trainer, self)

    def forget_after(self, step: int) -> None:
        """Remove the file if it is from a later step, since the run returns to this one."""
        try:
            later = load_plain(self.file)["global_step"] > step
        except (OSError, ValueError, LookupError, TypeError):
            return
        if later:
            self.file.unlink()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]


class NewestCheckpoint(Checkpoint):
    """Saves `step_<step>.ckpt` at intervals of steps or minutes, when a signal stops the run, and at the end.

    `last.ckpt` is a link to the newest. If validation follows the step, the checkpoint is saved after it, so that a
    resumed run does not repeat it. A run whose loss is NaN is never saved.

    Args:
        dirpath: the checkpoint folder.
        every_n_train_steps: optimizer steps between checkpoints; None for none by step.
        every_n_minutes: minutes between checkpoints, checked when metrics are logged; None for none by time.
        save_top_k: how many of the newest to keep, besides the newest one saved by step; -1 keeps all.
        ema: the run's EMA, checked for NaN and infinity before saving.
        loss_guard: checked before each checkpoint.
        stop_signals: signals that save and stop the run.

    Raises:
        UserError: for a number out of range.
    """

    alias = "latest"

    def __init__(
        self,
        dirpath: str | Path,
        *,
        every_n_train_steps: int | None = 500,
        every_n_minutes: float | None = None,
        save_top_k: int = 1,
        ema: EMA | None = None,
        loss_guard: LossGuard | None = None,
        stop_signals: StopSignals | None = None,
    ):
        require("every_n_train_steps", every_n_train_steps, "1..", optional=True)
        require("every_n_minutes", every_n_minutes, "(0, inf]", optional=True)
        if save_top_k != -1:
            require("save_top_k", save_top_k, "1..", hint="-1 keeps all")
        self.folder = Path(dirpath)
        self.file = self.folder / "last.ckpt"
        self._ema, self._loss_guard, self._stop_signals = ema, loss_guard, stop_signals or StopSignals()
        self._stop_signals.has_saver = True
        self._every_n_steps = every_n_train_steps
        self._every_n_seconds = None if every_n_minutes is None else 60 * every_n_minutes
        self._keep = save_top_k
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._due = False

    def by_steps_alone(self) -> list[Path]:
        """The checkpoints that every run of this config writes, newest first; those by time or signal depend on the machine."""
        every, saved = self._every_n_steps, by_step(self.folder, "step", ".ckpt")
        return [path for path in reversed(saved) if every and int(path.stem[5:]) % every == 0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not has_stepped(trainer):
            return  # between micro-batches there are gradients that no checkpoint holds
        self._due = self._is_due(trainer)
        if self._due and not self.validation_follows(trainer):
            self._save_and_stop(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stops = self._stop_signals.agreed is not None and trainer.global_step != trainer.max_steps
        if (self._due or stops) and not trainer.sanity_checking:
            self._save_and_stop(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer, pl_module)
        self._stop_signals.is_saved = True

    def save_early(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the run as it stops or ends, before its last figures and validation, behind which it is saved again.

        Raises:
            Stopped: where a second Ctrl-C has asked to skip them.
        """
        if trainer.global_step != self._saved_step:
            self._save(trainer, pl_module, tell=False)
            self._saved_step = -1
        self._stop_signals.is_saved = True
        if trainer.strategy.broadcast(self._stop_signals.presses > 1):
            raise Stopped(signal.SIGINT)

    @staticmethod
    def validation_follows(trainer: Trainer) -> bool:
        """Whether validation follows this step, which a run resumed from here would skip; only Lightning knows."""
        loop = trainer.fit_loop.epoch_loop
        return loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop.val_loop.skip

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if step == trainer.max_steps:
            return False  # the last one is saved after the last metrics and figures
        by_step = self._every_n_steps is not None and step % self._every_n_steps == 0
        by_time = False
        if self._every_n_seconds is not None and step % trainer.log_every_n_steps == 0:
            by_time = trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self._every_n_seconds)
        return by_step or by_time or self._stop_signals.agreed is not None

    def _save_and_stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module)
        if self._stop_signals.agreed is not None:
            self._stop_signals.is_saved = True
            raise Stopped(self._stop_signals.agreed)

    def _save(self, trainer: Trainer, pl_module: LightningModule, *, tell: bool = True) -> None:
        if self._loss_guard is not None:
            self._loss_guard.check(trainer)
        refuse_broken(trainer, pl_module, self._ema)
        self._due, step = False, trainer.global_step
        path = self.folder / f"step_{step:07d}.ckpt"
        trainer.save_checkpoint(path)
        self._saved_at, self._saved_step = time.monotonic(), step
        if trainer.is_global_zero:
            _link(path, self.file)
            if self._keep != -1:
                outdated = by_step(self.folder, "step", ".ckpt")[: -self._keep]
                for old in {*outdated} - {*self.by_steps_alone()[:1]}:
                    old.unlink()
        if tell:
            _tell(trainer, self)


class SaveBeforeFigures(Callback):
    """Has a run saved before the last figures are sampled, where it stops and at its end: they may take long, and Ctrl-C ends them.

    Args:
        newest: which saves it, and once more behind them.
        figures: the callbacks that follow this one.
        stop_signals: on which the run stops.
    """

    def __init__(self, newest: NewestCheckpoint, figures: Sequence[Periodic], stop_signals: StopSignals):
        self._newest, self._figures, self._stop_signals = newest, figures, stop_signals

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._stop_signals.agreed is None or not has_stepped(trainer) or trainer.global_step == trainer.max_steps:
            return
        if self._newest.validation_follows(trainer) or any(figure.is_due(trainer) for figure in self._figures):
            self._newest.save_early(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._figures:
            self._newest.save_early(trainer, pl_module)


def _tell(trainer: Trainer, callback: Checkpoint) -> None:
    """Notify loggers that keep checkpoints, as Lightning's own callback does."""
    for logger in trainer.loggers:
        logger.after_save_checkpoint(callback)


def _link(path: Path, name: Path) -> None:
    """Make `name` a hard link to the file, atomically; a copy if the file system has no hard links."""
    beside = name.with_name(f".{name.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)
        os.replace(beside, name)
    finally:
        beside.unlink(missing_ok=True)
