"""The types of all settings: those of the constructors that they are for, checked before anything is built."""

import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import shown

__all__ = ["Evaluation", "Sampling", "Training", "check_types", "settings_of"]


class Training(TypedDict):
    """The settings of train.py that are no part's."""

    seed: int
    prediction: str
    label_dropout: float
    guidance_scale: float
    learned_variance: bool
    compile: bool | str
    init_from: str | None
    trust: Sequence[str]
    resume: str | None
    optimized_metric: str
    run_dir: str


class Drawing(TypedDict):
    """The settings that sample.py and evaluate.py share."""

    ckpt_path: str | None
    num_samples: int
    batch_size: int
    seed: int
    weights: str
    trust: Sequence[str]
    labels: int | str | Sequence[int | str] | None
    condition: str | None
    guidance_scale: float
    out_dir: str | None
    compile: bool | str
    device: str


class Sampling(Drawing):
    """The settings of sample.py that are no part's."""

    format: str
    overwrite: bool


class Evaluation(Drawing):
    """The settings of evaluate.py that are no part's."""

    repeats: int
    reference: str
    reference_images: int | None
    bits_images: int | None
    nearest: int
    data_seed: int | None
    data_root: str | None
    shard_size: int
    cache_dir: str | None


def check_types(config: DictConfig, program: type) -> None:
    """Refuse values of another type than their setting's, and numbers that are not finite.

    Numbers in place of a text become one, as in `logger.wandb.name=7`. A text may be empty where that is the setting's default.

    Args:
        config: of a program, whose interpolations are those of conf/.
        program: `Training`, `Sampling` or `Evaluation`.

    Raises:
        UserError: that names the setting as it is typed, and its value.
    """
    _check_finite(OmegaConf.to_container(config, resolve=False))
    for node, name, key, kind in _settings(config, program):
        value = node[name]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if _is(value, kind):
            continue
        if not _is_number(value) or not _is(str(value), kind):
            raise UserError(f"{key} must be {_words(kind)}, got {shown(value)}")
        node[name] = str(value)


def _check_finite(node: Any, key: str = "") -> None:
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            if name != "hydra":
                _check_finite(child, f"{key}.{name}".lstrip("."))
    elif isinstance(node, float) and not math.isfinite(node):
        raise UserError(f"{key} must be a finite number, got {node}")


def _settings(config: DictConfig, program: type) -> Iterator[tuple[DictConfig, str, str, Any]]:
    """Each setting whose type is known: its node and name there, its key as it is typed, and the type."""
    for name, kind in get_type_hints(program).items():
        if name in config and not OmegaConf.is_missing(config, name):
            yield config, name, _typed(config, name, name), kind
    for key, node in _nodes(config, ""):
        kinds = (
            settings_of(str(node._target_)) if "_target_" in node and not OmegaConf.is_missing(node, "_target_") else {}
        )
        for name in map(str, node):
            if name in kinds and not OmegaConf.is_missing(node, name):
                yield node, name, _typed(node, name, f"{key}.{name}"), kinds[name]
        inner = node.get("dataset")  # which is called with the data's root
        if (
            "root" in node
            and isinstance(inner, DictConfig)
            and "root" in (theirs := settings_of(str(inner.get("_target_"))))
        ):
            yield node, "root", f"{key}.root", theirs["root"]


def _nodes(config: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    """All mappings of a config by their keys, but for those that are only named there, and Hydra's own."""
    for name in map(str, config):
        if name == "hydra" or OmegaConf.is_interpolation(config, name) or OmegaConf.is_missing(config, name):
            continue
        if isinstance(node := config[name], DictConfig):
            yield f"{prefix}{name}", node
            yield from _nodes(node, f"{prefix}{name}.")


def _typed(node: DictConfig, name: str, key: str) -> str:
    """The key under which a setting is typed: of `${data.channels}` that is data.channels."""
    given = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index, call-overload]
    named = re.fullmatch(r"\$\{([\w.]+)\}", given) if isinstance(given, str) else None
    return named[1] if named else key


@cache
def settings_of(target: str) -> Mapping[str, Any]:
    """The parameters of a `_target_` by name, each with its type; those that it passes on to its base class, too."""
    try:
        found = get_object(target)
    except (HydraException, ImportError, ValueError):
        return {}
    return _parameters(found)


def _parameters(found: Any) -> dict[str, Any]:
    lineage = found.__mro__ if isinstance(found, type) else ()
    makers = [vars(kind)["__init__"] for kind in lineage if "__init__" in vars(kind)] or [found]
    kinds: dict[str, Any] = {}
    for maker in makers:
        try:
            hints, parameters = get_type_hints(maker), inspect.signature(maker).parameters
        except (TypeError, ValueError, NameError):  # of a stranger's class, or one that is written in C
            return kinds
        passes_on = False
        for name, parameter in parameters.items():
            kind = hints.get(name, Any)
            if parameter.kind is parameter.VAR_KEYWORD:
                passes_on = True
                kinds = {**_unpacked(kind), **kinds}
            elif name not in kinds:
                kinds[name] = _with_default(kind, parameter.default)
        if not passes_on:
            return kinds
    return kinds


def _with_default(kind: Any, default: Any) -> Any:
    """A default of null says that null is a value, and an empty one that a text may be."""
    if kind is Any or not (default is None or default == ""):
        return kind
    return kind | None if default is None else kind | Literal[""]


def _unpacked(kind: Any) -> dict[str, Any]:
    """The types of `**settings: Unpack[...]`."""
    return get_type_hints(get_args(kind)[0]) if get_args(kind) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_SIMPLE: Mapping[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    int: lambda value: _is_number(value) and isinstance(value, int),
    float: _is_number,
    bool: lambda value: isinstance(value, bool),
    str: _is_text,
    Path: _is_text,
    type(None): lambda value: value is None,
}


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of a config is of a type."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in _SIMPLE:
        return _SIMPLE[origin](value)
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and _fits(value, inner)
    return isinstance(value, Mapping) and (origin in (dict, Mapping) or "_target_" in value)  # or else a part


def _fits(values: list[Any], kinds: tuple[Any, ...]) -> bool:
    """Whether the items of a list are of these types, or all of the first one where there is one, or `...` behind it."""
    if len([kind for kind in kinds if kind is not ...]) < 2:
        kinds = kinds[:1] * len(values)
    return len(values) == len(kinds) and all(map(_is, values, kinds)) if kinds else True


_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a text",
    type(None): "null",
}


def _words(kind: Any) -> str:
    """A type in words, as in "an integer or null"."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        several = dict.fromkeys(map(_words, inner))
        if {int, float} <= {*inner}:
            several.pop("an integer")
        *others, last = several
        return f"{', '.join(others)} or {last}" if others else last
    if origin is Literal:
        return " or ".join(map(shown, inner))
    if origin in (list, Sequence) or kind in (list, Sequence):
        return f"a list of {_several(inner[0])}" if inner else "a list"
    if origin is tuple:
        return (
            f"a list of {_several(inner[0])}" if inner[1:] == (...,) else f"a list of {len(inner)} {_several(inner[0])}"
        )
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        return "a mapping"
    return _WORDS.get(kind, "a config with a _target_")


def _several(kind: Any) -> str:
    return {int: "integers", float: "numbers", str: "texts"}.get(
        kind, "numbers" if float in get_args(kind) else "values"
    )
