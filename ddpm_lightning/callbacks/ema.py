"""The exponential moving average of the weights."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter

from ddpm_lightning.callbacks.power_profiles import decay_at, exponent_of
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require
from ddpm_lightning.sharding import shared_like, unsharded

__all__ = ["EMA", "averaged_weights"]


class EMA(Callback):
    """θ̄ ← d·θ̄ + (1−d)·θ after every optimizer step, with d_n = min(decay, (1+n)/(10+n)) (Ho et al. 2020, d = 0.9999).

    The warm-up, as in TensorFlow's `ExponentialMovingAverage`, lets a short run forget its random initialization. Only
    parameters are averaged, except the loss's own. The module holds the raw weights except during validation and within
    `averaged_weights`. Checkpoints hold the EMA as "ema_state_dict", with the names of "state_dict".

    With `std`, d_n = (1 − 1/(n+1))^{γ+1} instead, which averages over a constant share of the training so far (Karras et al. 2024).

    A run can keep several EMAs. Validation, figures and metrics use the one named "ema"; checkpoints hold another one as
    "<name>_state_dict", and `weights=<name>` samples with it.

    Args:
        decay: the decay after the warm-up.
        warmup: False keeps the decay constant from the first step on, as Ho et al.'s code does.
        std: the width σ_rel of a power-function average, in place of decay and warm-up, see `exponent_of`.
        name: the name of this EMA.

    Raises:
        UserError: for a decay outside [0, 1), a width outside (0, 0.28], or a name that is not one word, or "raw".
    """

    def __init__(self, decay: float = 0.9999, *, warmup: bool = True, std: float | None = None, name: str = "ema"):
        require("decay", decay, "[0, 1)")
        if not re.fullmatch(r"\w+(\.\d+)?", str(name)) or name == "raw":
            raise UserError(f"name must be one word other than raw, got {name!r}")
        self.name = name
        self._decay = decay
        self._warmup = warmup
        self._exponent = None if std is None else exponent_of(std)
        self._steps = 0
        self._average: dict[str, Tensor] = {}
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])  # EMA and raw weights, in the same order
        self._validating = False

    @property
    def average(self) -> Mapping[str, Tensor]:
        """The EMA weights by name; the raw weights while the module holds the EMA weights."""
        return self._average

    @property
    def current_decay(self) -> float:
        """Decay d_n of the next update."""
        n = self._steps
        if self._exponent is not None:
            return decay_at(n + 1, self._exponent)
        return min(self._decay, (1 + n) / (10 + n)) if self._warmup else self._decay

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in `setup`: by now the module is on its device and a resumed run's weights are loaded.
        averages, weights = [], []
        for name, parameter in _averaged(pl_module):
            saved = self._average.get(name, parameter.detach())
            self._average[name] = shared_like(saved, parameter).to(parameter.device, copy=True)
            averages.append(self._average[name])
            weights.append(parameter.detach())
        self._pairs = averages, weights

    on_train_start = on_fit_start  # again, since FSDP shards and loads the weights in between

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._steps:
            return  # gradients are still being accumulated
        torch._foreach_lerp_(*self._pairs, 1 - self.current_decay)
        self._steps = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.name == "ema":
            self._swap(pl_module)
            self._validating = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validating:
            self._swap(pl_module)
            self._validating = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._validating:  # a checkpoint saved now must hold the raw weights
            self.on_validation_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[f"{self.name}_state_dict"] = {name: unsharded(value).cpu() for name, value in self._average.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A new EMA begins with the raw weights.
        self._average = dict(checkpoint.get(f"{self.name}_state_dict", {}))
        self._steps = checkpoint["global_step"]

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for average, weight in zip(*self._pairs, strict=True):
            raw = weight.clone()
            weight.copy_(average)
            average.copy_(raw)


def _averaged(pl_module: LightningModule) -> Iterator[tuple[str, Parameter]]:
    """The averaged parameters: all but the loss's own, which sampling does not use."""
    return ((name, p) for name, p in pl_module.named_parameters() if not name.startswith("loss."))


@contextmanager
def averaged_weights(pl_module: LightningModule, ema: EMA | None) -> Iterator[None]:
    """Evaluate with the EMA weights (the raw ones if `ema` is None), in eval mode without gradients, then restore the module."""
    was_training = pl_module.training
    if ema is not None:
        ema._swap(pl_module)
    pl_module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        pl_module.train(was_training)
        if ema is not None:
            ema._swap(pl_module)
