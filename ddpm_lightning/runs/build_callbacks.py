"""Build the config's callbacks with the arguments that they require."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.utils import get_object
from lightning.pytorch import Callback
from omegaconf import DictConfig

from ddpm_lightning.callbacks import (
    EMA,
    LossGuard,
    NewestCheckpoint,
    Periodic,
    Randomness,
    SaveBeforeFigures,
    StopSignals,
)
from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.runs.names import names_of
from ddpm_lightning.samplers import Sampler

__all__ = ["build_callbacks", "first"]

# Called at every step, for every callback.
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_OURS_ALONE = ("ema", "loss_guard", "stop_signals", "stopwatch")  # never overridden by other callbacks' defaults


def build_callbacks(config: DictConfig, sampler: Sampler, data: Mapping[str, Any] | None = None) -> list[Callback]:
    """Build the callbacks in the required order: the EMA first, the checkpoint to resume from last.

    A callback is passed each of `sampler`, `shape`, `num_classes`, `names`, `condition`, `flops_per_image`, `ema`, `loss_guard`,
    `stopwatch` and `stop_signals` that its constructor has a parameter for, unless the config sets it. Classes from other
    packages keep their own defaults for the first six.

    Args:
        config: the run's config.
        sampler: the figures' sampler.
        data: the figures' `condition`, unless labels, and `flops_per_image`, if known.
    """
    handed: dict[str, Any] = {
        "sampler": sampler,
        "shape": (config.data.channels, *config.data.image_size),
        "num_classes": config.data.num_classes,
        "names": names_of(sampler=config.get("sampler"), schedule=config.get("schedule")),
        "stop_signals": StopSignals(),
        "stopwatch": Stopwatch(),
        **{name: value for name, value in (data or {}).items() if value is not None},
    }
    # An experiment may set options of a callback that is not selected.
    nodes = {name: node for name, node in config.callbacks.items() if node is not None and "_target_" in node}
    built: dict[str, Callback] = {}
    for name in sorted(nodes, key=lambda name: [not _is(nodes[name], kind) for kind in (EMA, LossGuard)]):
        callback = build(f"callbacks.{name}", nodes[name], **_asked_for(nodes[name], handed))
        for key, kind in (("ema", EMA), ("loss_guard", LossGuard)):
            if isinstance(callback, kind) and getattr(callback, "name", key) == key:
                if key in handed:
                    raise UserError(f"callbacks.{name} must have a unique name: another {kind.__name__} has it already")
                handed[key] = callback
        built[name] = callback
    chosen = [built[name] for name in nodes]
    chosen.sort(key=lambda callback: (isinstance(callback, NewestCheckpoint), callback is not handed.get("ema")))
    figures = [callback for callback in chosen if isinstance(callback, Periodic)]
    newest = first(chosen, NewestCheckpoint)
    if figures and newest is not None:
        chosen.insert(chosen.index(figures[0]), SaveBeforeFigures(newest, figures, handed["stop_signals"]))
    return [_without_empty_hooks(callback) for callback in (Randomness(config.seed), handed["stop_signals"], *chosen)]


def first(callbacks: Iterable[Callback], kind: type) -> Any:
    """The first callback of a class; None if there is none."""
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _without_empty_hooks(callback: Callback) -> Callback:
    """Disable a callback's empty step hooks by setting them to None, which Lightning skips."""
    for name in _STEP_HOOKS:
        if name not in vars(callback) and getattr(type(callback), name) is getattr(Callback, name):
            setattr(callback, name, None)
    return callback


def _is(node: DictConfig, kind: type) -> bool:
    found = _target(node)
    return isinstance(found, type) and issubclass(found, kind)


def _asked_for(node: DictConfig, handed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a callback's constructor, or those of its base classes, have parameters for."""
    found, names = _target(node), set[str]()
    for cls in found.__mro__ if isinstance(found, type) else ():
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            ours = cls.__module__.startswith("ddpm_lightning.")
            names |= {p.name for p in parameters if ours or p.default is p.empty or p.name in _OURS_ALONE}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return {name: value for name, value in handed.items() if name in names and name not in node}


def _target(node: DictConfig) -> Any:
    try:
        return get_object(node["_target_"])
    except Exception:  # the name cannot be imported
        return None
