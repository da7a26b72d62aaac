"""Training as a LightningModule."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.data.source import Batch, Condition, beside, is_labels, map_condition
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.likelihood import estimate_bits_per_dim
from ddpm_lightning.losses import Objective
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive
from ddpm_lightning.sharding import shard, unsharded

__all__ = ["DDPM"]

MOST = 2**28  # maximum number of values sampled at once


class DDPM(LightningModule):
    """Algorithm 25.1 of Murphy 2023 (Algorithm 1 of Ho et al. 2020), step by step.

    Args:
        denoiser: network, schedule and prediction type.
        loss: the training objective, including the sampling of t and ε; its parameters are trained, too.
        optimizer: called with the parameters or parameter groups.
        lr_scheduler: called with the optimizer; advanced once per optimizer step. None for a constant learning rate.
        seed: the seed of t and ε in validation.
        label_dropout: the probability of dropping an image's condition in training, for classifier-free guidance (Ho &
            Salimans 2022, Algorithm 1).
        bits_per_dim: whether validation estimates bits per dimension, which are meaningful only for 8-bit images.

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
        with below("loss", {"learned_variance": "learned_variance"}):
            loss.check(denoiser)
        self.denoiser = denoiser
        self.loss = loss
        self.seed = seed
        self.label_dropout = label_dropout
        self.bits_per_dim = bits_per_dim
        self.grad_norm: Tensor | None = None
        self.before_dropout: Callable[[], None] = _nothing  # set by `Randomness` to seed dropout
        self._losses: list[tuple[Tensor, Tensor]] = []  # of the step's batches so far, if times are adaptive
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        schedule, batch = self.denoiser.schedule, Batch.of(batch)
        x0 = batch.x0  # x_0 ~ q(x_0)
        like, mine = self._whole_step(x0, batch_idx)  # t and ε are sampled for all images of the step
        t, weight = (values[mine] for values in self.loss.times(len(like), schedule))  # t ~ U{1, …, T}
        t, noise = beside(t, x0), self.loss.noise(like)  # ε ~ N(0, I)
        x_t = schedule.q_sample(x0, t, self.loss.noise.perturbed(noise)[mine])  # x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, Eq. 25.3
        y = self._drop(self._condition(batch.y), len(like), mine)  # y ← ∅ with probability p, Ho & Salimans 2022
        self.before_dropout()
        outputs = self.learn(x0, x_t, t, noise[mine], weight, y)  # ‖ε − ε_θ(x_t, t)‖²
        if self.loss.times.adaptive:
            self._update_times(outputs, batch_idx)
        return outputs

    def learn(
        self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weight: Tensor, y: Condition | None
    ) -> dict[str, Tensor]:
        """The mean "loss" of a batch, the "losses" by image (B,), and "t" (B,)."""
        losses = self.loss(self.denoiser, x0, x_t, t, noise, y)
        return {"loss": (weight * losses).mean(), "losses": losses.detach(), "t": t.flatten()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch = Batch.of(batch, first=(batch_idx * self._world_size + self.global_rank) << 20)
        schedule, x0 = self.denoiser.schedule, batch.x0
        draw = SeededNoise(derive(self.seed, "validation"), batch.ids.tolist())
        t = beside(draw.times(schedule.num_steps).to(x0.device), x0)
        noise = draw(x0)
        y = self._condition(batch.y)
        losses = self.loss(self.denoiser, x0, schedule.q_sample(x0, t, noise), t, noise, y)
        metrics = {"val/loss": losses.mean()}
        if self.bits_per_dim:
            bits = estimate_bits_per_dim(self.denoiser, x0, y, uniform=draw.uniform(), randn=draw)
            metrics["val/bits_per_dim"] = bits.total.mean()
            metrics |= {f"val/bits_{term}": getattr(bits, term).mean() for term in ("prior", "diffusion", "decoder")}
        self.log_dict(metrics, batch_size=len(losses), sync_dist=True, prog_bar=True, logger=False)

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer else 1

    def _whole_step(self, x0: Tensor, batch_idx: int) -> tuple[Tensor, slice]:
        """A tensor like x_0 for all images of the optimizer step, over batches and processes, and the slice of x_0 in it.

        With more than 2²⁸ values it is x_0 itself, and each process samples for its own batch.
        """
        batches = self._trainer.accumulate_grad_batches if self._trainer else 1
        parts = batches * self._world_size
        if parts == 1 or parts * x0.numel() > MOST:
            return x0, slice(None)
        first = (batch_idx % batches * self._world_size + self.global_rank) * len(x0)
        return x0[:1].expand(parts * len(x0), *x0.shape[1:]), slice(first, first + len(x0))

    def _update_times(self, outputs: dict[str, Tensor], batch_idx: int) -> None:
        """Pass an optimizer step's losses to `loss.times`, in the order of its images, after its last batch.

        Not in `on_train_batch_end`, which comes after checkpoints are saved.
        """
        if self._trainer and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._losses.clear()  # from an aborted step
        self._losses.append((outputs["t"].clone(), outputs["losses"].clone()))  # a CUDA graph overwrites them
        if self._trainer and not self._ends_step(batch_idx):
            return
        t, losses = (torch.stack(parts) for parts in zip(*self._losses, strict=True))  # (batches, B)
        self._losses.clear()
        everywhere = self.all_gather((t, losses)) if self._world_size > 1 else (t, losses)  # (processes, batches, B)
        in_order = (part.movedim(0, 1) if part.ndim > 2 else part for part in everywhere)
        self.loss.times.update(*(part.flatten() for part in in_order))

    def _ends_step(self, batch_idx: int) -> bool:
        """Whether this is the last batch of an optimizer step."""
        return bool((batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch)

    def _condition(self, y: Condition | None) -> Condition | None:
        """A batch's condition; None for a model with `num_classes = None`, even if the loader yields labels."""
        model = self.denoiser.model
        unlabeled = not self.denoiser.has_null and getattr(model, "num_classes", y) is None
        return None if unlabeled and is_labels(y) else y

    def _drop(self, y: Condition | None, images: int, mine: slice) -> Condition | None:
        """Replace the condition of some images by the null condition; sampled for all images of the step."""
        if y is None or self.label_dropout == 0 or not self.denoiser.conditional:
            return y
        one = y if isinstance(y, Tensor) else next(iter(y.values()))
        dropped = torch.rand(images, device=one.device)[mine] < self.label_dropout
        return map_condition(
            lambda rows, none: torch.where(beside(dropped, rows), none, rows), y, self.denoiser.null(y)
        )

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # set by strategies that shard the weights
            if next(self.loss.parameters(), None) is not None:
                raise UserError("trainer=fsdp does not support losses with their own parameters: use trainer=ddp")
            shard(self.denoiser.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._optimizer(self._parameter_groups())
        if self._lr_scheduler is None:
            return {"optimizer": optimizer}
        rates = {"scheduler": self._lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": rates}

    def _parameter_groups(self) -> Iterable[Any]:
        """The network's parameters, and those of the loss and the schedule, if any, in a separate group without weight decay."""
        if not (own := [*self.loss.parameters(), *self.denoiser.schedule.parameters()]):
            return self.denoiser.parameters()
        apart = {id(parameter) for parameter in own}
        network = [parameter for parameter in self.denoiser.parameters() if id(parameter) not in apart]
        return [{"params": network}, {"params": own, "weight_decay": 0.0}]

    @cached_property
    def _listed(self) -> list[Parameter]:
        """The parameters, listed once, since walking over the modules takes longer than clipping."""
        return [*self.parameters()]

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Called once per optimizer step, after unscaling, so the norm can be logged before clipping.
        gradients = [p.grad for p in self._listed if p.grad is not None]
        self.grad_norm = unsharded(torch.nn.utils.get_total_norm(gradients))
        # Not by Lightning, which refuses to clip with a fused optimizer even without loss scaling, as in bfloat16.
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self._listed, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self._listed, gradient_clip_val, self.grad_norm)


def _nothing() -> None:
    pass
