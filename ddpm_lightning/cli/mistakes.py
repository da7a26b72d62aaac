"""An error in one sentence; for a wrong name on the command line, with what was meant: the nearest right one, or the field's other name."""

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
from ddpm_lightning.cli.aliases import ALIASES
from ddpm_lightning.errors import UserError, brief

__all__ = [
    "config_folders",
    "group_names",
    "is_foreseen",
    "known_settings",
    "meant",
    "near_names",
    "plain",
    "sentence",
    "shortened_value",
    "suggestion",
    "whole_choices",
]

_NO_NULL = "Config group override must be"  # Hydra raises it as a ValueError

_EXTRAS = {  # Hydra's plugins, and what installs them
    "hydra/sweeper/optuna": "optuna",
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
}

_VALUE = 60  # characters of a value that are said again


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


def meant(program: str, typed: str) -> tuple[str, str]:
    """What a program calls that which is typed under another name of the field, and a note; both empty where none is known.

    A name may stand for one that is another's, too: `device=cuda` is `trainer=cuda`, and that `trainer=gpu`.
    """
    rows, found, note = ALIASES.get(program, {}), "", ""
    for _ in range(4):
        key, _, value = typed.partition("=")
        row = rows.get(plain(typed)) or rows.get(f"{plain(key)}=")
        if row is None:
            break
        value = shortened_value(value.strip("[]'\" ")) or "..."
        now, _, more = row.replace("{}", value).partition("# ")
        found, note = now.strip(), more or note
        typed = found
    return found, note


def suggestion(typed: str) -> str:
    """The question that names it; empty where nothing is known."""
    found, note = meant(environment.current().program, typed)
    if not found:
        return note
    return f"did you mean {found} ({note})?" if note else f"did you mean {found}?"


def plain(name: str) -> str:
    """A name as the table of other names has it."""
    return name.lower().replace("-", "_")


def shortened_value(value: str) -> str:
    """A value as it is said again; dots for a long one."""
    return value if len(value) <= _VALUE else "..."


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, UserError):  # which says itself what is short
        return False
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _missing_choice(error: BaseException) -> str:
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None):
        return ""
    group, _, choice = error.missing_cfg_file.rpartition("/")
    if extra := _EXTRAS.get(error.missing_cfg_file):
        return f'{group}={choice} is not installed: pip install "ddpm_lightning[{extra}]"'
    said = f"{group}={choice}"
    return f"{said} does not exist{_joined(_way_out(choice, whole_choices(group) or error.options, f'{group}=', typed=said))}"


def _unknown_key(error: BaseException, cause: BaseException) -> str:
    if not isinstance(cause, OmegaConfBaseException) or cause.parent_node is None or cause.key is None:
        return ""
    key, names = cause.full_key or str(cause.key), {str(name) for name in cause.parent_node}
    if "not in struct" in str(cause):
        if cause.parent_node._get_parent() is None:  # at the top, where groups can be given, too
            if key in (groups := {*group_names()}):
                choices = ", ".join(whole_choices(key))
                if any(text.startswith(f"{key}.") for text in sys.argv[1:]) and f"~{key}" not in sys.argv:
                    return f"settings of {key} require {key}=...: add it, from {choices}"
                return f"{key} must not be empty: remove ~{key} (or {key}=[]) from the command line, or choose from {choices}"
            names = (names | groups) - {"hydra"}
            names |= {"hydra/launcher", "hydra/sweeper"} if key.startswith("hydra") else set()
        everything = OmegaConf.to_container(cause.parent_node._get_root(), resolve=False)
    elif unknown := re.match(r"Could not override '([^']+)'", str(error)):  # in one of Hydra's own parts
        key, everything = unknown[1], None
    else:
        return ""
    parent, dot, last = key.rpartition(".")
    if having := menu.choices_with(config_folders(), key):
        return f"there is no key {key} with this {parent}: it is a setting of {parent}={', '.join(having)}"
    rest = _behind(key)
    said = _way_out(last, names, parent + dot, typed=key + rest, rest=rest, everything=everything)
    return f"there is no key {key}{_joined(said)}"


def _unknown_group(text: str) -> str:
    program = environment.current().program
    if _NO_NULL in text:
        return "a config group cannot be null: choose one of its files, such as logger=none or lr_scheduler=constant"
    if unknown := re.match(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        group, rest = unknown[1], _behind(unknown[1])
        said = _way_out(group, group_names(), typed=group + rest, rest=rest)
        return f"{program} has no config group {group}{_joined(said)}"
    if unknown := re.match(r"Could not delete (?:from config\. )?'(([^'=]+)=?([^']*))'", text):
        typed, key, choice = unknown.groups()
        group, dot, name = key.rpartition(".")
        if dot and group in group_names() and not choice:
            names = [
                path.rpartition(".")[2]
                for path in menu.inner_settings(config_folders(), program)
                if path.startswith(f"{group}.")
            ]
            return f"~{typed} removes nothing: {group} has no key {name}{_joined(_way_out(name, names, f'~{group}.'))}"
        names = menu.choices(config_folders(), key) if choice else [*group_names(), *known_settings()]
        return f"~{typed} removes nothing: {_way_out(choice or key, names, f'~{key}=' if choice else '~')}"
    return ""


def whole_choices(group: str) -> list[str]:
    """The choices of a group that are not single parts, such as callbacks=ema."""
    parts = menu.parts(config_folders(), group)
    return [choice for choice in menu.choices(config_folders(), group) if choice not in parts]


def _number_of(key: str) -> str:
    """The default of a setting that is a number; empty for others."""
    within = menu.inner_settings(config_folders(), environment.current().program)
    setting = known_settings().get(key)
    default = setting.value if setting else within.get(key, "")
    return default if re.fullmatch(r"-?[\d.]+(e-?\d+)?", default) else ""


def _unreadable(error: BaseException) -> str:
    if missing := re.match(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]} has no default: give it on the command line, as in {missing[1]}=..."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: unbalanced bracket, or a value with spaces or = that needs quotes: 'key=\"a b\"'"
    if several := re.match(r"Ambiguous value for argument '([^'=]+)=([^']+)'", str(error)):
        key, values = several[1], several[2]
        if key not in {*group_names(), *known_settings()} and (said := suggestion(f"{key}={values}")):
            return f"there is no key {key}{_joined(said)}"
        count, number = values.count(",") + 1, _number_of(key)
        ways = "add -m for one job per value"
        if number and not number.isdecimal() and re.fullmatch(r"-?\d+,\d+", values):
            ways = f"write {key}={values.replace(',', '.')} for a number, or {ways}"
        elif not number and (key == "callbacks" or key not in group_names()):
            ways += f", or write {key}=[{values}] for a list"
        return f"{key}={values} has {'two' if count == 2 else count} values: {ways}"
    return ""


def _joined(said: str) -> str:
    """A suggestion follows a colon, a list of choices in parentheses a space."""
    return f" {said}" if said.startswith("(") else f": {said}"


def _way_out(
    wrong: str,
    valid: Iterable[str],
    before: str = "",
    *,
    typed: str = "",
    rest: str = "",
    everything: object = None,
) -> str:
    """What was meant by another name of the field, or else the nearest of the valid names, or a key of that name elsewhere.

    Args:
        wrong: the name.
        valid: the names in its place.
        before: what stands before the name.
        typed: the whole of what was typed.
        rest: what stands behind the name.
        everything: the config, as it is composed.
    """
    names = sorted(set(valid))
    listed = f"(choose from {', '.join(names)})"
    if typed and (said := suggestion(typed)):
        return f"{said} {listed}" if before.endswith("=") else said
    elsewhere = [path for path in _paths(everything) if path.endswith(f".{wrong}")]
    close, far = ([before + name for name in near_names(wrong, names, cutoff)] for cutoff in (0.8, 0.6))
    near = close or elsewhere or far
    return f"did you mean {near[0]}{rest}? {listed}" if near else listed


def near_names(wrong: str, names: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The nearest of the names, whatever the case of the letters."""
    return get_close_matches(plain(wrong), names, n=1, cutoff=cutoff)


def _behind(key: str) -> str:
    """What is typed behind a key, as `=3` or `.lr=3`; nothing where it is long, or is not typed."""
    typed = [argument.lstrip("+") for argument in sys.argv[1:]]
    found = [word[len(key) :] for word in typed if re.match(rf"{re.escape(key)}[=.]", word)]
    return found[-1] if found and len(found[-1]) <= _VALUE else ""


def _paths(node: object, above: str = "") -> Iterator[str]:
    """All keys of a plain config, the outer ones first, without Hydra's own."""
    below = [(f"{above}{key}", child) for key, child in node.items()] if isinstance(node, dict) else []
    yield from (path for path, _ in below)
    for path, child in below:
        if path != "hydra":
            yield from _paths(child, f"{path}.")


def group_names() -> list[str]:
    """The groups of the program that runs."""
    return [group.name for group in menu.groups(config_folders(), environment.current().program)]


def known_settings() -> dict[str, menu.Setting]:
    """Its settings, by their keys."""
    return {setting.key: setting for setting in menu.settings(config_folders(), environment.current().program)}


def config_folders() -> list[Path]:
    """The config folders of this command line."""
    return menu.folders(sys.argv[1:])
