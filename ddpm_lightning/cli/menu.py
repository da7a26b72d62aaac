"""What conf/ offers, read from its files without Hydra: groups, their choices, top-level settings, and a line about each."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm_lightning import environment

__all__ = [
    "Group",
    "Setting",
    "about",
    "all_groups",
    "choices",
    "conf_folder",
    "entry_point",
    "groups",
    "scripts",
    "settings",
]

_DEFAULTS = re.compile(r"^defaults:\n(?:  - .*\n?)*", re.MULTILINE)
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
    """A top-level setting of a script: `key=value` on the command line, and the comment beside it."""

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


def entry_point() -> Path:
    """The entry point that the user started."""
    return Path(environment.current().script or sys.argv[0]).resolve()


def conf_folder() -> Path:
    """The configs beside the script that the user started, or else our own."""
    beside = entry_point().parent / "conf"
    return beside if (beside / "train.yaml").is_file() else Path(__file__).parents[2] / "conf"


def scripts(conf: Path) -> list[str]:
    """The names of the entry points that have a config beside the groups: evaluate, sample and train."""
    return sorted(path.stem for path in conf.glob("*.yaml"))


def groups(conf: Path, script: str) -> list[Group]:
    """The groups of a script in the order of its defaults list, each with those inside it; new ones that no script lists come last."""
    listed = _defaults(conf / f"{script}.yaml")
    found = []
    for top in listed:
        found += [top, *_inside(conf, top)]
    known = {group.name for name in scripts(conf) for group in _defaults(conf / f"{name}.yaml")}
    others = [name for name in all_groups(conf) if "/" not in name and name not in known]
    return found + [Group(name, listed=False) for name in others]


def all_groups(conf: Path) -> list[str]:
    """The names of all groups but Hydra's own."""
    folders = {path.parent.relative_to(conf).as_posix() for path in conf.rglob("*.yaml")}
    return sorted(name for name in folders if name != "." and name.partition("/")[0] != "hydra")


def choices(conf: Path, group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def about(path: Path) -> str:
    """The first comment line of a YAML file, or the comment at the end of its first line; empty where it has neither."""
    first = next((line for line in _text(path).splitlines() if line and not line.startswith("# @")), "")
    head, mark, comment = first.partition("# ")
    if not mark or (head and not head.endswith(": ")):
        return ""
    return comment if comment.endswith("..") else comment.removesuffix(".")


def settings(conf: Path, script: str) -> list[Setting]:
    """The top-level settings of a script that are one value each."""
    return [Setting(*found) for found in _SETTING.findall(_text(conf / f"{script}.yaml"))]


def _defaults(path: Path) -> list[Group]:
    """The groups in a file's defaults list; what overrides others is left out."""
    listed = _DEFAULTS.search(_text(path))
    found = _DEFAULT.findall(listed[0]) if listed else []
    return [Group(name, None if choice == "null" else choice, comment) for name, choice, comment in found]


def _inside(conf: Path, top: Group) -> Iterator[Group]:
    chosen = {f"{top.name}/{inner.name}": inner for inner in _defaults(conf / top.name / f"{top.default}.yaml")}
    for name in all_groups(conf):
        if name.startswith(f"{top.name}/"):
            yield replace(chosen.get(name, Group(name)), name=name)


def _text(path: Path) -> str:
    """A file's text; none where there is no such file, as for a script that has no conf/ beside it."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""
