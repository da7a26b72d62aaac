"""Fused group norm, SiLU and dropout for channels-last images, as two Triton kernels per direction.

On CUDA, PyTorch's `group_norm` converts channels-last images to another layout and back; these kernels read them twice and
write them once. Sums are in float32. Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on a CPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["norm_silu"]

TILE = 4096  # values per program; larger tiles spill registers
WARPS = 4


@triton.jit
def _columns(C: tl.constexpr, CP: tl.constexpr, W: tl.constexpr, WP: tl.constexpr):
    """The channels of a tile's CP columns (W per group, padded to WP), and the mask of used columns."""
    i = tl.arange(0, CP)
    columns, used = i, i < C
    if W != WP:
        columns = i // WP * W + i % WP
        used = (i % WP < W) & (columns < C)
    return columns, used


@triton.jit
def _added(part, n, parts, columns, used, C: tl.constexpr, CP: tl.constexpr):
    """Two sums by channel of image n, over its tiles."""
    first = tl.zeros((CP,), tl.float32)
    second = tl.zeros((CP,), tl.float32)
    for s in range(parts):
        first += tl.load(part + ((n * parts + s) * 2) * C + columns, mask=used, other=0.0)
        second += tl.load(part + ((n * parts + s) * 2 + 1) * C + columns, mask=used, other=0.0)
    return first, second


@triton.jit
def _by_group(values, CP: tl.constexpr, WP: tl.constexpr):
    """The sum over each group, broadcast to its columns."""
    groups = tl.sum(tl.reshape(values, (CP // WP, WP)), 1)
    return tl.reshape(tl.broadcast_to(groups[:, None], (CP // WP, WP)), (CP,))


@triton.jit
def _tile(n, s, L, columns, used, C: tl.constexpr, R: tl.constexpr):
    """The offsets of the R pixels of tile s in image n, and the mask of existing ones."""
    rows = s * R + tl.arange(0, R)
    return (n * L + rows[:, None]) * C + columns[None, :], (rows[:, None] < L) & used[None, :]


@triton.jit
def _shifted_mean(shift, mean, n, columns, used, C: tl.constexpr, SHIFTED: tl.constexpr):
    """The mean of x itself, if the norm is of x + shift."""
    if SHIFTED:
        mean -= tl.load(shift + n * C + columns, mask=used, other=0.0).to(tl.float32)
    return mean


@triton.jit
def _sums(
    x,
    shift,
    part,
    L,
    C: tl.constexpr,
    CP: tl.constexpr,
    W: tl.constexpr,
    WP: tl.constexpr,
    R: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Σ and Σ of squares of x + shift, by channel and tile."""
    n, s, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    columns, used = _columns(C, CP, W, WP)
    where, there = _tile(n, s, L, columns, used, C, R)
    values = tl.load(x + where, mask=there, other=0.0).to(tl.float32)
    if SHIFTED:
        values += tl.load(shift + n * C + columns, mask=used, other=0.0).to(tl.float32)[None, :]
        values = tl.where(there, values, 0.0)
    tl.store(part + ((n * parts + s) * 2) * C + columns, tl.sum(values, 0), mask=used)
    tl.store(part + ((n * parts + s) * 2 + 1) * C + columns, tl.sum(values * values, 0), mask=used)


@triton.jit
def _forward(
    x, shift, weight, bias, part, y, stats, seed, L, eps,
    C: tl.constexpr, CP: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, R: tl.constexpr,
    SHIFTED: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y, and the mean, 1/σ and sum of normalized values by image and channel."""
    n, s, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    columns, used = _columns(C, CP, W, WP)
    total, squares = _added(part, n, parts, columns, used, C, CP)
    mean = _by_group(total, CP, WP) / (L * W)
    variance = _by_group(squares, CP, WP) / (L * W) - mean * mean
    rstd = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    if s == 0:
        tl.store(stats + (n * 3) * C + columns, mean, mask=used)
        tl.store(stats + (n * 3 + 1) * C + columns, rstd, mask=used)
        tl.store(stats + (n * 3 + 2) * C + columns, (total - L * mean) * rstd, mask=used)
    scale = rstd * tl.load(weight + columns, mask=used, other=0.0).to(tl.float32)
    offset = tl.load(bias + columns, mask=used, other=0.0).to(tl.float32)
    offset -= _shifted_mean(shift, mean, n, columns, used, C, SHIFTED) * scale
    where, there = _tile(n, s, L, columns, used, C, R)
    z = tl.load(x + where, mask=there, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    out = z * tl.sigmoid(z) if SILU else z
    if P > 0:
        out = tl.where(tl.rand(tl.load(seed), where) >= P, out * (1.0 / (1.0 - P)), 0.0)
    tl.store(y + where, out.to(y.dtype.element_ty), mask=there)


@triton.jit
def _through_silu(
    x, shift, weight, bias, stats, dy, seed, n, s, L, columns, used,
    C: tl.constexpr, R: tl.constexpr, SHIFTED: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """The gradient of the norm's output z in a tile, and the normalized values."""
    mean = tl.load(stats + (n * 3) * C + columns, mask=used, other=0.0)
    rstd = tl.load(stats + (n * 3 + 1) * C + columns, mask=used, other=0.0)
    mean = _shifted_mean(shift, mean, n, columns, used, C, SHIFTED)
    where, there = _tile(n, s, L, columns, used, C, R)
    grad = tl.load(dy + where, mask=there, other=0.0).to(tl.float32)
    if P > 0:
        grad = tl.where(tl.rand(tl.load(seed), where) >= P, grad * (1.0 / (1.0 - P)), 0.0)
    normalized = (tl.load(x + where, mask=there, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    scale = tl.load(weight + columns, mask=used, other=0.0).to(tl.float32)
    if SILU:
        offset = tl.load(bias + columns, mask=used, other=0.0).to(tl.float32)
        z = normalized * scale[None, :] + offset[None, :]
        gate = tl.sigmoid(z)
        grad *= gate * (1.0 + z * (1.0 - gate))
    return grad, normalized, scale, rstd, where, there


@triton.jit
def _backward_sums(
    x, shift, weight, bias, stats, dy, part, seed, L,
    C: tl.constexpr, CP: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, R: tl.constexpr,
    SHIFTED: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Σ dz and Σ dz·x̂ by channel and tile, for the gradients of bias, weight and norm."""
    n, s, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    columns, used = _columns(C, CP, W, WP)
    dz, normalized, _, _, _, there = _through_silu(
        x, shift, weight, bias, stats, dy, seed, n, s, L, columns, used, C, R, SHIFTED, P, SILU
    )
    tl.store(part + ((n * parts + s) * 2) * C + columns, tl.sum(dz, 0), mask=used)
    tl.store(
        part + ((n * parts + s) * 2 + 1) * C + columns, tl.sum(dz * tl.where(there, normalized, 0.0), 0), mask=used
    )


@triton.jit
def _backward(
    x, shift, weight, bias, stats, dy, part, dx, totals, seed, L,
    C: tl.constexpr, CP: tl.constexpr, W: tl.constexpr, WP: tl.constexpr, R: tl.constexpr,
    SHIFTED: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """dx = (w·dz − mean(w·dz) − x̂·mean(w·dz·x̂))/σ with means over the group; and the sums by image for the other gradients."""
    n, s, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    columns, used = _columns(C, CP, W, WP)
    plain, times_x = _added(part, n, parts, columns, used, C, CP)
    dz, normalized, scale, rstd, where, there = _through_silu(
        x, shift, weight, bias, stats, dy, seed, n, s, L, columns, used, C, R, SHIFTED, P, SILU
    )
    first = _by_group(plain * scale, CP, WP) / (L * W)
    second = _by_group(times_x * scale, CP, WP) / (L * W)
    if s == 0:
        over_pixels = tl.load(stats + (n * 3 + 2) * C + columns, mask=used, other=0.0)
        tl.store(totals + (n * 3) * C + columns, plain, mask=used)
        tl.store(totals + (n * 3 + 1) * C + columns, times_x, mask=used)
        tl.store(
            totals + (n * 3 + 2) * C + columns, rstd * (plain * scale - L * first - over_pixels * second), mask=used
        )
    grad = rstd[None, :] * (dz * scale[None, :] - first[None, :] - normalized * second[None, :])
    tl.store(dx + where, grad.to(dx.dtype.element_ty), mask=there)


def _launch(x: Tensor, groups: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid over images and tiles, and the kernels' compile-time sizes."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    width = channels // groups
    padded = triton.next_power_of_2(width)
    columns = triton.next_power_of_2(groups) * padded
    rows = max(1, min(triton.next_power_of_2(pixels), TILE // columns))
    sizes = {"C": channels, "CP": columns, "W": width, "WP": padded, "R": rows, "num_warps": WARPS}
    return (len(x), triton.cdiv(pixels, rows)), sizes


@torch.library.custom_op("ddpm_lightning::norm_silu", mutates_args=())
def norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    seed: Tensor | None,
    groups: int,
    eps: float,
    dropout: float = 0.0,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """dropout(silu(group_norm(x + shift))), and the statistics for its gradient.

    Args:
        x: (B, C, H, W) in float32, bfloat16 or float16; the result has the same dtype and is channels-last.
        weight: (C,) weight of the norm.
        bias: (C,) bias of the norm.
        shift: (B, C) added to all pixels first, or None.
        seed: () int64 seed of the dropout mask; None without dropout.
        groups: groups of the norm.
        eps: epsilon of the norm.
        dropout: the dropout probability.
        silu: False leaves out the SiLU.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    shift = None if shift is None else shift.contiguous()
    grid, sizes = _launch(x, groups)
    part = x.new_empty(*grid, 2, x.shape[1], dtype=torch.float32)
    stats = x.new_empty(len(x), 3, x.shape[1], dtype=torch.float32)
    y = torch.empty_like(x)
    pixels, shifted = x.shape[2] * x.shape[3], shift is not None
    _sums[grid](x, x if shift is None else shift, part, pixels, **sizes, SHIFTED=shifted)
    given = (x, x if shift is None else shift, weight, bias, part, y, stats, stats if seed is None else seed)
    _forward[grid](*given, pixels, eps, **sizes, SHIFTED=shifted, P=dropout, SILU=silu)
    return y, stats


@torch.library.custom_op("ddpm_lightning::norm_silu_backward", mutates_args=())
def norm_silu_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    seed: Tensor | None,
    stats: Tensor,
    dy: Tensor,
    groups: int,
    dropout: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of x, and those of bias, weight and shift by image, (B, 3, C)."""
    x, dy = (values.contiguous(memory_format=torch.channels_last) for values in (x, dy))
    shift = None if shift is None else shift.contiguous()
    grid, sizes = _launch(x, groups)
    part = x.new_empty(*grid, 2, x.shape[1], dtype=torch.float32)
    totals, dx = torch.empty_like(stats), torch.empty_like(x)
    options = {**sizes, "SHIFTED": shift is not None, "P": dropout, "SILU": silu}
    given = (x, x if shift is None else shift, weight, bias, stats, dy, part)
    seed = stats if seed is None else seed
    _backward_sums[grid](*given, seed, x.shape[2] * x.shape[3], **options)
    _backward[grid](*given, dx, totals, seed, x.shape[2] * x.shape[3], **options)
    return dx, totals


@norm_silu.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    stats = x.new_empty(len(x), 3, x.shape[1], dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), stats


@norm_silu_backward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, seed: Tensor | None, stats: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(stats)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.groups, _, ctx.dropout, ctx.silu = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, shift, seed, stats = ctx.saved_tensors
    dx, totals = norm_silu_backward(x, weight, bias, shift, seed, stats, dy, ctx.groups, ctx.dropout, ctx.silu)
    of_bias, of_weight = totals[:, :2].sum(0)
    of_shift = None if shift is None else totals[:, 2].to(shift.dtype)
    return dx, of_weight.to(weight.dtype), of_bias.to(bias.dtype), of_shift, None, None, None, None, None


norm_silu.register_autograd(_gradient, setup_context=_keep)
