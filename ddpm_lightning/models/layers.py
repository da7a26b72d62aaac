"""Layers of the networks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.errors import UserError

__all__ = [
    "CONVOLUTIONS",
    "SIZES",
    "Downsample",
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
CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}  # by number of spatial axes
SIZES = "1..10000000"  # number of channels, heads etc.


def require_multiple(name: str, value: int, divisor: int, divisor_name: str = "", *, hint: str = "") -> None:
    """Refuse a value that is not a multiple: `hidden_size must be a multiple of num_heads=3, got 64`."""
    if value % divisor:
        of = f"{divisor_name}={divisor}" if divisor_name else divisor
        raise UserError(f"{name} must be a multiple of {of}, got {value}{hint and f': {hint}'}")


def init_like_ho(module: nn.Module) -> None:
    """Initialize with uniform variance scaling (fan average) and zero biases (Ho et al. 2020, `nn.py`)."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def zero(layer: nn.Module) -> None:
    """Set a layer's weights to zero, so that its branch starts as zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[slice, ...]]:
    """Edge-pad x (B, C, ...) to a multiple on each axis, and return it with the slices of the original."""
    missing = [-side % multiple for side in x.shape[2:]]
    window = tuple(slice(m // 2, m // 2 + side) for m, side in zip(missing, x.shape[2:], strict=True))
    if not any(missing):
        return x, window
    return F.pad(x, [n for m in reversed(missing) for n in (m // 2, m - m // 2)], mode="replicate"), window


class TimeEmbedding(nn.Module):
    """Sinusoids [sin(t·ω), cos(t·ω)], ω_i = 10000^(−i/(d/2−δ)), followed by two linear layers (Ho et al. 2020; Vaswani et al. 2017).

    t: (B,) in 0..T−1 -> (B, out_dim).

    Args:
        dim: d, the number of sinusoids.
        out_dim: size of the embedding.
        hidden_dim: size between the two layers; None is `out_dim`.
        frequency_shift: δ, 1 in Ho et al.'s code, 0 in Vaswani et al. and guided diffusion.
        scale: factor of t, such as 1000/T for a network that receives t in thousandths (Nichol & Dhariwal 2021).
    """

    def __init__(
        self, dim: int, out_dim: int, *, hidden_dim: int | None = None, frequency_shift: float = 1, scale: float = 1.0
    ):
        super().__init__()
        hidden_dim = hidden_dim or out_dim
        self.dim = dim
        self.frequency_shift = frequency_shift
        self.scale = scale
        self.net = nn.Sequential(nn.Linear(dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim))

    def forward(self, t: Tensor) -> Tensor:
        half, t = self.dim // 2, t * self.scale
        # float32 even under autocast: bfloat16 cannot distinguish t = 999 from 1000.
        step = -math.log(10000) / max(half - self.frequency_shift, 1)
        angle = t.float()[:, None] * torch.exp(torch.arange(half, device=t.device) * step)
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.net(sinusoids.to(self.net[0].weight.dtype))  # type: ignore[arg-type]


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, plus the embedding, norm, SiLU, dropout, convolution, plus the input.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        emb_dim: size of the embedding.
        dropout: probability before the last convolution.
        norm: builds a norm for a number of channels.
        scale_shift: the embedding scales and shifts the second norm's output, (1+γ)·h + β, instead of being added (Dhariwal &
            Nichol 2021).
        resample: `double` or `halve`, applied to the input and after the branch's first SiLU (Dhariwal & Nichol 2021); None
            keeps the size.
        dims: spatial axes of x.
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
        dims: int = 2,
    ):
        super().__init__()
        self.norm1 = norm(in_channels)
        conv = CONVOLUTIONS[dims]
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.scale_shift = scale_shift
        self.emb = nn.Linear(emb_dim, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)
        self.resample = resample

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, emb_dim) after its SiLU -> (B, out_channels, H', W')."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, emb = self.conv1(h), self.emb(emb)
        emb = emb.reshape(*emb.shape, *[1] * (h.ndim - 2))
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(emb))  # in place: a convolution's gradient does not need its output
        return self.conv2(self.dropout(F.silu(h))).add_(self.skip(x))


class SelfAttention(nn.Module):
    """Residual softmax self-attention over all positions (Vaswani et al. 2017, Eq. 1).

    Args:
        channels: channels of x.
        num_heads: heads, which split the channels.
        norm: builds a norm for a number of channels.
        out_bias: whether the output projection has a bias.
        dims: spatial axes of x.
    """

    def __init__(self, channels: int, *, num_heads: int, norm: Norm, out_bias: bool = True, dims: int = 2):
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm(channels)
        # 1×1 convolutions: linear layers that keep the channels-last layout.
        self.qkv = CONVOLUTIONS[dims](channels, 3 * channels, 1)
        self.out = CONVOLUTIONS[dims](channels, channels, 1, bias=out_bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *size = x.shape
        tokens = self.qkv(self.norm(x)).movedim(1, -1)
        q, k, v = tokens.reshape(b, -1, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, *size, c)
        return self.out(attended.movedim(-1, 1)).add_(x)


class Downsample(nn.Module):
    """Halve the size with a 3×3 convolution of stride 2.

    Args:
        channels: channels of x.
        padding: 0 pads only bottom and right, like TensorFlow (Ho et al. 2020); 1 pads all sides (Dhariwal & Nichol 2021).
        dims: spatial axes of x.
    """

    def __init__(self, channels: int, *, padding: int = 0, dims: int = 2):
        super().__init__()
        self.conv = CONVOLUTIONS[dims](channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1) * (x.ndim - 2)))


class Upsample(nn.Module):
    """Double the size with nearest-neighbor upsampling and a 3×3 convolution.

    Args:
        channels: channels of x.
        dims: spatial axes of x.
    """

    def __init__(self, channels: int, *, dims: int = 2):
        super().__init__()
        self.conv = CONVOLUTIONS[dims](channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))


def double(x: Tensor) -> Tensor:
    """Double the size with nearest-neighbor upsampling."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """Halve the size along each spatial axis by averaging, such as 2×2 pixels."""
    return {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim](x, 2)
