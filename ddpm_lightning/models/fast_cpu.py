"""Versions of the U-Net's layers that train faster on CPUs; on other devices they behave like the plain layers.

The network can be understood without this module. `speed_up` replaces layers and keeps their parameters and names.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lightning.models.layers import Upsample

__all__ = ["FastConv3x3", "FastDropout", "FastUpsample", "has_fast_forms", "speed_up", "winograd", "winograd_pays"]


def speed_up(network: nn.Module) -> None:
    """Replace dropout, upsampling and 3×3 convolutions of stride 1 by fast versions, in place."""
    for part in network.modules():
        if type(part) is nn.Dropout:
            part.__class__ = FastDropout
        elif type(part) is Upsample:
            part.__class__ = FastUpsample
        elif type(part) is nn.Conv2d and part.kernel_size == (3, 3) and part.stride == (1, 1):
            part.__class__ = FastConv3x3


def has_fast_forms(network: nn.Module) -> bool:
    """Whether a network contains fast layers."""
    return any(isinstance(part, FastDropout | FastUpsample | FastConv3x3) for part in network.modules())


class FastDropout(nn.Dropout):
    """Dropout with 16 random bits per value, where PyTorch samples a float.

    The probability is rounded to a multiple of 2⁻¹⁶, and kept values are scaled by the exact inverse.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = round(self.p * 2**16)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        lanes = bits.view(torch.int16)[: x.numel()]
        mask = ((lanes >= dropped - 2**15) * (2**16 / (2**16 - dropped))).to(x.dtype)
        if x.is_contiguous(memory_format=torch.channels_last):
            mask = mask.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        return x * mask.view(x.shape)


class FastConv3x3(nn.Conv2d):
    """A 3×3 convolution that uses Winograd's algorithm if wide enough, with a separate bias addition.

    oneDNN's own bias gradient takes up to a tenth of the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        y = winograd(x, self.weight) if winograd_pays(x, self.weight) else F.conv2d(x, self.weight, padding=1)
        assert self.bias is not None
        return y.add_(self.bias[:, None, None])


class FastUpsample(Upsample):
    """Nearest-neighbor upsampling and convolution fused into a transposed convolution of stride 2.

    Its 4×4 kernel is the 3×3 kernel convolved with 2×2 ones, which takes 4 products per output pixel instead of 9.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        kernel = F.pad(self.conv.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        kernel = kernel[..., 1:, :] + kernel[..., :-1, :]
        kernel = kernel[..., 1:] + kernel[..., :-1]
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        assert self.conv.bias is not None
        return F.conv_transpose2d(x, kernel, stride=2, padding=1).add_(self.conv.bias[:, None, None])


def _evaluation(coefficients: int) -> Tensor:
    """(6, coefficients) matrix that evaluates a polynomial at 0, ±√½, ±√2 and ∞ (the leading coefficient).

    These points have half the RMS rounding error of the usual 0, ±1, ±2, ∞.
    """
    points = torch.tensor([0.0, 0.5, 0.5, 2.0, 2.0], dtype=torch.float64).sqrt() * torch.tensor([1, 1, -1, 1, -1])
    powers = points[:, None] ** torch.arange(coefficients)
    return torch.cat([powers, torch.eye(coefficients, dtype=torch.float64)[-1:]])


A, G = _evaluation(4).float(), _evaluation(3).float()
BT = _evaluation(6).inverse().T.float().contiguous()


def winograd_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd` applies and is faster than PyTorch, gradients included: float32, wide, at least 64 tiles."""
    height, width = x.shape[-2:]
    return (
        x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= 128
        and height % 4 == width % 4 == 0
        and len(x) * height * width >= 64 * 16
    )


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution with zero padding, tile by tile: Y = Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A.

    F(4×4, 3×3) of Lavin & Gray 2016, Eq. 8: output tiles of 4×4 pixels from 6×6 input windows d take 36 products per channel
    instead of 144. A and G evaluate polynomials at six points, B interpolates (Toom-Cook).

    Args:
        x: (B, C, H, W), H and W multiples of 4.
        weight: (O, C, 3, 3).

    Returns:
        (B, O, H, W) in channels-last, equal to `F.conv2d(x, weight, padding=1)` up to about 1e-6 of its scale.
    """
    return _Winograd.apply(x, weight)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (images, channels, height, width), out_channels = x.shape, len(weight)
        padded = x.new_zeros(images, height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
        windows = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)
        inputs = _both_ways(BT, windows).view(36, -1, channels)
        kernels = _both_ways(G, weight.permute(2, 3, 0, 1)).view(36, out_channels, channels)
        products = torch.bmm(inputs, kernels.transpose(1, 2))
        y = torch.empty((images, out_channels, height, width), memory_format=torch.channels_last)
        tiles = _tiles(y)
        tiles.copy_(_both_ways(A.T, products.view(6, 6, -1)).view(tiles.shape))
        ctx.save_for_backward(inputs, kernels)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        inputs, kernels = ctx.saved_tensors
        (images, out_channels, height, width), channels = grad.shape, inputs.shape[-1]
        products = _both_ways(A, _tiles(grad)).view(36, -1, out_channels)
        grad_kernels = torch.bmm(products.transpose(1, 2), inputs)
        grad_weight = _both_ways(G.T, grad_kernels.view(6, 6, -1)).view(3, 3, out_channels, channels)

        grad_x = torch.empty((images, channels, height, width), memory_format=torch.channels_last)
        tiles = _tiles(grad_x)
        windows = _both_ways(BT.T, torch.bmm(products, kernels).view(6, 6, -1)).view(6, 6, *tiles.shape[2:])
        # A window is its tile with a one-pixel border from the adjacent tiles or the padding.
        rows = windows[1:5]
        rows[3, :, :, :-1] += windows[0, :, :, 1:]
        rows[0, :, :, 1:] += windows[5, :, :, :-1]
        tiles.copy_(rows[:, 1:5])
        tiles[:, 3, :, :, :-1] += rows[:, 0, :, :, 1:]
        tiles[:, 0, :, :, 1:] += rows[:, 5, :, :, :-1]
        return grad_x, grad_weight.permute(2, 3, 0, 1)


def _both_ways(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix · x · matrixᵀ, (m, m, N), for x (n, n, ...) with N values at each of the n×n positions."""
    m, n = matrix.shape
    rows = (matrix @ x.reshape(n, -1)).view(m, n, -1)
    return torch.bmm(matrix.expand(m, m, n), rows)


def _tiles(x: Tensor) -> Tensor:
    """View x (B, C, H, W) as (4, 4, B, H/4, W/4, C): position in the tile, then tile."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).permute(2, 4, 0, 1, 3, 5)
