"""The perfect denoiser of Gaussian data, with and without a learned variance."""

import torch

from ddpm_lightning.denoiser import Denoiser
from tests.helpers.gaussian import GaussianModel

MEAN, STD = 0.4, 0.3


def gaussian(schedule, prediction):
    return Denoiser(GaussianModel(schedule, prediction, mean=MEAN, std=STD), schedule, prediction=prediction)


def learned(schedule, prediction, v):
    """A Gaussian denoiser whose network also gives a variance: the constant v."""

    class Model(GaussianModel):
        def forward(self, x, t, y=None):
            return torch.cat([super().forward(x, t, y), torch.full_like(x, v)], 1)

    model = Model(schedule, prediction, mean=MEAN, std=STD)
    return Denoiser(model, schedule, prediction=prediction, learned_variance=True)
