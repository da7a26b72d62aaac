"""The plan of a U-Net: its parts, level by level."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.models.layers import SIZES, double, halve, require_multiple
from ddpm_lightning.ranges import require, within

__all__ = ["Part", "Plan"]


@dataclass(frozen=True)
class Part:
    """A residual block with optional self-attention, or a resize between two levels.

    Args:
        name: its path in the network, such as "down.0".
        level: 0 at full resolution; a resize belongs to the level that it leaves.
        index: its position among the residual blocks of the level, separately for down and up.
        in_channels: channels of its input, including the skip connection.
        out_channels: channels of its output.
        heads: heads of self-attention, 0 for none.
        resize: `halve` or `double`, for a resize.
    """

    name: str
    level: int
    index: int
    in_channels: int
    out_channels: int
    heads: int = 0
    resize: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """The levels of a `UNet`, with the same arguments.

    Raises:
        UserError: for a setting out of range, or channels that are not a multiple of the groups or heads.
    """

    base_channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    attention_levels: Sequence[int]
    num_heads: int
    head_channels: int | None
    norm_groups: int

    def __post_init__(self) -> None:
        require("base_channels", self.base_channels, SIZES)
        require("num_heads", self.num_heads, SIZES)
        require("norm_groups", self.norm_groups, SIZES)
        require("head_channels", self.head_channels, SIZES, optional=True)
        require("num_res_blocks", self.num_res_blocks, "1..100")
        _require_integers("channel_multipliers", self.channel_multipliers, 1, 1024, shortest=1)
        _require_integers("attention_levels", self.attention_levels, 0, len(self.channel_multipliers) - 1)
        require_multiple("base_channels", self.base_channels, self.norm_groups, "norm_groups")
        for level in {*self.attention_levels, len(self.widths) - 1}:
            divisor = "num_heads" if self.head_channels is None else "head_channels"
            name = f"base_channels * channel_multipliers[{level}]"
            require_multiple(name, self.widths[level], getattr(self, divisor), divisor)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    def heads(self, level: int) -> int:
        """Attention heads at a level."""
        return self.num_heads if self.head_channels is None else self.widths[level] // self.head_channels

    def parts(self) -> Iterator[Part]:
        """The parts, in forward order."""
        heads = [self.heads(level) if level in self.attention_levels else 0 for level in range(len(self.widths))]
        channels, skips, last = self.base_channels, [self.base_channels], len(self.widths) - 1
        for level, width in enumerate(self.widths):
            for index in range(self.num_res_blocks):
                yield Part(f"down.{len(skips) - 1}", level, index, channels, width, heads[level])
                channels = width
                skips.append(channels)
            if level < last:
                yield Part(f"down.{len(skips) - 1}", level, 0, channels, channels, resize=halve)
                skips.append(channels)
        yield Part("middle_in", last, 0, channels, channels, self.heads(last))
        yield Part("middle_out", last, 1, channels, channels)
        for stage, (level, width) in enumerate(reversed([*enumerate(self.widths)])):
            for index in range(self.num_res_blocks + 1):
                yield Part(f"up.{stage}.{index}", level, index, channels + skips.pop(), width, heads[level])
                channels = width
            if level > 0:
                yield Part(f"grow.{stage}", level, 0, channels, channels, resize=double)


def _require_integers(name: str, values: Any, low: int, high: int, *, shortest: int = 0) -> None:
    listed = isinstance(values, Sequence) and len(values) >= shortest
    if not listed or not all(within(value, f"{low}..{high}") for value in values):
        raise UserError(
            f"{name} must be a {'non-empty ' * (shortest > 0)}list of integers from {low} to {high}, got {values}"
        )
