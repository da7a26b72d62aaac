"""The U-Net of Ho et al. 2020, and the variants that came of it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ddpm_lightning.models.layers import (
    Conv3x3,
    Downsample,
    ResBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    check_sizes,
    double,
    embed,
    halve,
    init_like_ho,
    pad_to_multiple,
    zero,
)
from ddpm_lightning.ranges import is_integer, within

__all__ = ["UNet"]


class Level(nn.Module):
    """One residual block and, where asked for, self-attention behind it."""

    def __init__(self, block: ResBlock, attention: SelfAttention | None = None):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.block(x, emb)
        return h if self.attention is None else self.attention(h)


class Resize(nn.Module):
    """A change of size between levels that the embedding has no part in."""

    def __init__(self, resize: Downsample | Upsample):
        super().__init__()
        self.resize = resize

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.resize(x)


class UNet(nn.Module):
    """Residual blocks with time embedding down to a small image and up again, each way joined by skips (Ho et al. 2020, appendix B).

    The defaults are Ho et al.'s network for CIFAR-10. Images whose sides cannot be halved often enough are padded by
    their edges, and the output is cropped.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output.
        base_channels: channels at full resolution.
        channel_multipliers: one per level, each at half the size of the one before.
        num_res_blocks: residual blocks on the way down; one more on the way up.
        attention_levels: the levels, counted from 0 at full resolution, that have self-attention. The middle always has.
        num_heads: attention heads.
        head_channels: channels of a head, in place of `num_heads`.
        dropout: probability within residual blocks.
        num_classes: labels 0..num_classes−1 that y may hold, or None for a model without labels.
        norm_groups: groups of every group norm.
        norm_eps: what group norms add to the variance.
        scale_shift_norm: the embedding scales and shifts (Dhariwal & Nichol 2021), and is not added.
        resblock_updown: residual blocks change the size, and no convolutions between them (Dhariwal & Nichol 2021).
        downsample_padding: see `Downsample`.
        frequency_shift: see `TimeEmbedding`.
        time_hidden_channels: between the two layers of the time embedding, 4·base_channels where it is None.
        attention_out_bias: whether the last layer of self-attention has a bias.
        xavier_init: initial weights as in Ho et al.'s code, and not PyTorch's own.
        zero_init: the last layers of the network, of each residual block and of each attention begin at zero.
        checkpointing: recompute the inside of each block in the backward pass: less memory, a third more time.

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
        head_channels: int | None = None,
        dropout: float = 0.1,
        num_classes: int | None = None,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        downsample_padding: int = 0,
        frequency_shift: float = 1,
        time_hidden_channels: int | None = None,
        attention_out_bias: bool = True,
        xavier_init: bool = True,
        zero_init: bool = True,
        checkpointing: bool = False,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings: dict[str, Any] = settings  # the arguments, as `interop` writes them
        _check_settings(settings)
        levels = len(channel_multipliers)
        widths = [base_channels * m for m in channel_multipliers]
        attending = [widths[i] for i in {*attention_levels, levels - 1}]
        heads = {width: _heads(width, num_heads, head_channels) for width in attending}
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_classes = num_classes
        self.checkpointing = checkpointing
        self.multiple = 2 ** (levels - 1)
        emb_dim = 4 * base_channels
        self.time_embedding = TimeEmbedding(
            base_channels, emb_dim, hidden_dim=time_hidden_channels, frequency_shift=frequency_shift
        )
        # The row behind the classes is that of no label.
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, emb_dim)
        norm = partial(nn.GroupNorm, norm_groups, eps=norm_eps)

        def block(channels_in: int, channels_out: int, **options: Any) -> ResBlock:
            return ResBlock(
                channels_in,
                channels_out,
                emb_dim=emb_dim,
                dropout=dropout,
                norm=norm,
                scale_shift=scale_shift_norm,
                **options,
            )

        def attention(channels: int) -> SelfAttention:
            return SelfAttention(channels, num_heads=heads[channels], norm=norm, out_bias=attention_out_bias)

        def level(i: int, channels_in: int) -> Level:
            return Level(block(channels_in, widths[i]), attention(widths[i]) if i in attention_levels else None)

        def down(channels: int) -> nn.Module:
            if resblock_updown:
                return Level(block(channels, channels, resample=halve))
            return Resize(Downsample(channels, padding=downsample_padding))

        def up(channels: int) -> nn.Module:
            return Level(block(channels, channels, resample=double)) if resblock_updown else Resize(Upsample(channels))

        self.conv_in = Conv3x3(in_channels, base_channels)
        channels, skips = base_channels, [base_channels]
        self.down = nn.ModuleList()
        for i in range(levels):
            for _ in range(num_res_blocks):
                self.down.append(level(i, channels))
                channels = widths[i]
                skips.append(channels)
            if i < levels - 1:
                self.down.append(down(channels))
                skips.append(channels)

        self.middle_in = Level(block(channels, channels), attention(channels))
        self.middle_out = Level(block(channels, channels))

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(levels)):
            stage = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                stage.append(level(i, channels + skips.pop()))
                channels = widths[i]
            self.up.append(stage)
            if i > 0:
                self.grow.append(up(channels))
        self.norm_out = norm(channels)
        self.conv_out = Conv3x3(channels, out_channels)

        self._initialise(xavier_init, zero_init)
        self.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in, on CPU and GPU

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), t: (B,) int in 0..T−1, y: (B,) labels or None -> (B, out_channels, H, W).

        A model with classes takes `num_classes`, and y = None for all images, as no label.

        Raises:
            ValueError: where the channels are others, or labels are given to a model that has none.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the images have {x.shape[1]} channels, the model takes in_channels={self.in_channels}")
        emb = F.silu(embed(t, y, self.time_embedding, self.class_embedding))
        size = x.shape[-2:]
        x, (rows, columns) = pad_to_multiple(x, self.multiple)
        h = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for part in self.down:
            h = self._through(part, h, emb)
            skips.append(h)
        h = self._through(self.middle_out, self._through(self.middle_in, h, emb), emb)
        for stage, grow in zip_longest(self.up, self.grow):
            for part in stage.children():
                h = self._through(part, torch.cat([h, skips.pop()], dim=1), emb)
            if grow is not None:
                h = self._through(grow, h, emb)
        out = self.conv_out(F.silu(self.norm_out(h)))
        return out if out.shape[-2:] == size else out[..., rows, columns]

    def _initialise(self, xavier_init: bool, zero_init: bool) -> None:
        if xavier_init:
            init_like_ho(self)
        if zero_init:
            zero(self.conv_out)
            for part in self.modules():
                if isinstance(part, ResBlock):
                    zero(part.conv2)
                elif isinstance(part, SelfAttention):
                    zero(part.out)

    def _through(self, part: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(part, h, emb, use_reentrant=False)
        return part(h, emb)


def _heads(channels: int, num_heads: int, head_channels: int | None) -> int:
    """The number of heads for so many channels."""
    if head_channels is not None and channels % head_channels:
        raise ValueError(
            f"self-attention on {channels} channels cannot have heads of head_channels={head_channels}: give a divisor"
        )
    heads = num_heads if head_channels is None else channels // head_channels
    if channels % heads:
        raise ValueError(f"self-attention on {channels} channels cannot have num_heads={heads}: give a divisor")
    return heads


def _check_settings(settings: Mapping[str, Any]) -> None:
    sizes = ("in_channels", "out_channels", "base_channels", "num_heads", "norm_groups")
    optional = ("num_classes", "head_channels", "time_hidden_channels")
    check_sizes(**{name: settings[name] for name in (*sizes, *(n for n in optional if settings[n] is not None))})
    if not is_integer(settings["num_res_blocks"], "[1, 100]"):
        raise ValueError(f"num_res_blocks={settings['num_res_blocks']} must be 1 or more, and 100 at most")
    for name, interval in (("channel_multipliers", "[1, 1024]"), ("attention_levels", "[0, inf)")):
        value = settings[name]
        if not isinstance(value, Sequence) or any(not is_integer(n, interval) for n in value):
            raise ValueError(f"{name}={value} is no list of whole numbers: give one, such as [1, 2]")
    multipliers, groups = settings["channel_multipliers"], settings["norm_groups"]
    if not multipliers:
        raise ValueError("channel_multipliers=[] leaves no level: give one multiplier for each")
    for width in [settings["base_channels"] * m for m in (1, *multipliers)]:
        if width % groups:
            raise ValueError(
                f"a level of {width} channels cannot be split into norm_groups={groups}: "
                "change norm_groups, base_channels or channel_multipliers"
            )
    if any(level >= len(multipliers) for level in settings["attention_levels"]):
        raise ValueError(
            f"attention_levels={list(settings['attention_levels'])} must lie within 0..{len(multipliers) - 1}"
        )
    for name, interval in (("dropout", "[0, 1)"), ("norm_eps", "(0, 1]"), ("frequency_shift", "[0, 1]")):
        if not within(settings[name], interval):
            raise ValueError(f"{name}={settings[name]} lies outside {interval}")
    if settings["downsample_padding"] not in (0, 1):
        raise ValueError(f"downsample_padding={settings['downsample_padding']} will not do: give 0 or 1")
