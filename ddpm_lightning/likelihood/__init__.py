"""Bits per dimension: the variational bound, in steps and in continuous time, and the probability-flow ODE's likelihood."""

from ddpm_lightning.likelihood import bound
from ddpm_lightning.likelihood.bound import *  # noqa: F403  all that bound.__all__ lists
from ddpm_lightning.likelihood.ode import ode_bits_per_dim

__all__ = ["ode_bits_per_dim"]
__all__ += bound.__all__
