"""Modules of some thousand weights."""

import torch

from ddpm_lightning import schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.losses import Loss
from ddpm_lightning.models import UNet
from ddpm_lightning.module import DDPM


def tiny(**options):
    torch.manual_seed(0)
    model = UNet(1, 1, base_channels=16, channel_multipliers=(1, 1), num_res_blocks=1, norm_groups=8, dropout=0.0)
    denoiser = Denoiser(model, schedules.linear(), **options)
    return DDPM(denoiser, Loss(), lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
