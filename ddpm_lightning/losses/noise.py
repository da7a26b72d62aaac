"""The noise ε in training."""

import torch
from torch import Tensor

from ddpm_lightning.ranges import require

__all__ = ["NoiseDraw"]


class NoiseDraw:
    """Samples ε ~ N(0, I), optionally with offset noise or input perturbation.

    Args:
        offset_noise: the strength o of ε = ε' + o·ξ, with one ξ ~ N(0, 1) per image and channel (Guttenberg
            2023, Diffusion with Offset Noise).
        input_perturbation: the strength γ of x_t = √ᾱ_t x_0 + √(1−ᾱ_t) (ε + γ ξ), ξ ~ N(0, I), with ε still the
            target (Ning et al. 2023, Algorithm 1).

    Raises:
        ValueError: for a strength outside [0, 1].
    """

    def __init__(self, offset_noise: float = 0.0, input_perturbation: float = 0.0):
        require("offset_noise", offset_noise, "[0, 1]")
        require("input_perturbation", input_perturbation, "[0, 1]")
        self.offset_noise = offset_noise
        self.input_perturbation = input_perturbation

    def __call__(self, x0: Tensor) -> Tensor:
        """ε in the shape of x_0 (B, C, H, W), independent of its memory layout."""
        noise = torch.randn(x0.shape, device=x0.device, dtype=x0.dtype)
        if self.offset_noise == 0:
            return noise
        shift = torch.randn(*x0.shape[:2], *[1] * (x0.ndim - 2), device=x0.device, dtype=x0.dtype)
        return noise + self.offset_noise * shift

    def perturbed(self, noise: Tensor) -> Tensor:
        """The noise in x_t: ε itself, or ε + γ ξ."""
        if self.input_perturbation == 0:
            return noise
        return noise + self.input_perturbation * torch.randn_like(noise)
