"""Whose likelihoods are computed, and where they are kept."""

import torch

from ddpm_lightning import schedules
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.evaluation.bits import Likelihood
from ddpm_lightning.evaluation.real_images import held_out_of
from ddpm_lightning.models import UNet


def test_the_first_held_out_images_are_of_all_kinds():
    labels = torch.arange(10).repeat_interleave(100)
    data = ImageDataModule(
        lambda: ImageSet(torch.zeros(1000, 1, 8, 8).byte(), labels),
        channels=1,
        image_size=8,
        batch_size=9,
        val_fraction=0.5,
    )
    data.setup()
    held_out = held_out_of(data)
    assert len(held_out.labels) == 500
    assert torch.bincount(held_out.labels[:100], minlength=10).min() >= 3
    assert held_out.labels.equal(held_out_of(data).labels)


def test_likelihoods_of_another_schedule_are_not_taken(tmp_path):
    net = UNet(1, 1, base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), norm_groups=4)
    held_out = ImageSet(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long())
    denoisers = [Denoiser(net, make(num_steps=10)) for make in (schedules.linear, schedules.cosine)]
    assert len({Likelihood(tmp_path, denoiser, held_out).chunks.folder for denoiser in denoisers}) == 2
