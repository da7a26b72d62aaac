"""The callbacks that a config names, each handed what it asks for."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from hydra.utils import get_object
from lightning.pytorch import Callback
from omegaconf import DictConfig

from ddpm_lightning.callbacks import (
    EMA,
    BestCheckpoint,
    LossGuard,
    NewestCheckpoint,
    Randomness,
    StopSignals,
    TrainingMetrics,
)
from ddpm_lightning.runs.instantiate import build
from ddpm_lightning.samplers import Sampler

__all__ = ["Callbacks", "build_callbacks"]


_PARTS = ("ema", "loss_guard", "stop_signals")  # which nobody else has a default for


class Callbacks(NamedTuple):
    """A run's callbacks in order, and those that the run itself speaks to."""

    listed: list[Callback]
    ema: EMA | None
    metrics: TrainingMetrics | None
    loss_guard: LossGuard | None
    newest: NewestCheckpoint | None
    best: list[BestCheckpoint]


def build_callbacks(config: DictConfig, sampler: Sampler) -> Callbacks:
    """The callbacks in the order that they need: the average first, the checkpoint that a run resumes from last.

    A callback is handed each of `sampler`, `shape`, `num_classes`, `ema`, `loss_guard` and `stop_signals` that its constructor has a
    parameter for, where the config does not say otherwise. A class that is not ours keeps its own defaults of the first three.
    """
    stop_signals = StopSignals()
    handed: dict[str, Any] = {
        "sampler": sampler,
        "shape": (config.data.channels, *config.data.image_size),
        "num_classes": config.data.num_classes,
        "stop_signals": stop_signals,
    }
    nodes = {name: node for name, node in config.callbacks.items() if node is not None}
    built: dict[str, Callback] = {}
    for kind, key in ((EMA, "ema"), (LossGuard, "loss_guard"), (Callback, "")):  # others ask for the first two
        for name in [name for name, node in nodes.items() if name not in built and _is(node, kind)]:
            built[name] = build(f"callbacks.{name}", nodes[name], **_asked_for(nodes[name], handed))
            if key:
                handed[key] = built[name]
    chosen = [built[name] for name in nodes]
    chosen.sort(key=lambda callback: (isinstance(callback, NewestCheckpoint), not isinstance(callback, EMA)))
    return Callbacks(
        [Randomness(config.seed), stop_signals, *chosen],
        ema=handed.get("ema"),
        metrics=_first(chosen, TrainingMetrics),
        loss_guard=handed.get("loss_guard"),
        newest=_first(chosen, NewestCheckpoint),
        best=[callback for callback in chosen if isinstance(callback, BestCheckpoint)],
    )


def _first(callbacks: list[Callback], kind: type) -> Any:
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _is(node: DictConfig, kind: type) -> bool:
    """Whether a node is of a class of this kind; one that cannot be found counts as any callback, and is refused when it is built."""
    found = _target(node)
    return kind is Callback or (isinstance(found, type) and issubclass(found, kind))


def _asked_for(node: DictConfig, handed: Mapping[str, Any]) -> dict[str, Any]:
    """What a callback's constructor has parameters for, those that it passes on to its base classes included."""
    found, names = _target(node), set[str]()
    for cls in found.__mro__ if isinstance(found, type) else ():
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            ours = cls.__module__.startswith("ddpm_lightning.")
            names |= {p.name for p in parameters if ours or p.default is p.empty or p.name in _PARTS}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return {name: value for name, value in handed.items() if name in names and name not in node}


def _target(node: DictConfig) -> Any:
    try:
        return get_object(node["_target_"])
    except Exception:  # of a name that cannot be imported
        return None
