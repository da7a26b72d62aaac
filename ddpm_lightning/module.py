"""Training, as a LightningModule."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.data.source import Batch, Condition, is_labels, map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.likelihood import estimate_bits_per_dim
from ddpm_lightning.losses import Objective, Replica
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive
from ddpm_lightning.sharding import shard, unsharded

__all__ = ["DDPM"]


class DDPM(LightningModule):
    """Algorithm 25.1 of Murphy 2023 (Algorithm 1 of Ho et al. 2020), step by step.

    Args:
        denoiser: network, schedule and prediction type.
        loss: the loss of each image, and how t and ε are drawn; its own parameters are trained, too.
        optimizer: called with the parameters, or with groups of them.
        lr_scheduler: called with the optimizer; advanced once per optimizer step. None for a constant rate.
        seed: what the validation's t and ε are computed from.
        label_dropout: the probability with which an image is trained without its label or other condition, for
            classifier-free guidance (Ho & Salimans 2022, Algorithm 1).
        bits_per_dim: whether validation estimates them, which have a meaning for images on the grid of 256 values only.

    Raises:
        ValueError: for a probability outside [0, 1], or a denoiser that the loss cannot train.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: Objective,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        label_dropout: float = 0.1,
        bits_per_dim: bool = True,
    ):
        super().__init__()
        require("label_dropout", label_dropout, "[0, 1]")
        with below("loss"):
            loss.check(denoiser)
        self.denoiser = denoiser
        self.loss = loss
        self.seed = seed
        self.label_dropout = label_dropout
        self.bits_per_dim = bits_per_dim
        self.grad_norm: Tensor | None = None
        self.shared_generator = torch.Generator()  # the same on all ranks: `Randomness` seeds it before each batch
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        schedule, batch = self.denoiser.schedule, Batch.of(batch)
        x0 = batch.x0  # x_0 ~ q(x_0)
        t, weight = self.loss.times(len(x0), schedule, self._replica())  # t ~ U{1, …, T}
        t = _beside(t, x0)
        noise = self.loss.noise(x0)  # ε ~ N(0, I)
        x_t = schedule.q_sample(x0, t, self.loss.noise.perturbed(noise))  # x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, Eq. 25.3
        y = self._drop(self._condition(batch.y))  # y ← ∅ with probability p, Ho & Salimans 2022
        losses = self.loss(self.denoiser, x0, x_t, t, noise, y)  # ‖ε − ε_θ(x_t, t)‖²
        if self.loss.times.adaptive:  # here, since checkpoints are written before this module's `on_train_batch_end`
            everywhere = self.all_gather((t.flatten(), losses.detach()))  # on every rank in one order
            self.loss.times.update(*(part.flatten() for part in everywhere))
        return {"loss": (weight * losses).mean(), "losses": losses.detach(), "t": t.flatten()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = Batch.of(batch, first=(batch_idx * self._replica().world_size + self.global_rank) << 20)
        schedule, x0 = self.denoiser.schedule, batch.x0
        draw = SeededNoise(derive(self.seed, "validation"), batch.ids.tolist())
        t = _beside(draw.times(schedule.num_steps).to(x0.device), x0)
        noise = draw(x0)
        y = self._condition(batch.y)
        losses = self.loss(self.denoiser, x0, schedule.q_sample(x0, t, noise), t, noise, y)
        metrics = {"val/loss": losses.mean()}
        if self.bits_per_dim:
            bits = estimate_bits_per_dim(self.denoiser, x0, y, uniform=draw.uniform(), randn=draw)
            metrics["val/bits_per_dim"] = bits.total.mean()
            metrics |= {f"val/bits_{term}": getattr(bits, term).mean() for term in ("prior", "diffusion", "decoder")}
        self.log_dict(metrics, batch_size=len(losses), sync_dist=True, prog_bar=True, logger=False)

    def _replica(self) -> Replica:
        world_size = self.trainer.world_size if self._trainer else 1
        return Replica(self.shared_generator, self.global_rank, world_size)

    def _condition(self, y: Condition | None) -> Condition | None:
        """A batch's condition, but none for a model that says `num_classes = None`, whatever labels its loader gives."""
        model = self.denoiser.model
        unlabeled = not self.denoiser.has_null and getattr(model, "num_classes", y) is None
        return None if unlabeled and is_labels(y) else y

    def _drop(self, y: Condition | None) -> Condition | None:
        """The null condition in place of y for some images, each of which loses all of it."""
        if y is None or self.label_dropout == 0 or not self.denoiser.conditional:
            return y
        one = y if isinstance(y, Tensor) else next(iter(y.values()))
        dropped = torch.rand(len(one), device=one.device) < self.label_dropout
        return map_condition(
            lambda rows, none: torch.where(_beside(dropped, rows), none, rows), y, self.denoiser.null(y)
        )

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # set by strategies that shard the weights
            if next(self.loss.parameters(), None) is not None:
                raise UserError("trainer=fsdp cannot train a loss with parameters of its own: use trainer=ddp")
            shard(self.denoiser.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._optimizer(self._parameter_groups())
        if self._lr_scheduler is None:
            return {"optimizer": optimizer}
        rates = {"scheduler": self._lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": rates}

    def _parameter_groups(self) -> Iterable[Any]:
        """The network's parameters, and in a group of their own, without weight decay, those of the loss where it has any."""
        if not (own := [*self.loss.parameters()]):
            return self.denoiser.parameters()
        return [{"params": [*self.denoiser.parameters()]}, {"params": own, "weight_decay": 0.0}]

    @cached_property
    def _listed(self) -> list[Parameter]:
        """The parameters, once: to walk over the modules takes longer than to clip."""
        return [*self.parameters()]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Once per optimizer step and after unscaling: the place to see the norm before it is clipped.
        gradients = [p.grad for p in self._listed if p.grad is not None]
        self.grad_norm = unsharded(torch.nn.utils.get_total_norm(gradients))
        # Not by Lightning, which refuses to clip for a fused optimizer even where no loss is scaled, as in bfloat16.
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._listed, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self._listed, gradient_clip_val, self.grad_norm)


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """One value for each image, shaped to multiply with x: (B, 1, 1, 1) for images, (B, 1, 1) for rows, and so on."""
    return values.reshape(-1, *[1] * (x.ndim - 1))
