"""What conf/ and a user's own config folders offer, read without Hydra: groups, their choices, settings, and a line about each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ddpm_lightning import CONF_DIR, environment

__all__ = [
    "CONFIG_DIR",
    "Group",
    "Setting",
    "about",
    "all_groups",
    "choices",
    "choices_with",
    "conf_folder",
    "folders",
    "groups",
    "inner_settings",
    "members",
    "parts",
    "programs",
    "settings",
]

CONFIG_DIR = ("--config-dir", "-cd")

_DEFAULTS = re.compile(r"^defaults:\n(?:  - .*\n?)*", re.MULTILINE)
_MEMBER = re.compile(r"^  - (\w+)(?: +# .*)?$", re.MULTILINE)
_DEFAULT = re.compile(r"^  - /?([\w/]+): ([\w/]+)(?: +# (.*))?$", re.MULTILINE)
_SETTING = re.compile(r"^(\w+): +(.+?)(?: +# (.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Group:
    """A group of conf/: `name=choice` on the command line, and what it is by default, or None where nothing is."""

    name: str
    default: str | None = None
    about: str = ""
    listed: bool = True  # else it is added with a plus


@dataclass(frozen=True)
class Setting:
    """A top-level setting of a program: `key=value` on the command line, and the comment beside it."""

    key: str
    value: str
    about: str

    @property
    def values(self) -> list[str]:
        """The values that its comment lists, as in `grid | png | npz`."""
        if self.value in ("true", "false"):
            return ["false", "true"]
        listed = re.match(r"\w+( \| \w+)+", self.about)
        return listed[0].split(" | ") if listed else []


def conf_folder() -> Path:
    """The package's configs, or those beside the script that the user started."""
    script = environment.current().script
    beside = Path(script).resolve().parent / "conf"
    return beside if script and (beside / "train.yaml").is_file() else Path(CONF_DIR)


def folders(argv: Sequence[str]) -> list[Path]:
    """The config folders of a command line: ours, then those of --config-dir and hydra.searchpath."""
    found = [conf_folder()]
    for i, argument in enumerate(argv):
        key, equals, value = argument.partition("=")
        if key in CONFIG_DIR and (value or argv[i + 1 :]):
            found.append(Path(value if equals else argv[i + 1]))
        elif key == "hydra.searchpath":
            found += [_folder(path.strip("'\" ")) for path in value.strip("[]'\"").split(",")]
    return [folder.expanduser().absolute() for folder in found]


def _folder(searched: str) -> Path:
    """The folder of a search path: file://FOLDER, pkg://a.package, or the folder itself."""
    if not searched.startswith("pkg://"):
        return Path(searched.removeprefix("file://"))
    spec = find_spec(searched.removeprefix("pkg://"))
    return Path(next(iter((spec and spec.submodule_search_locations) or [searched])))


def programs() -> list[str]:
    """The names of the programs, each of which has a config beside the groups: evaluate, sample and train."""
    return sorted(path.stem for path in conf_folder().glob("*.yaml"))


def groups(confs: Sequence[Path], program: str) -> list[Group]:
    """The groups of a program in the order of its defaults list, each with those inside it; new ones that no program lists come last."""
    found = []
    for top in _defaults(confs, program):
        found += [top, *_inside(confs, top)]
    known = {group.name for name in programs() for group in _defaults(confs, name)}
    others = [name for name in all_groups(confs) if "/" not in name and name not in known]
    return found + [Group(name, listed=False) for name in others]


def all_groups(confs: Sequence[Path]) -> list[str]:
    """The names of all groups but Hydra's own."""
    found = {path.parent.relative_to(conf).as_posix() for conf in confs for path in conf.rglob("*.yaml")}
    return sorted(name for name in found if name != "." and name.partition("/")[0] != "hydra")


def choices(confs: Sequence[Path], group: str) -> list[str]:
    """The names of a group's files."""
    return sorted({path.stem for conf in confs for path in (conf / group).glob("*.yaml")})


def parts(confs: Sequence[Path], group: str) -> list[str]:
    """Those of a group's files that are single parts: others list several of them, as callbacks/default.yaml does."""
    lists = {name: members(confs, f"{group}/{name}") for name in choices(confs, group)}
    return sorted({name for listed in lists.values() if listed[1:] for name in listed if not lists.get(name)})


def members(confs: Sequence[Path], name: str) -> list[str]:
    """The files of its own group that a config's defaults list names."""
    listed = _DEFAULTS.search(_text(confs, name))
    return [member for member in _MEMBER.findall(listed[0]) if member != "_self_"] if listed else []


def about(confs: Sequence[Path], name: str) -> str:
    """The first comment line of a config, or the comment at the end of its first line; empty where it has neither."""
    first = next((line for line in _text(confs, name).splitlines() if line and not line.startswith("# @")), "")
    head, mark, comment = first.partition("# ")
    if not mark or (head and not head.endswith(": ")):
        return ""
    return comment if comment.endswith("..") else comment.removesuffix(".")


def settings(confs: Sequence[Path], program: str) -> list[Setting]:
    """The top-level settings of a program that are one value each."""
    return [Setting(*found) for found in _SETTING.findall(_text(confs, program))]


def inner_settings(confs: Sequence[Path], program: str) -> dict[str, str]:
    """The keys within a program's groups as they are chosen by default, as in `trainer.max_steps`, each with its value."""
    found: dict[str, str] = {}
    for group in (group for group in groups(confs, program) if group.default):
        files, prefix = [f"{group.name}/{group.default}"], group.name.replace("/", ".")
        for name in files:
            files += [f"{group.name}/{member}" for member in members(confs, name)]
            for key, value, _ in _SETTING.findall(_text(confs, name)):
                if key[0] != "_":
                    found.setdefault(f"{prefix}.{key}", value)
    return found


def choices_with(confs: Sequence[Path], key: str) -> list[str]:
    """The choices of a group that have a setting, as image_folder and arrays of `data` have `data.value_range`."""
    group, _, name = key.rpartition(".")
    group = group.replace(".", "/")
    return [
        choice
        for choice in choices(confs, group)
        if any(found[0] == name for found in _SETTING.findall(_text(confs, f"{group}/{choice}")))
    ]


def _defaults(confs: Sequence[Path], name: str) -> list[Group]:
    """The groups in a config's defaults list; what overrides others is left out."""
    listed = _DEFAULTS.search(_text(confs, name))
    found = _DEFAULT.findall(listed[0]) if listed else []
    return [Group(name, None if choice == "null" else choice, comment) for name, choice, comment in found]


def _inside(confs: Sequence[Path], top: Group) -> Iterator[Group]:
    chosen = {f"{top.name}/{inner.name}": inner for inner in _defaults(confs, f"{top.name}/{top.default}")}
    for name in all_groups(confs):
        if name.startswith(f"{top.name}/"):
            yield replace(chosen.get(name, Group(name)), name=name)


def _text(confs: Sequence[Path], name: str) -> str:
    """The text of the first file of a name, as Hydra finds it; none where there is no such file."""
    path = next((path for conf in confs if (path := conf / f"{name}.yaml").is_file()), None)
    return path.read_text(encoding="utf-8") if path else ""
