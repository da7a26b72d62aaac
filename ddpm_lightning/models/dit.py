"""The diffusion transformer of Peebles & Xie 2023."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.models.layers import (
    SIZES,
    TimeEmbedding,
    init_like_ho,
    pad_to_multiple,
    require_multiple,
    zero,
)
from ddpm_lightning.models.network import Network
from ddpm_lightning.ranges import require

__all__ = ["DiT"]

SINUSOIDS = 256


class Block(nn.Module):
    """adaLN-Zero: x + α_1·attention((1+γ_1)·norm(x) + β_1), then the same with an MLP; the condition gives γ, β and α (Fig. 3)."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, N, width), condition: (B, width) after its SiLU -> (B, N, width)."""
        b1, g1, a1, b2, g2, a2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + a1 * self._attend(self.norm(x) * (1 + g1) + b1)
        return x + a2 * self.mlp(self.norm(x) * (1 + g2) + b2)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiT(Network):
    """A transformer on patches, conditioned on t and y by zero-initialized adaptive layer norms (Peebles & Xie 2023).

    Images whose sides are not multiples of the patch size are edge-padded, evenly on all sides, and the output is cropped;
    positions start at the padded image's upper left corner.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        patch_size: side of a patch.
        hidden_size: width of the transformer.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of the MLPs relative to hidden_size.
        dropout: probability within the MLPs.
        num_classes: the number of labels, 0..num_classes−1, or None for a model without labels.
        checkpointing: recompute each block in the backward pass: less memory, a third more time.
        condition_size: see `Network`.
        condition_channels: see `Network`.

    Raises:
        UserError: for a setting out of range, or a hidden_size that is not a multiple of num_heads and 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        patch_size: int = 2,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        num_classes: int | None = None,
        checkpointing: bool = False,
        condition_size: int | None = None,
        condition_channels: int | None = None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            num_classes,
            checkpointing=checkpointing,
            condition_size=condition_size,
            condition_channels=condition_channels,
        )
        require("patch_size", patch_size, SIZES)
        require("hidden_size", hidden_size, "4..65536")
        require("depth", depth, "1..1000")
        require("num_heads", num_heads, SIZES)
        require("mlp_ratio", mlp_ratio, "(0, 100]")
        require("hidden_size * mlp_ratio", hidden_size * mlp_ratio, "[1, inf)")
        require("dropout", dropout, "[0, 1)")
        require_multiple("hidden_size", hidden_size, 4)
        require_multiple("hidden_size", hidden_size, num_heads, "num_heads")
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.patches = nn.Conv2d(in_channels + (condition_channels or 0), hidden_size, patch_size, stride=patch_size)
        self.add_embeddings(TimeEmbedding(SINUSOIDS, hidden_size, frequency_shift=0), hidden_size)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, patch_size**2 * out_channels)
        self._initialize()

    def transform(self, x: Tensor, emb: Tensor) -> Tensor:
        """Patchify, apply the blocks, and unpatchify."""
        x, (rows, columns) = pad_to_multiple(x, self.patch_size)
        patches = self.patches(x)
        height, width = patches.shape[-2:]
        h = patches.flatten(2).transpose(1, 2)
        # In x's precision: under autocast the residual stream stays float32, as in the paper's code.
        h = h + positions(height, width, self.hidden_size, device=x.device).to(x.dtype)
        for block in self.blocks:
            h = self.through(block, h, emb)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        h = self.out(self.norm_out(h) * (1 + scale) + shift)
        p = self.patch_size
        image = h.unflatten(1, (height, width)).unflatten(-1, (p, p, self.out_channels)).permute(0, 5, 1, 3, 2, 4)
        return image.reshape(len(x), self.out_channels, height * p, width * p)[..., rows, columns]

    def _initialize(self) -> None:
        """Initialize as in the paper's code: Xavier, small normal embeddings, and zero for modulation and output layers."""
        init_like_ho(self)
        nn.init.xavier_uniform_(self.patches.weight.view(self.hidden_size, -1))
        for layer in self.time_embedding.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        for part in self.modules():
            if isinstance(part, Block | DiT):
                zero(part.modulation)
        zero(self.out)


def positions(height: int, width: int, dim: int, *, device: torch.device) -> Tensor:
    """[sin(x·ω), cos(x·ω), sin(y·ω), cos(y·ω)], (height·width, dim), for each patch's column x and row y; ω_i = 10000^(−4i/dim)."""
    omega = torch.exp(torch.arange(dim // 4, device=device) * (-math.log(10000) / (dim // 4)))
    x, y = (torch.arange(n, device=device)[:, None] * omega for n in (width, height))
    x, y = (torch.cat([angle.sin(), angle.cos()], dim=-1) for angle in (x, y))
    return torch.cat([x.expand(height, -1, -1), y[:, None].expand(-1, width, -1)], dim=-1).flatten(0, 1)
