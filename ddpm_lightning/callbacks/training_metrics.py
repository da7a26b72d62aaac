"""Scalar training metrics."""

import math
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.callbacks.ema import EMA
from ddpm_lightning.callbacks.idle import IdleWatch
from ddpm_lightning.callbacks.loss_guard import LossGuard
from ddpm_lightning.callbacks.steps import at_log_step
from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.models.cost import matmul_speed

__all__ = ["TrainingMetrics"]


class TrainingMetrics(Callback):
    """Logs the loss (also by quartile of t), learning rate, gradient norm, EMA decay, loss spikes and training cost.

    Sums stay on the device and are averaged over ranks once per `trainer.log_every_n_steps`: no training step waits for
    the device. Checkpoints hold the sums of each rank, so a resumed run logs the same values as an uninterrupted one.

    `train/images_per_second` is by wall time, excluding validation and figures. `train/mfu` is the network's FLOP/s as a fraction
    of the device's matrix-product FLOP/s, see `models.cost`. `train/host_share` is the fraction of time spent in Python: near 1
    on a GPU, the GPU waits. `train/peak_memory_gib` is the peak memory so far in GiB, of the GPU or else of the process.

    Args:
        flops_per_image: FLOP of a training step per image; None omits `train/mfu`.
        stopwatch: the training stopwatch, which other callbacks pause.
        ema: the EMA whose decay is logged.
        loss_guard: the guard whose spikes are logged.
    """

    def __init__(
        self,
        *,
        flops_per_image: int | None = None,
        stopwatch: Stopwatch | None = None,
        ema: EMA | None = None,
        loss_guard: LossGuard | None = None,
    ) -> None:
        self._ema, self._loss_guard = ema, loss_guard
        self._flops, self._stopwatch = flops_per_image, stopwatch or Stopwatch()
        self._matmul_speed = 0.0
        self._idle: IdleWatch | None = None
        self._sums = torch.zeros(2, 4)  # losses by quartile of t, and their number
        self._images = 0
        self._host_seconds = 0.0
        self._started = 0.0
        self._began = 0.0
        self._earlier = 0.0  # seconds before the run was resumed
        self.latest: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter() - self._earlier
        self._sums = self._sums.to(pl_module.device)
        if self._flops is not None:
            self._matmul_speed = matmul_speed(pl_module.device)
        if pl_module.device.type == "cuda" and trainer.is_global_zero:
            self._idle = IdleWatch(pl_module.device, trainer.global_step)
        self._stopwatch.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        losses, t = outputs["losses"], outputs["t"]
        quartile = ((t - 1) * 4).div(pl_module.denoiser.schedule.num_steps, rounding_mode="floor").long()
        new = torch.zeros_like(self._sums)
        new[0].index_add_(0, quartile, losses)
        new[1].index_add_(0, quartile, torch.ones_like(losses))
        self._sums += new
        self._images += len(losses)
        self._host_seconds += time.perf_counter() - self._started
        if at_log_step(trainer):
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images:
            self._log(trainer, pl_module)
        if self._idle is not None:
            self._idle.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stopwatch.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._stopwatch.start()
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.best = self.best | {k: min(v, self.best.get(k, v)) for k, v in metrics.items() if math.isfinite(v)}
            self._write(trainer, metrics)

    def _log(self, trainer: Trainer, pl_module: Any) -> None:
        if self._idle is not None:
            self._idle.look(trainer.global_step)
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()  # waits for the device
        seconds = max(self._stopwatch.seconds, 1e-9)
        metrics = {
            "train/loss": sum(total) / sum(count),
            "train/grad_norm": float(pl_module.grad_norm),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/wall_seconds": time.perf_counter() - self._began,
            "train/images_per_second": self._images * trainer.world_size / seconds,
            "train/host_share": min(1.0, self._host_seconds / seconds),
            "train/peak_memory_gib": _peak_memory(pl_module.device) / 2**30,
        }
        if self._flops is not None:
            metrics["train/mfu"] = self._flops * self._images / seconds / self._matmul_speed
        metrics |= {f"train/loss_q{i + 1}": s / n for i, (s, n) in enumerate(zip(total, count, strict=True)) if n}
        if self._ema is not None:
            metrics["train/ema_decay"] = self._ema.current_decay
        if self._loss_guard is not None:
            metrics["train/loss_spikes"] = self._loss_guard.spikes(trainer)
        self._write(trainer, metrics)
        self.latest = metrics
        trainer.progress_bar_metrics.update((key, metrics[key]) for key in ("train/loss", "train/images_per_second"))
        self._sums, self._images, self._host_seconds = torch.zeros_like(self._sums), 0, 0.0
        self._stopwatch.start(0.0)

    @staticmethod
    def _write(trainer: Trainer, metrics: dict[str, float]) -> None:
        # Not through `self.log`: its step is one behind the optimizer's, and figures could not share the axis.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["training_metrics"] = {
            "sums": pl_module.all_gather(self._sums).reshape(-1, 2, 4).cpu(),
            "images": self._images,
            "seconds": self._stopwatch.seconds,
            "wall_seconds": time.perf_counter() - self._began,
            "latest": self.latest,
            "best": self.best,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        held = checkpoint["training_metrics"]
        ranks, rank, images = held["sums"], trainer.global_rank, held["images"]
        if len(ranks) != trainer.world_size:  # another number of processes: the first one takes all sums
            ranks, rank, images = ranks.sum(0, keepdim=True), 0, images * len(ranks)
        self._sums = ranks[rank] if trainer.global_rank < len(ranks) else torch.zeros(2, 4)
        self._images, self._earlier = images, held["wall_seconds"]
        self._host_seconds = held["seconds"]
        self._stopwatch.start(held["seconds"])
        self.latest, self.best = held["latest"], held["best"]


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of the GPU's tensors, or else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
