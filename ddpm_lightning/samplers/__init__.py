"""Samplers: Algorithm 25.2 and faster solvers."""

from ddpm_lightning.samplers.base import DenoiserLike, Point, Sampler, Step, Transition, reverse_step
from ddpm_lightning.samplers.solvers import DDIM, Ancestral, DPMSolver2M, Heun, UniPC
from ddpm_lightning.samplers.spacings import SPACINGS

__all__ = [
    "DDIM",
    "SPACINGS",
    "Ancestral",
    "DPMSolver2M",
    "DenoiserLike",
    "Heun",
    "Point",
    "Sampler",
    "Step",
    "Transition",
    "UniPC",
    "reverse_step",
]
