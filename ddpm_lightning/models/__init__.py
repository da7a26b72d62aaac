"""Networks (x, t, y) -> tensor, usable on their own."""

from ddpm_lightning.models.dit import DiT
from ddpm_lightning.models.mlp import MLP
from ddpm_lightning.models.network import Network
from ddpm_lightning.models.unet import UNet

__all__ = ["MLP", "DiT", "Network", "UNet"]
