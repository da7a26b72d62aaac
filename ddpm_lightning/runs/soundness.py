"""Whether what a checkpoint holds can be resumed from: each part of the type, the shape and the size that it must have."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddpm_lightning.module import DDPM

__all__ = ["is_state_of", "lacking"]

_NEEDED: dict[str, type | tuple[type, ...]] = {
    "overrides": list,
    "metrics_rows": int,
    "global_step": int,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
}
_NUMBER = (int, float)
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "ema_state_dict": dict,
    "loss_guard": Tensor,
    "rollbacks": int,
    "training_metrics": dict,
    "summary": dict,
}
_KINDS: dict[str, dict[str, type | tuple[type, ...]]] = {  # of what only some checkpoints have
    "training_metrics": {
        "sums": Tensor,
        "images": int,
        "seconds": _NUMBER,
        "wall_seconds": _NUMBER,
        "latest": dict,
        "best": dict,
    },
    "summary": {"wall_seconds": _NUMBER, "final": dict},
}


def lacking(checkpoint: Mapping[str, Any]) -> list[str]:
    """The keys under which a checkpoint has nothing, or something of another type."""
    needed = {**_NEEDED, **{key: kind for key, kind in _OPTIONAL.items() if key in checkpoint}}
    parts = [(checkpoint, needed), *((checkpoint[key], kinds) for key, kinds in _KINDS.items() if key in checkpoint)]
    return [
        key
        for part, kinds in parts
        for key, kind in kinds.items()
        if not isinstance(part, Mapping) or not isinstance(part.get(key), kind) or not _is_sound(key, part[key])
    ]


def _is_sound(key: str, value: Any) -> bool:
    """Whether numbers are such as can be reckoned with, and metrics numbers by name."""
    if isinstance(value, int | float):
        return isinstance(value, float) or abs(value) < 10**18
    if key in ("final", "latest", "best"):
        return all(isinstance(k, str) and isinstance(v, int | float) and _is_sound(k, v) for k, v in value.items())
    return True


def is_state_of(module: DDPM, states: list[Any]) -> bool:
    """Whether a fused kernel's tensors are the parameters' in shape and type, or one number, and others no larger than all parameters.

    Fused kernels go by the parameter's size; other optimizers, such as Adafactor, keep tensors of their own shapes.
    """
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(states) != 1 or not isinstance(states[0], dict) or not isinstance(states[0].get("state"), dict):
        return False
    groups = states[0].get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return False
    total = sum(parameter.numel() for parameter in parameters)
    fused = any(group.get("fused") for group in [*groups, *optimizer.param_groups])
    for number, state in states[0]["state"].items():
        if not isinstance(number, int) or not 0 <= number < len(parameters) or not isinstance(state, dict):
            return False
        like = parameters[number]
        for name, value in state.items():
            if not isinstance(value, Tensor) or (value.shape, value.dtype) == (like.shape, like.dtype):
                continue
            if (fused and (name != "step" or value.numel() != 1)) or value.numel() > total:
                return False
    return True
