"""Compare the configs of a resumed run: apply typed changes, and refuse invalid ones."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import shown

__all__ = [
    "as_replayed",
    "change",
    "differing_values",
    "moved",
    "plain",
    "refuse_changes",
    "typed_behind",
    "without_handed",
]

# Keys that the weights, the optimizer state and the validation split depend on.
_FIXED = {
    "optimizer": "the checkpoint holds the optimizer's state",
    "lr_scheduler": "the checkpoint holds the schedule's state",
    "seed": "it determines the order of the images and the validation split",
    "schedule": "the weights are trained for it",
    "prediction": "the weights are trained for it",
    "learned_variance": "the weights are trained for it",
    "loss": "the weights are trained for it",
    "data.channels": "the weights are trained on them",
    "data.image_size": "the weights are trained on it",
    "data.dtype": "the weights are trained on them",
    "data.value_range": "the weights are trained on them",
    "data.dataset": "the weights are trained on it",
    "data.num_classes": "the weights are trained on them",
    "data.val_fraction": "images that the run was trained on would be held out",
    "data.seed": "images that the run was trained on would be held out",
}
_FREE = (
    "condition",
    "workers",
    "sizes",
    "max_damaged",
    "fused",
    "foreach",
)  # only affect how data are read or computed


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def moved(node: Any, old: str, new: str) -> Any:
    """The config with paths below the folder `old` moved to `new`, for a moved run folder."""
    if isinstance(node, dict):
        return {key: moved(child, old, new) for key, child in node.items()}
    if isinstance(node, list):
        return [moved(child, old, new) for child in node]
    inside = isinstance(node, str) and (node == old or node.startswith(f"{old}/"))
    return new + node.removeprefix(old) if inside else node


def without_handed(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the sampler, shape and classes of callbacks, which earlier versions saved for each."""
    data = config.get("data")
    own = {"sampler": config.get("sampler")}
    if isinstance(data, dict) and isinstance(data.get("image_size"), list):
        own |= {"shape": [data.get("channels"), *data["image_size"]], "num_classes": data.get("num_classes")}
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, dict):
        return config
    kept = {
        name: {k: v for k, v in node.items() if k not in own or v != own[k]} if isinstance(node, dict) else node
        for name, node in callbacks.items()
    }
    return {**config, "callbacks": kept}


def typed_behind(record: Sequence[str]) -> list[str]:
    """The overrides typed now, without those replayed from the run's record."""
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    for text in record:
        typed = typed[1:] if typed and typed[0].lstrip("+") == text.lstrip("+") else typed
    return typed


def as_replayed(composed: dict[str, Any], held: Mapping[str, Any], replayed: Sequence[str]) -> dict[str, Any]:
    """The config composed from the replayed overrides, with the checkpoint's value for each key typed after them.

    An override is then compared with the checkpoint's own value, wherever that came from.
    """
    for text in typed_behind(replayed):
        key = text.lstrip("+~").partition("=")[0].replace("/", ".")
        above, _, last = key.rpartition(".")
        place, value = _at(composed, above) if above else composed, _at(held, key)
        if isinstance(place, dict) and last in place and value is not None:
            place[last] = value
    return composed


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse changes that would invalidate the weights, the optimizer state or the validation split.

    Raises:
        UserError: naming the key.
    """
    for key, why in _FIXED.items():
        old, new = (_fixed_part(_at(config, key)) for config in (before, now))
        if old != new:
            at, old, new = _first_difference(key, old, new)
            values = "" if isinstance(old, dict) or isinstance(new, dict) else f" from {_said(old)} to {_said(new)}"
            raise UserError(
                f"{at} cannot be changed{values} when a run is resumed, since {why}: omit it, or start a new run with "
                f"init_from={folder}"
            )


def _first_difference(key: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The innermost key below this one that alone differs, with both values."""
    while isinstance(old, dict) and isinstance(new, dict):
        differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if len(differing) != 1:
            break
        key, old, new = f"{key}.{differing[0]}", old.get(differing[0]), new.get(differing[0])
    return key, old, new


def _said(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def change(held: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Apply the changes from `before` to `now` to `held`, and yield the dotted keys of new values."""
    for key in {*before, *now} - {"resume", "run_dir"}:
        old, new, inside = before.get(key), now.get(key), held.get(key)
        if old == new and (key in before) == (key in now):
            continue
        if key not in now:
            held.pop(key, None)
        elif _same_thing(old, new) and isinstance(inside, dict):
            yield from change(inside, old, new, f"{above}{key}.")  # type: ignore[arg-type]
        else:
            held[key] = new
            yield f"{above}{key}"


def differing_values(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The common keys with different values, and these values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() & new.keys()):
            yield from differing_values(old[name], new[name], f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _fixed_part(node: Any) -> Any:
    return {k: v for k, v in node.items() if k not in _FREE} if isinstance(node, Mapping) else node


def _same_thing(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and old.get("_target_") == new.get("_target_")
