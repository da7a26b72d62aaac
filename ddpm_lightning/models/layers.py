"""The parts that networks are built of."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Downsample", "ResBlock", "SelfAttention", "TimeEmbedding", "Upsample", "init_like_ho", "zero"]


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


class TimeEmbedding(nn.Module):
    """Sinusoids [sin(t·ω), cos(t·ω)], ω_i = 10000^(−i/(d/2−1)), and two linear layers (Ho et al. 2020; Vaswani et al. 2017).

    t: (B,) in 0..T−1 -> (B, out_dim).
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.Linear(dim, out_dim), nn.SiLU(), nn.Linear(out_dim, out_dim))

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        # float32 also under autocast: bfloat16 cannot tell t = 999 from 1000.
        omega = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / max(half - 1, 1)))
        angle = t.float()[:, None] * omega
        sinusoids = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.net(sinusoids.to(next(self.net.parameters()).dtype))


class ResBlock(nn.Module):
    """Group norm, SiLU, convolution, plus the embedding, group norm, SiLU, dropout, convolution, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, *, emb_dim: int, dropout: float, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, H, W), emb: (B, emb_dim) after its SiLU -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(emb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class SelfAttention(nn.Module):
    """Softmax attention among all positions of an image, with its residual (Vaswani et al. 2017, Eq. 1)."""

    def __init__(self, channels: int, *, num_heads: int, norm_groups: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.out(attended).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    """Half the size by a 3×3 convolution of stride 2, padded below and to the right, as in Ho et al.'s TensorFlow code."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size by nearest neighbour and a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
