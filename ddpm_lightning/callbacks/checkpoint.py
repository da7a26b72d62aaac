"""The newest checkpoint, also at the very end."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

__all__ = ["NewestCheckpoint"]


class NewestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which also writes `last.ckpt` when training ends between two of its steps."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if trainer.global_step % self._every_n_train_steps:
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
