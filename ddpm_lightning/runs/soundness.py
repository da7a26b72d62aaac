"""Validate that a checkpoint can be resumed from: the types, shapes and sizes of its parts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddpm_lightning.module import DDPM

__all__ = ["is_state_of", "lacking"]

_METRICS = "numbers by name"
_NEEDED: dict[str, Any] = {
    "overrides": list,
    "metrics_rows": int,
    "global_step": int,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
}
_OPTIONAL: dict[str, Any] = {
    "loss_guard": Tensor,
    "rollbacks": int,
    "training_metrics": {
        "sums": Tensor,
        "images": int,
        "seconds": float,
        "wall_seconds": float,
        "latest": _METRICS,
        "best": _METRICS,
    },
    "summary": {"wall_seconds": float, "final": _METRICS},
}


def lacking(checkpoint: Mapping[str, Any]) -> list[str]:
    """The keys that a checkpoint lacks or that hold the wrong type."""
    averages = dict.fromkeys((key for key in checkpoint if str(key).endswith("_state_dict")), dict)
    kinds = {**_NEEDED, **averages, **{key: kind for key, kind in _OPTIONAL.items() if key in checkpoint}}
    return [key for key, kind in kinds.items() if not _is(checkpoint.get(key), kind)]


def _is(value: Any, kind: Any) -> bool:
    """Whether a value has a type, or is a mapping of these types or of numbers; integers must be below 10¹⁸."""
    if isinstance(kind, dict):
        return isinstance(value, Mapping) and all(_is(value.get(key), inside) for key, inside in kind.items())
    if kind == _METRICS:
        return isinstance(value, dict) and all(isinstance(k, str) and _is(v, float) for k, v in value.items())
    if isinstance(value, int):
        return kind in (int, float) and abs(value) < 10**18
    return isinstance(value, kind)


def is_state_of(module: DDPM, states: list[Any]) -> bool:
    """Whether optimizer states fit the parameters: for fused kernels in shape and dtype (or scalar), otherwise in total size.

    Fused kernels rely on the parameter's size; other optimizers, such as Adafactor, have states of different shapes.
    """
    match states:
        case [{"state": dict(held), "param_groups": [*groups]}] if all(isinstance(group, dict) for group in groups):
            pass
        case _:
            return False
    ours = module.configure_optimizers()["optimizer"].param_groups
    parameters = dict(enumerate(parameter for group in ours for parameter in group["params"]))
    total = sum(parameter.numel() for parameter in parameters.values())
    fused = any(group.get("fused") for group in [*groups, *ours])

    def fits(name: str, value: Any, like: Tensor) -> bool:
        if not isinstance(value, Tensor) or (value.shape, value.dtype) == (like.shape, like.dtype):
            return True
        return name == "step" and value.numel() == 1 if fused else value.numel() <= total

    return all(
        isinstance(state, dict)
        and number in parameters
        and all(fits(name, value, parameters[number]) for name, value in state.items())
        for number, state in held.items()
    )
