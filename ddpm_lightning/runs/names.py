"""The names that parts of a config have on the command line, as in `sampler=dpmpp_2m_sde`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from ddpm_lightning import CONF_DIR
from ddpm_lightning.records.moved import rename_targets

__all__ = ["Named", "named", "names_of", "weights_in_words"]

_LONGEST = 24  # letters of a value in a name


class Named(NamedTuple):
    """A choice in conf/, and the settings in which a config differs from it, except the number of steps."""

    choice: str
    settings: dict[str, Any]

    def __str__(self) -> str:
        shown = {key: str(value) for key, value in self.settings.items() if len(str(value)) <= _LONGEST}
        return " ".join([self.choice, *(f"{key}={value}" for key, value in shown.items())])


def named(group: str, node: Mapping[str, Any]) -> Named:
    """The choice of a group that a resolved node was composed from: of those with its class, the one with the fewest differences.

    A class that no choice has goes by its own name.
    """
    given = {key: value for key, value in node.items() if key != "num_steps"}
    rename_targets(given)  # of earlier versions
    target = str(given.pop("_target_", ""))
    found = [
        Named(
            name, {key: value for key, value in given.items() if key not in settings or _differs(value, settings[key])}
        )
        for name, (theirs, settings) in _choices(group).items()
        if theirs == target
    ]
    return min(found, key=lambda choice: len(choice.settings), default=Named(target.rpartition(".")[2], {}))


def weights_in_words(weights: str) -> str:
    """Which weights of a checkpoint are used, as in "EMA weights"."""
    return f"{'EMA' if weights == 'ema' else weights} weights"


def names_of(**nodes: Any) -> dict[str, str]:
    """The names of config nodes, by group; None has none."""
    plain = {group: _plain(node) for group, node in nodes.items() if node is not None}
    return {group: str(named(group, node)) for group, node in plain.items()}


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _differs(value: Any, default: Any) -> bool:
    return value != default and not (isinstance(default, str) and "${" in default)


@cache
def _choices(group: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and settings of each choice of a group in conf/."""
    found = {}
    for path in sorted(Path(CONF_DIR, group).glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if "_target_" in node:
            found[path.stem] = (node.pop("_target_"), node)
    return found
