"""Noise-prediction error vs. log SNR, comparable across schedules, prediction types and losses."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning.callbacks.ema import EMA, averaged_weights
from ddpm_lightning.callbacks.gather import sampled_together
from ddpm_lightning.callbacks.periodic import Periodic, show
from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.data.source import Batch, Condition, map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require
from ddpm_lightning.schedules import NoiseSchedule
from ddpm_lightning.seeds import derive
from ddpm_lightning.sheets import Picture

__all__ = ["LogSNRCurve", "noise_errors", "times_at"]

_LEVELS = range(-10, 11)
_WITHIN = 0.25  # maximum distance of a timestep's log SNR from its level, so that schedules stay comparable


class LogSNRCurve(Periodic):
    """Logs `mse_at_log_snr/<level>`, E‖ε̂ − ε‖²/d at log SNR = −10, −9, …, +10, on held-out images with the EMA weights.

    Predictions of x_0, ε or v are converted to ε̂ = (x_t − √ᾱ_t x̂_0)/√(1−ᾱ_t), so that values are comparable across
    schedules, prediction types and losses; lower is better, and predicting zero noise gives 1. The curve is saved to
    `<folder>/log_snr_<step>.png` and logged as `samples/log_snr` to every logger that takes images. Levels without a
    timestep within 1/4 are skipped, and so is the figure if no image is held out.

    Args:
        folder: the folder for the files.
        num_images: the number of held-out images, taken from the start.
        batch_size: images per batch.
        every_n_steps: optimizer steps between curves; None for one at the end only.
        seed: the noise of image i at a level depends on (seed, level, i) only.
        ema: the run's EMA; None uses the raw weights.
        names: the schedule's name in the config, for the metadata.
        stopwatch: the training stopwatch, paused during measurement.

    Raises:
        UserError: for a number out of range.
    """

    doing = "measuring the noise-prediction error"

    def __init__(
        self,
        folder: str | Path,
        *,
        num_images: int = 128,
        batch_size: int = 32,
        every_n_steps: int | None = None,
        seed: int = 0,
        ema: EMA | None = None,
        names: Mapping[str, str] | None = None,
        stopwatch: Stopwatch | None = None,
    ):
        super().__init__(folder, every_n_steps=every_n_steps, stopwatch=stopwatch)
        require("num_images", num_images, "1..100000")
        require("batch_size", batch_size, "1..65536")
        require("seed", seed, "0..")
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._ema = ema
        self._names = {key: name for key, name in (names or {}).items() if key == "schedule"}

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        times = times_at(pl_module.denoiser.schedule, _LEVELS)
        parts: list[Batch] = []
        for part in trainer.datamodule.batches("validation", self._num_images):
            parts.append(part)
            if sum(len(part.x0) for part in parts) >= self._num_images:
                break
        if not parts or not times:
            return
        images = torch.cat([part.x0 for part in parts])[: self._num_images]
        ids = torch.cat([part.ids for part in parts])
        x0 = trainer.datamodule.values.normalize(images)
        given = [part.y for part in parts if part.y is not None]
        y = map_condition(lambda *rows: torch.cat(rows), *given) if given and pl_module.denoiser.conditional else None

        def errors_of(indices: Sequence[int]) -> Tensor:
            errors = []
            for some in torch.tensor(indices).split(self._batch_size):
                chosen = (
                    None if y is None else map_condition(lambda rows, some=some: rows[some].to(pl_module.device), y)
                )
                batch = (x0[some].to(pl_module.device), chosen, ids[some].tolist())
                errors.append(noise_errors(pl_module.denoiser, *batch, times=times, seed=self._seed))
            return torch.cat(errors)

        with averaged_weights(pl_module, self._ema), torch.autocast(pl_module.device.type, enabled=False):
            errors = sampled_together(pl_module, len(x0), errors_of).cpu().double().mean(0).tolist()
        metrics = {f"mse_at_log_snr/{level:+03d}": error for level, error in zip(times, errors, strict=True)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if trainer.is_global_zero:
            from ddpm_lightning.plots import LOWER, draw_curve

            curve = draw_curve(
                [*times],
                errors,
                title=f"Noise-prediction error at step {trainer.global_step:,}",
                x_label="log SNR (noise on the left, image on the right)",
                y_label=f"E‖ε̂ − ε‖²/d {LOWER} (lower is better)",
            )
            facts = {"training step": f"{trainer.global_step:,}", "weights": "raw" if self._ema is None else "ema"}
            facts |= {"seed": str(self._seed), **self._names}
            show(trainer, Picture(curve, facts), self.folder / f"log_snr_{trainer.global_step:07d}.png", "log_snr")


def times_at(schedule: NoiseSchedule, levels: Iterable[int]) -> dict[int, int]:
    """The timestep in 1..T nearest to each level of log SNR; levels without a timestep within 1/4 are left out."""
    log_snr = schedule.log_snr[1:].cpu().double()
    times = {}
    for level in levels:
        distance = (log_snr - level).abs()
        if log_snr[-1] <= level <= log_snr[0] and distance.min() <= _WITHIN:
            times[level] = int(distance.argmin()) + 1
    return times


def noise_errors(
    denoiser: Denoiser, x0: Tensor, y: Condition | None, ids: Sequence[int], *, times: dict[int, int], seed: int
) -> Tensor:
    """(B, levels) ‖ε̂ − ε‖²/d of each image at each level, with ε̂ = (x_t − √ᾱ_t x̂_0)/√(1−ᾱ_t).

    Args:
        denoiser: estimates x̂_0, which is not clipped.
        x0: (B, C, ...) in [−1, 1].
        y: labels or another condition, or None.
        ids: the images' indices in the dataset.
        times: timestep by level of log SNR.
        seed: the noise of image i depends on (seed, level, i) only.
    """
    schedule, columns = denoiser.schedule, []
    for level, time in times.items():
        t = torch.full((len(x0), *[1] * (x0.ndim - 1)), time, device=x0.device)
        noise = SeededNoise(derive(seed, f"log SNR {level}"), ids)(x0)
        x_t = schedule.q_sample(x0, t, noise)
        a, s = schedule.scales(t)
        eps = (x_t - a * denoiser(x_t, t, y)) / s
        columns.append((eps - noise).square().flatten(1).mean(1))
    return torch.stack(columns, dim=1)
