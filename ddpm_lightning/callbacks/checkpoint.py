"""The newest checkpoint, also at the very end and on Ctrl-C."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["NewestCheckpoint"]


class NewestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which also writes `last.ckpt` when training ends, or is ended by Ctrl-C, between two of its steps."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._save_newest(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, KeyboardInterrupt) and trainer.world_size == 1:  # saving takes all processes
            self._save_newest(trainer)

    def _save_newest(self, trainer: Trainer) -> None:
        if self.dirpath is not None and trainer.global_step != self._last_global_step_saved:
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
