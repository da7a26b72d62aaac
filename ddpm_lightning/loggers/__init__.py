"""Loggers: metrics.csv, TensorBoard, Weights & Biases."""

from ddpm_lightning.loggers.csv import CSVLogger
from ddpm_lightning.loggers.tensorboard import TensorBoardLogger
from ddpm_lightning.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "TensorBoardLogger", "WandbLogger"]
