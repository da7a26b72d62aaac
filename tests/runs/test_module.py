"""A training that is long enough to see images come back."""

import torch

from ddpm_lightning.data.datasets import digits
from ddpm_lightning.data.source import Batch
from ddpm_lightning.images import SeededNoise, from_uint8
from ddpm_lightning.samplers import DDIM
from tests.helpers.modules import tiny


def test_overfitting_eight_images_drives_the_loss_down_and_the_images_come_back():
    module = tiny()
    x0 = from_uint8(digits().images[:8])
    batch = Batch(x0.repeat(8, 1, 1, 1), None, torch.arange(64))
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(300):
        loss = module.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    noise = SeededNoise(0, range(8))
    samples = DDIM(20)(module.denoiser.eval(), noise.draw((1, 8, 8)))
    nearest = torch.cdist(samples.flatten(1), x0.flatten(1)).min(1).values / 8
    unlike = torch.cdist(x0.flatten(1), x0.flatten(1)).fill_diagonal_(9).min() / 8
    assert nearest.median() < 0.6 * unlike
