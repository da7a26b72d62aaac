"""`python train.py --help`: what a script does, each group with its choices, and the settings, as conf/ has them at the moment."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddpm_lightning.cli import menu

__all__ = ["FLAGS", "help_text", "show_help"]

FLAGS = ("-h", "--help")

_EXAMPLES = {
    "train": {
        "python train.py": "digits, in a minute or two on a CPU: no account, no download",
        "python train.py model=unet_small schedule=cosine prediction=v trainer.max_steps=500": "choices and settings",
        "python train.py experiment=digits_conditional": "an experiment by name",
        "python train.py -m schedule=linear,cosine seed=0,1": "a sweep: one job for each combination, and a report",
        "python train.py resume=auto": "resumes the newest unfinished run",
    },
    "sample": {
        "python sample.py": "64 images from the newest run",
        "python sample.py sampler=ddim sampler.num_steps=20 format=png": "in seconds, one file for each",
        "python sample.py ckpt_path=outputs/<day>/<time> num_samples=1000 format=npz": "from this run, as one array",
        'python sample.py "labels=[3,7]" guidance_scale=2': "of a model that was trained with labels",
    },
    "evaluate": {
        "python evaluate.py num_samples=1500 sampler=dpmpp_2m sampler.num_steps=20": "the newest run",
        "python evaluate.py -m num_samples=1500 sampler=ancestral,ddim sampler.num_steps=10,50": "a table of samplers",
        "python evaluate.py ckpt_path=outputs/<day>/<time> features=inception": "as the papers compare",
    },
}

_ENVIRONMENT = {
    "DDPM_TRACEBACK=1": "shows an error's traceback, not one sentence",
    "DDPM_CACHE=FOLDER": "keeps classifiers, Inception's weights and reference features there, not in ~/.cache/ddpm_lightning",
    "DDPM_ALLOW_PIPE=1": "lets a checkpoint's config run the commands (pipe:...) that its data are read with",
}

_MORE = {
    "{run} --cfg job": "every setting that there is; any of them can be given, as in sampler.num_steps=20",
    "{run} {group}=... --cfg job -p {group}": "those of one choice of {group}",
    "{run} -m KEY=A,B": "a sweep: one job for each value",
    "{run} +KEY=VALUE, ~KEY": "add a setting that conf/ does not have; take one away",
    'eval "$({run} -sc install=bash)"': "completes groups, choices and settings with the Tab key: docs/completion.md",
    "{run} --hydra-help": "Hydra's own flags",
}


def show_help(script: Path, does: str) -> None:
    """Print a script's help, as wide as the terminal, or 100 characters where there is none."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # Greek letters in a terminal that has none
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 140))
    try:
        print(help_text(script.parent / "conf", script.stem, does=does, width=width), flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(conf: Path, script: str, *, does: str, width: int) -> str:
    """A script's help.

    Args:
        does: what the script does, in a line.
        width: characters in a line.
    """
    run = f"python {script}.py"
    groups = menu.groups(conf, script)
    names = {"run": run, "group": groups[0].name if groups else "hydra"}
    settings = [(f"{setting.key}={setting.value}", setting.about) for setting in menu.settings(conf, script)]
    more = [(command.format(**names), what.format(**names)) for command, what in _MORE.items()]
    parts = [
        [*_wrap(f"{does.rstrip('.')}.", "", width), "", f"  {run} GROUP=CHOICE ... KEY=VALUE ..."],
        ["Examples", *_examples(_EXAMPLES.get(script, {}), width)],
        ["Groups, and what each of them can be (* is the default)"],
        *(_group(conf, group, width) for group in groups),
        ["Settings, with their defaults", *_table(settings, width)],
        ["More", *_table(more, width)],
        ["Environment variables", *_table(_ENVIRONMENT.items(), width)],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _group(conf: Path, group: menu.Group, width: int) -> list[str]:
    head = f"{'' if group.listed else '+'}{group.name}="
    lines = _wrap(f"{head}  {group.about}".rstrip(), "  ", width)
    rows = [
        (f"{'*' if name == group.default else ' '} {name}", menu.about(conf / group.name / f"{name}.yaml"))
        for name in menu.choices(conf, group.name)
    ]
    return [*lines, *_table(rows, width, indent="    ")]


def _examples(examples: dict[str, str], width: int) -> Iterator[str]:
    for command, what in examples.items():
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
