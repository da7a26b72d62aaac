"""Training losses, weightings, and the sampling of t and ε."""

from ddpm_lightning.losses.objectives import MSE, VLB, Distance, Draw, Huber, Hybrid, Loss, Objective
from ddpm_lightning.losses.times import Antithetic, Importance, LogNormal, Stratified, TimeDraw, Uniform
from ddpm_lightning.losses.vdm import VDM
from ddpm_lightning.losses.weightings import P2, SNR, Bound, MinSNR, Simple, TruncatedSNR, Weighting

__all__ = [
    "MSE",
    "P2",
    "SNR",
    "VDM",
    "VLB",
    "Antithetic",
    "Bound",
    "Distance",
    "Draw",
    "Huber",
    "Hybrid",
    "Importance",
    "LogNormal",
    "Loss",
    "MinSNR",
    "Objective",
    "Simple",
    "Stratified",
    "TimeDraw",
    "TruncatedSNR",
    "Uniform",
    "Weighting",
]
