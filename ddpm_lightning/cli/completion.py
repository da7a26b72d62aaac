"""The Tab key: `eval "$(ddpm-train -sc install=bash)"`, and what the shell then asks for at each press of it."""

import glob
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from ddpm_lightning import environment
from ddpm_lightning.cli import menu
from ddpm_lightning.ranges import require_one_of
from ddpm_lightning.records.yaml import quoted

__all__ = ["FLAGS", "answer_shell", "completions"]

FLAGS = ("-sc", "--shell-completion", "--shell_completion")
_STARTERS = ("python", "python3", "torchrun")

_BASH = """_ddpm_lightning_complete() {{
    COMPREPLY=()
    case "$COMP_LINE" in {patterns}) ;; *) return ;; esac
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        {python} {script} -sc query=bash 2>/dev/null))
}}
complete -o nospace -o default -F _ddpm_lightning_complete {commands}"""

_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + _BASH

_FISH = """function _ddpm_lightning_complete
    set -lx COMP_LINE (commandline -cp)
    {python} {script} -sc query=fish 2>/dev/null
end
function _ddpm_lightning_asked
    string match -qr '({names})\\s' -- (commandline -cp)
end
for name in {commands}
    complete -c $name -n _ddpm_lightning_asked -x -a '(_ddpm_lightning_complete)'
end"""

_INSTALL = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_UNINSTALL = {
    "bash": "complete -r {commands}; unset -f _ddpm_lightning_complete",
    "zsh": "compdef -d {commands}; unset -f _ddpm_lightning_complete",
    "fish": "for name in {commands}; complete -e -c $name; end; functions -e _ddpm_lightning_complete _ddpm_lightning_asked",
}


def answer_shell(argv: Sequence[str]) -> str:
    """What to print: the lines to evaluate for `install=` and `uninstall=`, one completion a line for `query=`.

    Raises:
        UserError: for another shell or action.
    """
    wish = next((argument for argument in argv if argument not in FLAGS), "")
    choices = [f"{action}={shell}" for action in ("install", "uninstall", "query") for shell in _INSTALL]
    require_one_of("-sc", wish, choices)
    action, _, shell = wish.partition("=")
    if action == "query":
        return "\n".join(_answer())
    scripts = [script for name in menu.programs() for script in (f"{name}.py", f"ddpm-{name}")]
    text = (_INSTALL if action == "install" else _UNINSTALL)[shell]
    return text.format(
        python=shlex.quote(sys.executable),
        script=shlex.quote(environment.current().script),
        patterns="|".join(f"*{script}\\ *" for script in scripts),
        names="|".join(map(re.escape, scripts)),
        commands=" ".join([*_STARTERS, *(script for script in scripts if script.startswith("ddpm-"))]),
    )


def _answer() -> list[str]:
    """The completions of the line that a shell holds; of each, bash needs what follows the last of its word breaks."""
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    names = "|".join(menu.programs())
    match = re.search(rf"(?:^|[\s/])(?:({names})\.py|ddpm-({names}))\s+(.*)", line, re.DOTALL)
    if not match:
        return []
    program, words = match[1] or match[2], match[3].split()
    word = words.pop() if words and not line[-1].isspace() else ""
    breaks = {*os.environ.get("COMP_WORDBREAKS", "")} & {"=", ":"}
    start = max((word.rfind(mark) + 1 for mark in breaks), default=0)
    return [found[start:] for found in completions(menu.folders(words), program, words, word)]


def completions(confs: Sequence[Path], program: str, words: Sequence[str], word: str) -> list[str]:
    """The words that a begun word of a program's command line can become.

    Args:
        words: those before it, which say what is chosen already.
    """
    mark = word[:1] if word[:1] in ("+", "~") else ""
    key, equals, value = word.removeprefix(mark).partition("=")
    found = _values(confs, program, words, key, value) if equals else _keys(confs, program, words, key, mark)
    return sorted({mark + each for each in found})


def _keys(confs: Sequence[Path], program: str, words: Sequence[str], begun: str, mark: str) -> Iterator[str]:
    end = "" if mark == "~" else "="
    groups = [group.name for group in menu.groups(confs, program)] if mark != "+" else menu.all_groups(confs)
    yield from (name + end for name in groups if name.startswith(begun))
    if begun.startswith("hydra/"):
        yield from (f"hydra/{name}=" for name in _options(confs, "hydra") if name.startswith(begun[6:]))
    if "/" in begun or mark == "+":
        return
    parent, dot, last = begun.rpartition(".")
    section = _entry(_compose(confs, program, words), parent)
    for name, entry in section.items() if isinstance(section, dict) else ():
        if str(name).startswith(last) and (parent or begun.startswith("hydra") or name != "hydra"):
            yield f"{parent}{dot}{name}" + ("." if isinstance(entry, dict) else end)


def _values(confs: Sequence[Path], program: str, words: Sequence[str], key: str, begun: str) -> Iterator[str]:
    before, comma, last = begun.rpartition(",")
    settings = {setting.key: setting.values for setting in menu.settings(confs, program)}
    parts = {*menu.parts(confs, key)}  # which stand in a list, `callbacks=[default,scatter]`
    if listed := [name for name in _options(confs, key) if name not in parts] or settings.get(key):
        yield from (f"{key}={before}{comma}{each}" for each in listed if each.startswith(last))
        return
    value = None if begun else _entry(_compose(confs, program, words), key)
    if isinstance(value, bool):
        yield from (f"{key}=false", f"{key}=true")
    elif isinstance(value, int | float | str) and re.fullmatch(r"[\w./,:+-]*", str(value)):
        yield f"{key}={value}"
    elif begun or re.search(r"(path|dir|root|from|resume)$", key):
        yield from (f"{key}={path}" for path in _paths(begun))


def _compose(confs: Sequence[Path], program: str, words: Sequence[str]) -> Any:
    """The config of what is typed so far, as it is written: of a list of values the first, and without what cannot be read."""
    typed = [
        re.sub(r"^([^=]+=[\w./-]+),.*", r"\1", word)
        for word in words
        if re.fullmatch(r"[+~]*[\w./@]+(=[^\"']*)?", word)
    ]
    own = [f"hydra.searchpath=[{','.join(map(quoted, confs[1:]))}]"]
    groups = {*menu.all_groups(confs)}
    with initialize_config_dir(str(confs[0]), version_base="1.3"):
        for overrides in (typed, [word for word in typed if word.partition("=")[0] in groups], []):
            try:
                return OmegaConf.to_container(compose(program, [*own, *overrides], return_hydra_config=True))
            except Exception:  # what is wrong is said when the line is run
                continue
    return None


def _options(confs: Sequence[Path], group: str) -> list[str]:
    """The choices of a group, those of installed plugins among them, or Hydra's own groups; empty for what is no group."""
    kind = ObjectType.GROUP if group == "hydra" else ObjectType.CONFIG
    with initialize_config_dir(str(confs[0]), version_base="1.3"):
        hydras = GlobalHydra.instance().config_loader().get_group_options(group, results_filter=kind)
    return sorted({*hydras, *menu.choices(confs, group)})


def _entry(config: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _paths(begun: str) -> Iterator[str]:
    folder, slash, last = begun.rpartition("/")
    root = os.path.expanduser(folder + slash)
    for name in sorted(glob.glob(f"{glob.escape(last)}*", root_dir=root or None)):
        if " " not in name:
            yield f"{folder}{slash}{name}" + "/" * os.path.isdir(root + name)
