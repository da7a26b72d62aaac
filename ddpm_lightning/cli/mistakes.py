"""An error in one sentence; for a wrong name on the command line, with what was meant: the nearest right one, or the field's other name."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning import environment
from ddpm_lightning.cli import menu
from ddpm_lightning.cli.aliases import ALIASES
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.ranges import require_one_of

__all__ = ["check_typed", "is_foreseen", "meant", "sentence"]

_NO_NULL = "Config group override must be"  # Hydra raises it as a ValueError

_EXTRAS = {  # Hydra's plugins, and what installs them
    "hydra/sweeper/optuna": "optuna",
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
}

_ACTIONS = {name: action for action in get_args_parser()._actions for name in action.option_strings}
_VALUE = 60  # characters of a value that are said again


def check_typed(argv: Sequence[str]) -> None:
    """Refuse what Hydra would read as something else, or would say less of: words that are no KEY=VALUE, and other names of values.

    Raises:
        UserError: that says what to type instead.
    """
    words = [*argv]
    for i, argument in enumerate(words):
        if takes_value(words[i - 1]) and i:
            continue
        if argument.startswith("-"):
            _check_flag(argument, words[i + 1 :])
        elif argument[:1] not in ("~", ""):
            _check_word(argument, words[i + 1 :])
    for argument in argv:
        key, equals, value = argument.partition("=")
        group = key.lstrip("+").replace(".", "/")
        if "." in key and value in menu.choices(_confs(), group):
            raise UserError(f"{argument} sets a key, and {group} is a config group: did you mean {group}={value}?")
        if equals:
            _check_value(key, value)
            _check_part(key, value)


def takes_value(flag: str) -> bool:
    """Whether the word behind a flag of Hydra's may be its value."""
    return flag in _ACTIONS and _ACTIONS[flag].nargs in (None, "?")


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
        row = rows.get(_plain(typed)) or rows.get(f"{_plain(key)}=")
        if row is None:
            break
        value = _short(value.strip("[]'\" ")) or "..."
        now, _, more = row.replace("{}", value).partition("# ")
        found, note = now.strip(), more or note
        typed = found
    return found, note


def _meant(typed: str) -> str:
    """The question that names it; empty where nothing is known."""
    found, note = meant(environment.current().program, typed)
    if not found:
        return note
    return f"did you mean {found} ({note})?" if note else f"did you mean {found}?"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _short(value: str) -> str:
    return value if len(value) <= _VALUE else "..."


def _check_flag(flag: str, behind: Sequence[str]) -> None:
    """Refuse a flag that Hydra does not have, as in `--schedule cosine`; a flag may be shortened, or hold its value."""
    name, equals, value = flag.partition("=")
    shortened = flag.startswith("--") and any(known.startswith(name) for known in _ACTIONS)
    if name in _ACTIONS or shortened or (flag[:2] in _ACTIONS and not equals and takes_value(flag[:2])):
        return
    key = name.lstrip("-")
    if not equals and behind and not behind[0].startswith("-") and "=" not in behind[0]:
        equals, value = "=", behind[0]
        flag = f"{flag} {value}"
    raise UserError(f"there is no flag {_short(flag)}: {_as_setting(key + equals + value)}")


def _check_word(word: str, behind: Sequence[str]) -> None:
    """Refuse a word without `=`, such as `cuda`, or one that belongs to the next, as in `schedule cosine`."""
    key, equals, value = word.partition("=")
    if key and value:
        return
    said, following = word, behind[0] if behind and not behind[0].startswith("-") else ""
    if following == "=":  # key = value
        word, following = f"{word} =", behind[1] if behind[1:] else ""
    if key and following and ("=" not in following or (following.startswith("=") and not equals)):
        value, said = following.lstrip("="), f"{word} {following}"
    elif key and equals:
        return  # an empty value
    elif ":" in key:
        key, _, value = key.partition(":")
    typed = f"{key}={value}" if value else key
    raise UserError(f"{_short(said)} must be KEY=VALUE, without spaces: {_as_setting(typed)}")


def _as_setting(typed: str) -> str:
    """What is typed for words that are no setting: the nearest one."""
    if said := _meant(typed):
        return said
    key, _, value = typed.partition("=")
    names = [*_groups(), *_settings()]
    near = [_plain(key)] if "." in key else _near(key, names)
    if near:
        return f"did you mean {near[0]}={_short(value) or '...'}?"
    return "give settings as in sampler.num_steps=20; --help lists them"


def _check_value(key: str, value: str) -> None:
    """Refuse another name of a setting's value; of a group the user may have a choice of that name."""
    program, settings = environment.current().program, _settings()
    if key in _groups() or not ("." in key or key in settings):
        return
    for one in value.split(","):
        if f"{_plain(key)}={_plain(one)}" in ALIASES.get(program, {}):
            said = _meant(f"{key}={one}")
            if listed := settings[key].values if key in settings else []:
                require_one_of(key, one, listed, hint=said)
            else:
                raise UserError(f"there is no {key}={one}: {said}")


def _check_part(group: str, value: str) -> None:
    """Refuse a single part in place of a group's whole list: a run with `callbacks=ema` alone would save no checkpoint."""
    found = next((one for one in menu.groups(_confs(), environment.current().program) if one.name == group), None)
    parts = menu.parts(_confs(), group) if found else []
    for one in value.split(","):
        if found and one in parts:
            fix = f"did you mean {group}=[{found.default},{one}]?"
            if one in menu.members(_confs(), f"{group}/{found.default}"):
                fix = f"leave it out, since {group}={found.default} includes it, or list all parts, as in {group}=[{one},...]"
            whole = ", ".join(name for name in menu.choices(_confs(), group) if name not in parts)
            raise UserError(f"{group}={one} is a single part: {fix} (choose from {whole})")


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _missing_choice(error: BaseException) -> str:
    if not (isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None):
        return ""
    group, _, choice = error.missing_cfg_file.rpartition("/")
    if extra := _EXTRAS.get(error.missing_cfg_file):
        return f'{group}={choice} is not installed: pip install "ddpm_lightning[{extra}]"'
    said = f"{group}={choice}"
    whole = {*error.options} - {*menu.parts(_confs(), group)} or error.options
    return f"{said} does not exist: {_way_out(choice, whole, f'{group}=', typed=said)}"


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
    elif unknown := re.match(r"Could not override '([^']+)'", str(error)):  # in one of Hydra's own parts
        key, everything = unknown[1], None
    else:
        return ""
    parent, dot, last = key.rpartition(".")
    rest = _behind(key)
    said = _way_out(last, names, parent + dot, typed=key + rest, rest=rest, everything=everything)
    return f"there is no key {key}: {said}"


def _unknown_group(text: str) -> str:
    if _NO_NULL in text:
        return "a config group cannot be null: choose one of its files, such as logger=none or lr_scheduler=constant"
    if unknown := re.match(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        group, rest = unknown[1], _behind(unknown[1])
        said = _way_out(group, _groups(), typed=group + rest, rest=rest)
        return f"{environment.current().program} has no config group {group}: {said}"
    if unknown := re.match(r"Could not delete (?:from config\. )?'(([^'=]+)=?([^']*))'", text):
        typed, key, choice = unknown.groups()
        names = menu.choices(_confs(), key) if choice else [*_groups(), *_settings()]
        return f"~{typed} takes nothing away: {_way_out(choice or key, names, f'~{key}=' if choice else '~')}"
    return ""


def _unreadable(error: BaseException) -> str:
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: unbalanced bracket, or a value with spaces or = that needs quotes: 'key=\"a b\"'"
    if several := re.match(r"Ambiguous value for argument '([^'=]+)=([^']+)'", str(error)):
        key, values = several[1], several[2]
        if key not in {*_groups(), *_settings()} and (said := _meant(f"{key}={values}")):
            return f"there is no key {key}: {said}"
        return f"{key}={values} holds several values: give -m for a job with each, or {key}=[{values}] for a list"
    return ""


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
    if typed and (said := _meant(typed)):
        return f"{said} {listed}" if before.endswith("=") else said
    elsewhere = [path for path in _paths(everything) if path.endswith(f".{wrong}")]
    close, far = ([before + name for name in _near(wrong, names, cutoff)] for cutoff in (0.8, 0.6))
    near = close or elsewhere or far
    return f"did you mean {near[0]}{rest}? {listed}" if near else listed


def _near(wrong: str, names: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The nearest of the names, whatever the case of the letters."""
    return get_close_matches(_plain(wrong), names, n=1, cutoff=cutoff)


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


def _groups() -> list[str]:
    return [group.name for group in menu.groups(_confs(), environment.current().program)]


def _settings() -> dict[str, menu.Setting]:
    return {setting.key: setting for setting in menu.settings(_confs(), environment.current().program)}


def _confs() -> list[Path]:
    return menu.folders(sys.argv[1:])
