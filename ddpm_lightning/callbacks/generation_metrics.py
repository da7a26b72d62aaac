"""FID and KID during training."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ddpm_lightning.callbacks.gather import sampled_together
from ddpm_lightning.data.source import Condition, in_turn
from ddpm_lightning.denoiser import Guidance
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics.distances import frechet_distance, kernel_distance
from ddpm_lightning.metrics.features import cache_folder, extract
from ddpm_lightning.ranges import require
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.terminal import Activity

__all__ = ["GenerationMetrics"]


class GenerationMetrics(Callback):
    """Logs `val/fid` and `val/kid` of a few samples against the training images at validation, with the EMA weights in float32.

    Use them to compare steps of one run: FID of few samples is biased upward, by an amount that depends on their
    number. Seeds are fixed, and the ranks share the sampling. Validations in between repeat the last values,
    so that the best checkpoint can be selected by them.

    Args:
        features: called with a loader of the dataset, the cache folder and the device; see `features`.
        sampler: maps noise to images.
        shape: (C, H, W) of one image.
        num_samples: the number of samples, at least 10.
        every_n_steps: minimum number of optimizer steps between measurements; the first and last validations always measure.
        batch_size: images sampled at a time.
        seed: the noise of image i depends on (seed, i) only.
        num_classes: image i has the label i mod num_classes; None for a model without labels.
        condition: image i has row i mod N of these N conditions, in place of labels.
        guidance_scale: see `Guidance`, also for guidance_interval and guidance_rescale.
        cache_dir: see `features.cache_folder`.

    Raises:
        UserError: for a number out of range.
    """

    def __init__(
        self,
        features: Callable[..., nn.Module],
        sampler: Sampler,
        shape: tuple[int, int, int],
        *,
        num_samples: int = 1000,
        every_n_steps: int = 1000,
        batch_size: int = 256,
        seed: int = 0,
        num_classes: int | None = None,
        condition: Condition | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        cache_dir: str | Path | None = None,
    ):
        require("num_samples", num_samples, "10..1000000")
        require("every_n_steps", every_n_steps, "1..")
        require("batch_size", batch_size, "1..")
        require("seed", seed, "0..")
        self._features = features
        self._sampler = sampler
        self._shape = tuple(shape)
        self._num_samples = num_samples
        self._every_n_steps = every_n_steps
        self._batch_size = batch_size
        self._seed = seed
        self._condition = torch.arange(num_classes) if condition is None and num_classes is not None else condition
        self._guidance = Guidance(guidance_scale, guidance_interval, guidance_rescale)
        self._cache = cache_folder(None if cache_dir is None else str(cache_dir))
        self._measured_at = -1
        self._latest: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # the other ranks only sample
            all_images = partial(trainer.datamodule.split, "all")
            self._model = self._features(all_images, self._cache, device=pl_module.device).to(pl_module.device).eval()
            self._reference = extract(self._model, trainer.datamodule.split("train").images)
        trainer.strategy.barrier()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        due = self._measured_at < 0 or step - self._measured_at >= self._every_n_steps or step == trainer.max_steps
        if due and step != self._measured_at:
            with torch.autocast(pl_module.device.type, enabled=False):
                images = sampled_together(pl_module, self._num_samples, partial(self._draw, pl_module))
            found = self._measure(images) if trainer.is_global_zero else None
            self._measured_at, self._latest = step, trainer.strategy.broadcast(found)
        pl_module.log_dict(self._latest, prog_bar=True, logger=False, sync_dist=True)  # the same on all ranks

    def state_dict(self) -> dict[str, Any]:
        return {"measured_at": self._measured_at, "latest": self._latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at, self._latest = state_dict["measured_at"], state_dict["latest"]

    def _draw(self, pl_module: Any, indices: Sequence[int]) -> Tensor:
        """Samples with these indices, uint8 (B, C, H, W), batch by batch."""
        guided = self._guidance.of(pl_module.denoiser)
        parts = []
        with Activity("sampling for FID and KID", total=len(indices), unit="images") as activity:
            for first in range(0, len(indices), self._batch_size):
                some = indices[first : first + self._batch_size]
                noise = SeededNoise(self._seed, some)
                x = noise.draw(self._shape).to(pl_module.device)
                y = in_turn(self._condition, some, x.device)
                parts.append(to_uint8(self._sampler(guided, x, y, randn=noise)))
                activity.advance(len(some))
        return torch.cat(parts)

    def _measure(self, images: Tensor) -> dict[str, float]:
        fake = extract(self._model, images)
        fid, kid = frechet_distance(self._reference, fake), kernel_distance(self._reference, fake)
        return {"val/fid": fid.value, "val/kid": kid.value}
