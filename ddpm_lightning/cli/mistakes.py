"""An error in one sentence; for a wrong name on the command line, with the nearest right one."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning import environment
from ddpm_lightning.cli import menu
from ddpm_lightning.errors import UserError, brief

__all__ = ["check_groups", "is_foreseen", "sentence"]

_NO_NULL = "Config group override must be"  # Hydra raises it as a ValueError

_EXTRAS = {  # Hydra's plugins, and what installs them
    "hydra/sweeper/optuna": "optuna",
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
}


def check_groups(argv: Sequence[str]) -> None:
    """Refuse `loss.times=uniform`, which would put a word where a part of the config stands.

    Raises:
        UserError: that says how the group is written.
    """
    for argument in argv:
        key, _, value = argument.partition("=")
        group = key.lstrip("+").replace(".", "/")
        if "." in key and value in menu.choices(_confs(), group):
            raise UserError(f"{argument} sets a key, and {group} is a config group: did you mean {group}={value}?")


def is_foreseen(error: BaseException) -> bool:
    """Whether a user can fix what is wrong; other errors are shown with their traceback."""
    kinds = UserError | HydraException | OmegaConfBaseException | OSError
    return isinstance(error, kinds) or _lacks_memory(error) or _NO_NULL in str(error)


def sentence(error: BaseException) -> str:
    """One sentence that names the key, its value and the fix."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    said = _missing_choice(error) or _unknown_key(error, cause) or _unknown_group(str(error)) or _unreadable(error)
    if said:
        return said
    text = str(error)
    if _lacks_memory(error):
        text = f"out of memory ({brief(error)}): use a smaller batch size or smaller images"
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}: give another path, or fix this one"
    elif cause is not error:
        text = f"{text.removeprefix('Error merging override ')}: {cause}"
    elif not (is_foreseen(error) or isinstance(error, ValueError)):
        text = f"{type(error).__name__}: {text}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(
        line for line in lines if not line.startswith(("full_key:", "object_type=", "To append", "Error merging"))
    )


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _missing_choice(error: BaseException) -> str:
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None):
        return ""
    group, _, choice = error.missing_cfg_file.rpartition("/")
    if extra := _EXTRAS.get(error.missing_cfg_file):
        return f'{group}={choice} is not installed: pip install "ddpm_lightning[{extra}]"'
    return f"{group}={choice} does not exist: {_way_out(choice, error.options)}"


def _unknown_key(error: BaseException, cause: BaseException) -> str:
    if not isinstance(cause, OmegaConfBaseException) or cause.parent_node is None or cause.key is None:
        return ""
    key, names = cause.full_key or str(cause.key), {str(name) for name in cause.parent_node}
    if "not in struct" in str(cause):
        if cause.parent_node._get_parent() is None:  # at the top, where groups can be given, too
            if key in (groups := {*_groups()}):
                files = ", ".join(menu.choices(_confs(), key))
                return f"nothing is chosen for {key}: choose one of its files ({files}), and leave ~{key} away"
            names = (names | groups) - {"hydra"}
            names |= {"hydra/launcher", "hydra/sweeper"} if key.startswith("hydra") else set()
        everything = OmegaConf.to_container(cause.parent_node._get_root(), resolve=False)
        return f"there is no key {key}: {_way_out(str(cause.key), names, everything)}"
    if unknown := re.match(r"Could not override '([^']+)'", str(error)):  # in one of Hydra's own parts
        return f"there is no key {unknown[1]}: {_way_out(unknown[1].rpartition('.')[2], names)}"
    return ""


def _unknown_group(text: str) -> str:
    if _NO_NULL in text:
        return "a config group cannot be null: choose one of its files, such as logger=none or lr_scheduler=constant"
    if unknown := re.match(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{environment.current().program} has no config group {unknown[1]}: {_way_out(unknown[1], _groups())}"
    if unknown := re.match(r"Could not delete (?:from config\. )?'(([^'=]+)=?([^']*))'", text):
        typed, key, choice = unknown.groups()
        settings = [setting.key for setting in menu.settings(_confs(), environment.current().program)]
        names = menu.choices(_confs(), key) if choice else [*_groups(), *settings]
        return f"~{typed} takes nothing away: {_way_out(choice or key, names)}"
    return ""


def _unreadable(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: unbalanced bracket, or a value with spaces or = that needs quotes: 'key=\"a b\"'"
    if several := re.match(r"Ambiguous value for argument '([^'=]+)=([^']+)'", str(error)):
        key, values = several[1], several[2]
        return f"{key}={values} holds several values: give -m for a job with each, or {key}=[{values}] for a list"
    return ""


def _way_out(wrong: str, valid: Iterable[str], everything: object = None) -> str:
    """The nearest of the valid names, else a key of that name elsewhere in the config; and all that are valid."""
    names = sorted(set(valid))
    near = get_close_matches(wrong, names, n=1) or [path for path in _paths(everything) if path.endswith(f".{wrong}")]
    return (f"did you mean {near[0]}? " if near else "") + f"(choose from {', '.join(names)})"


def _paths(node: object, above: str = "") -> Iterator[str]:
    """All keys of a plain config, the outer ones first, without Hydra's own."""
    below = [(f"{above}{key}", child) for key, child in node.items()] if isinstance(node, dict) else []
    yield from (path for path, _ in below)
    for path, child in below:
        if path != "hydra":
            yield from _paths(child, f"{path}.")


def _groups() -> list[str]:
    return [group.name for group in menu.groups(_confs(), environment.current().program)]


def _confs() -> list[Path]:
    return menu.folders(sys.argv[1:])
