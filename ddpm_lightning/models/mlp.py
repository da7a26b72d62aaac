"""A multilayer perceptron, for points."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.models.layers import SIZES, TimeEmbedding, init_like_ho, require_multiple, zero
from ddpm_lightning.models.network import Network
from ddpm_lightning.ranges import require

__all__ = ["MLP"]

OCTAVES = 4


class Block(nn.Module):
    """h + W₂·silu(W₁·norm(h) + W_e·e), with e the embedding of time and label."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.emb = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h: (B, width), emb: (B, width) after its SiLU -> (B, width)."""
        return h + self.fc2(F.silu(self.fc1(self.norm(h)) + self.emb(emb)))


class MLP(Network):
    """Residual blocks on the coordinates of points, conditioned on t and y like the U-Net (Ho et al. 2020).

    The inputs are x and its Fourier features sin(2^k π x/2), cos(2^k π x/2), k = 0..3, without which an MLP learns sharp
    edges slowly (Tancik et al. 2020, Fourier Features Let Networks Learn High Frequency Functions).

    Args:
        in_channels: coordinates of x.
        out_channels: coordinates of the output.
        hidden_size: width of the blocks, and number of sinusoids of t.
        depth: number of blocks.
        num_classes: the number of labels, 0..num_classes−1, or None for a model without labels.
        condition_size: see `Network`.

    Raises:
        UserError: for a size that is not a positive integer, or an odd hidden_size.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        *,
        hidden_size: int = 64,
        depth: int = 3,
        num_classes: int | None = None,
        condition_size: int | None = None,
    ):
        super().__init__(in_channels, out_channels, num_classes, condition_size=condition_size)
        require("hidden_size", hidden_size, SIZES)
        require("depth", depth, SIZES)
        require_multiple("hidden_size", hidden_size, 2)
        self.first = nn.Linear((1 + 2 * OCTAVES) * in_channels, hidden_size)
        self.add_embeddings(TimeEmbedding(hidden_size, hidden_size), hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size) for _ in range(depth))
        self.norm_out = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, out_channels)
        init_like_ho(self)
        zero(self.out)

    def transform(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in_channels, 1, 1), emb: (B, hidden_size) after its SiLU -> (B, out_channels, 1, 1).

        Raises:
            ValueError: for another shape of x.
        """
        if x.shape[2:] != (1, 1):
            raise ValueError(f"x must be points of shape (B, {self.in_channels}, 1, 1), got {tuple(x.shape)}")
        waves = torch.cat([2**k * math.pi / 2 * x for k in range(OCTAVES)], dim=1)
        h = self.first(torch.cat([x, waves.sin(), waves.cos()], dim=1).flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return self.out(F.silu(self.norm_out(h)))[:, :, None, None]
