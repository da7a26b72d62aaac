"""Noise schedules: the forward process, and the papers' choices of it."""

from ddpm_lightning.schedules import families
from ddpm_lightning.schedules.families import *  # noqa: F403  all that families.__all__ lists
from ddpm_lightning.schedules.learned import LearnedSchedule
from ddpm_lightning.schedules.process import NoiseSchedule

__all__ = ["LearnedSchedule", "NoiseSchedule"]
__all__ += families.__all__
