"""Instantiate config nodes, with errors that name the key."""

import re
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning.errors import UserError, below

__all__ = ["build", "one_line", "with_settings"]


def build(key: str, node: DictConfig, **kwargs: Any) -> Any:
    """Instantiate a config node; errors become a UserError that names the key."""
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError):
            with below(key, _shared(node)):
                raise cause from error
        known = isinstance(cause, MisconfigurationException)
        raise UserError(f"{key}: {one_line(cause)}" if known else with_settings(key, cause, node)) from error


def _shared(node: DictConfig) -> dict[str, str]:
    """The settings of a node that are set elsewhere in the config, as in `prediction: ${prediction}`, each with its key there."""
    written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(written, dict)
    return {
        str(name): found[1] for name, value in written.items() if (found := re.fullmatch(r"\$\{([\w.]+)\}", str(value)))
    }


def one_line(error: BaseException) -> str:
    """An error's text in one line, with its type if informative."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | MisconfigurationException) else f"{type(error).__name__}: {text}"


def with_settings(key: str, error: BaseException, node: DictConfig) -> str:
    """An error in one line with the key and its settings, for an error that names no setting."""
    if unexpected := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return f"{key}.{unexpected[1]} is not an option of {str(node._target_).rpartition('.')[2]}: omit it"
    given = {str(name): value for name, value in node.items() if not isinstance(value, DictConfig)}
    settings = ", ".join(f"{key}.{name}={value}" for name, value in given.items() if name[0] != "_")
    return f"{key}: {one_line(error)} (given: {settings})"
