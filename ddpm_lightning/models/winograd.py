"""Winograd's algorithm for 3×3 convolutions on a CPU: a quarter of the products, most of them as large matrix products."""

import torch
from torch import Tensor

__all__ = ["conv3x3", "pays"]


def _evaluation(coefficients: int) -> Tensor:
    """(6, coefficients) that turns a polynomial's coefficients into its values at 0, ±√½, ±√2 and ∞, there the leading one.

    They have half the rounding error of the usual 0, ±1, ±2, ∞ (root mean square).
    """
    points = torch.tensor([0.0, 0.5, 0.5, 2.0, 2.0], dtype=torch.float64).sqrt() * torch.tensor([1, 1, -1, 1, -1])
    powers = points[:, None] ** torch.arange(coefficients)
    return torch.cat([powers, torch.eye(coefficients, dtype=torch.float64)[-1:]])


A, G = _evaluation(4).float(), _evaluation(3).float()
BT = _evaluation(6).inverse().T.float().contiguous()


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` takes these and is faster with its gradients than PyTorch's: float32, wide, at least 64 tiles."""
    height, width = x.shape[-2:]
    return (
        x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= 128
        and height % 4 == width % 4 == 0
        and len(x) * height * width >= 64 * 16
    )


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of x with 3×3 kernels and a zero all round, tile by tile: Y = Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A.

    F(4×4, 3×3) of Lavin & Gray 2016, Eq. 8: for tiles of 4×4 pixels of the output, which windows d of 6×6 of the input make,
    36 products for each channel in place of 144. A and G evaluate polynomials at six points, B interpolates (Toom and Cook).

    Args:
        x: (B, C, H, W), H and W multiples of 4.
        weight: (O, C, 3, 3).

    Returns:
        (B, O, H, W) in channels-last, equal to `F.conv2d(x, weight, padding=1)` up to some 1e-6 of its scale.
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
        # A window is its tile and one pixel all round, which lies in the tiles beside it, or in the padding.
        rows = windows[1:5]
        rows[3, :, :, :-1] += windows[0, :, :, 1:]
        rows[0, :, :, 1:] += windows[5, :, :, :-1]
        tiles.copy_(rows[:, 1:5])
        tiles[:, 3, :, :, :-1] += rows[:, 0, :, :, 1:]
        tiles[:, 0, :, :, 1:] += rows[:, 5, :, :, :-1]
        return grad_x, grad_weight.permute(2, 3, 0, 1)


def _both_ways(matrix: Tensor, x: Tensor) -> Tensor:
    """(m, m, N) matrix · x · matrixᵀ for an x (n, n, ...) that has N values at each of its n×n places."""
    m, n = matrix.shape
    rows = (matrix @ x.reshape(n, -1)).view(m, n, -1)
    return torch.bmm(matrix.expand(m, m, n), rows)


def _tiles(x: Tensor) -> Tensor:
    """(4, 4, B, H/4, W/4, C), a view of x (B, C, H, W) by the pixel's place in its tile, and the tile."""
    return x.permute(0, 2, 3, 1).unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).permute(2, 4, 0, 1, 3, 5)
