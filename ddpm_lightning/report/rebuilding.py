"""Rebuild parts of a run from its config, using only this package's classes."""

from contextlib import suppress
from typing import Any

from omegaconf import OmegaConf

from ddpm_lightning.denoiser import Guidance
from ddpm_lightning.report.reading import part
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.sampling_setup import count_evaluations
from ddpm_lightning.runs.trust import check_targets
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["evaluations_of", "schedule_of"]

_STEPS = 20_000  # maximum number of steps for counting network evaluations


def schedule_of(config: Any) -> NoiseSchedule | None:
    """The run's noise schedule; None if it cannot be built."""
    with suppress(Exception):  # an untrusted config can raise anything
        return _built(config, "schedule")
    return None


def evaluations_of(config: Any) -> int | None:
    """Network evaluations per image of the run's sampler, guidance included; None if they cannot be counted."""
    with suppress(Exception):
        sampler, schedule = _built(config, "sampler"), _built(config, "schedule")
        if len(sampler.times_on(schedule)) <= _STEPS:
            guidance = None
            if part(config, "data.num_classes") is not None:
                guidance = Guidance(part(config, "guidance_scale"), part(config, "guidance_interval"))
            return count_evaluations(sampler, schedule, guidance)
    return None


def _built(config: Any, key: str) -> Any:
    node = part(config, key)
    check_targets(node, key)
    return build(key, OmegaConf.create(node))
