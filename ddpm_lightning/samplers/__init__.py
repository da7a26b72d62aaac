"""Samplers: Algorithm 25.2 and faster solvers."""

from ddpm_lightning.samplers import base, solvers
from ddpm_lightning.samplers.base import *  # noqa: F403  all that base.__all__ lists
from ddpm_lightning.samplers.learned import Learned
from ddpm_lightning.samplers.solvers import *  # noqa: F403
from ddpm_lightning.samplers.spacings import SPACINGS

__all__ = ["SPACINGS", "Learned"]
__all__ += base.__all__ + solvers.__all__
