"""The base class of all networks: time and condition embeddings."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ddpm_lightning.errors import UserError
from ddpm_lightning.models.layers import SIZES, TimeEmbedding
from ddpm_lightning.ranges import require

__all__ = ["Network", "blocks_of"]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """A network's main blocks: the members of its module lists and other modules of their types; the network itself if none."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    kinds = {type(child) for part in lists for child in part if not isinstance(child, nn.ModuleList)}
    return [part for part in model.modules() if type(part) in kinds] or [model]


class Network(nn.Module, ABC):
    """Base class of networks model(x, t, y), where t and y enter as one embedding (Ho et al. 2020).

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        num_classes: the number of labels, 0..num_classes−1, or None for a model without labels.
        checkpointing: recompute each block in the backward pass.
        dims: spatial axes of x.
        condition_size: D, for vector conditions y (B, D) such as text embeddings; None for a model without them.
        condition_channels: channels of image conditions y (B, channels, H', W') of any size, which are resized and concatenated
            to x (Saharia et al. 2021); None for a model without them.

    Raises:
        UserError: for a number that is not a positive integer, or more than one kind of condition.
    """

    null: Callable[[Tensor], Tensor]  # of models with vector or image conditions
    settings: dict[str, Any]  # the constructor's arguments by name

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        names = [*inspect.signature(cls.__init__).parameters][1:]
        made.__dict__["settings"] = {**dict(zip(names, args, strict=False)), **kwargs}
        return made

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_classes: int | None,
        *,
        checkpointing: bool = False,
        dims: int = 2,
        condition_size: int | None = None,
        condition_channels: int | None = None,
    ):
        super().__init__()
        require("in_channels", in_channels, SIZES)
        require("out_channels", out_channels, SIZES)
        kinds = {"num_classes": num_classes, "condition_size": condition_size, "condition_channels": condition_channels}
        for name, value in kinds.items():
            require(name, value, SIZES, optional=True)
        if len(given := [f"{name}={value}" for name, value in kinds.items() if value is not None]) > 1:
            raise UserError(f"a model takes one kind of condition, got {' and '.join(given)}: set one of them to null")
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.checkpointing = checkpointing
        self.dims, self.condition_size, self.condition_channels = dims, condition_size, condition_channels
        if condition_size is not None or condition_channels is not None:
            self.null = torch.zeros_like

    def add_embeddings(self, times: TimeEmbedding, dim: int) -> None:
        """Add the embedding of t, and an embedding of y: of labels, where the last is the null label, or of vectors."""
        self.time_embedding = times
        self.class_embedding = None if self.num_classes is None else nn.Embedding(self.num_classes + 1, dim)
        self.condition_embedding = None if self.condition_size is None else nn.Linear(self.condition_size, dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), t: (B,) int in 0..T−1, y: (B,) labels, another condition or None -> (B, out_channels, H, W).

        The null label is `num_classes`, the null condition of other models is zero; y = None is null for all images.

        Raises:
            ValueError: for another shape of x or y, or a condition for a model without one.
        """
        if x.ndim != 2 + self.dims:
            raise ValueError(f"the data have {x.ndim - 2} spatial axes, but the model has dims={self.dims}")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the images have {x.shape[1]} channels, but the model has in_channels={self.in_channels}")
        emb = self.time_embedding(t)
        if (classes := self.class_embedding) is not None:
            emb = emb + classes(torch.full_like(t, classes.num_embeddings - 1, dtype=torch.long) if y is None else y)
        elif self.condition_embedding is not None:
            if y is not None:
                self._check_condition(y, (self.condition_size,))
                emb = emb + self.condition_embedding(y.to(emb.dtype))
            else:
                emb = emb + self.condition_embedding.bias
        elif self.condition_channels is not None:
            x = torch.cat([x, self._resized(x, y)], dim=1)
        elif y is not None:
            kind, setting = (
                ("labels were", "num_classes")
                if y.ndim == 1
                else ("a condition was", "condition_size or condition_channels")
            )
            raise ValueError(f"{kind} given to a model that takes none: set {setting}")
        return self.transform(x, F.silu(emb))

    def _resized(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The image condition resized to x by linear interpolation; zeros for none."""
        if y is None:
            return x.new_zeros(len(x), self.condition_channels or 0, *x.shape[2:])
        self._check_condition(y, (self.condition_channels, *[-1] * self.dims))
        if y.shape[2:] == x.shape[2:]:
            return y.to(x.dtype)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[self.dims]
        return F.interpolate(y.to(x.dtype), size=[*x.shape[2:]], mode=mode, align_corners=False)

    def _check_condition(self, y: Tensor, shape: tuple[int | None, ...]) -> None:
        given = y.shape[1:] if isinstance(y, Tensor) else ()
        if len(given) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, given, strict=True)):
            wanted = ", ".join("any" if n == -1 else str(n) for n in shape)
            raise ValueError(f"the condition must have shape ({wanted}) per sample, got {tuple(given)}")

    @abstractmethod
    def transform(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, dim) after its SiLU -> (B, out_channels, H, W)."""

    def through(self, part: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        """part(h, emb), recomputed in the backward pass with `checkpointing`."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(part, h, emb, use_reentrant=False)
        return part(h, emb)
