"""`ddpm-train --help`: what a program does, each group with its choices, and the settings, as conf/ has them at the moment."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ddpm_lightning import environment
from ddpm_lightning.cli import menu

__all__ = ["FLAGS", "help_text", "show_help"]

FLAGS = ("-h", "--help")

_EXAMPLES = {
    "train": {
        "{train}": "digits, in two minutes on a CPU: no account, no download",
        "{train} model=unet_small schedule=cosine prediction=v trainer.max_steps=500": "choices and settings",
        "{train} experiment=digits_conditional": "an experiment by name",
        "{train} -m schedule=linear,cosine seed=0,1": "a sweep: one job for each combination, and a report",
        "{train} resume=auto": "resumes the newest unfinished run",
    },
    "sample": {
        "{sample}": "64 images from the newest run",
        "{sample} sampler=ddim sampler.num_steps=20 format=png": "in seconds, one file for each",
        "{sample} ckpt_path=outputs/<day>/<time> num_samples=1000 format=npz": "from this run, as one array",
        '{sample} "labels=[3,7]" guidance_scale=2': "of a model that was trained with labels",
        "{sample} edit=inpaint edit.input=photo.png edit.mask=mask.png": "fills in the white part of the mask",
    },
    "evaluate": {
        "{evaluate} num_samples=1500 sampler=dpmpp_2m sampler.num_steps=20": "the newest run",
        "{evaluate} -m num_samples=1500 sampler=ancestral,ddim sampler.num_steps=10,50": "a table of samplers",
        "{evaluate} ckpt_path=outputs/<day>/<time> features=inception": "as the papers compare",
    },
}

_ENVIRONMENT = {
    "DDPM_TRACEBACK=1": "shows an error's traceback, not one sentence",
    "DDPM_THEME=dark": "draws figures on a dark background",
    "DDPM_CACHE=FOLDER": "keeps classifiers, Inception's weights and reference features there, not in ~/.cache/ddpm_lightning",
    "DDPM_TRUST=mylab,other": "packages that checkpoints may name, as trust=[mylab,other]",
    "DDPM_ALLOW_PIPE=1": "lets a checkpoint's config run the commands (pipe:...) that its data are read with",
}

_MORE = {
    "{run} --cfg job": "every setting that there is; any of them can be given, as in sampler.num_steps=20",
    "{run} {group}=... --cfg job -p {group}": "those of one choice of {group}",
    "{run} -m KEY=A,B": "a sweep: one job for each value",
    "{run} --config-dir FOLDER model=MINE": "choices of your own, from a folder like conf/: docs/project.md",
    "{run} +KEY=VALUE, ~KEY": "add a setting that conf/ does not have; take one away",
    'eval "$({run} -sc install=bash)"': "completes groups, choices and settings with the Tab key: docs/completion.md",
    "{run} --hydra-help": "Hydra's own flags",
}


def show_help(program: str, does: str) -> None:
    """Print a program's help, as wide as the terminal, or 100 characters where there is none."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # Greek letters in a terminal that has none
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 140))
    try:
        print(help_text(menu.folders(sys.argv[1:]), program, does=does, width=width), flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(confs: Sequence[Path], program: str, *, does: str, width: int) -> str:
    """A program's help.

    Args:
        confs: the config folders, see `menu.folders`.
        program: train, sample or evaluate.
        does: what the program does, in a line.
        width: characters in a line.
    """
    names = {name: environment.command(name) for name in menu.programs()}
    groups = menu.groups(confs, program)
    run, names["run"], names["group"] = names[program], names[program], groups[0].name
    settings = [(f"{setting.key}={setting.value}", setting.about) for setting in menu.settings(confs, program)]
    parts = [
        [*_wrap(f"{does.rstrip('.')}.", "", width), "", f"  {run} GROUP=CHOICE ... KEY=VALUE ..."],
        ["Examples", *_examples(_filled(_EXAMPLES[program], names), width)],
        ["Groups and their choices (* is the default)"],
        *(_group(confs, group, width) for group in groups),
        ["Settings, with their defaults", *_table(settings, width)],
        ["More", *_table(_filled(_MORE, names), width)],
        ["Environment variables", *_table(_ENVIRONMENT.items(), width)],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _filled(rows: dict[str, str], names: dict[str, str]) -> list[tuple[str, str]]:
    return [(command.format(**names), what.format(**names)) for command, what in rows.items()]


def _group(confs: Sequence[Path], group: menu.Group, width: int) -> list[str]:
    head = f"{'' if group.listed else '+'}{group.name}="
    lines = _wrap(f"{head}  {group.about}".rstrip(), "  ", width)
    parts = menu.parts(confs, group.name)
    rows = [
        (f"{'*' if name == group.default else ' '} {name}", menu.about(confs, f"{group.name}/{name}"))
        for name in menu.choices(confs, group.name)
    ]
    whole = [row for row in rows if row[0][2:] not in parts]
    lines += _table(whole, width, indent="    ")
    if parts:
        more = next(
            (name for name in parts if name not in menu.members(confs, f"{group.name}/{group.default}")), parts[0]
        )
        lines += _wrap(f"and single parts, to add to one of these: {head}[{group.default},{more}]", "    ", width)
        lines += _table((row for row in rows if row not in whole), width, indent="    ")
    return lines


def _examples(examples: list[tuple[str, str]], width: int) -> Iterator[str]:
    for command, what in examples:
        yield f"  {command}"
        yield from _wrap(what, "      ", width)


def _table(rows: Iterable[tuple[str, str]], width: int, *, indent: str = "  ") -> Iterator[str]:
    """Two columns; what is too long for the first one has its comment below."""
    rows = [*rows]
    room = min(max((len(key) for key, _ in rows), default=0), max(16, width // 3 - len(indent)))
    hang = " " * (len(indent) + room + 2)
    for key, what in rows:
        left = f"{indent}{key:{room}}  "
        if len(key) > room or not what:
            yield left.rstrip()
            left = hang
        yield from _wrap(what, left, width, hang=hang)


def _wrap(text: str, indent: str, width: int, *, hang: str = "") -> list[str]:
    """Lines that begin with the indent, or with `hang` from the second on."""
    wrapper = textwrap.TextWrapper(width, indent, hang or indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)
