"""The U-Net of Ho et al. 2020 and its variants."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.models.fast_cpu import speed_up as fast_cpu_layers
from ddpm_lightning.models.fast_gpu import speed_up as fast_gpu_blocks
from ddpm_lightning.models.layers import (
    CONVOLUTIONS,
    SIZES,
    Downsample,
    ResBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    halve,
    init_like_ho,
    pad_to_multiple,
    zero,
)
from ddpm_lightning.models.network import Network
from ddpm_lightning.models.plan import Part, Plan
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["UNet"]

# The fastest memory format of convolutions on CPU and GPU, by number of spatial axes.
_LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


class AttendingBlock(nn.Module):
    """A residual block with optional self-attention."""

    def __init__(self, block: ResBlock, attention: SelfAttention | None = None):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.block(x, emb)
        return h if self.attention is None else self.attention(h)


class Resize(nn.Module):
    """A resize between levels, independent of the embedding."""

    def __init__(self, resize: Downsample | Upsample):
        super().__init__()
        self.resize = resize

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.resize(x)


class UNet(Network):
    """A U-Net of residual blocks with time embedding and skip connections (Ho et al. 2020, appendix B).

    The defaults are Ho et al.'s network for CIFAR-10. Images whose sides cannot be halved often enough are edge-padded, and
    the output is cropped.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        base_channels: channels at full resolution.
        channel_multipliers: one per level; each level halves the size.
        num_res_blocks: residual blocks per level on the way down, and one more on the way up.
        attention_levels: levels with self-attention, 0 at full resolution; the middle always has it.
        num_heads: attention heads.
        head_channels: channels per head, in place of `num_heads`.
        dropout: probability within residual blocks.
        num_classes: the number of labels, 0..num_classes−1, or None for a model without labels.
        norm_groups: groups of group norms.
        norm_eps: epsilon of group norms.
        scale_shift_norm: the embedding scales and shifts instead of being added (Dhariwal & Nichol 2021).
        resblock_updown: resize within residual blocks instead of separate convolutions (Dhariwal & Nichol 2021).
        downsample_padding: see `Downsample`.
        frequency_shift: see `TimeEmbedding`.
        time_scale: factor of the time, see `TimeEmbedding`.
        time_hidden_channels: size between the two layers of the time embedding; None is 4·base_channels.
        attention_out_bias: whether the output projection of self-attention has a bias.
        xavier_init: initialize as in Ho et al.'s code instead of PyTorch's default.
        zero_init: initialize the last layers of the network, residual blocks and attention to zero.
        checkpointing: recompute each block in the backward pass: less memory, a third more time.
        fast_cpu: on a CPU, use the faster layers of `fast_cpu.py`, equal up to rounding.
        fast_gpu: on a GPU, use the faster blocks of `fast_gpu.py`, equal up to rounding.
        dims: spatial axes of x: 1 for signals, 2 for images, 3 for videos and volumes.
        condition_size: see `Network`.
        condition_channels: see `Network`.

    Raises:
        UserError: for a setting out of range, or channels that are not a multiple of the groups or heads.
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
        head_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int | None = None,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        downsample_padding: int = 0,
        frequency_shift: float = 1,
        time_scale: float = 1.0,
        time_hidden_channels: int | None = None,
        attention_out_bias: bool = True,
        xavier_init: bool = True,
        zero_init: bool = True,
        checkpointing: bool = False,
        fast_cpu: bool = True,
        fast_gpu: bool = True,
        dims: int = 2,
        condition_size: int | None = None,
        condition_channels: int | None = None,
    ):
        require("dims", dims, "1..3")
        kinds: dict[str, Any] = {"condition_size": condition_size, "condition_channels": condition_channels}
        super().__init__(in_channels, out_channels, num_classes, checkpointing=checkpointing, dims=dims, **kinds)
        require("time_hidden_channels", time_hidden_channels, SIZES, optional=True)
        require("dropout", dropout, "[0, 1)")
        require("norm_eps", norm_eps, "(0, 1]")
        require("frequency_shift", frequency_shift, "[0, 1]")
        require("time_scale", time_scale, "(0, 1000]")
        require_one_of("downsample_padding", downsample_padding, (0, 1))
        self.plan = Plan(
            base_channels, channel_multipliers, num_res_blocks, attention_levels, num_heads, head_channels, norm_groups
        )
        self.resblock_updown, self.downsample_padding = resblock_updown, downsample_padding
        self.multiple = 2 ** (len(channel_multipliers) - 1)
        emb_dim = 4 * base_channels
        timing: Any = {"hidden_dim": time_hidden_channels, "frequency_shift": frequency_shift, "scale": time_scale}
        self.add_embeddings(TimeEmbedding(base_channels, emb_dim, **timing), emb_dim)
        norm = partial(nn.GroupNorm, norm_groups, eps=norm_eps)
        self.conv_in = CONVOLUTIONS[dims](in_channels + (condition_channels or 0), base_channels, 3, padding=1)
        self._add_parts(
            partial(ResBlock, emb_dim=emb_dim, dropout=dropout, norm=norm, scale_shift=scale_shift_norm, dims=dims),
            partial(SelfAttention, norm=norm, out_bias=attention_out_bias, dims=dims),
        )
        self.norm_out = norm(self.plan.widths[0])
        self.conv_out = CONVOLUTIONS[dims](self.plan.widths[0], out_channels, 3, padding=1)
        self._initialize(xavier_init, zero_init)
        self._speed_up(fast_cpu and dims == 2, fast_gpu)
        self.layout = _LAYOUTS[dims]
        self.to(memory_format=self.layout)

    def _speed_up(self, on_cpu: bool, on_gpu: bool) -> None:
        if on_cpu:
            fast_cpu_layers(self)
        if on_gpu:
            fast_gpu_blocks(self)

    def transform(self, x: Tensor, emb: Tensor) -> Tensor:
        """Down, through the middle, and up again with skip connections."""
        size = x.shape[2:]
        x, window = pad_to_multiple(x, self.multiple)
        h = self.conv_in(x.contiguous(memory_format=self.layout))
        skips = [h]
        for part in self.down:
            h = self.through(part, h, emb)
            skips.append(h)
        h = self.through(self.middle_out, self.through(self.middle_in, h, emb), emb)
        for stage, grow in zip_longest(self.up, self.grow):
            for part in stage.children():
                h = self.through(part, torch.cat([h, skips.pop()], dim=1), emb)
            if grow is not None:
                h = self.through(grow, h, emb)
        out = self.conv_out(F.silu(self.norm_out(h)))
        return out if out.shape[2:] == size else out[(..., *window)]

    def _add_parts(self, block: Callable[..., ResBlock], attention: Callable[..., SelfAttention]) -> None:
        def build(part: Part) -> Any:
            channels = part.out_channels
            if part.resize is None or self.resblock_updown:
                return AttendingBlock(
                    block(part.in_channels, channels, resample=part.resize),
                    attention(channels, num_heads=part.heads) if part.heads else None,
                )
            down = part.resize is halve
            padding, dims = self.downsample_padding, self.dims
            return Resize(Downsample(channels, padding=padding, dims=dims) if down else Upsample(channels, dims=dims))

        built = {part.name: build(part) for part in self.plan.parts()}  # weights are sampled in this order

        def below(path: str) -> nn.ModuleList:
            return nn.ModuleList(module for name, module in built.items() if name.startswith(f"{path}."))

        self.down = below("down")
        self.middle_in: AttendingBlock = built["middle_in"]
        self.middle_out: AttendingBlock = built["middle_out"]
        self.up = nn.ModuleList(below(f"up.{stage}") for stage in range(len(self.plan.widths)))
        self.grow = below("grow")

    def _initialize(self, xavier_init: bool, zero_init: bool) -> None:
        if xavier_init:
            init_like_ho(self)
            for part in self.modules():
                if isinstance(part, SelfAttention):  # theirs initializes q, k and v separately, each with C outputs
                    part.qkv.weight.data *= 2**0.5
        if zero_init:
            zero(self.conv_out)
            for part in self.modules():
                if isinstance(part, ResBlock):
                    zero(part.conv2)
                elif isinstance(part, SelfAttention):
                    zero(part.out)
