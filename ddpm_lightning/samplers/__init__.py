"""Samplers: Algorithm 25.2 and faster solvers."""

from ddpm_lightning.samplers.base import DenoiserLike, Point, Sampler, Step, Transition, reverse_step
from ddpm_lightning.samplers.learned import Learned
from ddpm_lightning.samplers.solvers import (
    DDIM,
    DEIS,
    EDM,
    IPNDM,
    Ancestral,
    DPMSolver,
    Heun,
    Multistep,
    SASolver,
    UniPC,
)
from ddpm_lightning.samplers.spacings import SPACINGS

__all__ = [
    "DDIM",
    "DEIS",
    "EDM",
    "IPNDM",
    "SPACINGS",
    "Ancestral",
    "DPMSolver",
    "DenoiserLike",
    "Heun",
    "Learned",
    "Multistep",
    "Point",
    "SASolver",
    "Sampler",
    "Step",
    "Transition",
    "UniPC",
    "reverse_step",
]
