"""Versions of the U-Net's residual blocks and group norms that run faster on GPUs; on other devices they behave like the plain layers.

The network can be understood without this module. `speed_up` replaces layers and keeps their parameters and names.
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.errors import brief
from ddpm_lightning.models.layers import ResBlock

__all__ = ["FastGroupNorm", "FastResBlock", "speed_up"]

log = logging.getLogger(__name__)

_WIDEST = 4096  # maximum number of channels in a kernel's tile
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HAS_TRITON = find_spec("triton") is not None
_broken = False  # after a failure


def speed_up(network: nn.Module) -> None:
    """Replace the residual blocks of images, and the group norms of images, that the kernels support, in place."""
    for part in network.modules():
        if type(part) is ResBlock and _fits(part):
            part.__class__ = FastResBlock
        elif type(part) is nn.GroupNorm and part.num_channels <= _WIDEST:
            part.__class__ = FastGroupNorm


class FastGroupNorm(nn.GroupNorm):
    """A group norm that keeps channels-last images as they are, in two kernels."""

    def forward(self, x: Tensor) -> Tensor:
        if not _usable(x):
            return super().forward(x)
        try:
            return _norm_silu(x, self, silu=False)
        except Exception as error:  # see FastResBlock
            _give_up(error)
            return super().forward(x)


class FastResBlock(ResBlock):
    """A residual block that fuses norms, SiLUs, dropout, embedding and the first bias into two kernels instead of about ten.

    Equal to the plain block up to rounding, except for the dropout mask, which is computed from a sampled seed.
    """

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if not _usable(x):
            return super().forward(x, emb)
        try:
            h, emb = _norm_silu(x, self.norm1), self.emb(emb)
        except Exception as error:  # Triton without a C compiler, or on an unsupported GPU
            _give_up(error)
            return super().forward(x, emb)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = F.conv2d(h, self.conv1.weight, padding=1)
        assert self.conv1.bias is not None
        h = _norm_silu(h, self.norm2, emb + self.conv1.bias, self.dropout.p if self.training else 0.0)
        return self.conv2(h).add_(self.skip(x))


def _norm_silu(x: Tensor, norm: Any, shift: Tensor | None = None, dropout: float = 0.0, *, silu: bool = True) -> Tensor:
    from ddpm_lightning.models.kernels import norm_silu  # imports Triton

    seed = torch.randint(2**31, (), device=x.device) if dropout else None
    return norm_silu(x, norm.weight, norm.bias, shift, seed, norm.num_groups, norm.eps, dropout, silu)[0]


def _fits(block: ResBlock) -> bool:
    norms = [block.norm1, block.norm2]
    plain = isinstance(block.conv1, nn.Conv2d) and not block.scale_shift
    return plain and all(isinstance(norm, nn.GroupNorm) and norm.num_channels <= _WIDEST for norm in norms)


def _usable(x: Tensor) -> bool:
    if x.device.type != "cuda" or x.ndim != 4 or x.dtype not in _DTYPES or torch.compiler.is_compiling():
        return False
    return _HAS_TRITON and not _broken


def _give_up(error: Exception) -> None:
    global _broken  # noqa: PLW0603  for all GPUs
    _broken = True
    log.warning("the Triton kernels cannot be used; the network runs without them (%s)", brief(error))
