"""The U-Net of Ho et al. 2020."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.models.layers import (
    Downsample,
    ResBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    init_like_ho,
    zero,
)

__all__ = ["UNet"]


class Level(nn.Module):
    """One residual block and, where asked for, self-attention behind it."""

    def __init__(self, block: ResBlock, attention: SelfAttention | None):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.block(x, emb)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """Residual blocks with time embedding down to a small image and up again, each way joined by skips (Ho et al. 2020, appendix B).

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        base_channels: channels at full resolution.
        channel_multipliers: one per level, each at half the size of the one before.
        num_res_blocks: residual blocks on the way down; one more on the way up.
        attention_levels: the levels, counted from 0 at full resolution, that have self-attention. The middle always has.
        num_heads: attention heads.
        dropout: probability within residual blocks.
        num_classes: labels 0..num_classes−1 that y may hold, or None for a model without labels.
        norm_groups: groups of every group norm.

    Raises:
        ValueError: for channels that the groups or heads do not divide, or an attention level that does not exist.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        *,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (1,),
        num_heads: int = 1,
        dropout: float = 0.1,
        num_classes: int | None = None,
        norm_groups: int = 32,
    ):
        super().__init__()
        levels = len(channel_multipliers)
        widths = [base_channels * m for m in channel_multipliers]
        _check_settings([base_channels, *widths], norm_groups, num_heads, attention_levels, dropout, num_res_blocks)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_classes = num_classes
        emb_dim = 4 * base_channels
        self.time_embedding = TimeEmbedding(base_channels, emb_dim)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, emb_dim)

        def block(channels_in: int, channels_out: int) -> ResBlock:
            return ResBlock(channels_in, channels_out, emb_dim=emb_dim, dropout=dropout, norm_groups=norm_groups)

        def level(i: int, channels_in: int) -> Level:
            return Level(block(channels_in, widths[i]), attention(widths[i]) if i in attention_levels else None)

        def attention(channels: int) -> SelfAttention:
            return SelfAttention(channels, num_heads=num_heads, norm_groups=norm_groups)

        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        channels, skips = base_channels, [base_channels]
        self.down = nn.ModuleList()
        for i in range(levels):
            for _ in range(num_res_blocks):
                self.down.append(level(i, channels))
                channels = widths[i]
                skips.append(channels)
            if i < levels - 1:
                self.down.append(Downsample(channels))
                skips.append(channels)

        self.middle_in = Level(block(channels, channels), attention(channels))
        self.middle_out = Level(block(channels, channels), None)

        self.up = nn.ModuleList()
        for i in reversed(range(levels)):
            for _ in range(num_res_blocks + 1):
                self.up.append(level(i, channels + skips.pop()))
                channels = widths[i]
            if i > 0:
                self.up.append(Upsample(channels))

        self.norm_out = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

        init_like_ho(self)
        zero(self.conv_out)
        for part in self.modules():
            if isinstance(part, ResBlock):
                zero(part.conv2)
            elif isinstance(part, SelfAttention):
                zero(part.out)
        self.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in, on CPU and GPU

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), t: (B,) int in 0..T−1, y: (B,) labels or None -> (B, out_channels, H, W).

        Raises:
            ValueError: where H or W cannot be halved often enough, or labels and model do not go together.
        """
        self._check(x, y)
        emb = self.time_embedding(t)
        if self.class_embedding is not None and y is not None:
            emb = emb + self.class_embedding(y)
        emb = F.silu(emb)

        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for part in self.down:
            h = part(h, emb) if isinstance(part, Level) else part(h)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, emb), emb)
        for part in self.up:
            h = part(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(part, Level) else part(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        halvings = sum(isinstance(part, Downsample) for part in self.down)
        if x.shape[-2] % 2**halvings or x.shape[-1] % 2**halvings:
            raise ValueError(
                f"an image of {x.shape[-2]}x{x.shape[-1]} pixels cannot be halved {halvings} times: "
                f"choose height and width that are multiples of {2**halvings}, or fewer channel_multipliers"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the images have {x.shape[1]} channels, the model takes in_channels={self.in_channels}")
        if (y is None) != (self.num_classes is None):
            given, wants = ("no labels" if y is None else "labels"), ("none" if self.num_classes is None else "labels")
            raise ValueError(f"{given} were given to a model that takes {wants} (num_classes={self.num_classes})")


def _check_settings(
    widths: Sequence[int],
    norm_groups: int,
    num_heads: int,
    attention_levels: Sequence[int],
    dropout: float,
    num_res_blocks: int,
) -> None:
    if len(widths) < 2:
        raise ValueError("channel_multipliers=[] leaves no level: give one multiplier for each")
    for name, value in (("norm_groups", norm_groups), ("num_heads", num_heads), ("num_res_blocks", num_res_blocks)):
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    for width in widths:
        if width <= 0 or width % norm_groups or width % num_heads:
            raise ValueError(
                f"a level of {width} channels cannot be split into norm_groups={norm_groups} and "
                f"num_heads={num_heads}: change base_channels or channel_multipliers"
            )
    levels = len(widths) - 1
    if any(not 0 <= level < levels for level in attention_levels):
        raise ValueError(f"attention_levels={list(attention_levels)} must lie within 0..{levels - 1}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} lies outside [0, 1)")
