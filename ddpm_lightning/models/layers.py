"""The parts that networks are built of."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require

__all__ = [
    "SIZES",
    "Downsample",
    "Network",
    "ResBlock",
    "SelfAttention",
    "TimeEmbedding",
    "Upsample",
    "double",
    "halve",
    "init_like_ho",
    "pad_to_multiple",
    "require_multiple",
    "zero",
]

Norm = Callable[[int], nn.Module]
SIZES = "1..10000000"  # a number of channels, heads or the like


def require_multiple(name: str, value: int, divisor: int, divisor_name: str = "", *, hint: str = "") -> None:
    """Refuse a value that is not a multiple: `hidden_size must be a multiple of num_heads=3, got 64`."""
    if value % divisor:
        of = f"{divisor_name}={divisor}" if divisor_name else divisor
        raise UserError(f"{name} must be a multiple of {of}, got {value}{hint and f': {hint}'}")


def init_like_ho(module: nn.Module) -> None:
    """Variance scaling with the average of fan-in and fan-out, uniform, and zero biases (Ho et al. 2020, the code's `nn.py`)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def zero(layer: nn.Module) -> None:
    """Set a layer's weights to zero, so that its branch adds nothing at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, slice]]:
    """x (B, C, H, W) with its edges repeated on all sides up to multiples, and the window, rows and columns, that was x."""
    height, width = x.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    top, left = rows // 2, columns // 2
    window = (slice(top, top + height), slice(left, left + width))
    if not rows and not columns:
        return x, window
    return F.pad(x, (left, columns - left, top, rows - top), mode="replicate"), window


class TimeEmbedding(nn.Module):
    """Sinusoids [sin(t·ω), cos(t·ω)], ω_i = 10000^(−i/(d/2−δ)), and two linear layers (Ho et al. 2020; Vaswani et al. 2017).

    t: (B,) in 0..T−1 -> (B, out_dim).

    Args:
        dim: d, the number of sinusoids.
        out_dim: of the embedding.
        hidden_dim: between the two layers; `out_dim` where it is None.
        frequency_shift: δ, 1 in Ho et al.'s code, 0 in Vaswani et al. and guided diffusion.
    """

    def __init__(self, dim: int, out_dim: int, *, hidden_dim: int | None = None, frequency_shift: float = 1):
        super().__init__()
        hidden_dim = hidden_dim or out_dim
        self.dim = dim
        self.frequency_shift = frequency_shift
        self.net = nn.Sequential(nn.Linear(dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim))

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        # float32 also under autocast: bfloat16 cannot tell t = 999 from 1000.
        step = -math.log(10000) / max(half - self.frequency_shift, 1)
        angle = t.float()[:, None] * torch.exp(torch.arange(half, device=t.device) * step)
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.net(sinusoids.to(next(self.net.parameters()).dtype))


class Network(nn.Module, ABC):
    """What all networks here have in common: model(x, t, y), where t and y come in as one embedding (Ho et al. 2020).

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        num_classes: labels 0..num_classes−1 that y may hold, or None for a model without labels.
        checkpointing: recompute the inside of each part in the backward pass.

    Raises:
        UserError: for a number that is not a positive integer.
    """

    settings: dict[str, Any]  # what it was made with, by the names of its constructor's parameters

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        names = [*inspect.signature(cls.__init__).parameters][1:]
        made.__dict__["settings"] = {**dict(zip(names, args, strict=False)), **kwargs}
        return made

    def __init__(self, in_channels: int, out_channels: int, num_classes: int | None, *, checkpointing: bool = False):
        super().__init__()
        require("in_channels", in_channels, SIZES)
        require("out_channels", out_channels, SIZES)
        require("num_classes", num_classes, SIZES, optional=True)
        self.in_channels, self.out_channels, self.num_classes = in_channels, out_channels, num_classes
        self.checkpointing = checkpointing

    def add_embeddings(self, times: TimeEmbedding, dim: int) -> None:
        """Take the embedding of t, and one of y beside it, whose last row stands for no label."""
        self.time_embedding = times
        self.class_embedding = None if self.num_classes is None else nn.Embedding(self.num_classes + 1, dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), t: (B,) int in 0..T−1, y: (B,) labels or None -> (B, out_channels, H, W).

        A model with classes takes `num_classes`, and y = None for all images, as no label.

        Raises:
            ValueError: where the channels are others, or labels are given to a model that has none.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the images have {x.shape[1]} channels, the model takes in_channels={self.in_channels}")
        if self.class_embedding is None and y is not None:
            raise ValueError("labels were given to a model that takes none (num_classes=None)")
        emb = self.time_embedding(t)
        if (classes := self.class_embedding) is not None:
            emb = emb + classes(torch.full_like(t, classes.num_embeddings - 1) if y is None else y)
        return self.transform(x, F.silu(emb))

    @abstractmethod
    def transform(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, dim) after its SiLU -> (B, out_channels, H, W)."""

    def through(self, part: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        """part(h, emb), with `checkpointing` as it says."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(part, h, emb, use_reentrant=False)
        return part(h, emb)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, plus the embedding, norm, SiLU, dropout, convolution, plus the input.

    Args:
        in_channels: of x.
        out_channels: of the output.
        emb_dim: of the embedding.
        dropout: probability before the last convolution.
        norm: gives a norm for a number of channels.
        scale_shift: the embedding scales and shifts what the second norm gives, (1+γ)·h + β, and is not added (Dhariwal & Nichol 2021).
        resample: what doubles or halves both ways, the branch's behind its first SiLU (Dhariwal & Nichol 2021); None keeps the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_dim: int,
        dropout: float,
        norm: Norm,
        scale_shift: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = scale_shift
        self.emb = nn.Linear(emb_dim, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.resample = resample

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, emb_dim) after its SiLU -> (B, out_channels, H', W')."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, emb = self.conv1(h), self.emb(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(emb))  # in place: no convolution's gradient asks for its output
        return self.conv2(self.dropout(F.silu(h))).add_(self.skip(x))


class SelfAttention(nn.Module):
    """Softmax attention among all positions of an image, with its residual (Vaswani et al. 2017, Eq. 1).

    Args:
        channels: of x.
        num_heads: heads, which share the channels.
        norm: gives a norm for a number of channels.
        out_bias: whether the last projection has one.
    """

    def __init__(self, channels: int, *, num_heads: int, norm: Norm, out_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm(channels)
        # 1×1 convolutions: linear layers that leave the channels-last layout as it is.
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1, bias=out_bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.qkv(self.norm(x)).permute(0, 2, 3, 1)
        q, k, v = tokens.reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c)
        return self.out(attended.permute(0, 3, 1, 2)).add_(x)


class Downsample(nn.Module):
    """Half the size by a 3×3 convolution of stride 2.

    Args:
        channels: of x.
        padding: 0 pads below and to the right only, as TensorFlow does (Ho et al. 2020); 1 all round (Dhariwal & Nichol 2021).
    """

    def __init__(self, channels: int, *, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size by nearest neighbour and a 3×3 convolution.

    Args:
        channels: of x.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))


def double(x: Tensor) -> Tensor:
    """Twice the size by nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """Half the size by the mean of 2×2 pixels."""
    return F.avg_pool2d(x, 2)
