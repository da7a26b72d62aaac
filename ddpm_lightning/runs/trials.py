"""Trials before training: the schedule's terminal SNR, the network's size and shapes, and the learning rate."""

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from omegaconf import DictConfig
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ddpm_lightning.data.source import Condition, Source, map_condition
from ddpm_lightning.data.values import Values, kind_of, values_of
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.models import Network
from ddpm_lightning.models.cost import call_on_meta
from ddpm_lightning.runs.instantiate import build, one_line, with_settings
from ddpm_lightning.runs.processes import total_memory
from ddpm_lightning.samplers import Sampler
from ddpm_lightning.schedules import NoiseSchedule

log = logging.getLogger(__name__)

__all__ = [
    "check_data",
    "check_features",
    "check_memory",
    "refusal",
    "times_of",
    "try_rates",
    "try_shapes",
    "warn_of_signal",
]


def warn_of_signal(schedule: NoiseSchedule) -> None:
    """Warn if the schedule's last timestep retains some of the signal."""
    last = float(schedule.alpha_bar[-1])
    if last > 0.01:
        log.warning(
            "alpha_bar_T = %.3g: after T = %d steps the images are not pure noise, which degrades samples: use more steps, "
            "larger betas or schedule=cosine",
            last,
            schedule.num_steps,
        )


def check_memory(node: DictConfig) -> None:
    """Refuse a network that does not fit in memory, by building it without weights first.

    Raises:
        UserError: for a network that exceeds the memory.
    """
    with torch.device("meta"):
        model: Module = build("model", node)
    parameters = sum(p.numel() for p in model.parameters())
    copies = 1 if torch.cuda.is_available() else 5  # weights; on a CPU also gradients, Adam's two moments and the EMA
    needed, held = 4 * parameters * copies / 2**30, total_memory() / 2**30
    if needed > held:
        error = ValueError(
            f"{parameters:,} parameters take {needed:,.0f} GiB, but this machine has {held:,.0f} GiB: choose a smaller network"
        )
        raise UserError(with_settings("model", error, node))


def times_of(sampler: Sampler, denoiser: Denoiser) -> Sequence[float]:
    """The timesteps at which a sampler evaluates a denoiser.

    Raises:
        UserError: for a sampler that is incompatible with the denoiser.
    """
    with below("sampler"):
        sampler.check(learned_variance=denoiser.learned_variance)
        return sampler.times_on(denoiser.schedule)


def try_shapes(data: DictConfig, denoiser: Denoiser) -> None:
    """Check shapes with a forward pass of one of our networks on the meta device, before the data are read.

    Raises:
        UserError: for a network that does not support this image size.
    """
    if _knows_its_condition(denoiser):
        y = None if data.num_classes is None else torch.empty(1, dtype=torch.long)
        _refuse(refusal(denoiser, (data.channels, *data.image_size), y), data)


def check_data(data: DictConfig, source: Source, denoiser: Denoiser, sampler: Sampler) -> None:
    """Refuse data that do not match the network or sampler: an incompatible condition, or values that samples cannot reach.

    Raises:
        UserError: naming the setting to change.
    """
    y = source.conditions(1)
    if y is None and data.num_classes is None:
        if data.dataset.get("condition") is not None:
            raise UserError(f"data.num_classes must be the number of labels in {data.dataset.condition}, got null")
        if denoiser.has_null:
            raise UserError(
                "the model requires a condition, but the dataset has none: provide one (data.dataset.condition=FILE with data=arrays), "
                "or set model.condition_size and model.condition_channels to null"
            )
    if y is not None or not _knows_its_condition(denoiser):
        labels = None if data.num_classes is None else torch.zeros(1, dtype=torch.long)
        _refuse(refusal(denoiser, (data.channels, *data.image_size), labels if y is None else y), data, y)
    is_float = values_of(data).is_float
    clip = sampler.clip if is_float else 1.0
    if clip is not None and (share := source.outside(clip)) > 0.01:
        raise UserError(
            f"data.value_range must cover the data, got {data.get('value_range')}, which leaves out {share:.0%} of the values: "
            f"set data.value_range={str(source.extent).replace(' ', '')}{' or sampler.clip=null' * is_float}"
        )
    if (
        kind_of(data) == "arrays"
        and values_of(data) == Values("float32", -1, 1)
        and (found := source.extent)
        and found[0] >= 0
    ):
        log.warning(
            "the data range from %g to %g, half of the model's range: data.value_range=%s uses all of it",
            *found,
            found,
        )


def check_features(config: DictConfig, source: Source) -> None:
    """Refuse FID with a label classifier for a dataset without labels.

    Raises:
        UserError: naming the alternatives.
    """
    measured = config.callbacks.get("generation_metrics")
    if measured is None or not str(measured.features.get("_target_")).endswith(".classifier"):
        return
    if source.classes is None or source.conditions(1) is not None:
        raise UserError(
            "callbacks=fid with features=classifier requires labels, and the dataset has none: choose features=inception, or callbacks=default"
        )


def _knows_its_condition(denoiser: Denoiser) -> bool:
    """Whether the config alone determines the network's condition: labels or none."""
    return isinstance(denoiser.model, Network) and not denoiser.has_null


def _refuse(words: str, data: DictConfig, y: Condition | None = None) -> None:
    if words:
        shapes = "" if y is None else f", a condition of {map_condition(lambda rows: [*rows.shape[1:]], y)}"
        raise UserError(f"data.image_size={list(data.image_size)}, data.channels={data.channels}{shapes}: {words}")


def refusal(denoiser: Denoiser, shape: Sequence[int], y: Condition | None) -> str:
    """Why the network rejects data of this shape and condition, in one line; empty if it accepts them."""
    try:
        call_on_meta(denoiser.model, shape, y)
    except Exception as error:  # a custom network may raise anything
        return one_line(error)
    return ""


def try_rates(
    optimizer: Callable[[Iterable[Parameter]], Optimizer],
    lr_scheduler: Callable[[Optimizer], LRScheduler],
    config: DictConfig,
) -> None:
    """Take two steps with a single weight, to find invalid learning rates before training.

    Raises:
        UserError: with the settings of the optimizer or learning rate scheduler.
    """
    try:
        tried = optimizer([Parameter(torch.zeros(1))])
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(with_settings("optimizer", error, config.optimizer)) from error
    try:
        scheduler = lr_scheduler(tried)
        for _ in range(2):
            tried.step(lambda: 0.0)  # some optimizers call a closure
            scheduler.step()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(with_settings("lr_scheduler", error, config.lr_scheduler)) from error
