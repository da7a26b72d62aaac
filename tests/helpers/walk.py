"""A network of one number, whose every step is known."""

import torch
from lightning.pytorch import LightningModule
from torch import nn


class Walk(LightningModule):
    """One weight that takes a known path: w = 0, then one less for every optimiser step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.draws, self.seen_in_validation, self.w_after = [], [], []

    def training_step(self, batch, batch_idx):
        self.draws.append(torch.rand(()).item())
        return self.w.sum()

    def validation_step(self, batch, batch_idx):
        self.seen_in_validation.append(self.w.item())

    def on_validation_end(self):
        self.w_after.append(self.w.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)
