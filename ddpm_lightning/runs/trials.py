"""What is tried before anything is trained: the schedule's end, the network's size and shapes, the first steps' rates."""

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
    """Warn of a schedule whose last step leaves some of the image."""
    last = float(schedule.alpha_bar[-1])
    if last > 0.01:
        log.warning(
            "alpha_bar_T = %.3g: after T = %d steps the images are not pure noise, which degrades samples: use more steps, "
            "larger betas or schedule=cosine",
            last,
            schedule.num_steps,
        )


def check_memory(node: DictConfig) -> None:
    """The network is built without its weights first, so that one that cannot be held is refused before it is begun.

    Raises:
        UserError: for a network that takes more memory than there is.
    """
    with torch.device("meta"):
        model: Module = build("model", node)
    parameters = sum(p.numel() for p in model.parameters())
    copies = 1 if torch.cuda.is_available() else 5  # weights; gradients, Adam's two moments and the average beside them
    needed, held = 4 * parameters * copies / 2**30, total_memory() / 2**30
    if needed > held:
        error = ValueError(
            f"{parameters:,} parameters take {needed:,.0f} GiB, but this machine has {held:,.0f} GiB: choose a smaller network"
        )
        raise UserError(with_settings("model", error, node))


def times_of(sampler: Sampler, denoiser: Denoiser) -> list[int]:
    """The times at which a sampler asks a denoiser.

    Raises:
        UserError: for a sampler that does not go with the denoiser.
    """
    schedule = denoiser.schedule
    with below("sampler"):
        sampler.check(learned_variance=denoiser.learned_variance)
        return sampler.times(schedule.num_steps, log_snr=schedule.log_snr)


def try_shapes(data: DictConfig, denoiser: Denoiser) -> None:
    """One forward pass of a network of ours on the meta device, before the data are read: shapes are checked, nothing is computed.

    Raises:
        UserError: for a network that is not made for images of this size.
    """
    if _knows_its_condition(denoiser):
        y = None if data.num_classes is None else torch.empty(1, dtype=torch.long)
        _refuse(refusal(denoiser, (data.channels, *data.image_size), y), data)


def check_data(data: DictConfig, source: Source, denoiser: Denoiser, sampler: Sampler) -> None:
    """Refuse data that the network or the sampler cannot take: a condition that does not fit, values that samples would not have.

    Raises:
        UserError: that says what to change.
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
            f"data.value_range must be wider, such as {source.extent}: {share:.0%} of the data's values lie outside, where samples "
            f"are clipped{'; or set sampler.clip=null' if is_float else ''}"
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
    """Refuse to measure FID by a classifier of labels that the dataset does not have.

    Raises:
        UserError: that says what works.
    """
    measured = config.callbacks.get("generation_metrics")
    if measured is None or not str(measured.features.get("_target_")).endswith(".classifier"):
        return
    if source.classes is None or source.conditions(1) is not None:
        raise UserError(
            "callbacks=fid with features=classifier requires labels, and the dataset has none: choose features=inception, or callbacks=default"
        )


def _knows_its_condition(denoiser: Denoiser) -> bool:
    """Whether the network's condition, labels or none, is known from its config alone."""
    return isinstance(denoiser.model, Network) and not denoiser.has_null


def _refuse(words: str, data: DictConfig, y: Condition | None = None) -> None:
    if words:
        shapes = "" if y is None else f", a condition of {map_condition(lambda rows: [*rows.shape[1:]], y)}"
        raise UserError(f"data.image_size={list(data.image_size)}, data.channels={data.channels}{shapes}: {words}")


def refusal(denoiser: Denoiser, shape: Sequence[int], y: Condition | None) -> str:
    """Why the network cannot take data of this shape with this condition of one sample, in one line; empty where it can."""
    try:
        call_on_meta(denoiser.model, shape, y)
    except Exception as error:  # of a network of one's own, any
        return one_line(error)
    return ""


def try_rates(
    optimizer: Callable[[Iterable[Parameter]], Optimizer],
    lr_scheduler: Callable[[Optimizer], LRScheduler],
    config: DictConfig,
) -> None:
    """Two steps of a single weight: a bad rate is seen now, not in training.

    Raises:
        UserError: with the settings of the optimizer or of the learning rate.
    """
    try:
        tried = optimizer([Parameter(torch.zeros(1))])
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(with_settings("optimizer", error, config.optimizer)) from error
    try:
        scheduler = lr_scheduler(tried)
        for _ in range(2):
            tried.step(lambda: 0.0)  # some optimizers evaluate the loss themselves
            scheduler.step()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(with_settings("lr_scheduler", error, config.lr_scheduler)) from error
