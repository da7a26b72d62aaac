"""Parts of a run built again from its config: of this package's parts, as from a stranger's checkpoint, or not at all."""

from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.report.reading import part
from ddpm_lightning.runs.drawing import count_evaluations
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.trials import times_of
from ddpm_lightning.runs.trust import check_targets
from ddpm_lightning.schedules import NoiseSchedule

__all__ = ["evaluations_of", "schedule_of"]

T = TypeVar("T")
_COUNTED = 20_000  # steps that are gone through to count what they ask of the network


def schedule_of(config: Any) -> NoiseSchedule | None:
    """The run's schedule."""
    return _tried(lambda: _built(config, "schedule"))


def evaluations_of(config: Any) -> int | None:
    """How often the run's sampler asks the network for one sample, guidance included."""

    def count() -> int:
        scale = None if part(config, "data.num_classes") is None else part(config, "guidance_scale")
        sampler, schedule = _built(config, "sampler"), _built(config, "schedule")
        if len(times_of(sampler, schedule)) > _COUNTED:
            raise UserError("so many steps are not gone through for a table")
        return count_evaluations(sampler, schedule, scale)

    return _tried(count)


def _built(config: Any, key: str) -> Any:
    node = part(config, key)
    check_targets(node, key)
    return build(key, OmegaConf.create(node))


def _tried(make: Callable[[], T]) -> T | None:
    try:
        return make()
    except (
        UserError,
        ImportError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ):  # a strange config has any of them
        return None
