"""Training losses, weightings, and the sampling of t and ε."""

from ddpm_lightning.losses import objectives, times, weightings
from ddpm_lightning.losses.objectives import *  # noqa: F403  all that objectives.__all__ lists
from ddpm_lightning.losses.times import *  # noqa: F403
from ddpm_lightning.losses.vdm import VDM
from ddpm_lightning.losses.weightings import *  # noqa: F403

__all__ = ["VDM"]
__all__ += objectives.__all__ + times.__all__ + weightings.__all__
