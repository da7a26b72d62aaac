"""The run's own part of every checkpoint."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ddpm_lightning.callbacks import EMA, TrainingMetrics
from ddpm_lightning.callbacks.finite import refuse_broken
from ddpm_lightning.loggers import CSVLogger

__all__ = ["StoreRun"]


class StoreRun(Callback):
    """Adds to every checkpoint what a run needs to resume, and the totals of its summary.

    Args:
        config: the resolved config as plain data.
        overrides: the overrides of the config.
        data_fingerprint: the fingerprint of the dataset.
        csv: the logger whose rows are counted.
        metrics: the metrics whose latest and best values are summarized.
        ema: the run's EMA, checked for NaN and infinity at the end.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        overrides: Sequence[str],
        data_fingerprint: str,
        *,
        csv: CSVLogger,
        metrics: TrainingMetrics | None = None,
        ema: EMA | None = None,
    ):
        self._csv, self._metrics, self._ema = csv, metrics, ema
        self.config, self.overrides, self._data_fingerprint = config, list(overrides), data_fingerprint
        self.has_saved = False  # whether a checkpoint was saved since the start or resume
        self._began = time.monotonic()
        self._earlier = 0.0  # seconds before the run was resumed
        self._final: dict[str, float] = {}  # the last values before the resume
        self._has_started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_started = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_broken(trainer, pl_module, self._ema)  # while the weights are on the device

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run was started, excluding the time until it was resumed."""
        return self._earlier + time.monotonic() - self._began

    def metrics(self, trainer: Trainer) -> dict[str, Any]:
        """The last value of each metric, and the best of each validation metric."""
        latest, best = ({}, {}) if self._metrics is None else (self._metrics.latest, self._metrics.best)
        ours = {key: float(value) for key, value in trainer.callback_metrics.items()}
        final = {**self._final, **ours, **latest}
        return {"images_per_second": final.get("train/images_per_second"), "final": final, "best": best}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.has_saved = True
        checkpoint["config"] = self.config
        checkpoint["overrides"] = self.overrides
        checkpoint["metrics_rows"] = self._csv.rows
        checkpoint["data_fingerprint"] = self._data_fingerprint
        checkpoint["summary"] = {"wall_seconds": self.wall_seconds, "final": self.metrics(trainer)["final"]}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._has_started:
            return  # a rollback: the clock keeps running
        for state in checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]:
            if "batches" in state:  # from an earlier version, which counted per process
                processes = len(checkpoint["training_metrics"]["sums"])
                state["images"] = state.pop("batches") * checkpoint["config"]["data"]["batch_size"] * processes
        if "summary" in checkpoint:
            self._earlier, self._final = checkpoint["summary"]["wall_seconds"], dict(checkpoint["summary"]["final"])
        elif "training_metrics" in checkpoint:  # from an earlier version
            self._earlier = checkpoint["training_metrics"]["wall_seconds"]
