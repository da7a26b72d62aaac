"""The scalars of training."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.loss_guard import LossGuard
from ddpm_lightning.callbacks.steps import at_log_step

__all__ = ["TrainingMetrics"]


class TrainingMetrics(Callback):
    """Logs loss, loss by quartile of t, learning rate, gradient norm, images per second, seconds since the start, EMA decay and loss spikes.

    Sums are kept on the device and averaged over ranks once per `trainer.log_every_n_steps`: no training step waits for
    the device. The images per second leave validation and pictures out. Checkpoints hold the sums of each rank, so that a
    resumed run logs what an uninterrupted one does.

    Args:
        ema: whose decay is logged.
        loss_guard: whose spikes are logged.
    """

    def __init__(self, *, ema: EMA | None = None, loss_guard: LossGuard | None = None) -> None:
        self._ema, self._loss_guard = ema, loss_guard
        self._sums = torch.zeros(2, 4)  # of the losses by quartile of t, and how many they are
        self._images = 0
        self._seconds = 0.0
        self._started = 0.0
        self._began = 0.0
        self._earlier = 0.0  # seconds of the run before it was resumed
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter() - self._earlier
        self._sums = self._sums.to(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses, t = outputs["losses"], outputs["t"]
        quartile = ((t - 1) * 4).div(pl_module.denoiser.schedule.num_steps, rounding_mode="floor")
        new = torch.zeros_like(self._sums)
        new[0].index_add_(0, quartile, losses)
        new[1].index_add_(0, quartile, torch.ones_like(losses))
        self._sums += new
        self._images += len(losses)
        self._seconds += time.perf_counter() - self._started
        if at_log_step(trainer):
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images:
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.best = self.best | {k: min(v, self.best.get(k, v)) for k, v in metrics.items() if math.isfinite(v)}
            self._write(trainer, metrics)

    def _log(self, trainer: Trainer, pl_module: Any) -> None:
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        metrics = {
            "train/loss": sum(total) / sum(count),
            "train/grad_norm": float(pl_module.grad_norm),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/wall_seconds": time.perf_counter() - self._began,
            "train/images_per_second": self._images * trainer.world_size / max(self._seconds, 1e-9),
        }
        metrics |= {f"train/loss_q{i + 1}": s / n for i, (s, n) in enumerate(zip(total, count, strict=True)) if n}
        if self._ema is not None:
            metrics["train/ema_decay"] = self._ema.current_decay
        if self._loss_guard is not None:
            metrics["train/loss_spikes"] = self._loss_guard.spikes(trainer)
        self._write(trainer, metrics)
        self.latest = metrics
        trainer.progress_bar_metrics["train/loss"] = metrics["train/loss"]
        self._sums, self._images, self._seconds = torch.zeros_like(self._sums), 0, 0.0

    @staticmethod
    def _write(trainer: Trainer, metrics: dict[str, float]) -> None:
        # Not through `self.log`: its step is one behind the optimiser's, and pictures could not share the axis.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_metrics"] = {
            "sums": pl_module.all_gather(self._sums).reshape(-1, 2, 4).cpu(),
            "images": self._images,
            "seconds": self._seconds,
            "wall_seconds": time.perf_counter() - self._began,
            "latest": self.latest,
            "best": self.best,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        held = checkpoint["training_metrics"]
        ranks, rank, images = held["sums"], trainer.global_rank, held["images"]
        if len(ranks) != trainer.world_size:  # another number of processes: the first one takes all that was summed
            ranks, rank, images = ranks.sum(0, keepdim=True), 0, images * len(ranks)
        self._sums = ranks[rank] if trainer.global_rank < len(ranks) else torch.zeros(2, 4)
        self._images, self._seconds, self._earlier = images, held["seconds"], held["wall_seconds"]
        self.latest, self.best = held["latest"], held["best"]
