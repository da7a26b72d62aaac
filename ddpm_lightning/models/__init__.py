"""Networks: (x, t, y) -> tensor, usable alone."""

from ddpm_lightning.models.unet import UNet

__all__ = ["UNet"]
