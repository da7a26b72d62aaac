"""Type checks of all settings against their constructors, before anything is built."""

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
    """The top-level settings of train.py."""

    seed: int
    prediction: str
    label_dropout: float
    guidance_scale: float
    guidance_interval: Sequence[float] | None
    guidance_rescale: float
    learned_variance: bool
    compile: bool | str
    init_from: str | None
    trust: Sequence[str]
    resume: str | None
    optimized_metric: str
    run_dir: str


class Drawing(TypedDict):
    """The top-level settings shared by sample.py and evaluate.py."""

    ckpt_path: str | None
    num_samples: int
    batch_size: int
    seed: int
    weights: str
    trust: Sequence[str]
    labels: int | str | Sequence[int | str] | None
    condition: str | None
    guidance_scale: float
    guidance_interval: Sequence[float] | None
    guidance_rescale: float
    autoguidance: str | None
    out_dir: str | None
    compile: bool | str
    device: str


class Sampling(Drawing):
    """The top-level settings of sample.py."""

    format: str
    overwrite: bool


class Evaluation(Drawing):
    """The top-level settings of evaluate.py."""

    repeats: int
    reference: str
    reference_images: int | None
    bits_images: int | None
    bits_variance: str | None
    bits_split: str
    nearest: int
    data_seed: int | None
    data_root: str | None
    shard_size: int
    cache_dir: str | None


def check_types(config: DictConfig, program: type) -> None:
    """Refuse values of the wrong type, and numbers that are not finite.

    Numbers are converted for string settings, as in `logger.wandb.name=7`. A string may be empty only if that is the default.

    Args:
        config: a program's config, whose interpolations come from conf/.
        program: `Training`, `Sampling` or `Evaluation`.

    Raises:
        UserError: naming the setting, as typed, and its value.
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
    """Each setting with a known type: its node and name there, its key as typed, and its type."""
    given: Any = OmegaConf.to_container(config, resolve=False)
    for name, kind in get_type_hints(program).items():
        if name in config and not OmegaConf.is_missing(config, name):
            yield config, name, _typed(given[name], name), kind
    for key, node in _nodes(config, ""):
        kinds = (
            settings_of(str(node._target_)) if "_target_" in node and not OmegaConf.is_missing(node, "_target_") else {}
        )
        given = OmegaConf.to_container(node, resolve=False) if kinds else {}
        for name in map(str, node):
            if name in kinds and not OmegaConf.is_missing(node, name):
                yield node, name, _typed(given[name], f"{key}.{name}"), kinds[name]
        inner = node.get("dataset")  # called with the data's root
        if (
            "root" in node
            and isinstance(inner, DictConfig)
            and "root" in (theirs := settings_of(str(inner.get("_target_"))))
        ):
            yield node, "root", f"{key}.root", theirs["root"]


def _nodes(config: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    """All mappings of a config by key, except referenced ones and Hydra's own."""
    for name in map(str, config):
        if name == "hydra" or OmegaConf.is_interpolation(config, name) or OmegaConf.is_missing(config, name):
            continue
        if isinstance(node := config[name], DictConfig):
            yield f"{prefix}{name}", node
            yield from _nodes(node, f"{prefix}{name}.")


def _typed(given: Any, key: str) -> str:
    """The key under which a setting is typed, such as data.channels for `${data.channels}`."""
    named = re.fullmatch(r"\$\{([\w.]+)\}", given) if isinstance(given, str) else None
    return named[1] if named else key


@cache
def settings_of(target: str) -> Mapping[str, Any]:
    """The parameters of a `_target_` and their types, including those passed on to its base class."""
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
        except (TypeError, ValueError, NameError):  # a class from another package, or one written in C
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
    """Allow null or an empty string for a setting with that default."""
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
    """Whether a config value has a type."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in _SIMPLE:
        return _SIMPLE[origin](value)
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and _fits(value, inner)
    return isinstance(value, Mapping) and (origin in (dict, Mapping) or "_target_" in value)  # or a part


def _fits(values: list[Any], kinds: tuple[Any, ...]) -> bool:
    """Whether a list's items have these types, or all have the first if it is the only one or followed by `...`."""
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
    """Describe a type, as in "an integer or null"."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        inner = tuple(
            one for one in inner if getattr(one, "__name__", "") != "Tensor"
        )  # of PyTorch's optimizers, which no config gives
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
