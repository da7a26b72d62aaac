"""What is refused of a command line before Hydra reads it: words that are no KEY=VALUE, other names of values, and single parts."""

import re
from collections.abc import Sequence
from pathlib import Path

from ddpm_lightning import environment
from ddpm_lightning.cli import menu
from ddpm_lightning.cli.aliases import ALIASES
from ddpm_lightning.cli.mistakes import (
    config_folders,
    group_names,
    known_settings,
    near_names,
    plain,
    shortened_value,
    suggestion,
    whole_choices,
)
from ddpm_lightning.cli.typed import FLAGS
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of

__all__ = ["check_typed"]


_OTHERS = {  # the values of settings that have several names in the field
    "resume": "auto or the folder of a run",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed or 32",
}


def check_typed(argv: Sequence[str]) -> None:
    """Refuse what Hydra would read as something else, or would say less of: words that are no KEY=VALUE, and other names of values.

    Raises:
        UserError: that says what to type instead.
    """
    confs = config_folders()
    groups = {group.name: group for group in menu.groups(confs, environment.current().program)}
    for i, argument in enumerate(argv):
        if i and _takes_value(argv[i - 1]):
            continue
        if argument.startswith("-"):
            _check_flag(argument, argv[i + 1 :])
        elif argument[:1] not in ("~", ""):
            _check_word(argument, argv[i + 1 :])
    for argument in argv:
        key, equals, value = argument.partition("=")
        group = key.lstrip("+").replace(".", "/")
        if "." in key and value in menu.choices(confs, group):
            raise UserError(f"{argument} sets a key, and {group} is a config group: did you mean {group}={value}?")
        if equals and key in groups:
            _check_part(confs, groups[key], value)
        elif equals:
            _check_value(key, value)


def _takes_value(flag: str) -> bool:
    """Whether the word behind a flag of Hydra's may be its value."""
    return flag in FLAGS and FLAGS[flag].nargs in (None, "?")


def _check_flag(flag: str, behind: Sequence[str]) -> None:
    """Refuse a flag that Hydra does not have, as in `--schedule cosine`; a flag may be shortened, or hold its value."""
    name, equals, value = flag.partition("=")
    shortened = flag.startswith("--") and any(known.startswith(name) for known in FLAGS)
    if name in FLAGS or shortened or (flag[:2] in FLAGS and not equals and _takes_value(flag[:2])):
        return
    key = name.lstrip("-")
    if not equals and behind and not behind[0].startswith("-") and "=" not in behind[0]:
        equals, value = "=", behind[0]
        flag = f"{flag} {value}"
    raise UserError(f"there is no flag {shortened_value(flag)}: {_as_setting(key + equals + value)}")


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
    raise UserError(f"{shortened_value(said)} must be KEY=VALUE, without spaces: {_as_setting(typed)}")


def _as_setting(typed: str) -> str:
    """What is typed for words that are no setting: the nearest one."""
    if said := suggestion(typed):
        return said
    key, _, value = typed.partition("=")
    group, dot, choice = key.rpartition(".")
    if dot and not value and choice in menu.choices(config_folders(), group.replace(".", "/")):
        return f"did you mean {group.replace('.', '/')}={choice}?"
    within = {
        path.rpartition(".")[2]: path for path in menu.inner_settings(config_folders(), environment.current().program)
    }
    names = [*group_names(), *known_settings()]
    near = [plain(key)] if "." in key else near_names(key, names, 0.8) or near_names(key, [*names, *within])
    near = [within.get(name, name) if name not in names else name for name in near]
    if near:
        return f"did you mean {near[0]}={shortened_value(value) or '...'}?"
    return "give settings as in sampler.num_steps=20; --help lists them"


def _check_value(key: str, value: str) -> None:
    """Refuse another name of a setting's value; of a group the user may have a choice of that name."""
    program = environment.current().program
    others = [one for one in value.split(",") if f"{plain(key)}={plain(one)}" in ALIASES.get(program, {})]
    ranged = re.fullmatch(r"(\d+)(?:-|:|\.\.)(\d+)", value)
    settings = known_settings() if others or ranged else {}
    if ranged and key in settings and settings[key].value.isdecimal():
        several = f"{key}=range({ranged[1]},{int(ranged[2]) + 1})"
        raise UserError(f"{key} must be an integer, got '{value}': write -m {several} for one job per value")
    for one in others if "." in key or key in settings else ():
        said = suggestion(f"{key}={one}")
        if listed := settings[key].values if key in settings else []:
            require_one_of(key, one, listed, hint=said)
        else:
            wanted = f"{_OTHERS[key]}, got {one}" if key in _OTHERS else f"something other than {one}"
            raise UserError(f"{key} must be {wanted}: {said}")


def _check_part(confs: Sequence[Path], group: menu.Group, value: str) -> None:
    """Refuse a single part in place of a group's whole list: a run with `callbacks=ema` alone would save no checkpoint."""
    name, default, parts = group.name, group.default, menu.parts(confs, group.name)
    for one in value.split(","):
        if one in parts:
            sets = ", ".join(whole_choices(name))
            fix = f"add it to a complete set ({sets}), as in {name}=[{default},{one}]"
            if one in menu.members(confs, f"{name}/{default}"):
                fix = f"omit it ({name}={default} includes it), choose a complete set ({sets}), or list every part, as in {name}=[{one},...]"
            raise UserError(f"{name}={one} selects only that part: {fix}")
